"""`funnel demo`, as a user runs it."""

import contextlib
import errno
import io
import itertools
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from service.cli import main
from service.commands.demonstration.demonstration import run_demo
from service.commands.demonstration.report import Point, cells, relative_scales
from service.commands.demonstration.view import Span, panel
from service.monitoring.recovery import ShiftRecovery
from service.settings import load_settings
from streams.batch import Batch
from streams.sources.catalog import Stream
from tests.service.commands.test_rows import accuracy_of, write
from tests.support.harness import free_port, processes_naming, wait_for
from tests.support.states import a_batch

COMMAND = [
    sys.executable,
    "-m",
    "service.cli",
    "demo",
    "abrupt",
    "--source",
    "digits",
    "--model",
    "logistic",
    "--port",
    "0",
]


def demo(tmp_path: Path, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"} | variables
    return subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
def test_the_demo_learns_marks_shifts_and_draws_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "demo.png"
    run = demo(tmp_path, "--examples", "6000", "--rate", "3000", "--plot", str(picture))
    out, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    for angle in ("90°", "0°", "45°"):
        assert f": {angle}" in out
    assert "6,000" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert processes_naming(tmp_path) == set()


def test_a_scale_is_compared_with_its_own_past() -> None:
    scales = {0: 2.0, 4_000: 8.0, 8_000: 4.0, 30_000: 5.0, 31_000: 10.0}
    points = [Point(n, {"served": 0.5}, {}, scale, (1.0,) * 7) for n, scale in scales.items()]
    first, *others = relative_scales(points)
    assert math.isnan(first)
    assert others[:2] == pytest.approx([4.0, 1.0])
    assert math.isnan(others[2]), "nothing is known of the 10,000 examples before"
    assert others[3] == pytest.approx(2.0)


def rows_of(out: str) -> list[list[str]]:
    """Return the cells of the table at the end."""
    lines = [re.split("[│┃]", line)[1:-1] for line in out.splitlines() if line[:1] in ("│", "┃")]
    return [[cell.strip() for cell in line] for line in lines]


def table_of(out: str) -> list[list[str]]:
    """Return the cells of the shifts in the table at the end."""
    return [row for row in rows_of(out) if row[0] not in ("shift", "accuracy of all")]


def shifts_of(url: str, seen: dict[int, ShiftRecovery], polled: list[ShiftRecovery]) -> None:
    """Read /events and /history until the demo ends; keep what they show of each shift."""
    wait_for(lambda: is_ready(url))
    with (
        httpx.Client(base_url=url, timeout=60) as client,
        client.stream("GET", "/events") as answer,
    ):
        kind = ""
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data" and kind == "shift":
                shift = ShiftRecovery.model_validate_json(value)
                seen[shift.id] = shift
                with contextlib.suppress(httpx.TransportError):
                    history = client.get("/history").json()
                    polled[:] = map(ShiftRecovery.model_validate, history["shifts"])


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_terminal_page_and_history_give_one_number_for_a_recovery(tmp_path: Path) -> None:
    port = free_port()
    # The page has a point a second: several in each segment of 6 s, however slow the machine.
    run = demo(tmp_path, "--examples", "9000", "--rate", "500", "--port", str(port))
    seen: dict[int, ShiftRecovery] = {}
    polled: list[ShiftRecovery] = []
    shifts_of(f"http://127.0.0.1:{port}", seen, polled)
    out, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    assert [(s.example, s.end) for s in seen.values()] == [(0, 3000), (3000, 6000), (6000, 9000)]
    assert table_of(out) == cells(list(seen.values()))
    assert len(table_of(out)) == 2
    assert next(r for r in rows_of(out) if r[0] == "shift")[3:] == ["Funnel", "adagrad"]
    ended = [shift for shift in polled if shift.end is not None]
    assert len(ended) >= 2
    assert ended == [seen[shift.id] for shift in ended]


@pytest.mark.slow
def test_a_demo_without_a_length_turns_until_ctrl_c_which_shows_a_table(tmp_path: Path) -> None:
    run = demo(
        tmp_path, "--model", "auto", "--rate", "100", "--effort", "fast"
    )  # a turn after each 2,000 examples
    assert run.stdout is not None
    shown = ""
    for line in run.stdout:
        shown += line
        if ": 0°" in line:
            break
    shown += "".join(itertools.islice(run.stdout, 12))  # in 3 s the page has points of it, too
    assert "It goes on until Ctrl-C" in shown
    os.killpg(run.pid, signal.SIGINT)
    out, errors = run.communicate(timeout=60)
    assert (run.returncode, errors) == (0, "")
    assert "shift at 0: 90°" in shown
    assert "shift at 2000: 0°" in shown
    what, at, goal, *taken = table_of(out)[-1]
    assert (what, at, {*taken}) == ("0°", "2,000", {"not yet"})
    assert goal.endswith("%")
    [last] = [row for row in rows_of(out) if row[0] == "accuracy of all"]
    assert all(cell.endswith("%") for cell in last[3:])
    assert processes_naming(tmp_path) == set()
    assert [p.name for p in tmp_path.iterdir() if "funnel" in p.name] == []


@pytest.mark.slow
def test_a_taken_port_makes_the_demo_take_another_unless_the_port_was_chosen(
    tmp_path: Path,
) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # then another program has it
            other.bind(("127.0.0.1", 8000))
            other.listen()
        length = ["--examples", "200", "--rate", "1000"]
        command = [*COMMAND[:-2], *length]
        environment = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False, env=environment
        )
        assert (ran.returncode, ran.stderr) == (
            0, "Port 8000 is taken, so the demo takes another one.\n",
        )  # fmt: skip
        assert "200 examples learned" in ran.stdout
        chosen = demo(tmp_path, *length, "--port", "8000")
        _, errors = chosen.communicate(timeout=120)
        assert chosen.returncode == 1
        assert "cannot listen on 127.0.0.1:8000" in errors


def test_the_terminal_shows_each_learner_and_the_end_of_an_endless_run() -> None:
    points = [
        Point(n, {"served": 0.9, "adagrad": 0.5}, {}, 1.0, (0.5, 0.6, 0.7, 1.0, 1.2, 1.5, 2.0))
        for n in range(0, 100_000, 500)
    ]
    shifts = [
        ShiftRecovery(id=1, example=0, what="90°"),
        ShiftRecovery(id=2, example=80_000, what="0°"),
    ]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(panel(points, shifts, Span(70_000, 30_000), "title", "note"))
    shown = console.export_text()
    assert re.search(r"accuracy Funnel +[▁▂▃▄▅▆▇█]{60} +90.0%", shown)
    assert re.search(r"accuracy adagrad +[▁▂▃▄▅▆▇█]{60} +50.0%", shown)
    assert re.search(r"shift +▼0°", shown)
    assert "90°" not in shown


@pytest.mark.slow
def test_digits_take_the_place_of_mnist_that_cannot_be_fetched(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [*COMMAND[:5], "--port", "0", "--examples", "200", "--rate", "1000"]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False,
        env={k: v for k, v in os.environ.items() if k != "FUNNEL_DATA_DIR"} | nowhere
        | {"TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": "/nowhere"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "200 examples learned" in ran.stdout
    assert "MNIST could not be fetched" in ran.stderr
    assert "digits take MNIST's place" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
def test_ctrl_c_ends_everything(tmp_path: Path) -> None:
    run = demo(tmp_path, "--examples", "600000", "--rate", "1000")
    assert run.stdout is not None
    for line in run.stdout:
        if "accuracy" in line:
            break
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode in (0, 130)
    assert "Traceback" not in errors
    assert processes_naming(tmp_path) == set()
    assert [p.name for p in tmp_path.iterdir() if "funnel" in p.name] == []


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_everything(tmp_path: Path) -> None:
    run = demo(tmp_path, "--examples", "600000", "--rate", "1000")
    assert run.stdout is not None
    assert run.stdout.readline()
    run.stdout.close()
    assert run.stderr is not None
    with run.stderr:
        errors = run.stderr.read()
    assert run.wait(60) == 1
    assert errors == "funnel: [Errno 32] Broken pipe\n"
    assert processes_naming(tmp_path) == set()
    assert [p.name for p in tmp_path.iterdir() if "funnel" in p.name] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "variables"),
    [
        ("127.0.0.1", {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}),
        ("::", {"ALL_PROXY": "socks5://127.0.0.1:9", "NO_PROXY": "127.0.0.0/8,::1/128"}),
    ],
)
def test_the_demo_asks_no_proxy_for_its_own_service(
    host: str, variables: dict[str, str], tmp_path: Path
) -> None:
    run = demo(tmp_path, "--examples", "300", "--rate", "600", "--host", host, **variables)
    out, errors = run.communicate(timeout=120)
    assert (run.returncode, errors) == (0, "")
    assert "300 examples learned" in out


@pytest.mark.slow
def test_whatever_ends_the_sending_ends_the_demo(tmp_path: Path) -> None:
    """Although what was sent before waits to be learned."""

    def blocks(seed: int, index: int | None) -> Iterator[Batch]:
        yield a_batch(0, 100)
        raise OSError("the source is gone")

    stream = Stream("broken", 6, 3, 1_000, (), blocks)
    settings = load_settings(
        {
            "data_dir": tmp_path, "features": 6, "classes": 3, "port": 0, "batch_size": 1_000,
            "max_wait_ms": 3_600_000,
        }
    )  # fmt: skip
    with pytest.raises(OSError, match="the source is gone"):
        run_demo(stream, 1_000, settings, None)
    assert processes_naming(tmp_path) == set()


def test_the_demo_without_a_folder_for_its_files_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", none)
    assert main(["demo", "--source", "digits"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("funnel: the demo cannot keep its files: ")
    assert shown.endswith("; set TMPDIR\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [[], ["--drop", "plan", "--kind", "city=text", "--examples", "700"]],
)
def test_the_demo_of_a_file_with_strings_ends_at_the_accuracy_of_compare(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "shop.csv", 0, 1_500)
    assert main(["compare", str(path), "--peers", "", *options]) == 0
    offline = accuracy_of(capsys.readouterr().out)
    more = ["--port", "0", "--rate", "3000", "--effort", "full"]
    command = [*COMMAND[:4], str(path), *more, *options]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120,
        env=os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    [shown] = re.findall(r"Accuracy of all examples: Funnel (\S+)%, adagrad \S+%", ran.stdout)
    assert float(shown) == pytest.approx(100 * offline, abs=0.005001)
    assert "no buttons that turn it" in ran.stdout
    assert processes_naming(tmp_path) == set()


REFUSED = {
    "a schema for numbers": (["sea", "--schema", "auto"], "--schema is for rows, but sea"),
    "a column of a stream": (["orders", "--drop", "price"], "--drop is for a file"),
    "kinds beside a schema": (["orders", "--time", "at", "--schema", "x.toml"], "edit x.toml"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_do_not_belong_to_a_stream_are_refused(
    case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = REFUSED[case]
    status = main(["demo", *arguments])
    shown = capsys.readouterr().err
    assert message in shown
    assert status == (2 if shown.startswith("funnel: --") else 1)


def test_a_demo_of_flights_asks_first_and_gets_the_labels_at_arrival(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--examples", "2500", "--rate", "2500", "--model", "logistic", "--port", "0"]
    assert main(["demo", "--data", "flights", *options]) == 0
    shown = capsys.readouterr().out
    found = re.search(r"Accuracy of the answers when they were given: (\d+\.\d+)%", shown)
    assert found is not None
    assert 60 < float(found[1]) < 95
    assert "Examples from each shift" not in shown
