"""``funnel serve``: learn and serve one model over HTTP."""

import argparse

from service.commands.options import add_settings, settings_of
from streams.environment import PREFIX

DESCRIPTION = (
    "Learn and serve one model over HTTP until Ctrl-C or SIGTERM. Every option is also an "
    f"environment variable: --batch-size is {PREFIX}BATCH_SIZE. Without --schema, --features and "
    "--classes, the first examples decide whether it learns rows with names or 784 numbers."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_settings(parser)


def run(options: argparse.Namespace) -> int:
    """Serve until a signal comes; return the exit status."""
    settings = settings_of(options)

    import uvloop

    from service.http.server import serve
    from service.monitoring.logs import configure

    configure(settings.log_format == "json", settings.log_level)
    uvloop.run(serve(settings))
    return 0
