"""``funnel replay``: rebuild a version of a model from its archive, or train another on it."""

import argparse
import asyncio
import sys
import time
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from service.commands.export import write_file
from service.commands.options import TOPICS as TOPIC_SETTINGS
from service.commands.options import add_settings
from service.commands.stream_options import positive_int
from streams.errors import FunnelError

if TYPE_CHECKING:
    from service.settings import Given, Settings
    from service.trainer.archive.trainee import Trainee
    from service.trainer.replica import AppliedBatch, Replica
    from streams.examples import AnyBatch

DESCRIPTION = (
    "Rebuild any version of a model that FUNNEL_ARCHIVE reaches, bit for bit, while the service "
    "runs or not. With settings of a model or an optimizer, train another model on the same "
    "batches as fast as the machine can, from the beginning of the archive, and print the scores "
    "of both: each batch is predicted first, then learned."
)
TOPICS = ("model", "optimizer", "computing")
FIXED = ("features", "classes", "task", "schema", "batch_size", "effort", "shadow", "promote")
"""Settings of these topics that the archive decides, or that change no scores."""
PLACE = ("name", "device", "threads")
"""Settings that do not describe another model."""
TELL_SECONDS = 1.0
"""Time between lines of progress."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--from", dest="source", required=True, metavar="FOLDER|URL",
        help="DATA_DIR of the service; or its STATE, as s3://bucket/prefix",
    )  # fmt: skip
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--to-cut", type=positive_int, metavar="N",
        help="number of the cut to end with [the last one in the archive]",
    )  # fmt: skip
    target.add_argument(
        "--to-version", type=positive_int, metavar="N",
        help="model_version to end with [that of the last cut]",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="write the model to a file in the format of checkpoints [it is not written]",
    )  # fmt: skip
    add_settings(parser, TOPICS, FIXED)


def run(options: argparse.Namespace) -> int:
    """Replay; return the exit status.

    Raises:
        FunnelError: the archive does not reach the version, or the file cannot be written.
    """
    import torch

    from service.families import folder_of
    from service.fold.networks import find_device
    from service.model import build_state
    from service.process import SystemClock
    from service.settings import load_settings
    from service.trainer.apart.places import Places
    from service.trainer.archive.replay import Place, Replay, Target
    from service.trainer.archive.trainee import Trainee
    from service.trainer.checkpoint import encode, numerics

    given = {
        name: value
        for name in chain.from_iterable(TOPIC_SETTINGS[topic] for topic in TOPICS)
        if (value := getattr(options, f"setting_{name}", None)) is not None
    }
    settings = _at(options.source, {name: given[name] for name in PLACE if name in given})
    torch.set_num_threads(settings.threads)
    device = find_device("cpu" if settings.device == "auto" else settings.device)
    folder = folder_of(settings.data_dir, settings.called)
    places = Places(settings, folder, numerics(device))
    store, archive = places.checkpoints(), places.archive()
    own = {name: value for name, value in given.items() if name not in PLACE}
    trainee: Trainee | None = None

    def observe(applied: "AppliedBatch", batch: "AnyBatch") -> None:
        if trainee is not None:
            trainee.learn(applied, batch)

    target, place = Target(options.to_cut, options.to_version), Place(archive, store)
    replay = Replay(place, target, device, SystemClock(), observe, is_whole=bool(own))
    first = replay.replica.progress.cut + 1
    if own:
        spec = replay.state.spec
        wanted = load_settings({"model": spec.model, "device": device.type} | own).taking(spec)
        trainee = Trainee(build_state(wanted))
    began = time.monotonic()
    copy = asyncio.run(replay.run(Progress(replay.last)))
    seconds = time.monotonic() - began
    sha256 = copy.sha256()
    sys.stdout.write(
        f"cuts {first} to {copy.progress.cut} in {seconds:.1f} s: version {copy.version}, "
        f"{copy.examples} examples, sha256 {sha256}\n"
    )
    if trainee is not None:
        copy = trainee.copy(copy)
        sha256 = copy.sha256()
        sys.stdout.write(_table(trainee))
    if options.out is not None:
        state = replay.state if trainee is None else trainee.state
        own_numerics = numerics(device, state.served.pool.fused is not None)
        write_file(options.out, encode(copy, sha256, own_numerics))
    return 0


def _at(source: str, given: "Given") -> "Settings":
    """Return the settings of the service that keeps its archive in some place.

    Raises:
        FunnelError: there is no archive, or there are several.
    """
    from service.settings import load_settings
    from service.trainer.archive.archive import ARCHIVES

    is_stored = "://" in source
    place: Given = {"state": source} if is_stored else {"state": "", "data_dir": source}
    settings = load_settings(place | given)
    if settings.name:
        return settings
    if is_stored:
        raise FunnelError(
            "--name: give the name of the model; without --name or --model it is auto"
        )
    folder = settings.data_dir / ARCHIVES
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if len(names) != 1:
        found = (
            f"has those of {', '.join(names)}: choose one with --name" if names else "is not there"
        )
        raise FunnelError(f"--from: {folder} {found}")
    return load_settings(place | {"name": names[0]} | given)


class Progress:
    """Shows how far a replay is, on standard error.

    Args:
        last: number of its last cut.
    """

    def __init__(self, last: int) -> None:
        self._last, self._told_at = last, time.monotonic()

    def __call__(self, replica: "Replica") -> None:
        """Show it, if that was a while ago."""
        if time.monotonic() - self._told_at >= TELL_SECONDS:
            self._told_at = time.monotonic()
            at, state = replica.progress, replica.state
            sys.stderr.write(
                f"cut {at.cut} of {self._last}: version {state.version}, "
                f"{state.examples} examples\n"
            )


def _table(trainee: "Trainee") -> str:
    """Return the scores of two models as a table."""
    is_numeric = trainee.state.spec.predicts.is_numeric
    heads = ["", "examples", *([] if is_numeric else ["accuracy"]), "loss"]
    lines = ["".join(f"{head:>12}" for head in heads)]
    for name, own in (("original", trainee.original), ("new", trainee.own)):
        sums = [own.loss] if is_numeric else [own.accuracy, own.loss]
        shown = [f"{value / max(1, own.examples):.4f}" for value in sums]
        lines.append("".join(f"{cell:>12}" for cell in (name, str(own.examples), *shown)))
    return "\n".join(lines) + "\n"
