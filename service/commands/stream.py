"""``funnel stream``: send a stream to a service or into its log."""

import argparse
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from service.commands.row_options import add_rows, source_of
from service.commands.stream_options import add_rate, add_stream, positive_int
from streams.environment import secret, variables
from streams.sources.names import EXAMPLES, NAMES

if TYPE_CHECKING:
    from streams.examples import AnyBatch

DESCRIPTION = (
    "Send a stream, or a file of your own, with a progress bar. A file with strings, missing "
    "values or times goes as rows, which a service without settings learns. Batches that a busy or "
    "absent service does not take are sent again. For http://, the key is FUNNEL_LEARN_KEY or "
    "FUNNEL_API_KEY of the environment, or in the file that one of them with _FILE names."
)


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
        "--model", default="logistic", help="name of the model, for redis:// [logistic]"
    )
    parser.add_argument(
        "--name", help="for idempotency keys: two runs of one name are one stream [random]"
    )
    add_stream(parser, name=None, examples=EXAMPLES)
    add_rows(parser, kinds=False)
    add_rate(parser, None)


def run(options: argparse.Namespace) -> int:
    """Send the stream; return the exit status."""
    from streams.producer import GIVE_UP_SECONDS, make_target, produce
    from streams.progress import progress_bar
    from streams.sources.catalog import Stream

    environment = variables()
    key = secret("FUNNEL_LEARN_KEY", environment) or secret("FUNNEL_API_KEY", environment)
    target = make_target(options.to, options.model, key)
    is_file = options.stream not in NAMES
    source = source_of(options, is_file and target.takes_rows())
    if is_file and isinstance(source, Stream) and target.prefers_rows(source.width):
        source = source_of(options, wants_rows=True)
    batches: Iterator[AnyBatch]
    if isinstance(source, Stream):
        name, examples = source.name, source.examples
        batches = source.batches(options.batch_size, options.seed)
        if source.names:
            sys.stderr.write(
                f"{name}: the service learns numbers, not names; send other files only if each has "
                f"all of these {len(source.names)} names and no other\n"
            )
    else:
        name, examples = source.name, source.examples
        batches = (
            part
            for rows in source.batches(options.batch_size, options.seed)
            for part in rows.split()
        )
    bar = progress_bar(name, examples)
    with bar, closing(target):
        sent = produce(
            batches,
            target,
            options.rate,
            name=options.name or uuid.uuid4().hex,
            progress=bar.update,
            away=lambda reason: bar.write(
                f"trying again for up to {GIVE_UP_SECONDS:g} s: {reason}", file=sys.stderr
            ),
        )
    sys.stdout.write(
        f"{sent.examples} examples in {sent.seconds:.1f} s "
        f"({sent.examples / sent.seconds:,.0f} a second), {sent.retries} retries\n"
    )
    return 0
