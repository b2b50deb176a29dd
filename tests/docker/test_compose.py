"""The compose files are valid, and their parts agree with the service."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from service.settings import Settings
from streams.sources.names import ROW_NAMES

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text()
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
SERVICES = yaml.safe_load(COMPOSE)["services"]


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="needs docker-compose")
@pytest.mark.parametrize("profile", ["standby", "apart", "tabular"])
@pytest.mark.parametrize("override", [[], ["-f", "docker/docker-compose.gpu.yml"]])
def test_the_compose_files_are_valid(override: list[str], profile: str) -> None:
    files = ["-f", "docker-compose.yml", *override]
    command = ["docker-compose", *files, "--profile", profile, "config", "--quiet"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Prometheus)")
def test_the_prometheus_configuration_is_valid() -> None:
    subprocess.run(
        ["promtool", "check", "config", ROOT / "docker/prometheus/prometheus.yml"],
        check=True, capture_output=True,
    )  # fmt: skip


def test_every_setting_in_the_containers_is_one_of_the_service() -> None:
    known = {f"FUNNEL_{name.upper()}" for name in Settings.model_fields}
    for text in (COMPOSE, DOCKERFILE):
        set_there = set(re.findall(r"^\s*(FUNNEL_[A-Z_]+)[:=]", text, re.MULTILINE))
        assert set_there <= known


def test_every_setting_but_those_of_the_container_is_passed_on() -> None:
    fixed = {"redis_url", "redis_url_file", "data_dir", "host", "port", "appendfsync"}
    passed = yaml.safe_load(COMPOSE)["services"]["service"]["environment"]
    assert {name for name, value in passed.items() if value is None} == {
        f"FUNNEL_{name.upper()}" for name in Settings.model_fields if name not in fixed
    }


def test_containers_are_given_the_keys_they_need() -> None:
    def keys(service: str) -> set[str]:
        environment = SERVICES[service]["environment"]
        return {name for name in environment if name.endswith("_KEY")}

    for apart in ("standby", "predictor", "intake", "tabular"):
        assert keys("service") == keys(apart)
    assert keys("service") == {"FUNNEL_API_KEY", "FUNNEL_LEARN_KEY", "FUNNEL_PREDICT_KEY"}
    assert keys("generator") == {"FUNNEL_LEARN_KEY"}
    assert keys("orders") == {"FUNNEL_LEARN_KEY", "FUNNEL_PREDICT_KEY"}, "it asks, too"


def test_every_image_is_pinned() -> None:
    images = re.findall(r"image: (\S+)", COMPOSE)
    assert len(images) >= 4
    assert all(re.search(r":v?\d+\.\d+\.\d+", image) for image in images)


def test_ports_are_published_on_this_machine_only() -> None:
    published = re.findall(r'ports: \["([^"]+)"\]', COMPOSE)
    assert len(published) >= 4
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_programs_that_we_build_run_as_nobody_in_particular() -> None:
    """Neither as root nor in its group, which owns files of the image."""
    (user,) = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    assert "0" not in user


@pytest.mark.parametrize("service", SERVICES)
def test_containers_write_to_their_volumes_only(service: str) -> None:
    container = SERVICES[service]
    assert container["read_only"]
    assert container["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("service", SERVICES)
def test_containers_have_no_capability_and_bounded_memory_and_processes(service: str) -> None:
    container = SERVICES[service]
    assert container["cap_drop"] == ["ALL"]
    assert "cap_add" not in container
    assert re.fullmatch(r"\d+g", container["mem_limit"])
    assert 0 < container["pids_limit"] <= 512


def test_the_log_server_refuses_entries_before_its_container_is_killed() -> None:
    (limit,) = re.findall(r"--maxmemory (\d+)gb", SERVICES["redis"]["command"])
    assert 2 * int(limit) <= int(SERVICES["redis"]["mem_limit"].removesuffix("g"))


def test_only_containers_that_write_to_the_log_share_its_network() -> None:
    networks = yaml.safe_load(COMPOSE)["networks"]
    shared = {name for name, container in SERVICES.items() if "log" in container["networks"]}
    assert shared == {
        "redis",
        "service",
        "standby",
        "predictor",
        "intake",
        "generator",
        "tabular",
    }
    assert SERVICES["redis"]["networks"] == ["log"]
    assert networks["log"] == {"internal": True}
    assert SERVICES["grafana"]["networks"] == ["dashboards"]
    assert set(SERVICES["prometheus"]["networks"]) == {"service", "dashboards"}


def test_nobody_has_a_password_of_grafana() -> None:
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"


def test_make_installs_the_pinned_versions() -> None:
    makefile = (ROOT / "Makefile").read_text()
    installs = [line for line in makefile.splitlines() if "pip install" in line]
    assert installs == ["INSTALL := $(BIN)/pip install --quiet --constraint docker/constraints.txt"]


@pytest.mark.parametrize(
    "service", ["service", "standby", "predictor", "intake", "generator", "tabular", "orders"]
)
def test_containers_of_ours_stop_when_told_to(service: str) -> None:
    """Without an init the generator stands through SIGTERM, until it is killed."""
    assert yaml.safe_load(COMPOSE)["services"][service]["init"]


def test_the_image_installs_the_pinned_versions_with_what_the_service_needs() -> None:
    lines = DOCKERFILE.replace("\\\n", "").splitlines()
    installs = [line for line in lines if line.startswith("RUN pip install")]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in install for install in installs)
    assert installs[-1].endswith("'.[service]'")


def test_all_that_the_image_copies_is_sent_to_its_build() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert sent == {name for names in copied for name in names.split()}


def test_a_profile_adds_a_demo_of_rows_that_drift() -> None:
    """A service that learns rows, with a log and checkpoints of its own, and a stream to it."""
    profiles = {name: container.get("profiles", []) for name, container in SERVICES.items()}
    assert {name for name, own in profiles.items() if own == ["tabular"]} == {"tabular", "orders"}
    tabular, service = SERVICES["tabular"], SERVICES["service"]
    environment = tabular["environment"]
    assert environment["FUNNEL_SCHEMA"] == "auto"
    assert environment["FUNNEL_REDIS_URL"] != service["environment"]["FUNNEL_REDIS_URL"]
    assert environment.keys() == service["environment"].keys()
    assert not set(tabular["volumes"]) & set(service["volumes"])
    assert not set(tabular["ports"]) & set(service["ports"])
    subcommand, stream, *options = SERVICES["orders"]["command"]
    assert subcommand == "stream"
    assert stream in ROW_NAMES
    assert "--to=http://tabular:8000" in options


def test_prometheus_scrapes_the_services_of_all_profiles() -> None:
    config = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())
    [job] = config["scrape_configs"]
    [static], [lookup] = job["static_configs"], job["dns_sd_configs"]
    scraped = {target.partition(":")[0] for target in static["targets"]} | {*lookup["names"]}
    assert scraped == {
        name for name, own in SERVICES.items() if "FUNNEL_REDIS_URL" in own.get("environment", {})
    }
