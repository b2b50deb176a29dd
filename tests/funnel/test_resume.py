"""A run that is saved and resumed in a new process equals an uninterrupted one bit for bit."""

import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

from funnel import SGD, Adagrad, Adam, Funnel

# One program for both halves; the test also runs both halves here, uninterrupted.
PROGRAM = """
import sys, torch
from functools import partial
from funnel import *

STEPS = 25
INNERS = {"Adagrad": Adagrad(), "AdagradEMA": AdagradEMA(), "Adam": Adam(), "RMSprop": RMSprop(),
          "SGD": SGD(), "NAdam": partial(torch.optim.NAdam, weight_decay=0.0)}

def build(dtype, inner):
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3))
    model.to(getattr(torch, dtype))
    return model, Funnel(model.parameters(), INNERS[inner], lr=0.03, momentum=0.9, gain_lr=0.03)

def train(model, opt, first, last):
    for t in range(first, last):
        generator = torch.Generator().manual_seed(t)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        opt.step()

def save(path, model, opt):
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, path)

def resume(path, model, opt):
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    opt.load_state_dict(saved["opt"])

if __name__ == "__main__":
    folder = sys.argv[1]
    torch.set_num_threads(1)
    for dtype in ("float32", "bfloat16"):
        for inner in INNERS:
            model, opt = build(dtype, inner)
            resume(f"{folder}/{dtype}-{inner}-middle.pt", model, opt)
            train(model, opt, STEPS, 2 * STEPS)
            save(f"{folder}/{dtype}-{inner}-end.pt", model, opt)
"""


DTYPES = ("float32", "bfloat16")
INNERS = ("Adagrad", "AdagradEMA", "Adam", "RMSprop", "SGD", "NAdam")


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with whole runs, and runs whose second half was in a new process."""
    folder = tmp_path_factory.mktemp("halves")
    script = folder / "half.py"
    script.write_text(PROGRAM)
    here: dict = {"__name__": "half"}
    exec(PROGRAM, here)
    steps = here["STEPS"]
    for dtype, inner in product(DTYPES, INNERS):
        model, opt = here["build"](dtype, inner)
        here["train"](model, opt, 0, steps)
        here["save"](folder / f"{dtype}-{inner}-middle.pt", model, opt)
        here["train"](model, opt, steps, 2 * steps)
        here["save"](folder / f"{dtype}-{inner}-whole.pt", model, opt)
    subprocess.run([sys.executable, script, folder], check=True, timeout=120)
    return folder


@pytest.mark.parametrize("inner", INNERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_resume_in_a_new_process_is_bit_identical(dtype: str, inner: str, halves: Path) -> None:
    whole = torch.load(halves / f"{dtype}-{inner}-whole.pt", weights_only=True)
    end = torch.load(halves / f"{dtype}-{inner}-end.pt", weights_only=True)
    assert differences(whole, end) == []


def differences(a: object, b: object, path: str = "") -> list[str]:
    """Return the paths at which two saved states differ in a bit, a dtype or a key."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [path]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for key in a for d in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [
            d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, path)
        ]
    return [] if type(a) is type(b) and a == b else [path]


def stepped(dtype: torch.dtype = torch.float32, **settings: object) -> tuple[nn.Parameter, Funnel]:
    w = nn.Parameter(torch.ones(4, dtype=dtype))
    opt = Funnel([w], **settings)
    for _ in range(3):
        w.grad = torch.randn(4).to(dtype)
        opt.step()
    return w, opt


def test_bf16_parameters_keep_their_fp32_state_through_load_state_dict() -> None:
    w, opt = stepped(torch.bfloat16, inner=Adam())
    v = nn.Parameter(w.detach().clone())
    twin = Funnel([v], inner=Adam())
    twin.load_state_dict(opt.state_dict())
    assert differences(twin.state_dict(), opt.state_dict()) == []
    assert twin.state[v]["log_gain"].dtype == torch.float32
    assert twin.state[v]["step"].dtype == torch.int64


def test_loaded_state_is_a_copy() -> None:
    w, opt = stepped()
    saved = opt.state_dict()
    twin = Funnel([nn.Parameter(w.detach().clone())])
    twin.load_state_dict(saved)
    before = twin.state_dict()["state"][0]["log_gain"].clone()
    w.grad = torch.randn(4)
    opt.step()
    assert torch.equal(twin.state_dict()["state"][0]["log_gain"], before)


def test_load_hooks_see_the_saved_dictionary_and_the_finished_state() -> None:
    _, opt = stepped(torch.bfloat16)
    v = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    twin, seen = Funnel([v]), []
    twin.register_load_state_dict_pre_hook(
        lambda _, saved: seen.append(saved["state"][0]["log_gain"].dtype)
    )
    twin.register_load_state_dict_post_hook(
        lambda o: seen.append((o.state[v]["log_gain"].dtype, o.param_groups[0]["inner"]))
    )
    twin.load_state_dict(opt.state_dict())
    assert seen == [torch.float32, (torch.float32, Adagrad())]


def test_hyperparameters_come_back_with_the_state() -> None:
    _, opt = stepped(inner=Adagrad(eps=1e-5), lr=0.5, gain_bounds=(0.1, 10.0))
    twin = Funnel([nn.Parameter(torch.ones(4))])
    twin.load_state_dict(opt.state_dict())
    group = twin.param_groups[0]
    assert (group["inner"], group["lr"]) == (Adagrad(eps=1e-5), 0.5)
    assert group["gain_bounds"] == (0.1, 10.0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"inner": SGD()}, "inner optimizer SGD, the state to load has Adagrad"),
        ({"inner": torch.optim.NAdam}, "NAdam, the state to load has Adagrad"),
    ],
)
def test_the_state_of_another_inner_optimizer_is_refused(other: dict, message: str) -> None:
    _, opt = stepped()
    v = nn.Parameter(torch.ones(4))
    twin = Funnel([v], **other)
    with pytest.raises(ValueError, match=message):
        twin.load_state_dict(opt.state_dict())
    assert not twin.state


def test_the_state_of_another_shape_is_refused_by_name() -> None:
    _, opt = stepped()
    twin = Funnel([("w", nn.Parameter(torch.ones(5)))])
    with pytest.raises(ValueError, match=r"'w' has shape \(5,\), .* to load it has \(4,\)"):
        twin.load_state_dict(opt.state_dict())
    assert not twin.state
