"""The command ``funnel``."""

import argparse
import logging
import os
import sys
import uuid
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop
from tqdm import tqdm

from service.commands.options import (
    add_rate,
    add_settings,
    add_stream,
    positive_int,
    settings_of,
    stream_of,
)
from service.settings import PREFIX, Settings, SettingsError
from streams.peers.peers import PEERS, QUICK, UnknownPeerError, find_peers
from streams.producer import make_target, produce
from streams.sources import mnist
from streams.sources.catalog import EXAMPLES, Stream


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    sys.path.append(os.getcwd())  # where a --model of the user's own may be
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        return 130
    except (SettingsError, OSError, RuntimeError, ValueError) as error:
        sys.stderr.write(f"funnel: {error}\n")
        return 1


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="funnel",
        description="Online learning for data that drifts, with no step size to tune.",
    )
    parser.add_argument("--version", action="version", version=f"funnel {version('funnel-stream')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    serve = commands.add_parser(
        "serve",
        help="learn and serve one model over HTTP",
        description="Learn and serve one model over HTTP until Ctrl-C or SIGTERM. Every option is "
        f"also an environment variable: --batch-size is {PREFIX}BATCH_SIZE.",
    )
    add_settings(serve)
    serve.set_defaults(run=run_serve)
    demo = commands.add_parser(
        "demo",
        help="watch a model learn MNIST digits that start to rotate",
        description="Start a log, a service and a stream of digits that turn from 90° to 0° to "
        "45°, and show accuracy, scale and gains as they adapt: in the terminal, and on a page "
        "where you can turn the stream yourself. Everything is removed afterwards.",
    )
    add_stream(demo, name="abrupt", examples=30_000)
    add_rate(demo, 500.0)
    demo.add_argument("--plot", metavar="FILE", type=Path, help="write the run as a picture")
    add_settings(demo)
    demo.set_defaults(run=run_demo)
    stream = commands.add_parser(
        "stream",
        help="send a stream to a service or into its log",
        description="Send a stream, or a file of your own, with a progress bar; busy and absent "
        f"services are tried again. The key for http:// is {PREFIX}LEARN_KEY or {PREFIX}API_KEY of "
        "the environment.",
    )
    stream.add_argument("--to", required=True, metavar="URL", help="http://… or redis://…")
    stream.add_argument(
        "--batch-size",
        type=positive_int,
        default=100,
        metavar="N",
        help="examples a request [100]",
    )
    stream.add_argument("--seed", type=int, default=0, metavar="N", help="of the stream [0]")
    stream.add_argument("--model", default="logistic", help="whose log, for redis:// [logistic]")
    stream.add_argument(
        "--name", help="for idempotency keys: two runs of one name are one stream [random]"
    )
    add_stream(stream, name=None, examples=EXAMPLES)
    add_rate(stream, None)
    stream.set_defaults(run=run_stream)
    compare = commands.add_parser(
        "compare",
        help="measure Funnel beside other learners on a stream",
        description="Learn a stream with the service's learner and with others, each batch "
        "predicted before it is learned, and show accuracy and recovery after shifts. Funnel runs "
        "with the settings below, its defaults if none are given. Each of the others is run with "
        "every setting of a grid, on inputs standardized as the service does, and shown at the "
        "best, chosen for this stream in hindsight: an oracle that no user has.",
    )
    add_stream(compare, name=None, examples=EXAMPLES)
    compare.add_argument(
        "--peers",
        type=_names,
        default=QUICK,
        metavar="NAMES",
        help=f"with commas, of {', '.join(PEERS)}; or all [{','.join(QUICK)}]",
    )
    compare.add_argument(
        "--seeds", type=positive_int, default=1, metavar="N", help="how many, from 0 [1]"
    )
    compare.add_argument(
        "--plot", metavar="FILE", type=Path, help="write the rolling accuracies as a picture"
    )
    add_settings(compare)
    compare.set_defaults(run=run_compare)
    data = commands.add_parser("data", help="fetch data sets")
    data.add_argument("set", choices=["mnist"], help="which")
    data.set_defaults(run=run_data)
    return parser


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    try:
        find_peers(names)
    except UnknownPeerError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return names


def run_serve(options: argparse.Namespace) -> int:
    """``funnel serve``."""
    from service.http.server import serve

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # it warns of whatever is not HTTP
    uvloop.run(serve(settings_of(options)))
    return 0


def run_demo(options: argparse.Namespace) -> int:
    """``funnel demo``."""
    from service.commands import demo

    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(message)s")
    stream = stream_of(options)
    next(stream.batches(1))  # fetches what is missing before anything is started

    def settings_in(directory: Path) -> Settings:
        defaults: dict[str, Any] = {
            "data_dir": directory,
            "features": stream.width,
            "classes": stream.classes,
        }
        if f"{PREFIX}SHADOW" not in os.environ:
            defaults["shadow"] = "adagrad"
        return settings_of(options, **defaults)

    return demo.run_demo(stream, options.rate, settings_in, options.plot)


def _check_fits(settings: Settings, stream: Stream) -> None:
    for name, mine, theirs in (
        ("features", settings.features, stream.width),
        ("classes", settings.classes, stream.classes),
    ):
        if mine != theirs:
            raise SettingsError(
                f"{PREFIX}{name.upper()} is {mine}, and the stream {stream.name} has {theirs} "
                f"{name}; leave it out"
            )


def run_stream(options: argparse.Namespace) -> int:
    """``funnel stream``."""
    key = os.environ.get(f"{PREFIX}LEARN_KEY") or os.environ.get(f"{PREFIX}API_KEY", "")
    target = make_target(options.to, options.model, key.strip())
    stream = stream_of(options)
    bar = tqdm(
        total=stream.examples,
        desc=stream.name,
        unit=" examples",
        unit_scale=True,
        mininterval=0.1 if sys.stderr.isatty() else 30.0,
    )

    def count(examples: int) -> None:
        bar.update(examples)

    with bar, closing(target):
        sent = produce(
            stream.batches(options.batch_size, options.seed),
            target,
            options.rate,
            name=options.name or uuid.uuid4().hex,
            progress=count,
            away=lambda answer: bar.write(f"trying again: {answer}", file=sys.stderr),
        )
    sys.stdout.write(
        f"{sent.examples} examples in {sent.seconds:.1f} s "
        f"({sent.examples / sent.seconds:,.0f} a second), {sent.retries} retries\n"
    )
    return 0


def run_compare(options: argparse.Namespace) -> int:
    """``funnel compare``."""
    from service.commands import compare

    stream = stream_of(options)
    settings = settings_of(options, features=stream.width, classes=stream.classes)
    _check_fits(settings, stream)
    return compare.run(
        stream, settings, find_peers(options.peers), range(options.seeds), options.plot
    )


def run_data(options: argparse.Namespace) -> int:
    """``funnel data``."""
    found = mnist.load()
    sys.stdout.write(
        f"{mnist.cache_directory()}: {len(found.train_images)} images to train, "
        f"{len(found.test_images)} to test\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
