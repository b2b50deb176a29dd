"""The dialogue of the commands that rebuild a model: what it would skip, a question, the result."""

import json
import sys
from collections.abc import Mapping
from contextlib import closing

from service.commands.remote import Service, checked, key
from streams.errors import FunnelError

REBUILD_SECONDS = 3_600.0
"""Longest wait for an answer: a model may learn many examples again."""


def ask(url: str, name: str, wanted: Mapping[str, object], is_sure: bool) -> int:
    """Show what a rebuild would skip, ask, and carry it out; return the exit status.

    Args:
        url: of the service.
        name: of the command.
        wanted: body of the request.
        is_sure: whether not to ask.

    Raises:
        FunnelError: nobody can be asked, or the service refuses.
    """
    with closing(Service(url, key("API"), REBUILD_SECONDS)) as service:

        def sent(is_dry: bool) -> Mapping[str, int]:
            body = json.dumps({**wanted, "dry_run": is_dry}).encode()
            found: Mapping[str, int] = checked(
                service.post(f"/{name}", body, "application/json")
            ).json()
            return found

        plan = sent(True)
        if not plan["examples"]:
            sys.stdout.write(f"there is nothing to skip after cut {plan['begin']}\n")
            return 0
        batches = "a batch" if plan["batches"] == 1 else f"{plan['batches']:,} batches"
        sys.stdout.write(
            f"{plan['examples']:,} examples in {batches} will be skipped. The "
            f"model, now version {plan['version']:,}, is rebuilt from cut {plan['begin']:,} on; "
            "learning waits meanwhile, and predictions are served\n"
        )
        if not is_sure and not _agrees():
            sys.stdout.write("nothing is changed\n")
            return 1
        done = sent(False)
        if not done["cut"]:
            sys.stdout.write("it was done before; nothing is changed\n")
            return 0
        sys.stdout.write(
            f"the model is version {done['cut']:,}, as cut {done['cut']} records, without "
            f"{done['examples']:,} examples\n"
        )
    return 0


def _agrees() -> bool:
    if not sys.stdin.isatty():
        raise FunnelError("--yes: nobody can be asked here; give --yes to go on")
    sys.stdout.write("Go on? [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
