"""Where CI is set in the environment, a test that is skipped and is not listed fails the run.

Otherwise a program or package that the machine lost would take tests out of CI unseen. The list is
`tests/skips.toml`. With pytest-xdist each worker hands over the modules that it skipped while it
collected tests; the reports of tests reach the process that started the workers in any case.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

HANDED = "skipped_at_collection"


@dataclass(frozen=True)
class Listed:
    """Tests that may be skipped for a reason."""

    reason: str
    """As the test gives it."""
    tests: Sequence[str]
    """Patterns of node ids; only ``*`` and ``?`` stand for others."""

    def allows(self, test: str, reason: str) -> bool:
        """Return whether the test may be skipped for the reason."""
        return reason == self.reason and any(_matches(test, pattern) for pattern in self.tests)


def _matches(test: str, pattern: str) -> bool:
    return fnmatchcase(test, pattern.replace("[", "[[]"))


def read(path: Path) -> list[Listed]:
    """Read a list of skips.

    Raises:
        TypeError: an entry lacks its reason or its tests, or has more than these.
    """
    return [Listed(**entry) for entry in tomllib.loads(path.read_text()).get("skip", [])]


class Skips:
    """The plugin."""

    def __init__(self, listed: Sequence[Listed]) -> None:
        self._listed = listed
        self._skipped: dict[str, str] = {}

    @property
    def unlisted(self) -> dict[str, str]:
        """What was skipped without being listed, and why."""
        return {
            test: reason
            for test, reason in self._skipped.items()
            if not any(listed.allows(test, reason) for listed in self._listed)
        }

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not hasattr(report, "wasxfail"):
            self._record(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._record(report)

    def _record(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            self._skipped[report.nodeid] = report.longrepr[2].removeprefix("Skipped: ")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if (handed := getattr(session.config, "workeroutput", None)) is not None:
            handed[HANDED] = self._skipped
        elif self.unlisted and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what a worker of pytest-xdist skipped."""
        self._skipped |= getattr(node, "workeroutput", {}).get(HANDED, {})

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.unlisted:
            return
        terminalreporter.section("skipped, and not in tests/skips.toml", red=True)
        for test, reason in sorted(self.unlisted.items()):
            terminalreporter.line(f"{test}: {reason}")
