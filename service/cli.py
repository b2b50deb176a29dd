"""The command ``funnel``."""

import argparse
import asyncio
import logging
import sys
from typing import Any

from service.settings import PREFIX, Settings, SettingsError, load_settings


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status."""
    parser = make_parser()
    options = parser.parse_args(arguments)
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
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    serve = commands.add_parser(
        "serve",
        help="learn and serve one model over HTTP",
        description="Learn and serve one model over HTTP until Ctrl-C or SIGTERM. Every option is "
        f"also an environment variable: --batch-size is {PREFIX}BATCH_SIZE.",
    )
    add_settings(serve)
    serve.set_defaults(run=run_serve)
    return parser


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Give the parser an option for every setting."""
    for name, field in Settings.model_fields.items():
        default = field.get_default()
        shown = "none" if str(default) in ("", "**********") else _shown(default)
        flag = {"nargs": "?", "const": "true"} if isinstance(default, bool) else {}
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"setting_{name}",
            metavar="BOOL" if isinstance(default, bool) else name.rpartition("_")[2].upper(),
            help=f"{field.description} [{shown}]".replace("%", "%%"),
            **flag,  # type: ignore[arg-type]
        )


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default)


def settings_of(options: argparse.Namespace, **defaults: Any) -> Settings:
    """Return the settings that the options give; ``defaults`` hold where they give none."""
    given = {
        name: value
        for name in Settings.model_fields
        if (value := getattr(options, f"setting_{name}", None)) is not None
    }
    return load_settings(defaults | given)


def run_serve(options: argparse.Namespace) -> int:
    """``funnel serve``."""
    from service.server import serve

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    asyncio.run(serve(settings_of(options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
