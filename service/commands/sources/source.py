"""``funnel source``: carry the messages of a broker, or of a file that grows, into a log."""

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from streams.errors import FunnelError

if TYPE_CHECKING:
    from service.commands.sources.carrier import Counts
    from service.commands.sources.reader import Reader
    from service.settings import Settings

DESCRIPTION = (
    "Carry each message of a Kafka topic, a NATS JetStream stream or a file that grows into a "
    "model's log exactly once, until it is stopped. The log keeps the offset of each partition, so "
    "that the command goes on where it was, on any machine. A message is JSON, NDJSON or "
    "safetensors as POST /learn takes them, or a flat JSON object with its label as a column. "
    "One that cannot be read becomes a dead letter. Reading pauses while FUNNEL_MAX_BACKLOG "
    "examples wait to be learned."
)
FORMS = "kafka://host:9092/TOPIC, nats://host:4222/STREAM, or the path of a file"
EXTRAS = {"kafka": "confluent_kafka", "nats": "nats"}
"""Extras of the package, and what they bring."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("source", metavar="SOURCE", help=FORMS)
    parser.add_argument(
        "--to", metavar="URL", help="redis://… or unix://… of the log [FUNNEL_REDIS_URL]"
    )
    parser.add_argument(
        "--model",
        default="",
        help="FUNNEL_NAME of the service, or its FUNNEL_MODEL without one [the one whose log is "
        "there, or auto]",
    )
    parser.add_argument(
        "--from",
        dest="begin",
        choices=("earliest", "latest"),
        default="earliest",
        help="where a source begins that the log does not know yet [earliest]",
    )
    parser.add_argument(
        "--label",
        metavar="COLUMN",
        help="column of the label, where messages are flat objects, or of CSV [label]",
    )
    parser.add_argument(
        "--name",
        metavar="NAME",
        help="name of the source in the log: two sources of one name are the same "
        "[kafka:TOPIC, nats:STREAM or file]",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="for Kafka, properties of librdkafka, a name=value a line; for NATS, a file of "
        "credentials [none]",
    )
    parser.add_argument(
        "--accept-gap",
        action="store_true",
        help="go on where the source has lost messages before they were carried [refuse]",
    )


def run(options: argparse.Namespace) -> int:
    """Carry until SIGTERM or Ctrl-C; return the exit status."""
    from service.settings import load_settings
    from streams.progress import progress_bar

    settings = load_settings()
    url = options.to or settings.redis_url.get_secret_value()
    if not url:
        raise FunnelError("--to: name the log, as redis://host:6379, or set FUNNEL_REDIS_URL")
    if urlsplit(url).scheme not in ("redis", "rediss", "unix"):
        raise FunnelError(f"--to: {url!r} is neither redis://, rediss:// nor unix://")

    def notify(text: str) -> None:
        bar.write(text, file=sys.stderr)

    reader = reader_of(options, notify)
    bar = progress_bar(reader.title)

    def progress(examples: int, lag: int | None) -> None:
        if lag is not None:
            bar.set_postfix_str(f"lag {lag:,}", refresh=False)
        bar.update(examples)

    with bar:
        counts = asyncio.run(_carry(reader, url, options, settings, progress, notify))
    known = f", {counts.known:,} were in the log before" if counts.known else ""
    unread = f", {counts.unread:,} could not be read" if counts.unread else ""
    sys.stdout.write(
        f"{counts.messages:,} messages with {counts.examples:,} examples{known}{unread}\n"
    )
    return 0


async def _carry(
    reader: "Reader",
    url: str,
    options: argparse.Namespace,
    settings: "Settings",
    progress: Callable[[int, int | None], object],
    notify: Callable[[str], object],
) -> "Counts":
    """Carry until a signal, and return what was done."""
    from service.commands.sources.carrier import Carrier, model_at
    from service.log.backlog import Load
    from service.log.log import RedisLog
    from service.log.server import connect
    from service.log.sources.offsets import Offsets
    from service.process import memory_bytes

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    redis = connect(url)
    try:
        is_named = bool(settings.name) or "model" in settings.model_fields_set
        model = options.model or (settings.called if is_named else "")
        model = model or await model_at(url, stop, notify)
        most = Load(settings.max_backlog, settings.max_backlog_bytes or memory_bytes() // 4)
        carrier = Carrier(
            reader,
            RedisLog(redis, model),
            Offsets(redis, model),
            most,
            options.label,
            options.begin == "earliest",
            options.accept_gap,
            progress,
            notify,
        )
        await carrier.run(stop)
        return carrier.counts
    finally:
        await redis.aclose()
        with contextlib.suppress(OSError):
            await reader.close()


def reader_of(options: argparse.Namespace, notify: Callable[[str], object]) -> "Reader":
    """Return the reader of the source that the options name.

    Args:
        options: of the command.
        notify: called with errors of the connection, from any thread.

    Raises:
        FunnelError: it is no source, or its extra is not installed.
    """
    try:
        parts = urlsplit(options.source)
    except ValueError as error:
        raise FunnelError(f"a source is {FORMS}: {error}") from error
    if parts.scheme in ("kafka", "nats", "tls"):
        where = parts.path.strip("/")
        if not parts.netloc or not where or "/" in where:
            raise FunnelError(f"a source is {FORMS}")
        return _of_broker(parts, where, options, notify)
    if "://" in options.source and parts.scheme != "file":
        raise FunnelError(f"a source is {FORMS}")
    from service.commands.sources.growing import GrowingFile

    path = parts.path if parts.scheme == "file" else options.source
    return GrowingFile(Path(path), options.name or "file")


def _of_broker(
    parts: SplitResult, where: str, options: argparse.Namespace, notify: Callable[[str], object]
) -> "Reader":
    kind = "kafka" if parts.scheme == "kafka" else "nats"
    name = options.name or f"{kind}:{where}"
    try:
        if kind == "kafka":
            from service.commands.sources.kafka import KafkaReader

            return KafkaReader(parts.netloc, where, name, _properties(options.config), notify)
        from service.commands.sources.nats import NatsReader

        return NatsReader(f"{parts.scheme}://{parts.netloc}", where, name, options.config)
    except ModuleNotFoundError as error:
        if error.name != EXTRAS[kind]:
            raise
        raise FunnelError(
            f"{parts.scheme}:// needs the extra: pip install 'funnel-stream[{kind}]'"
        ) from error


def _properties(path: Path | None) -> dict[str, str]:
    """Return the properties in a file, a ``name=value`` a line; blank lines and ``#`` are skipped.

    Raises:
        FunnelError: it cannot be read.
    """
    if path is None:
        return {}
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise FunnelError(f"--config: {path} cannot be read: {error}") from error
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            if not equals:
                raise FunnelError(f"--config: {line[:40]!r} is no name=value")
            found[name.strip()] = value.strip()
    return found
