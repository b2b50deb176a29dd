"""Names that users depend on do not change; `tests.golden.record` has the rule."""

from pathlib import Path

import pytest

from tests.golden.compare import difference, read
from tests.golden.contract import CONTRACT, drive, seen, static


@pytest.mark.parametrize("name", static())
def test_the_contract_stands(name: str) -> None:
    unlike = difference(read(CONTRACT / f"{name}.json"), static()[name]())
    assert not unlike, unlike


def test_a_running_service_keeps_its_names(tmp_path: Path) -> None:
    found = seen(drive(tmp_path))
    unlike = {
        name: text
        for name, value in found.items()
        if (text := difference(read(CONTRACT / f"{name}.json"), value))
    }
    assert not unlike, "\n".join(f"{name}.json\n{text}" for name, text in unlike.items())


def test_every_file_of_the_contract_is_compared() -> None:
    names = {path.stem for path in CONTRACT.glob("*.json")}
    assert names == {*static(), "metrics", "log", "checkpoint", "answers"}


def test_what_disappears_is_shown() -> None:
    golden = read(CONTRACT / "settings.json")
    found = {k: v for k, v in golden.items() if k != "FUNNEL_SEED"} | {"FUNNEL_LR": "1"}
    shown = difference(golden, found)
    assert '-  "FUNNEL_SEED"' in shown
    assert '-  "FUNNEL_LR": "0.03"' in shown
    assert '+  "FUNNEL_LR": "1"' in shown
    assert not difference(golden, dict(reversed(golden.items())))
