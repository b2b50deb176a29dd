"""``funnel compare``: the accuracy that Funnel and other learners reach on a stream."""

import argparse
import contextlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from service.commands.options import add_settings, settings_of
from service.commands.row_options import add_rows, delay_of, kinds_of, rows_of, schema_of, source_of
from service.commands.stream_options import add_delay, add_stream, positive_int
from service.fold.task import AUTO, CLASSES, Task
from service.settings import Settings, SettingsError, load_settings
from streams.environment import PREFIX, home
from streams.errors import FunnelError
from streams.peers.number_peers import FLOORS, NUMBER_PEERS
from streams.peers.peers import PEERS, QUICK, UnknownPeerError, find_peers
from streams.peers.row_peers import ROW_PEERS
from streams.sources.names import EXAMPLES, NUMBER_NAMES

if TYPE_CHECKING:
    from streams.rowstream import RowStream

ACCURACY = "accuracy"
"""Score that orders tables of classes by default."""

DESCRIPTION = (
    "Learn a stream with the service's learner and with others, each batch predicted before it is "
    "learned, and show accuracy and recovery after shifts. Funnel runs with the settings below, or "
    "with its defaults. Each of the others runs with every setting of a grid, on inputs "
    "standardized as the service does, and is shown at the setting that was best on this stream in "
    "hindsight: an oracle that no user has. A file with strings, missing values or times is "
    "learned as rows with names. --task regression predicts numbers, and shows their errors; "
    "--task quantile:0.1,0.5,0.9 shows loss and coverage of quantiles. Without --task the labels "
    "of a file decide. With --delay labels come later, for all learners alike."
)

NOT_OF_A_COMPARISON = (
    "name", "features", "classes", "schema", "effort", "shadow", "promote",
)  # fmt: skip
"""Settings that the stream or --kind decides, or that only a service has."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_stream(parser, name=None, examples=EXAMPLES)
    parser.add_argument(
        "--peers",
        type=_names,
        default=QUICK,
        metavar="NAMES",
        help=f"other learners, with commas: {', '.join(PEERS)}; on rows {', '.join(ROW_PEERS)}; "
        f"for numbers {', '.join(NUMBER_PEERS)}; or all [{','.join(QUICK)}; on rows the quick "
        "ones]",
    )
    parser.add_argument(
        "--seeds", type=positive_int, default=1, metavar="N", help="number of seeds, from 0 [1]"
    )
    parser.add_argument(
        "--by",
        choices=(ACCURACY, "auc", "log_loss"),
        help="score of classes that orders the table and by which a peer's setting is the best; "
        "with auc, recovery is of the AUC [accuracy]",
    )
    parser.add_argument(
        "--plot", metavar="FILE", type=home, help="write the rolling accuracies as a picture"
    )
    add_delay(parser, has_clock=False)
    add_rows(parser)
    add_settings(parser, ("model", "optimizer", "computing"), NOT_OF_A_COMPARISON)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    try:
        find_peers([name for name in names if name not in {*ROW_PEERS, *NUMBER_PEERS}])
    except UnknownPeerError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return names


def run(options: argparse.Namespace) -> int:
    """Compare, and print the table; return the exit status."""
    from streams.sources.catalog import Stream

    task = _task_of(options)
    stream = source_of(options, wants_rows=task.is_numeric)
    if task.is_numeric:
        if isinstance(stream, Stream):
            raise FunnelError(f"the labels of {stream.name} are classes, not numbers to predict")
        return _compare_numbers(stream, options, task)
    if not isinstance(stream, Stream):
        return _compare_rows(stream, options)
    settings = _settings_of(options, features=stream.width, classes=stream.classes)
    for name, theirs in (("features", stream.width), ("classes", stream.classes)):
        if (mine := getattr(settings, name)) != theirs:
            raise SettingsError(
                f"{PREFIX}{name.upper()} is {mine}, but the stream {stream.name} has {theirs} "
                f"{name}; do not set it here"
            )

    from service.commands.comparisons import comparison

    peers = find_peers(options.peers)
    seeds, by = range(options.seeds), options.by or ACCURACY
    return comparison.run(stream, settings, peers, seeds, options.plot, by, options.delay)


def _settings_of(options: argparse.Namespace, **defaults: object) -> Settings:
    """Return the settings of a service that has neither a log nor a data folder yet."""
    from service.families import named

    return named(settings_of(options, **defaults))


def _task_of(options: argparse.Namespace) -> Task:
    """Return the task that is set, or that the labels of a file show; print why."""
    given = getattr(options, "setting_task", None)
    name = load_settings({"task": given} if given else {}).task
    if name != AUTO:
        return Task.parse(name)
    if options.stream in NUMBER_NAMES:
        return Task("regression")
    path = Path(options.stream)
    if not path.exists() or ".safetensors" in path.suffixes:
        return CLASSES

    from service.commands.comparisons.labels import task_of
    from streams.sources.faults import TableError

    with contextlib.suppress(TableError):  # what is wrong is reported where it is learned
        found = rows_of(options.stream, options)
        task, why = task_of(found.labels)
        if task is not CLASSES:
            sys.stderr.write(
                f"{found.name}: task {task}, because {why}; --task multiclass learns classes\n"
            )
        elif why:
            sys.stderr.write(
                f"{found.name}: its labels are learned as classes, because {why}; mend or drop "
                "these rows to have numbers predicted\n"
            )
        return task
    return CLASSES


def _compare_numbers(stream: "RowStream", options: argparse.Namespace, task: Task) -> int:
    """Compare on rows whose labels are numbers."""
    if options.plot:
        raise FunnelError("--plot draws streams of dense features alone; it cannot draw rows")
    if options.by:
        score = "pinball loss" if task.quantiles else "mean absolute error"
        raise FunnelError(f"--by is for classes; tables of numbers are ordered by their {score}")
    options.setting_task = str(task)
    settings = _settings_of(options, schema=AUTO)

    from service.commands.comparisons import number_comparison, quantile_comparison
    from service.commands.comparisons.row_comparison import prepared
    from service.fold.schema.schema import Schema
    from streams.peers.number_peers import QUICK as QUICK_NUMBERS
    from streams.peers.number_peers import find_number_peers
    from streams.peers.quantile_peers import QUICK as QUICK_QUANTILES
    from streams.peers.quantile_peers import find_quantile_peers

    kinds = kinds_of(options)
    declared = replace(schema_of(stream, kinds), labels=()) if kinds else Schema()
    schema = replace(declared, numeric_labels=True)
    rows = list(stream.batches(settings.batch_size))
    for batch in rows:
        schema.check(batch)
    batches = prepared(rows, schema, ())
    if task.quantiles:
        names = QUICK_QUANTILES if options.peers is QUICK else options.peers
        learners, skipped = find_quantile_peers([*dict.fromkeys((*FLOORS, *names))])
        _say_skipped(skipped)
        return quantile_comparison.run(stream, settings, schema, batches, learners, options.delay)
    names = QUICK_NUMBERS if options.peers is QUICK else options.peers
    peers, skipped = find_number_peers([*dict.fromkeys((*FLOORS, *names))])
    _say_skipped(skipped)
    seeds = range(options.seeds)
    return number_comparison.run(stream, settings, schema, batches, peers, seeds, options.delay)


def _say_skipped(skipped: Mapping[str, str]) -> None:
    for name, reason in skipped.items():
        sys.stderr.write(f"{name} is skipped: {reason}\n")


def _compare_rows(stream: "RowStream", options: argparse.Namespace) -> int:
    """Compare on rows with names."""
    if options.plot:
        raise FunnelError("--plot draws streams of dense features alone; it cannot draw rows")
    if len(stream.labels) < 2:
        raise FunnelError(
            f"{stream.name}: all rows have the same label, so there is nothing to compare; is it "
            "the label? (--label NAME)"
        )
    settings = _settings_of(options, schema=AUTO)

    from service.commands.comparisons import row_comparison
    from service.fold.schema.schema import Schema
    from streams.peers.row_peers import QUICK as QUICK_ROWS
    from streams.peers.row_peers import find_row_peers

    names = QUICK_ROWS if options.peers is QUICK else options.peers
    peers, skipped = find_row_peers(names)
    kinds = kinds_of(options)
    schema = (
        replace(schema_of(stream, kinds), labels=())
        if kinds
        else Schema(max_classes=max(settings.max_classes, len(stream.labels)))
    )
    delay, seeds, by = delay_of(options, stream), range(options.seeds), options.by or ACCURACY
    return row_comparison.run(stream, settings, schema, peers, skipped, seeds, by, delay)
