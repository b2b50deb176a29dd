"""Sparse gradients: a table is stepped by the rows that a gradient touches, and only by these."""

import copy
import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from funnel import SGD, Adagrad, AdagradEMA, Adam, Funnel, Inner, RMSprop
from funnel.tensorlists import power

INNERS = [SGD(), Adagrad(), AdagradEMA(), RMSprop(), Adam()]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
MOMENTUM = [(0.0, False), (0.9, False), (0.9, True)]
RATES = {"lr": 0.05, "beta": 0.8, "gain_lr": 0.03, "scale_lr": 0.03}
VARIANTS = {
    "inner": st.sampled_from(INNERS),
    "momentum": st.sampled_from(MOMENTUM),
    "normalize_gain": st.booleans(),
    "normalize_scale": st.booleans(),
    "weight_decay": st.sampled_from([0.0, 0.1]),
    "maximize": st.booleans(),
    "skip_nonfinite": st.booleans(),
}


def optimizer(
    params: list[nn.Parameter], momentum: tuple[float, bool] = (0.9, False), **variant: Any
) -> Funnel:
    return Funnel(params, momentum=momentum[0], nesterov=momentum[1], **{**RATES, **variant})


def sparse(rows: Tensor, values: Tensor, like: Tensor) -> Tensor:
    """Return a gradient as nn.Embedding gives it: not coalesced."""
    return torch.sparse_coo_tensor(rows[None], values, like.shape, check_invariants=True)


def tensors(opt: Funnel, p: Tensor) -> dict[str, Tensor]:
    """Return copies of the weights and all state; steps are written out for each row."""
    state = dict(opt.state[p])
    found = {"w": p.detach(), **state.pop("inner"), **state}
    found["step"] = found["step"].expand(len(p), *[1] * (p.dim() - 1))
    return {key: tensor.clone() for key, tensor in found.items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert torch.equal(tensor, other[key]), key


def trained(inner: Inner = Adagrad(), steps: int = 4, **variant: Any) -> tuple[Any, Funnel]:  # noqa: B008
    """Return a table [10, 3] after some steps that touched half of its rows, and its optimizer."""
    torch.manual_seed(1)
    w = nn.Parameter(torch.randn(10, 3))
    opt = optimizer([w], inner=inner, **variant)
    for _ in range(steps):
        w.grad = sparse(torch.randint(0, 5, (6,)), torch.randn(6, 3), w)
        opt.step()
    return w, opt


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    shapes=st.lists(st.sampled_from([(7, 3), (33, 16), (1, 5), (9,), (4, 2, 3)]), min_size=1),
    dtype=st.sampled_from(DTYPES),
    alternate=st.booleans(),
    **VARIANTS,
)
def test_at_all_visits_sparse_is_dense_bit_for_bit(
    seed: int, shapes: list[tuple[int, ...]], dtype: torch.dtype, alternate: bool, **variant: Any
) -> None:
    torch.manual_seed(seed)
    dense = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    tables = copy.deepcopy(dense)
    one, other = optimizer(dense, **variant), optimizer(tables, **variant)
    for number in range(5):
        for d, t in zip(dense, tables, strict=True):
            d.grad, order = torch.randn_like(d), torch.randperm(len(d))
            is_dense = alternate and number % 2 == 0
            t.grad = d.grad.clone() if is_dense else sparse(order, d.grad[order], t)
        one.step()
        other.step()
    for d, t in zip(dense, tables, strict=True):
        assert_same(tensors(one, d), tensors(other, t))


@pytest.mark.parametrize("inner", INNERS, ids=str)
def test_it_is_dense_bit_for_bit_in_a_group_of_many_tables(inner: Inner) -> None:
    dense = [nn.Parameter(torch.randn(40, 3)) for _ in range(40)]
    tables = copy.deepcopy(dense)
    variant = {"inner": inner, "normalize_gain": False}
    one, other = optimizer(dense, **variant), optimizer(tables, **variant)
    for _ in range(20):
        for d, t in zip(dense, tables, strict=True):
            d.grad = torch.randn_like(d)
            t.grad = d.grad.to_sparse(1)
        one.step()
        other.step()
    for d, t in zip(dense, tables, strict=True):
        assert_same(tensors(one, d), tensors(other, t))


@pytest.mark.parametrize("inner", INNERS, ids=str)
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_a_module_with_sparse_gradients_is_the_dense_one_bit_for_bit(
    kind: type[nn.Module], inner: Inner
) -> None:
    modules: list[Any] = [kind(20, 4, sparse=False), kind(20, 4, sparse=True)]
    modules[1].load_state_dict(modules[0].state_dict())
    optimizers = [optimizer(list(m.parameters()), inner=inner) for m in modules]
    for _ in range(5):
        words, target = torch.randperm(20).view(5, 4), torch.randn(4)
        if kind is nn.Embedding:  # its dense gradient adds up duplicates in their order, too
            words = torch.cat([words, torch.randint(0, 20, (20, 4))])
        for module, opt in zip(modules, optimizers, strict=True):
            opt.zero_grad()
            (module(words) - target).square().sum().backward()
            opt.step()
    assert modules[1].weight.grad.is_sparse
    assert_same(*(tensors(o, m.weight) for o, m in zip(optimizers, modules, strict=True)))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(DTYPES), **VARIANTS)
def test_a_row_that_is_not_touched_does_not_change(
    seed: int, dtype: torch.dtype, **variant: Any
) -> None:
    torch.manual_seed(seed)
    w = nn.Parameter(torch.randn(12, 3).to(dtype))
    opt, visits = optimizer([w], **variant), torch.zeros(12, dtype=torch.int64)
    w.grad = sparse(torch.arange(6), torch.randn(6, 3).to(dtype), w)
    opt.step()
    visits[:6] += 1
    for _ in range(5):
        before, rows = tensors(opt, w), torch.randint(0, 12, (4,))
        w.grad = sparse(rows, torch.randn(4, 3).to(dtype), w)
        opt.step()
        after, others = tensors(opt, w), torch.ones(12, dtype=torch.bool)
        others[rows] = False
        visits[rows.unique()] += 1
        for key in before.keys() - {"log_scale", "nonfinite"}:
            assert torch.equal(before[key][others], after[key][others]), key
    assert torch.equal(opt.state[w]["step"][:, 0], visits)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    **{key: VARIANTS[key] for key in ("inner", "momentum", "normalize_gain", "weight_decay")},
)
def test_without_a_common_scale_a_row_depends_on_its_own_visits_alone(
    seed: int, **variant: Any
) -> None:
    torch.manual_seed(seed)
    w = nn.Parameter(torch.randn(5, 4))
    alone = [nn.Parameter(row.detach().clone()[None]) for row in w]
    opt = optimizer([w], scale_lr=0.0, **variant)
    opts = [optimizer([row], scale_lr=0.0, **variant) for row in alone]
    for _ in range(10):
        rows = torch.randperm(5)[: torch.randint(1, 6, ())]
        values = torch.randn(len(rows), 4)
        w.grad = sparse(rows, values, w)
        opt.step()
        for row, value in zip(rows.tolist(), values, strict=True):
            alone[row].grad = value[None]
            opts[row].step()
    for row, expected in zip(w, alone, strict=True):
        torch.testing.assert_close(row[None], expected, rtol=1e-5, atol=1e-6)


def test_entries_of_one_row_are_added_in_their_order() -> None:
    rows = torch.randint(0, 5, (2000,))
    values = torch.randn(2000, 3) * 10.0 ** torch.randint(-4, 4, (2000, 1))
    summed = torch.zeros(5, 3)
    for row, value in zip(rows.tolist(), values, strict=True):
        summed[row] += value
    w, v = nn.Parameter(torch.zeros(5, 3)), nn.Parameter(torch.zeros(5, 3))
    one, other = optimizer([w], inner=SGD()), optimizer([v], inner=SGD())
    w.grad, v.grad = sparse(rows, values, w), summed
    one.step()
    other.step()
    assert_same(tensors(one, w), tensors(other, v))


def test_a_bf16_table_has_the_sum_of_its_entries_in_fp32() -> None:
    w = nn.Parameter(torch.zeros(2, 1, dtype=torch.bfloat16))
    opt = optimizer([w], inner=SGD())
    ones = torch.ones(300, 1, dtype=torch.bfloat16)  # in bf16, 256 + 1 is 256
    w.grad = sparse(torch.zeros(300, dtype=torch.int64), ones, w)
    opt.step()
    assert opt.telemetry()[0]["gradient_norm"] == 300


@pytest.mark.parametrize("inner", INNERS, ids=str)
def test_a_saved_table_resumes_bit_for_bit(inner: Inner) -> None:
    w, opt = trained(inner)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    v = nn.Parameter(w.detach().clone())
    twin = optimizer([v], inner=inner)
    twin.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for _ in range(4):
        rows, values = torch.randint(0, 10, (6,)), torch.randn(6, 3)
        for p, o in ((w, opt), (v, twin)):
            p.grad = sparse(rows, values, p)
            o.step()
    assert_same(tensors(opt, w), tensors(twin, v))


@pytest.mark.parametrize("inner", INNERS, ids=str)
def test_the_steps_of_a_saved_dense_tensor_count_as_visits_of_every_row(inner: Inner) -> None:
    w = nn.Parameter(torch.randn(6, 3))
    opt = optimizer([w], inner=inner, normalize_gain=False)
    for _ in range(3):
        w.grad = torch.randn(6, 3)
        opt.step()
    v = nn.Parameter(w.detach().clone())
    table = optimizer([v], inner=inner, normalize_gain=False)
    table.load_state_dict(opt.state_dict())
    assert table.state[v]["step"].dim() == 0
    w.grad = torch.randn(6, 3)
    v.grad = w.grad.to_sparse(1)
    opt.step()
    table.step()
    assert table.state[v]["step"].flatten().tolist() == [4] * 6
    assert_same(tensors(opt, w), tensors(table, v))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("inner", INNERS, ids=str)
def test_a_nonfinite_sparse_gradient_changes_nothing_but_the_count(
    inner: Inner, poison: float
) -> None:
    w, opt = trained(inner, weight_decay=0.1, normalize_gain=False)
    before = tensors(opt, w)
    w.grad = sparse(torch.tensor([1, 8]), torch.tensor([[1.0, 2, 3], [1, poison, 2]]), w)
    opt.step()
    after = tensors(opt, w)
    assert after.pop("nonfinite") == before.pop("nonfinite") + 1
    assert_same(before, after)


def test_a_sparse_gradient_of_no_rows_is_no_step() -> None:
    w, opt = trained(weight_decay=0.1)
    fresh, before = nn.Parameter(torch.ones(4, 3)), tensors(opt, w)
    opt.add_param_group({"params": [fresh]})
    for p in (w, fresh):
        p.grad = sparse(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3), p)
    opt.step()
    assert_same(before, tensors(opt, w))
    assert not opt.state[fresh]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize(
    ("form", "inner", "message"),
    [
        ({"layout": torch.sparse_csr}, SGD(), r"'b' has a gradient of layout torch.sparse_csr"),
        ({"sparse_dim": 2}, SGD(), "'b' has a gradient of 2 sparse dimensions"),
        ({"sparse_dim": 1}, torch.optim.NAdam, "'b' has a sparse.*NAdam.*sparse=False"),
    ],
)
def test_other_sparse_gradients_are_refused_by_name_before_anything_changes(
    form: dict[str, Any], inner: Any, message: str
) -> None:
    grad = torch.ones(4, 3).to_sparse(**form)
    weights = grad.clone() if "layout" in form else torch.ones(4, 3)  # else torch refuses grad
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(weights)
    opt = Funnel([{"params": [("a", a)]}, {"params": [("b", b)], "inner": inner}])
    a.grad, b.grad = torch.ones(2), grad
    with pytest.raises(RuntimeError, match=message):
        opt.step()
    assert torch.equal(a.detach(), torch.ones(2))
    assert not opt.state


def test_a_table_steps_eagerly_where_the_rest_is_compiled() -> None:
    ends = []
    for compiled in (False, True):
        w, opt = trained(compiled=compiled)
        w.grad = torch.ones_like(w)
        opt.step()
        ends.append(tensors(opt, w))
    assert_same(*ends)


def test_telemetry_describes_the_rows_that_were_visited() -> None:
    w, opt = trained(SGD(), steps=0, gain_lr=0.5)
    for row, sign in ((3, 1.0), (3, 1.0), (7, -1.0)):
        before = w.detach().clone()
        w.grad = sparse(torch.tensor([row]), torch.full((1, 3), sign), w)
        opt.step()
    report = opt.telemetry()[0]
    assert report["step"] == 2
    gains = opt.state[w]["log_gain"][[3, 7]].exp().flatten()
    assert (
        report["gain_quantiles"][[0, 3, -1]].tolist()
        == gains.quantile(torch.tensor([0.0, 0.5, 1.0])).tolist()
    )
    torch.testing.assert_close(report["gradient_norm"], torch.tensor(3.0).sqrt())
    torch.testing.assert_close(report["update_norm"], (w.detach() - before).norm())
    opt.load_state_dict(opt.state_dict())
    report = opt.telemetry()[0]
    assert (report["update_norm"], report["gradient_norm"], report["step"]) == (0, 0, 2)
    w.grad = torch.ones(10, 3)
    opt.step()
    assert (
        opt.telemetry()[0]["update_norm"]
        == opt.state[w]["velocity"].norm() * opt.state[w]["log_scale"].exp()
    )


class Largest(TorchDispatchMode):
    """Records the most elements of a tensor that an operator makes, beside those in place."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(one, Tensor) and not one.is_sparse and all(one is not a for a in args):
                self.elements = max(self.elements, one.numel())
        return made


@pytest.mark.parametrize("inner", INNERS, ids=str)
def test_a_step_makes_no_tensor_of_the_tables_size(inner: Inner) -> None:
    table = nn.Embedding(10_000, 8, sparse=True)
    opt = optimizer([table.weight], inner=inner, weight_decay=0.1, normalize_gain=False)
    found = []
    for _ in range(2):
        opt.zero_grad()
        table(torch.randint(0, 10_000, (50,))).square().sum().backward()
        with Largest() as largest:
            opt.step()
        found.append(largest.elements)
    assert found[0] == 80_000  # the state
    assert 0 < found[1] <= 50 * 8 * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_power_has_the_same_bits_alone_and_among_others(dtype: torch.dtype) -> None:
    exponents = torch.arange(1, 2000).to(dtype)
    for base in (0.9, 0.99, 0.999):
        alone = torch.stack([power(base, exponent) for exponent in exponents])
        assert torch.equal(power(base, exponents), alone)
        assert torch.equal(power(base, exponents[:, None])[:, 0], alone)
