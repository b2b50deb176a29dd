"""Named rows for tests: a plan, an age, a city and a time decide on the label."""

from collections.abc import Sequence

import numpy as np
import orjson

from service.fold.schema.changes import from_json as change_from_json
from service.fold.schema.changes import to_json as change_to_json
from service.fold.schema.schema import Schema
from service.fold.spec import Hyperparameters, Spec
from service.fold.state import State
from streams.rows.records import from_json
from streams.rows.rows import Rows
from tests.support.states import CPU, HYPERPARAMETERS

PLANS = ("basic", "pro", "vip")


def a_row_spec(
    schema: Schema | None = None, model: str = "logistic", optimizer: str = "pool", bits: int = 12
) -> Spec:
    text = orjson.dumps((schema or Schema()).to_json(), option=orjson.OPT_SORT_KEYS).decode()
    experts = 6 if optimizer == "pool" else 0
    hidden = (5,) if model in ("mlp", "auto") else ()
    return Spec(model, 0, 0, hidden, optimizer, True, 0, experts, text, bits)


def a_row_state(
    spec: Spec | None = None, hyperparameters: Hyperparameters = HYPERPARAMETERS
) -> State:
    return State(spec or a_row_spec(), hyperparameters, CPU)


def records(
    seed: int, n: int = 20, late: bool = False, classes: int = 2
) -> tuple[list[dict[str, object]], list[object]]:
    """Return rows and labels; late rows have a column and a label more."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    labels: list[object] = []
    for _ in range(n):
        plan, age = PLANS[rng.integers(3)], float(rng.normal(40, 10))
        hour, city = int(rng.integers(24)), f"city {rng.integers(30)}"
        row: dict[str, object] = {"plan": plan, "city": city, "at": f"2026-05-01T{hour:02}:00:00Z"}
        if rng.random() < 0.9:
            row["age"] = age
        if late:
            row["device"] = ("phone", "desk")[rng.integers(2)]
        rows.append(row)
        labels.append(
            "stay" if plan == "vip" or age > 50 else ("churn", 7, "lost")[hour % min(classes, 3)]
        )
    return rows, labels


def some_rows(seed: int, n: int = 20, late: bool = False, classes: int = 2) -> Rows:
    rows, labels = records(seed, n, late, classes)
    return from_json(orjson.dumps({"rows": rows, "labels": labels}), True)


def extend(state: State, rows: Rows) -> Sequence[object]:
    """Let a state take rows, by changes that went through JSON as those of a cut do."""
    changes = [change_to_json(change) for change in state.schema.changes_for(rows)]
    if changes:
        state.reshape(list(map(change_from_json, orjson.loads(orjson.dumps(changes)))))
    return changes
