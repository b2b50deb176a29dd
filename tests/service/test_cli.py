"""The command line as a user meets it: quick help, one line for each error that can be mended."""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import httpx
import numpy as np
import pytest

from service.cli import COMMANDS, make_parser
from streams.batch import Batch
from tests.support.cli import environment, funnel
from tests.support.harness import ServiceProcess, free_port, serving, wait_for

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "river", "sklearn", "scipy", "fastapi", "pandas"}
FUNNEL = [sys.executable, "-m", "service.cli"]
HELP_CPU_SECONDS, HELP_IMPORTS = 0.4, 3
"""CPU time of a command that shows help; on a slow machine as much as it takes to import pydantic,
which declares the settings, so many times."""


def imported(*arguments: str) -> set[str]:
    """Return the packages that a command imports."""
    command = [sys.executable, "-X", "importtime", "-m", "service.cli", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment())
    assert ran.returncode == 0, ran.stderr[-2_000:]
    return {name.partition(".")[0] for name in re.findall(r"\| +(\S+)$", ran.stderr, re.MULTILINE)}


def cpu_seconds(*command: str) -> float:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_quick_and_imports_nothing_heavy(command: str) -> None:
    arguments = [*command.split(), "--help"]
    assert imported(*arguments) & HEAVY == set()
    importing = [sys.executable, "-c", "from pydantic import BaseModel, Field"]
    alone, spent = (
        min(cpu_seconds(*each) for _ in range(3)) for each in (importing, [*FUNNEL, *arguments])
    )
    assert spent < max(HELP_CPU_SECONDS, HELP_IMPORTS * alone)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    directory = tmp_path_factory.mktemp("service")
    with serving(directory, features=3, classes=2, max_wait_ms=10) as running:
        yield running


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.safetensors"
    batch = Batch(np.zeros((4, 3), dtype=np.float32), np.array([0, 1, 0, 1]))
    path.write_bytes(batch.to_bytes())
    return path


@pytest.mark.parametrize("kind", ["http", "redis"])
def test_a_stream_to_a_server_imports_nothing_heavy(
    kind: str, service: ServiceProcess, rows: Path
) -> None:
    socket_path = service.directory / "data/log/valkey.sock"
    url = service.url if kind == "http" else f"unix://{socket_path}"
    found = imported("stream", str(rows), "--to", url)
    assert "httpx" in found
    assert found & HEAVY == set()


def test_without_a_command_the_help_is_shown() -> None:
    ran = funnel()
    assert (ran.returncode, ran.stderr) == (0, "")
    assert all(line in " ".join(ran.stdout.split()) for line in COMMANDS.values())


MISTYPED = {
    "sreve": "funnel: no command 'sreve' (did you mean serve?). See funnel --help",
    "xyzzy": "funnel: no command 'xyzzy'. See funnel --help",
    "--hepl": "funnel: no option --hepl (did you mean --help?). See funnel --help",
    "serve --featurs 3": "funnel serve: no option --featurs (did you mean --features?). "
    "See funnel serve --help",
    "stream sea --tp http://h": "funnel stream: no option --tp (did you mean --to?). "
    "See funnel stream --help",
    "compare sea --port 1": "funnel compare: no option --port (did you mean --plot?). "
    "See funnel compare --help",
    "status http://h:1": "funnel status: no argument 'http://h:1' (did you mean --to http://h:1?). "
    "See funnel status --help",
    "compare sea wind": "funnel compare: no argument 'wind'. See funnel compare --help",
    "compare sea --schema a.toml": "funnel compare: no option --schema (did you mean --source?). "
    "See funnel compare --help",
    "demo --rate=-1": "funnel demo: --rate: must be a number above 0, got '-1'",
    "serve --features abc": "funnel: --features: give a whole number, got 'abc'",
    "serve --hidden 256x128": "funnel: --hidden: give a whole number, or several with commas, "
    "got '256x128'",
    "serve --port=70000": "funnel: --port: give at most 65,535, got '70000'",
    "serve --lr 0": "funnel: --lr: give more than 0, got '0'",
    "serve --calibrate maybe": "funnel: --calibrate: give true or false or give 'auto', "
    "got 'maybe'",
    "serve --effort slow": "funnel: --effort: give 'auto', 'full' or 'fast', got 'slow'",
    "serve --predict-key k": "funnel: --predict-key: set FUNNEL_API_KEY too, the key that may do "
    "everything",
    "dead --to nowhere": "funnel: --to: 'nowhere' is not an address: http://host:port",
}


@pytest.mark.parametrize("line", MISTYPED)
def test_a_mistyped_command_line_is_answered_in_one_line_with_status_2(line: str) -> None:
    ran = funnel(*line.split())
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == f"{MISTYPED[line]}\n"


def test_a_variable_of_the_environment_is_named_as_a_variable() -> None:
    ran = subprocess.run(
        [*FUNNEL, "serve", "--port", "0"], capture_output=True, text=True, timeout=60,
        env=environment() | {"FUNNEL_FEATURES": "abc"},
    )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr == "funnel: FUNNEL_FEATURES: give a whole number, got 'abc'\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_the_default_of_every_option(command: str) -> None:
    """Flags, what must be given, what is not shown, and help itself have none."""
    shown = make_parser(command).chosen
    assert shown is not None
    without = ("--help", "--plot", "--time", "--kind", "--drop", "--learning", "--json")
    missing = [
        action.option_strings[-1]
        for action in shown._actions
        if action.option_strings
        and action.option_strings[-1] not in without
        and not action.required
        and action.help != argparse.SUPPRESS
        and "[" not in (action.help or "")
    ]
    assert missing == []


IMPORTED = ["pathlib", "argparse", "pydantic", "numpy", "torch", "fastapi"]
"""Modules that `funnel serve` imports, in this order."""


@pytest.mark.parametrize("module", IMPORTED)
def test_ctrl_c_is_silent_from_the_first_import_on(module: str, tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "funnel_stream", "serve", "--port=0"]
    paths = f"{ROOT}{os.pathsep}{ROOT / 'service/entry'}"
    with subprocess.Popen(
        [*command, f"--data-dir={tmp_path}"], stderr=subprocess.PIPE, text=True,
        env=environment() | {"PYTHONPATH": paths},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if re.search(rf"\| +{module}$", line):
                break
        process.send_signal(signal.SIGINT)
        rest = [line for line in process.stderr if not line.startswith("import time:")]
    assert process.returncode in (130, -signal.SIGINT)
    assert rest == []


def test_a_start_that_fails_prints_its_error_alone(tmp_path: Path, taken: int) -> None:
    ran = funnel("serve", "--port", str(taken), "--data-dir", str(tmp_path / "data"))
    assert ran.returncode == 1
    [line] = ran.stderr.splitlines()
    assert line.startswith("funnel: cannot listen on 127.0.0.1:")


def run_instead(
    statement: str, out: int | BinaryIO = subprocess.PIPE
) -> "subprocess.CompletedProcess[str]":
    """Run `funnel data mnist` with a statement in place of the command's own work."""
    program = f"""
import signal, sys
import service.cli, service.commands.data
def run(options):
    {statement}
service.commands.data.run = run
sys.exit(service.cli.main(["data", "mnist"]))
"""
    return subprocess.run(
        [sys.executable, "-c", program], stdout=out, stderr=subprocess.PIPE, text=True, timeout=60
    )


@pytest.mark.parametrize("error", ["ValueError", "RuntimeError", "OSError", "KeyError"])
def test_a_bug_shows_its_traceback(error: str) -> None:
    ran = run_instead(f"raise {error}('3 is not in list')")
    assert ran.returncode == 1
    assert ran.stderr.startswith("Traceback")
    assert f"{error}: " in ran.stderr


def test_ctrl_c_is_status_130_and_silent() -> None:
    ran = run_instead("signal.raise_signal(signal.SIGINT)")
    assert (ran.returncode, ran.stderr) == (130, "")


def test_sigterm_is_the_status_of_a_signal_and_silent() -> None:
    ran = run_instead("signal.raise_signal(signal.SIGTERM)")
    assert (ran.returncode, ran.stderr) == (143, "")


@pytest.mark.parametrize("amount", [1, 100_000])
def test_output_that_nobody_reads_is_one_line(amount: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as out:
        ran = run_instead(f"sys.stdout.write({amount} * 'x'); return 0", out)
    assert (ran.returncode, ran.stderr) == (1, "funnel: [Errno 32] Broken pipe\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_output_on_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "wb") as out:
        ran = run_instead("sys.stdout.write('x'); return 0", out)
    assert (ran.returncode, ran.stderr) == (1, "funnel: [Errno 28] No space left on device\n")


NARROW = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
"""Environments whose output is not UTF-8."""


def narrow(name: str, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [*FUNNEL, *arguments], capture_output=True, timeout=120, env=environment() | NARROW[name]
    )


@pytest.mark.parametrize("name", NARROW)
def test_a_terminal_without_greek_letters_shows_help(name: str) -> None:
    ran = narrow(name, "serve", "--help")
    assert ran.returncode == 0, ran.stderr
    assert b"initial ?" in ran.stdout
    for command in COMMANDS:
        ran = narrow(name, command, "--help")
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.startswith(f"usage: funnel {command} ".encode())


@pytest.mark.parametrize("name", ["latin-1", "C"])
def test_a_terminal_without_greek_letters_shows_results(name: str, tmp_path: Path) -> None:
    path = tmp_path / "größe–$_{.csv"
    path.write_text("a,label\n" + "1,ä\n2,β\n" * 10)
    ran = narrow(name, "compare", str(path), "--peers", "", "--seeds", "2")
    assert ran.returncode == 0, ran.stderr
    assert b"Funnel (auto)" in ran.stdout
    assert (" ± " if name == "latin-1" else " ? ").encode("latin-1") in ran.stdout
    ran = narrow(name, "demo", str(path), "--rate", "1000", "--port", str(free_port()))
    assert ran.returncode == 0, ran.stderr
    assert b"20 examples learned" in ran.stdout
    ran = narrow(name, "stream", str(path), "--to", "größe://–")
    assert ran.returncode == 1
    assert b"neither http://" in ran.stderr
    assert b"Traceback" not in ran.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "serve"])
def test_a_closed_output_is_one_line_before_the_work(command: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,label\n1,0\n2,1\n")
    arguments = {
        "data": ["mnist"], "stream": ["rows.csv", "--to", "http://127.0.0.1:9"], "status": [],
        "dead": [], "pause": [], "resume": [], "promote": ["adam"], "completion": ["bash"],
        "rollback": ["1"], "replay": ["--from", "data"],
    }  # fmt: skip
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", *FUNNEL, command]
    ran = subprocess.run(
        [*shell, *arguments.get(command, ["rows.csv"])], capture_output=True, text=True, timeout=60,
        cwd=tmp_path, env=environment() | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr == (
        "funnel: standard output is closed: redirect it, for example to /dev/null\n"
    )


def test_a_service_needs_no_standard_streams(tmp_path: Path) -> None:
    port = free_port()
    options = ["serve", f"--port={port}", f"--data-dir={tmp_path}", "--features=3", "--classes=2"]
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *FUNNEL, *options]
    with subprocess.Popen(shell, env=environment()) as service:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
                wait_for(lambda: is_ready(client), 60)
        finally:
            service.terminate()
        assert service.wait(60) == 0


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_ctrl_c_ends_a_stream_that_waits_for_its_service(rows: Path) -> None:
    command = [*FUNNEL, "stream", str(rows), "--to", f"http://127.0.0.1:{free_port()}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stderr is not None
    seen = ""
    while "trying again" not in seen:
        seen += process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in rest


def test_a_stream_of_another_shape_says_how_to_start_a_service_for_it(
    service: ServiceProcess, tmp_path: Path
) -> None:
    path = tmp_path / "wide.safetensors"
    path.write_bytes(Batch(np.zeros((4, 5), dtype=np.float32), np.array([0, 1, 2, 1])).to_bytes())
    ran = funnel("stream", str(path), "--to", service.url)
    assert ran.returncode == 1
    assert "features have shape [4, 5], expected [n, 3]" in ran.stderr
    assert "funnel serve --features 5 --classes 3 --data-dir DIRECTORY" in ran.stderr


def test_a_proxy_that_cannot_be_used_is_one_line(rows: Path) -> None:
    ran = subprocess.run(
        [*FUNNEL, "stream", str(rows), "--to", "http://funnel.invalid"],
        capture_output=True, text=True, timeout=60,
        env=environment() | {"ALL_PROXY": "socks5://127.0.0.1:9"},
    )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr.startswith("funnel: the proxy socks5://127.0.0.1:9 of the environment cannot")
    assert ran.stderr.count("\n") == 1


def test_a_stream_takes_its_key_from_a_file(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hush\n")
    keys = {"features": 3, "classes": 2, "api_key_file": str(tmp_path / "key")}
    with serving(tmp_path / "service", **keys) as running:
        assert httpx.get(f"{running.url}/model").status_code == 401
        ran = subprocess.run(
            [*FUNNEL, "stream", str(rows), "--to", running.url],
            capture_output=True, text=True, timeout=60,
            env=environment() | {"FUNNEL_API_KEY_FILE": str(tmp_path / "key")},
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


def test_the_home_directory_need_not_be_known(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import pwd\ndef unknown(uid):\n    raise KeyError(uid)\npwd.getpwuid = unknown\n"
    )
    ran = subprocess.run(
        [*FUNNEL, "data", "mnist"], capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("funnel: ~/.cache has no meaning here: no home directory is known")


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


MENDABLE = {
    "a missing file": (["stream", "gone.csv", "--to", "http://h"], "no stream and no file 'gone"),
    "a file that cannot be read": (["stream", "folder.csv", "--to", "http://h"], "cannot be read"),
    "a damaged archive": (["stream", "damaged.csv.gz", "--to", "http://h"], "cannot be read"),
    "a label of a stream": (["stream", "sea", "--label", "x", "--to", "http://h"], "--label is"),
    "no scheme": (["stream", "rows.csv", "--to", "host"], "neither http://"),
    "a bad port": (["stream", "rows.csv", "--to", "http://h:x"], "is not an address"),
    "a bad port of Redis": (["stream", "rows.csv", "--to", "redis://h:x"], "is not an address"),
    "a taken port": (["serve", "--port", "TAKEN"], "cannot listen on 127.0.0.1:"),
    "a host": (["serve", "--port", "0", "--host", "no.invalid"], "listen on no.invalid:0: [Errno"),
    "a setting": (["serve", "--batch-size", "0"], "--batch-size: give at least 1, got '0'"),
    "a device": (["serve", "--port", "0", "--device", "gpu"], "--device: 'gpu' cannot be used"),
    "a model": (["serve", "--port", "0", "--model", "gone:Net"], "'gone:Net' cannot be imported"),
    "a data folder": (["serve", "--port", "0", "--data-dir", "rows.csv"], "--data-dir"),
    "a log's folder": (["serve", "--port", "0", "--data-dir", "blocked"], "--data-dir"),
    "a picture's folder": (["compare", "sea", "--plot", "gone/x.png"], "no file can be written"),
    "a picture's kind": (["compare", "sea", "--plot", "x.txt"], "a picture ends in"),
}


@pytest.mark.parametrize("fault", MENDABLE)
def test_an_error_that_the_user_can_mend_is_one_line(
    fault: str, tmp_path: Path, taken: int
) -> None:
    (tmp_path / "rows.csv").write_text("x,label\n1,0\n2,1\n")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "damaged.csv.gz").write_bytes(b"\x1f\x8b\x08\x00damaged")
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked/log").write_text("a file where the log's folder would be")
    arguments, message = MENDABLE[fault]
    ran = funnel(*(w.replace("TAKEN", str(taken)) for w in arguments), cwd=tmp_path)
    *before, last = ran.stderr.splitlines()
    assert ran.returncode == (2 if last.startswith("funnel: --") else 1)
    assert last.startswith("funnel: ")
    assert message in last
    told = ("2 examples", "takes some seconds")  # progress, and what is tried
    assert [line for line in before if not any(text in line for text in told)] == []
