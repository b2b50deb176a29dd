"""The manifests of Kubernetes and the unit of systemd fit their platforms and the service."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.settings import Settings
from streams.environment import PREFIX

DOCKER = Path(__file__).parents[2] / "docker"
SERVICE, STATEFUL = yaml.safe_load_all((DOCKER / "kubernetes" / "funnel.yaml").read_text())
APART = [*yaml.safe_load_all((DOCKER / "kubernetes" / "apart.yaml").read_text())]
POD: dict[str, Any] = STATEFUL["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]
UNIT = (DOCKER / "funnel.service").read_text()
STOP_SECONDS = 50
"""Longest stop of the service (docker/operate.md)."""


@pytest.mark.parametrize("version", ["1.33", "1.37"])
@pytest.mark.parametrize(
    "manifest",
    [SERVICE, STATEFUL, *APART],
    ids=lambda manifest: f"{manifest['kind']}-{manifest['metadata']['name']}",
)
def test_the_manifests_are_valid(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_what_is_set_is_a_setting() -> None:
    in_pods = {variable["name"] for variable in CONTAINER["env"]}
    in_unit = set(re.findall(r"\b(FUNNEL_[A-Z_]+)=", UNIT))
    assert len(in_pods) > 2
    assert len(in_unit) > 2
    names = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    assert (in_pods | in_unit) - names == set()


def test_each_kind_of_pod_starts_with_the_settings_of_its_role(tmp_path: Path) -> None:
    keys = {f"{name}_file": tmp_path / name for name in ("api_key", "learn_key", "predict_key")}
    for path in keys.values():
        path.write_text(path.name)
    roles = {}
    for manifest in APART:
        if manifest["kind"] != "Deployment":
            continue
        [container] = manifest["spec"]["template"]["spec"]["containers"]
        given = {v["name"].removeprefix(PREFIX).lower(): v["value"] for v in container["env"]}
        own = {name: keys.get(name, value) for name, value in given.items()}
        log = {"redis_url": "redis://log"} if own["role"] == "intake" else {}
        roles[manifest["metadata"]["name"]] = Settings(**own, **log).role
        [scaled] = [m for m in APART if m["kind"] == "HorizontalPodAutoscaler" and (
            m["spec"]["scaleTargetRef"]["name"] == manifest["metadata"]["name"]
        )]  # fmt: skip
        assert "replicas" not in manifest["spec"], "the autoscaler decides on them"
        assert scaled["spec"]["minReplicas"] > 1
    assert roles == {"funnel-predict": "predict", "funnel-intake": "intake"}


def test_no_pod_takes_the_address_of_the_service_for_a_setting() -> None:
    assert POD["enableServiceLinks"] is False


def test_pods_are_those_of_the_image() -> None:
    image = (DOCKER / "Dockerfile").read_text()
    context = POD["securityContext"]
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}" in image
    [port] = CONTAINER["ports"]
    assert f"EXPOSE {port['containerPort']}" in image
    mounted = {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"]}
    [claim] = STATEFUL["spec"]["volumeClaimTemplates"]
    assert "FUNNEL_DATA_DIR=/data" in image
    assert mounted["/data"] == claim["metadata"]["name"]
    declared = {claim["metadata"]["name"], *(volume["name"] for volume in POD["volumes"])}
    assert set(mounted.values()) == declared
    files = [v["value"] for v in CONTAINER["env"] if v["name"].endswith("_FILE")]
    assert all(Path(file).parent.as_posix() in mounted for file in files)


def test_the_service_finds_its_pods() -> None:
    labels = STATEFUL["spec"]["template"]["metadata"]["labels"]
    assert SERVICE["spec"]["selector"] == STATEFUL["spec"]["selector"]["matchLabels"] == labels
    assert STATEFUL["spec"]["serviceName"] == SERVICE["metadata"]["name"]


def test_pods_have_no_rights_that_they_do_not_need() -> None:
    own = CONTAINER["securityContext"]
    assert own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["automountServiceAccountToken"] is False


def test_a_stop_may_take_as_long_as_it_needs() -> None:
    assert POD["terminationGracePeriodSeconds"] > STOP_SECONDS
    [seconds] = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)
    assert int(seconds) > STOP_SECONDS
    assert "\nKillMode=mixed\n" in UNIT, "the log's server is to outlive the last checkpoint"


def test_one_pod_learns_from_its_volume() -> None:
    assert STATEFUL["spec"]["replicas"] == 1
