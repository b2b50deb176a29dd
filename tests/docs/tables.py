"""The tables of settings and metrics, written into their documents from the code.

    python -m tests.docs.tables

A table stands between ``<!-- settings: … -->`` and ``<!-- end -->``. Descriptions of settings are
those of `service.settings`; the metrics come from a service that has learned, drifted and
recovered, and from one that has learned rows, with the help texts that Prometheus gets.
"""

import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from service.settings import Settings
from streams.batch import Batch
from tests.docs.documents import ROOT
from tests.support.harness import SAFETENSORS, ServiceProcess, serving, wait_for

SETTINGS = ROOT / "service/docs/settings.md"
METRICS = ROOT / "service/docs/metrics.md"
SERVICE = {"features": 3, "classes": 2, "batch_size": 100, "shadow": "adagrad"}
OF_ROWS = {"model": "auto", "schema": "auto", "table_bits": 10, "batch_size": 2}
MAX_BATCHES = 400
"""Batches of 100 in which the drift must have been found and recovered from."""


def settings_table() -> str:
    """Return a row for every setting: variable, default, description."""
    lines = ["| variable | default | |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = _shown(field.get_default())
        shown = f"`{default}`" if default else ""
        lines.append(f"| `FUNNEL_{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(lines)


def _shown(default: object) -> str:
    if default is None or isinstance(default, SecretStr):
        return ""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default)


def metrics_table(texts: Sequence[str]) -> str:
    """Return a row for every metric in answers of ``GET /metrics``, each as the first has it."""
    lines = ["| metric | labels | type | |", "|---|---|---|---|"]
    found = {row[0]: row for text in reversed(texts) for row in _metrics(text)}
    for name, labels, kind, meaning in sorted(found.values()):
        named = ", ".join(f"`{label}`" for label in labels)
        lines.append(f"| `{name}` | {named} | {kind} | {meaning} |")
    return "\n".join(lines)


def _metrics(text: str) -> Iterator[tuple[str, list[str], str, str]]:
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for name, family in families.items():
        if name.startswith("process_") or name.endswith(("_gcount", "_gsum")):
            continue
        total = "_total" if family.type == "counter" else ""
        kind = "gauge histogram" if f"{name}_gcount" in families else family.type
        yield f"{name}{total}", _labels(family), kind, family.documentation


def _labels(family: Metric) -> list[str]:
    found: dict[str, None] = {}  # in the order of the series
    for sample in family.samples:
        found |= dict.fromkeys(label for label in sample.labels if label != "le")
    return list(found)


def scrape_all() -> list[str]:
    """Return ``/metrics`` of a service of dense features, of one of rows and all families, and of a
    process that only answers."""
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as directory,  # short enough for a socket
        serving(Path(directory) / "dense", **SERVICE) as dense,
        serving(Path(directory) / "rows", **OF_ROWS) as of_rows,
    ):
        found = [scrape(dense), scrape_rows(of_rows)]
        with dense.client() as client:
            client.post("/checkpoint").raise_for_status()
        follows = {"role": "predict", "data_dir": str(dense.directory / "data")}
        apart = serving(Path(directory) / "predictor", **follows)
        with apart as predictor, predictor.client() as client:
            return [*found, client.get("/metrics").text]


def scrape_rows(service: ServiceProcess) -> str:
    """Return ``/metrics`` once the service has the metrics of columns."""
    rows, labels = [{"plan": "basic", "age": 41}, {"plan": "vip", "age": None}], ["churn", "stay"]
    with service.client() as client:
        client.post("/learn", json={"rows": rows, "labels": labels})
        wait_for(lambda: "\nfunnel_key_collision_ratio " in client.get("/metrics").text)
        wait_for(lambda: "\nfunnel_family_weight{" in client.get("/metrics").text)
        return client.get("/metrics").text


def scrape(service: ServiceProcess) -> str:
    """Return ``/metrics`` once the service has every metric: it drifts and recovers."""
    random = np.random.default_rng(0)
    with service.client() as client:
        for k in range(MAX_BATCHES):
            features = random.normal(size=(100, 3)).astype(np.float32)
            is_positive = features[:, 0] > 0
            labels = (is_positive if k < 50 else ~is_positive).astype(np.int64)
            body = Batch(features, labels).to_bytes()
            client.post("/learn?wait=applied", content=body, headers=SAFETENSORS)
            if k > 50 and "\nfunnel_recovery_examples " in client.get("/metrics").text:
                break
        client.post("/learn", content=b"no batch")  # is refused, and counted
        client.post("/predict", json={"features": [[0, 1, 2]], "ids": ["a"]})
        client.post("/labels", json={"ids": ["a"], "labels": [1]})
        client.post("/checkpoint")
        wait_for(lambda: _is_complete(client))
        return client.get("/metrics").text


def _is_complete(client: httpx.Client) -> bool:
    text = client.get("/metrics").text
    needed = ("recovery_examples ", "accuracy{", "expert_weight{", "checkpoint_age_seconds ")
    needed += ("given_accuracy{", "label_coverage ")
    return all(f"\nfunnel_{name}" in text for name in needed)


def table_in(document: Path) -> str:
    """Return the table that the document holds."""
    return _parts(document)[1].strip()


def write(document: Path, table: str) -> None:
    """Replace the table in the document."""
    before, _, after = _parts(document)
    document.write_text(f"{before}\n\n{table}\n\n{after}")


def _parts(document: Path) -> tuple[str, str, str]:
    text = document.read_text()
    found = re.search(r"^<!-- \w+: .*? -->$(.*?)^<!-- end -->$", text, re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(f"{document} has no '<!-- name: … -->' with '<!-- end -->' after it")
    return text[: found.start(1)], found[1], text[found.end(1) :]


def main() -> None:
    """Write both tables."""
    write(SETTINGS, settings_table())
    write(METRICS, metrics_table(scrape_all()))
    sys.stdout.write(f"{SETTINGS.name} and {METRICS.name} are as the code says\n")


if __name__ == "__main__":
    main()
