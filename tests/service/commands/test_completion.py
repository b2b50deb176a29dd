"""`funnel completion`, in the shells that are here."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.cli import COMMANDS
from service.commands.completion import SHELLS
from tests.support.cli import environment

CHECKED_BY = {"bash": "-n", "zsh": "-n", "fish": "--no-execute"}
"""Option of each shell that looks at the syntax of a script alone."""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, found = tmp_path_factory.mktemp("scripts"), {}
    for shell in SHELLS:
        ran = subprocess.run(
            [sys.executable, "-m", "service.cli", "completion", shell], capture_output=True,
            text=True, timeout=60, check=True, env=environment(),
        )  # fmt: skip
        assert ran.stderr == ""
        found[shell] = folder / shell
        found[shell].write_text(ran.stdout)
    return found


def test_every_script_has_every_command_and_is_one_of_its_shell(scripts: dict[str, Path]) -> None:
    for shell, path in scripts.items():
        text = path.read_text()
        assert all(command in text for command in COMMANDS)
        assert all(option in text for option in ("batch-size", "accept-gap", "peers", "learning"))
        if found := shutil.which(shell):
            subprocess.run([found, CHECKED_BY[shell], str(path)], check=True, timeout=60)


TYPED = {
    "funnel se": ["serve"],
    "funnel serve --feat": ["--features"],
    "funnel stream --bat": ["--batch-size"],
    "funnel completion z": ["zsh"],
    "funnel predict mine": ["mine.csv"],
}


@pytest.mark.parametrize("line", TYPED)
def test_bash_completes_commands_options_choices_and_files(
    line: str, scripts: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "mine.csv").touch()
    words = line.split()
    program = (
        f"source {scripts['bash']}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
        '_shtab_funnel; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    ran = subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, timeout=60, check=False,
        cwd=tmp_path,
    )  # fmt: skip
    assert ran.stdout.split() == TYPED[line]


def test_a_shell_that_is_not_known_is_refused() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "service.cli", "completion", "csh"], capture_output=True, text=True,
        timeout=60, check=False, env=environment(),
    )  # fmt: skip
    assert ran.returncode == 2
    assert ran.stderr.startswith("funnel completion: shell: invalid choice: 'csh' (choose from")
