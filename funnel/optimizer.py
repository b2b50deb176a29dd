"""Funnel as a ``torch.optim.Optimizer``: state and parameter groups around `funnel.update`."""

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from funnel.checks import check_flag, check_group
from funnel.graphs.compiled import CompiledStep
from funnel.inner.foreign import Factory, ForeignInner, Proposed, bind_inner, load_inner
from funnel.inner.interface import StateLists
from funnel.inner.native import Adagrad, Inner
from funnel.inner.verbatim import load_verbatim
from funnel.rows import Compact, check_rows, is_empty, touch, visits_of_rows
from funnel.scalars import Scalars
from funnel.telemetry import TensorTelemetry, describe
from funnel.update import Alignment, Rates, State, Variant, step_

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
TRACED_IS_DEPRECATED = (
    "Funnel(traced=True) is deprecated and has no effect: omit it, the results are the same. For a "
    "small model on a CPU use funnel.Pool, which traces its steps; for a large one, compiled=True"
)


class Funnel(Optimizer):
    """Learns one step-size scale s per tensor and one gain p per coordinate while it optimizes.

    Each step takes the preconditioned gradient g̃ of ``inner`` and applies Algorithm 1 of the
    paper (arXiv:2202.00145): ν ← μ ν + η (p ⊙ g̃), w ← w - s ν. Each step moves log p by γp times
    the agreement of this gradient with the average of the past ones, and log s by γs times the
    cosine of this gradient and ν.

        >>> model = torch.nn.Linear(784, 10)
        >>> opt = Funnel(model.named_parameters(), inner=Adagrad(), lr=0.01)
        >>> model(torch.rand(100, 784)).square().mean().backward()
        >>> opt.step()
        >>> opt.telemetry()["weight"]["scale"]
        tensor(1.)

    γp sets a doubling time: under full agreement a gain doubles every ln 2 / γp steps, which is 69
    steps at 1e-2 and 6,931 at the paper's 1e-4. Choose γp so that this is well below the number of
    steps between shifts.

    Args:
        params: tensors, (name, tensor) pairs or group dictionaries. A group may set every argument
            below except ``compiled`` and ``traced``. fp32, bf16 and fp16 parameters have fp32
            state; fp64 ones have fp64 state.
        inner: D, one of `funnel.SGD`, `Adagrad`, `AdagradEMA`, `RMSprop`, `Adam`, or a callable
            that builds any ``torch.optim`` optimizer for given tensors (see `ForeignInner`).
        lr: η, the value at which the learned step size starts; a float or a 0-dim tensor.
        momentum: μ in [0, 1).
        nesterov: step along μ ν + η (p ⊙ g̃) instead of ν; needs momentum.
        beta: β in [0, 1), the decay of the average with which the gains compare each gradient.
        gain_lr: γp ≥ 0.
        scale_lr: γs ≥ 0.
        normalize_gain: use eq. (11), signs; otherwise eq. (5), products.
        normalize_scale: use eq. (12), the cosine; otherwise eq. (6), the inner product, which
            contains η and grows with the size of the tensor.
        gain_bounds: range of p, which contains 1; a lower bound of 0 means no lower bound.
        scale_bounds: range of s, as for p.
        weight_decay: λ ≥ 0, decoupled: w loses η λ w per step, outside g, g̃ and s.
        maximize: climb instead of descend.
        skip_nonfinite: a tensor keeps its weights and state in a step whose ‖g‖ is not finite;
            `telemetry` counts these steps. This runs on the device.
        compiled: run the step through ``torch.compile``, which fuses it into two passes over
            memory per tensor. The first step compiles; results equal eager ones up to rounding.
        traced: deprecated and without effect; the results are the same. `funnel.Pool` traces its
            steps, and a pool of one expert equals a Funnel bit for bit.

    A dense step never reads a device tensor on the host, so it can be captured in a CUDA graph
    after one step has allocated the state (pass ``lr`` as a tensor to change it afterwards).
    A loaded ``state_dict`` resumes bit for bit. The state of a parameter is ``step``, ``log_gain``,
    ``log_scale``, ``velocity``, ``precond_ema``, ``nonfinite`` and ``inner``, the state of the
    inner optimizer.

    Sparse gradients, of ``nn.Embedding(sparse=True)`` and ``nn.EmbeddingBag(sparse=True)``, change
    the rows that they touch and nothing of the others. Time passes per visit of a row: steps (for
    bias correction), averages, velocity and weight decay are as of its last visit. The cosine is
    taken over the touched rows. A step costs in proportion to these, not to the size of the table.
    Once a parameter has had a sparse gradient, its ``step`` is int64 [rows, 1, …], a count for each
    row. It may have dense gradients before and after, which visit every row, and steps eagerly if
    ``compiled``. Entries of one row are added up, in a fixed order and without atomics, so a step
    is deterministic on a GPU too. There it waits for the device, and cannot be captured. Foreign
    inner optimizers take no sparse gradients.

        >>> table = torch.nn.Embedding(1000, 16, sparse=True)
        >>> opt = Funnel(table.parameters())
        >>> table(torch.tensor([3, 7, 3])).square().sum().backward()
        >>> opt.step()
        >>> opt.state[table.weight]["step"].nonzero()[:, 0]
        tensor([3, 7])

    Raises:
        TypeError, ValueError: an argument is outside its range; the message names it.
    """

    def __init__(
        self,
        params: Params,
        inner: Inner | ForeignInner | Factory | None = None,
        lr: float | Tensor = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        beta: float = 0.9,
        gain_lr: float = 1e-2,
        scale_lr: float = 1e-2,
        normalize_gain: bool = True,
        normalize_scale: bool = True,
        gain_bounds: tuple[float, float] = (1e-3, 1e3),
        scale_bounds: tuple[float, float] = (1e-2, 1e2),
        *,
        weight_decay: float = 0.0,
        maximize: bool = False,
        skip_nonfinite: bool = True,
        compiled: bool = False,
        traced: bool = False,
    ) -> None:
        check_flag("compiled", compiled)
        check_flag("traced", traced)
        if traced:
            warnings.warn(TRACED_IS_DEPRECATED, DeprecationWarning, stacklevel=2)
        self._reset(compiled)
        defaults = {
            "inner": Adagrad() if inner is None else inner,
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "beta": beta,
            "gain_lr": gain_lr,
            "scale_lr": scale_lr,
            "normalize_gain": normalize_gain,
            "normalize_scale": normalize_scale,
            "gain_bounds": gain_bounds,
            "scale_bounds": scale_bounds,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "skip_nonfinite": skip_nonfinite,
            # Step counters are on the device: torch's graph and loading code asks for this key.
            "capturable": True,
        }
        super().__init__(params, defaults)

    def _reset(self, compiled: bool) -> None:
        """Set up the executor of the step, and forget the last step's alignment and rows."""
        self.compiled = compiled
        self._run: Callable[..., Alignment] = CompiledStep() if compiled else step_
        self._last: dict[Tensor, tuple[Tensor, Tensor]] = {}
        self._rows: dict[Tensor, Tensor | None] = {}
        self._scalars: dict[tuple[int, torch.device, torch.dtype], Scalars] = {}

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"compiled": self.compiled}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Adopt a pickled or copied optimizer, or the state that ``load_state_dict`` has read."""
        for loaded, mine in zip(
            state["param_groups"], self.__dict__.get("param_groups", ()), strict=False
        ):
            if isinstance(loaded["inner"], dict):
                loaded["inner"] = load_inner(loaded["inner"], mine["inner"])
        super().__setstate__(state)
        if "_run" not in self.__dict__:
            self._reset(self.compiled)
            self._adopt_state()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, which may set each of its hyperparameters, including ``inner``.

        Raises:
            TypeError, ValueError: a hyperparameter is outside its range, or a parameter is not
                real and floating; nothing is added then.
        """
        group = {**self.defaults, **param_group}
        check_group(group)
        super().add_param_group(group)
        params = self.param_groups[-1]["params"]
        try:
            for p in params:
                if not p.is_floating_point():
                    raise TypeError(f"Funnel needs real floating parameters, got {p.dtype}")
            self.param_groups[-1]["inner"] = bind_inner(group["inner"], params)
        except Exception:
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step of Algorithm 1 for every parameter that has a gradient.

        Args:
            closure: computes the loss and its gradients again and returns the loss; it runs with
                autograd enabled.

        Raises:
            RuntimeError: a gradient is sparse in another way than by rows, or has a foreign inner
                optimizer (nothing has changed then), or a parameter takes its first step inside a
                CUDA graph capture.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            _check_gradients(group)
        with torch.no_grad():
            for number, group in enumerate(self.param_groups):
                self._step_group(number, group)
        return loss

    def _step_group(self, number: int, group: dict[str, Any]) -> None:
        buckets: dict[tuple[torch.device, torch.dtype, bool], list[int]] = defaultdict(list)
        for i, p in enumerate(group["params"]):
            if p.grad is None or is_empty(p.grad):
                continue
            state = self.state[p] or self._init_state(p, group["inner"])
            if p.grad.is_sparse:
                state["step"] = visits_of_rows(state["step"], p)
            is_table = state["step"].dim() > 0
            buckets[p.device, _state_dtype(p), is_table].append(i)
        for (_, dtype, is_table), indices in buckets.items():
            params = [group["params"][i] for i in indices]
            states = [self.state[p] for p in params]
            touched = [touch(p.grad, dtype) for p in params]
            rows, grads = [t.rows for t in touched], [t.grad for t in touched]
            if self._rows or any(r is not None for r in rows):
                self._rows.update(zip(params, rows, strict=True))
            inner, inner_state = group["inner"], _transpose([s["inner"] for s in states])
            if isinstance(inner, ForeignInner):
                signed = [-g for g in grads] if group["maximize"] else grads
                precond = inner.propose(indices, signed, group["skip_nonfinite"])
                inner, inner_state = Proposed(), {"precond": precond}
            rest = inner, _rates(group), _variant(group)
            scalars = None if is_table else self._scalars_of(number, params, states)
            if scalars is not None:
                self._step_together(scalars, params, grads, states, inner_state, *rest)
                continue
            compact = Compact(rows)
            run = step_ if is_table else self._run
            alignment = run(
                compact.gather(params),
                grads,
                State(*(compact.gather([s[field] for s in states]) for field in State._fields)),
                inner,
                {key: compact.gather(tensors) for key, tensors in inner_state.items()},
                *rest[1:],
            )
            compact.scatter()
            found = zip(alignment.cosine, alignment.gradient_norm, strict=True)
            for p, cosine_and_norm in zip(params, found, strict=True):
                if p.is_cuda and p in self._last:  # a captured step must keep the address
                    torch._foreach_copy_(self._last[p], cosine_and_norm)
                else:
                    self._last[p] = cosine_and_norm

    def _step_together(
        self,
        scalars: Scalars,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[dict[str, Any]],
        inner_state: StateLists,
        inner: Inner,
        rates: Rates,
        variant: Variant,
    ) -> None:
        """Step eagerly, with the scalars of all tensors in one tensor for each kind."""
        own = scalars.gather(params)
        state = State(*(own.get(key) or [s[key] for s in states] for key in State._fields))
        last = step_(params, grads, state, inner, inner_state, rates, variant, scalars.apart)
        views = scalars.scatter(params, own, (last.cosine, last.gradient_norm))
        self._last.update(zip(params, views, strict=True))

    def _scalars_of(
        self, number: int, params: list[Tensor], states: list[dict[str, Any]]
    ) -> Scalars | None:
        """Return the scalars of a group that hold these tensors; None if the step takes lists.

        In a CUDA graph capture nothing is adopted: a captured copy would set the state back in each
        replay.
        """
        if self.compiled:
            return None
        key = number, params[0].device, _state_dtype(params[0])
        scalars = self._scalars.get(key)
        if scalars is not None and scalars.holds(params) and scalars.has_adopted(params, states):
            return scalars
        if params[0].is_cuda and torch.cuda.is_current_stream_capturing():
            return None
        if scalars is None or not scalars.holds(params):
            mates = [
                p
                for p in self.param_groups[number]["params"]
                if (p.device, _state_dtype(p)) == key[1:]
            ]
            if len(mates) == 1:
                return None
            self._scalars[key] = scalars = Scalars(mates, key[2])
        scalars.adopt(params, states)
        return scalars

    def _adopt_state(self) -> None:
        """Put the scalars of a loaded state together, before a graph is captured."""
        for number, group in enumerate(self.param_groups):
            loaded = [p for p in group["params"] if self.state.get(p)]
            for p in loaded:
                if not self.state[p]["step"].dim():
                    self._scalars_of(number, [p], [self.state[p]])

    def _init_state(self, param: Tensor, inner: Inner | ForeignInner) -> dict[str, Any]:
        if param.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "take one step before capturing a CUDA graph: it allocates the state"
            )
        dtype, device = _state_dtype(param), param.device
        state: dict[str, Any] = self.state[param]
        state["step"] = torch.zeros((), dtype=torch.int64, device=device)
        state["log_gain"] = torch.zeros_like(param, dtype=dtype)
        state["log_scale"] = torch.zeros((), dtype=dtype, device=device)
        state["velocity"] = torch.zeros_like(param, dtype=dtype)
        state["precond_ema"] = torch.zeros_like(param, dtype=dtype)
        state["nonfinite"] = torch.zeros((), dtype=torch.int64, device=device)
        state["inner"] = inner.init_state(param, dtype) if isinstance(inner, Inner) else {}
        return state

    @torch.no_grad()
    def telemetry(self) -> dict[str | int, TensorTelemetry]:
        """Return scale, gain quantiles, alignment and norms of every parameter stepped so far.

        The keys are the parameters' names if the optimizer was given names; a name that an earlier
        group has too is preceded by the group's index and a dot. Otherwise the keys are indices
        over all groups. This call alone computes the values, which are device tensors.
        Quantiles of tensors above 65,536 elements come from a fixed sample. A table is described
        by the rows that have been visited; on a GPU this waits for the device.
        """
        report: dict[str | int, TensorTelemetry] = {}
        index = 0
        for number, group in enumerate(self.param_groups):
            bounds = _log_bounds(group["gain_bounds"])
            for i, p in enumerate(group["params"]):
                if state := self.state.get(p):
                    key = _name(group, i) if "param_names" in group else index
                    key = f"{number}.{key}" if key in report else key
                    alignment, norm = self._last.get(p, (None, None))
                    report[key] = describe(state, bounds, alignment, norm, self._rows.get(p))
                index += 1
        return report

    def state_dict(self) -> dict[str, Any]:
        """Return the state and hyperparameters as tensors and plain values.

        ``torch.load(weights_only=True)`` can load it; ``inner`` is stored by name.
        """
        state_dict: dict[str, Any] = super().state_dict()
        for group in state_dict["param_groups"]:
            group["inner"] = group["inner"].to_spec()
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume bit for bit, for parameters of any dtype.

        Raises:
            ValueError: groups, shapes or the inner optimizer do not match; nothing has changed.
        """
        load_verbatim(self, super().load_state_dict, state_dict, self._check_matches)
        self._last.clear()
        self._rows.clear()
        self._adopt_state()

    def _check_matches(self, state_dict: dict[str, Any]) -> None:
        saved_groups = state_dict["param_groups"]
        for number, (mine, saved) in enumerate(
            zip(self.param_groups, saved_groups, strict=False)  # torch refuses other lengths next
        ):
            if "inner" not in saved:
                raise ValueError(f"group {number} of the state to load was not saved by a Funnel")
            kind, loaded = mine["inner"].to_spec(), saved["inner"]
            if _kind(kind) != _kind(loaded):
                raise ValueError(
                    f"group {number} has the inner optimizer {_kind(kind)}, "
                    f"the state to load has {_kind(loaded)}"
                )
            for i, (p, index) in enumerate(zip(mine["params"], saved["params"], strict=False)):
                gain = state_dict["state"].get(index, {}).get("log_gain")
                if gain is not None and gain.shape != p.shape:
                    raise ValueError(
                        f"parameter {_name(mine, i)!r} has shape {tuple(p.shape)}, "
                        f"in the state to load it has {tuple(gain.shape)}"
                    )


def _check_gradients(group: dict[str, Any]) -> None:
    for i, p in enumerate(group["params"]):
        if p.grad is None or p.grad.layout is torch.strided:
            continue
        check_rows(_name(group, i), p.grad)
        if isinstance(group["inner"], ForeignInner):
            raise RuntimeError(
                f"parameter {_name(group, i)!r} has a sparse gradient, which only Funnel's own "
                f"inner optimizers take, not {_kind(group['inner'].to_spec())}: use one of them "
                "for its group, or sparse=False in its module"
            )


def _kind(spec: dict[str, Any]) -> str:
    return str(spec.get("optimizer", spec.get("name")))


def _state_dtype(param: Tensor) -> torch.dtype:
    return torch.promote_types(param.dtype, torch.float32)


def _name(group: dict[str, Any], i: int) -> str | int:
    """Return the name of a group's i-th parameter, or its index if it has no name."""
    name: str | int = group["param_names"][i] if "param_names" in group else i
    return name


def _transpose(states: list[dict[str, Tensor]]) -> dict[str, list[Tensor]]:
    return {key: [s[key] for s in states] for key in states[0]}


def _log_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    return (math.log(low) if low > 0 else -math.inf, math.log(high))


def _rates(group: dict[str, Any]) -> Rates:
    lr, beta = group["lr"], group["beta"]
    return Rates(
        lr=lr,
        momentum=group["momentum"],
        beta=beta,
        one_minus_beta=1.0 - beta,
        gain_lr=group["gain_lr"],
        scale_lr=group["scale_lr"],
        weight_decay=lr * group["weight_decay"],
    )


def _variant(group: dict[str, Any]) -> Variant:
    return Variant(
        nesterov=group["nesterov"],
        maximize=group["maximize"],
        normalize_gain=group["normalize_gain"],
        normalize_scale=group["normalize_scale"],
        gain_bounds=_log_bounds(group["gain_bounds"]),
        scale_bounds=_log_bounds(group["scale_bounds"]),
        decay_weights=group["weight_decay"] > 0,
        skip_nonfinite=group["skip_nonfinite"],
    )
