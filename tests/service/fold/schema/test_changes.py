"""Changes of a schema keep their JSON, which cuts store."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.fold.schema.changes import (
    AddColumn,
    AddLabels,
    Change,
    SetKind,
    SetParts,
    SetPolicies,
    from_json,
    to_json,
)
from service.fold.schema.kinds import Kind, Part

CHANGES = (
    st.builds(AddColumn, st.text(), st.none() | st.sampled_from(Kind), st.booleans())
    | st.builds(SetKind, st.text(), st.sampled_from(Kind))
    | st.builds(AddLabels, st.lists(st.text()).map(tuple))
    | st.builds(SetParts, st.text(), st.lists(st.sampled_from(Part)).map(tuple))
    | st.builds(SetPolicies, st.dictionaries(st.text(), st.integers(0, 1 << 53) | st.text()))
)


@given(CHANGES)
def test_json_and_back_is_the_same_change(change: Change) -> None:
    assert from_json(orjson.loads(orjson.dumps(to_json(change)))) == change


def test_the_json_of_changes_does_not_change() -> None:
    assert to_json(AddColumn("age", Kind.NUMBER)) == {"add": "age", "kind": "number", "late": False}
    assert to_json(AddColumn("age", None, late=True)) == {"add": "age", "kind": None, "late": True}
    assert to_json(SetKind("age", Kind.BOOL)) == {"set": "age", "kind": "bool"}
    assert to_json(AddLabels(("stay", "churn"))) == {"labels": ["stay", "churn"]}
    assert to_json(SetParts("at", (Part.HOUR,))) == {"set": "at", "parts": ["hour"]}
    assert to_json(SetPolicies({"max_classes": 5})) == {"policies": {"max_classes": 5}}


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"add": "age"},
        {"add": "age", "kind": "number"},
        {"add": "age", "kind": "number", "late": 0},
        {"add": 1, "kind": None, "late": False},
        {"set": "age", "kind": None},
        {"set": "age", "kind": "number", "late": False},
        {"labels": "stay"},
        {"labels": ["stay", 1]},
    ],
)
def test_other_json_is_no_change(found: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="is no change of a schema"):
        from_json(found)


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="unknown kind 'numbr'; choose one of number, category"):
        from_json({"set": "age", "kind": "numbr"})
