"""``funnel status``: whether a service is ready, and how it learns."""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from service.commands.remote import KEYS, RemoteError, Service, add_to, checked, key, message_of
from service.fold.drift.events import OF_LOSS

DESCRIPTION = (
    "Show whether a service is ready, its role and condition, what it has learned, how well, what "
    "waits, and the last drift event. The exit status is 0 if it serves predictions and 1 if not, "
    "for scripts; with --learning, 1 also if it does not learn. With keys, " + KEYS["read"] + "."
)
LEARNING, WINDOW, REBUILD = "learning", "1000", "rebuild"
ERRORS = {"mae": "a mean absolute error", "pinball": "a mean pinball loss"}
"""Scores of numbers that are shown, in words."""
BACKLOG = re.compile(r"^funnel_backlog_examples (\S+)$", re.MULTILINE)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_to(parser)
    parser.add_argument("--learning", action="store_true", help="exit with 1 unless it learns, too")


def run(options: argparse.Namespace) -> int:
    """Show the status; return the exit status."""
    with closing(Service(options.to, key("PREDICT", "API"))) as service:
        try:
            ready = service.get("/health/ready")
        except RemoteError as error:
            sys.stdout.write(f"not ready: {error}\n")
            return 1
        if not ready.is_success:
            sys.stdout.write(f"not ready: {message_of(ready)}\n")
            return 1
        health = ready.json()
        model = checked(service.get("/model")).json()
        metrics = checked(service.get("/metrics")).text
        events = checked(service.get("/drift")).json()["events"]
    for name, value in _lines(health, model, events, BACKLOG.search(metrics)):
        sys.stdout.write(f"{name:<10} {value}\n")
    is_learning = health["learning"] == LEARNING
    return 0 if is_learning or not options.learning else 1


def _lines(
    health: Mapping[str, Any],
    model: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
    backlog: re.Match[str] | None,
) -> Iterator[tuple[str, str]]:
    """Yield names and values, for people to read."""
    yield "status", health["status"]
    yield "role", health["role"]
    reason = f": {health['reason']}" if health["reason"] else ""
    yield "condition", f"{health['learning']}{reason}"
    called = model.get("name", model["model"])  # a service of an earlier version has none
    name = f"{called}: " if called != model["model"] else ""
    yield "model", f"{name}{model['model']}, {model['task']}, of {model['inputs']}"
    yield "version", f"{model['model_version']:,}"
    yield "examples", f"{model['examples_learned']:,}"
    if model["accuracy"] is not None:
        yield "accuracy", f"{model['accuracy']:.2%} of all"
    if model["rolling_accuracy"] is not None:
        yield "", f"{model['rolling_accuracy']:.2%} of the last 1,000"
    yield from (("error", each) for each in _errors(model, "served"))
    for below in model["below_floors"]:
        yield "", below
    if promoted := model.get("promoted"):
        yield "served", f"{promoted}, which was promoted"
    yield from _shadows(model)
    for one in [one for one in model.get("commands", ()) if one["command"] == REBUILD][-1:]:
        at = datetime.fromtimestamp(one["at"], UTC).isoformat(timespec="seconds")
        yield "rebuilt", f"as version {one['cut']:,}, by {one['by']} at {at}"
    if backlog:
        yield "backlog", f"{float(backlog[1]):,.0f} examples"
    yield "drift", _event(events[-1]) if events else "no event"


def _shadows(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each shadow with its accuracy, or its error where numbers are predicted."""
    promoted = model.get("promoted", "")
    names = [name for name in model["hyperparameters"]["shadow"] if name != promoted]
    for name in [*(["original"] if promoted else []), *names]:
        found = _errors(model, name)
        accuracy = model["scores"].get(name, {}).get(WINDOW, {}).get("accuracy")
        if accuracy is not None:
            found = [f"{accuracy:.2%} of the last 1,000"]
        yield "shadow", f"{name}: {found[0]}" if found else name


def _errors(model: Mapping[str, Any], name: str) -> list[str]:
    """Return the error of a learner of numbers in words; none where classes are predicted."""
    scores = model["numbers"].get(name, {}).get(WINDOW, {})
    return [
        f"{what} of {scores[field]:.4g} over the last 1,000"
        for field, what in ERRORS.items()
        if scores.get(field) is not None
    ]


def _event(event: Mapping[str, Any]) -> str:
    taken = event["recovery_examples"]
    watched = "loss against the floor's, " if event["detector"] in OF_LOSS else ""
    recovered = "not recovered yet" if taken is None else f"recovered after {taken:,} examples"
    ended = f", {recovered}" if event["direction"] == "worse" else ""
    return (
        f"{event['direction']} at {event['examples']:,} examples ({event['detector']}): "
        f"{watched}accuracy {event['accuracy_before']:.1%} to {event['accuracy_after']:.1%}{ended}"
    )
