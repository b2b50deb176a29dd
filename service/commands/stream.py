"""``funnel stream``: send a stream to a service or into its log."""

import argparse
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from service.commands.row_options import add_rows, delay_of, source_of
from service.commands.stream_options import add_delay, add_rate, add_stream, positive_int
from streams.environment import first_key, variables
from streams.errors import FunnelError
from streams.sources.names import EXAMPLES, NAMES

if TYPE_CHECKING:
    from streams.examples import AnyBatch
    from streams.rowstream import RowStream
    from streams.sources.catalog import Stream

DESCRIPTION = (
    "Send a stream, or a file of your own, with a progress bar. A file with strings, missing "
    "values or times goes as rows, which a service without settings learns. Batches that a busy or "
    "absent service does not take are sent again. For http://, the key is FUNNEL_LEARN_KEY or "
    "FUNNEL_API_KEY of the environment, or in the file that one of them with _FILE names. With "
    "--delay each example is a question without its label, and the label follows by the question's "
    "id; where FUNNEL_LEARN_KEY is set, questions also need FUNNEL_PREDICT_KEY."
)

OTHER_SHAPE = "features have shape"
"""Words of a service's refusal of examples with more or fewer features than its model takes."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--to", required=True, metavar="URL", help="http://… or redis://…")
    parser.add_argument(
        "--batch-size",
        type=positive_int,
        default=100,
        metavar="N",
        help="examples in a request [100]",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the stream [0]")
    parser.add_argument(
        "--model",
        default="",
        help="FUNNEL_NAME of the service, or its FUNNEL_MODEL without one, for redis:// [the one "
        "whose log is there, or auto]",
    )
    parser.add_argument(
        "--name", help="for idempotency keys: two runs of one name are one stream [random]"
    )
    add_stream(parser, name=None, examples=EXAMPLES)
    add_delay(parser, has_clock=True)
    add_rows(parser, kinds=False)
    add_rate(parser, None)


def run(options: argparse.Namespace) -> int:
    """Send the stream; return the exit status."""
    from streams.producer import (
        GIVE_UP_SECONDS,
        HTTPTarget,
        RedisTarget,
        insist,
        make_target,
        produce,
    )
    from streams.progress import progress_bar
    from streams.sources.catalog import Stream

    environment = variables()
    key = first_key("FUNNEL_LEARN_KEY", environment) or first_key("FUNNEL_API_KEY", environment)
    target = make_target(
        options.to, options.model, key, first_key("FUNNEL_PREDICT_KEY", environment)
    )
    if options.delay and not isinstance(target, HTTPTarget):
        raise FunnelError("--delay asks questions, which needs --to http://…")
    name = options.name or uuid.uuid4().hex
    shown: Callable[[str], object] = sys.stderr.write

    def away(reason: str) -> None:
        shown(f"trying again for up to {GIVE_UP_SECONDS:g} s: {reason}\n")

    source = source_of(options)
    if options.stream not in NAMES and isinstance(source, Stream):
        prefers_rows = partial(target.prefers_rows, source.width)
        if insist(target.takes_rows, name, away)[0] or insist(prefers_rows, name, away)[0]:
            source = source_of(options, wants_rows=True)
    batches: Iterator[AnyBatch]
    if isinstance(source, Stream):
        title, examples = source.name, source.examples
        batches = source.batches(options.batch_size, options.seed)
        if source.names:
            sys.stderr.write(
                f"{title}: the service learns numbers, not names; send other files only if each "
                f"has all of these {len(source.names)} names and no other\n"
            )
    else:
        title, examples = source.name, source.examples
        batches = (
            part
            for rows in source.batches(options.batch_size, options.seed)
            for part in rows.split()
        )
    bar = progress_bar(title, examples)
    shown = partial(bar.write, file=sys.stderr, end="")
    delay = delay_of(options, source)
    if delay is not None and isinstance(target, HTTPTarget):
        from streams.delays.asking import ask

        names = source.names if isinstance(source, Stream) else ()
        with bar, closing(target), _shape_named(source):
            told = ask(
                batches,
                target,
                delay,
                options.seed,
                options.rate,
                name,
                names,
                bar.update,
                away,
            )
        sys.stdout.write(f"{told}\n")
        return 0
    with bar, closing(target), _shape_named(source):
        sent = produce(batches, target, options.rate, name=name, progress=bar.update, away=away)
    place = f", in {target.key}" if isinstance(target, RedisTarget) else ""
    sys.stdout.write(
        f"{sent.examples} examples in {sent.seconds:.1f} s "
        f"({sent.examples / sent.seconds:,.0f} a second), {sent.retries} retries{place}\n"
    )
    return 0


@contextmanager
def _shape_named(source: "Stream | RowStream") -> Iterator[None]:
    """Let the error of a service of another shape say how to start one of the stream's.

    Raises:
        ProducerError: with that.
    """
    from streams.producer import ProducerError
    from streams.sources.catalog import Stream

    try:
        yield
    except ProducerError as error:
        if not isinstance(source, Stream) or OTHER_SHAPE not in str(error):
            raise
        raise ProducerError(
            f"{error}\nStart a service of this shape: funnel serve --features {source.width} "
            f"--classes {source.classes} --data-dir DIRECTORY"
        ) from error
