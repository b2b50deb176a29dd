"""On a GPU: no synchronization, CUDA graphs, and the same numbers as on the CPU."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import nn

from funnel import SGD, Adagrad, AdagradEMA, Adam, Expert, Funnel, Inner, Pool, RMSprop
from funnel.graphs.captured import Captured
from tests.support.gpu import waiting_is_an_error
from tests.support.sparse import learn_sparse, sparse_batches, state_of, table

pytestmark = pytest.mark.gpu
INNERS = [SGD(), Adagrad(), AdagradEMA(), RMSprop(), Adam()]
SHAPES = [(64, 32), (32,), (16, 3, 3, 3)]


def build(inner: Inner, device: str, **settings: object) -> tuple[list[nn.Parameter], Funnel]:
    generator = torch.Generator().manual_seed(1)
    params = [nn.Parameter(torch.randn(s, generator=generator).to(device)) for s in SHAPES]
    for p in params:
        p.grad = torch.zeros_like(p)
    return params, Funnel(params, inner, momentum=0.9, nesterov=True, **settings)


def gradients(steps: int) -> Iterator[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        yield [torch.randn(s, generator=generator) for s in SHAPES]


def feed(params: list[nn.Parameter], grads: list[torch.Tensor]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad.copy_(g)


def tensors(opt: Funnel) -> list[torch.Tensor]:
    found = []
    for state in opt.state.values():
        inner = state["inner"]
        found += [v for v in (*state.values(), *inner.values()) if isinstance(v, torch.Tensor)]
    return found


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("inner", INNERS, ids=str)
def test_capture_and_replay_equal_eager(inner: Inner, normalized: bool) -> None:
    settings = {"normalize_gain": normalized, "normalize_scale": normalized}
    eager_params, eager = build(inner, "cuda", **settings)
    params, opt = build(inner, "cuda", **settings)
    first, *rest = gradients(20)
    for ps, o in ((eager_params, eager), (params, opt)):
        feed(ps, first)
        o.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        opt.step()
    for i, grads in enumerate(rest):
        if i == 5:
            grads[0][0] = torch.nan  # skipped inside the graph as it is outside
        feed(eager_params, grads)
        eager.step()
        feed(params, grads)
        graph.replay()
    for a, b in zip(eager_params + tensors(eager), params + tensors(opt), strict=True):
        assert torch.equal(a, b)
    assert opt.telemetry()[0]["nonfinite_steps"] == 1
    assert torch.equal(opt.telemetry()[0]["alignment"], eager.telemetry()[0]["alignment"])


def test_a_tensor_learning_rate_changes_a_captured_step() -> None:
    lr = torch.tensor(0.5, device="cuda")
    params, opt = build(SGD(), "cuda", lr=lr)
    feed(params, next(gradients(1)))
    opt.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        opt.step()
    lr.zero_()
    for state in opt.state.values():
        state["velocity"].zero_()
    before = params[0].detach().clone()
    graph.replay()
    assert torch.equal(params[0].detach(), before)


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_a_first_step_inside_a_capture_is_refused() -> None:
    params, opt = build(SGD(), "cuda")
    del params
    with (
        pytest.raises(RuntimeError, match="take one step before capturing"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        opt.step()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("inner", INNERS, ids=str)
def test_a_step_never_waits_for_the_device(inner: Inner, compiled: bool) -> None:
    params, opt = build(inner, "cuda", compiled=compiled)
    feed(params, next(gradients(1)))
    opt.step()
    with waiting_is_an_error():
        opt.step()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("inner", INNERS, ids=str)
def test_gpu_and_cpu_agree(inner: Inner, compiled: bool) -> None:
    cpu_params, cpu = build(inner, "cpu")
    params, opt = build(inner, "cuda", compiled=compiled)
    for grads in gradients(50):
        feed(cpu_params, grads)
        feed(params, grads)
        cpu.step()
        opt.step()
    for a, b in zip(cpu_params, params, strict=True):
        torch.testing.assert_close(a.detach(), b.detach().cpu(), rtol=1e-4, atol=1e-5)


def test_state_saved_on_the_gpu_loads_on_the_cpu_and_back() -> None:
    params, opt = build(Adam(), "cuda")
    for grads in gradients(3):
        feed(params, grads)
        opt.step()
    _, on_cpu = build(Adam(), "cpu")
    on_cpu.load_state_dict(opt.state_dict())
    assert all(t.device.type == "cpu" for t in tensors(on_cpu))
    _, back = build(Adam(), "cuda")
    back.load_state_dict(on_cpu.state_dict())
    for a, b in zip(tensors(back), tensors(opt), strict=True):
        assert a.device == b.device
        assert torch.equal(a, b)


@pytest.mark.parametrize("inner", INNERS, ids=str)
def test_a_sparse_step_at_all_visits_is_the_dense_one_bit_for_bit(inner: Inner) -> None:
    dense, table = (nn.Parameter(torch.ones(300, 16, device="cuda")) for _ in range(2))
    one, other = (Funnel([p], inner, momentum=0.9, normalize_gain=False) for p in (dense, table))
    for _ in range(10):
        dense.grad, order = torch.randn_like(dense), torch.randperm(300, device="cuda")
        values = dense.grad[order]
        table.grad = torch.sparse_coo_tensor(
            order[None], values, table.shape, check_invariants=True
        )
        one.step()
        other.step()
    assert torch.equal(dense, table)
    assert torch.equal(one.state[dense]["log_scale"], other.state[table]["log_scale"])


@pytest.mark.parametrize("inner", INNERS, ids=str)
def test_sparse_steps_with_many_duplicates_have_the_same_bits_again(inner: Inner) -> None:
    ends = []
    for _ in range(3):
        torch.manual_seed(1)
        embedding = nn.Embedding(5000, 16, sparse=True, device="cuda")
        opt = Funnel(embedding.parameters(), inner, momentum=0.9)
        for _ in range(10):
            opt.zero_grad()
            words = torch.randint(0, 50, (20_000,), device="cuda") ** 2
            (embedding(words) * torch.randn(20_000, 16, device="cuda")).sum().backward()
            opt.step()
        ends.append(embedding.weight.detach().clone())
    assert all(torch.equal(end, ends[0]) for end in ends)


FEATURES, CLASSES = 40, 5
EXPERTS = [
    Expert(Adagrad(initial_accumulator_value=0.01), 0.01, 0.1, 0.03),
    Expert(SGD(), 0.1, 0.03, 0.03, pull=0.1),
    Expert(Adagrad(initial_accumulator_value=0.01), 0.03, 0.003, 0.002, steps=4),
    Expert(SGD(), 0.03, 0.003, 0.002, steps=4, pull=0.1),
]


def a_pool(device: str) -> Pool:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    return Pool(module.to(device), FEATURES, EXPERTS)


def examples(count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        inputs = torch.randn(32, FEATURES, generator=generator)
        yield inputs, inputs[:, :CLASSES].argmax(dim=1)


def learn(pool: Pool, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    seen = pool.score(inputs, labels)
    keep = torch.ones((), dtype=torch.bool, device=inputs.device)
    pool.update(inputs, labels, pool.decide(seen, keep))
    return (seen.losses,)


def test_a_pool_learns_on_the_gpu_what_it_learns_on_the_cpu() -> None:
    here, there = a_pool("cpu"), a_pool("cuda")
    for inputs, labels in examples(20):
        learn(here, inputs, labels)
        learn(there, inputs.cuda(), labels.cuda())
    for name, tensor in there.tensors().items():
        if "log_gain" not in name:  # learned from signs, some of which rounding decides
            expected = here.tensors()[name]
            torch.testing.assert_close(tensor.cpu(), expected, rtol=5e-2, atol=5e-3, msg=name)


@pytest.mark.parametrize("hidden", [(), (6,)], ids=str)
def test_a_table_learns_on_the_gpu_what_it_learns_on_the_cpu(hidden: tuple[int, ...]) -> None:
    here, *there = (table(hidden, device=device) for device in ("cpu", "cuda", "cuda"))
    for batch in sparse_batches(20):
        for one in (here, *there):
            learn_sparse(one, batch)
    expected, found, again = map(state_of, (here, *there))
    for name, tensor in found.items():
        assert torch.equal(tensor, again[name]), name
        if "log_gain" not in name:
            mine = tensor.to(expected[name].device)
            torch.testing.assert_close(mine, expected[name], rtol=5e-2, atol=5e-3, msg=name)


def test_no_step_of_a_pool_waits_for_the_gpu() -> None:
    pool = a_pool("cuda")
    found = [(inputs.cuda(), labels.cuda()) for inputs, labels in examples(3)]
    learn(pool, *found[0])
    with waiting_is_an_error():
        for batch in found[1:]:
            learn(pool, *batch)


def test_a_captured_pool_learns_what_an_eager_one_learns_bit_for_bit() -> None:
    eager, pool = a_pool("cuda"), a_pool("cuda")
    captured = Captured(partial(learn, pool))
    for number, (inputs, labels) in enumerate(examples(20)):
        some = slice(0, 20 if number == 9 else 32)  # one batch of another size
        batch = inputs[some].cuda(), labels[some].cuda()
        if number == 12:  # an expert diverges; the graph restarts it
            for one in (eager, pool):
                one.parameters["0.weight"][1] = torch.nan
        (expected,) = learn(eager, *batch)
        (losses,) = captured(*batch)
        assert torch.equal(losses, expected)
    for name, tensor in pool.tensors().items():
        assert torch.equal(tensor, eager.tensors()[name]), name
        assert tensor.isfinite().all()
    for mine, theirs in zip(pool.alignment, eager.alignment, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert torch.equal(one, other)
