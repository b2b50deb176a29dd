"""The slow twin: Funnel in float64, written from the paper; tests compare the fast path with it.

The two share no code and differ where they can. The twin handles one tensor at a time, keeps gains
and scale in the linear domain, and names variables by the paper's letters. Equation numbers are
those of arXiv:2202.00145.

    >>> twin = ReferenceFunnel("sgd", eta=0.1)
    >>> twin.step(torch.zeros(2), torch.tensor([1.0, -2.0]))
    tensor([-0.1000,  0.2000], dtype=torch.float64)
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class ReferenceInner:
    """g̃ = D(g) for one tensor: sgd, adagrad, adagrad_ema, rmsprop or adam with their defaults."""

    name: str
    t: Tensor = field(default_factory=lambda: torch.tensor(0.0, dtype=torch.float64))
    a: Tensor | None = None
    e: Tensor | None = None

    def precondition(self, g: Tensor, touched: Tensor) -> Tensor:
        """Return g̃ of shape g, float64; what is not ``touched`` keeps its state.

        Raises:
            ValueError: the name is not one of the five.
        """
        self.t = self.t + touched
        a = torch.zeros_like(g) if self.a is None else self.a
        e = torch.zeros_like(g) if self.e is None else self.e
        match self.name:
            case "sgd":
                g_tilde = g
            case "adagrad":
                a = a + g**2
                g_tilde = g / (a**0.5 + 1e-10)
            case "adagrad_ema":
                a = a + g**2
                e = 0.9 * e + 0.1 * g / (a**0.5 + 1e-10)
                g_tilde = e
            case "rmsprop":
                a = 0.99 * a + 0.01 * g**2
                g_tilde = g / (a**0.5 + 1e-8)
            case "adam":
                e = 0.9 * e + 0.1 * g
                a = 0.999 * a + 0.001 * g**2
                t = self.t.clamp(min=1)  # 0 where a row has never been touched
                g_tilde = (e / (1 - 0.9**t)) / ((a / (1 - 0.999**t)) ** 0.5 + 1e-8)
            case _:
                raise ValueError(f"unknown inner optimizer {self.name!r}")
        self.a = torch.where(touched, a, torch.zeros_like(g) if self.a is None else self.a)
        self.e = torch.where(touched, e, torch.zeros_like(g) if self.e is None else self.e)
        return g_tilde


@dataclass
class ReferenceFunnel:
    """Algorithm 1 for one tensor of any shape, with p, s, ν and m in float64."""

    inner: str = "adagrad"
    eta: float = 0.01
    mu: float = 0.0
    nesterov: bool = False
    beta: float = 0.9
    gamma_p: float = 1e-2
    gamma_s: float = 1e-2
    normalize_gain: bool = True
    normalize_scale: bool = True
    gain_bounds: tuple[float, float] = (1e-3, 1e3)
    scale_bounds: tuple[float, float] = (1e-2, 1e2)
    weight_decay: float = 0.0
    t: Tensor = field(default_factory=lambda: torch.tensor(0.0, dtype=torch.float64))
    p: Tensor = field(default_factory=lambda: torch.tensor(1.0, dtype=torch.float64))
    s: Tensor = field(default_factory=lambda: torch.tensor(1.0, dtype=torch.float64))
    nu: Tensor = field(default_factory=lambda: torch.tensor(0.0, dtype=torch.float64))
    m: Tensor = field(default_factory=lambda: torch.tensor(0.0, dtype=torch.float64))

    def __post_init__(self) -> None:
        self.D = ReferenceInner(self.inner)

    def step(self, w: Tensor, g: Tensor, touched: Tensor | None = None) -> Tensor:
        """Return w after one step with the gradient g, float64, and advance the state.

        Args:
            w: the weights before.
            g: their gradient.
            touched: the rows that a sparse gradient touches, bool [rows, 1, …]; g is 0 elsewhere.
                For the others, no time passes.
        """
        touched = torch.tensor(True) if touched is None else touched
        w, g = w.double(), g.double()
        g_tilde = self.D.precondition(g, touched)

        # Gain (5) or (11), with the average from before this step; m̃ = 0 in the first.
        m_tilde = self.m / (1 - self.beta ** self.t.clamp(min=1))
        u = g.sign() * m_tilde.sign() if self.normalize_gain else g * m_tilde
        p = (self.p * torch.exp(self.gamma_p * u)).clamp(*self.gain_bounds)
        self.p = torch.where(touched, p, self.p)

        # Scale (6) or (12), with the velocity from before this step.
        nu = torch.where(touched, self.nu, 0.0)
        h = (g * nu).sum()
        if self.normalize_scale:
            norms = g.norm() * nu.norm()
            h = h / norms if norms > 0 else torch.zeros_like(h)
        self.s = (self.s * torch.exp(self.gamma_s * h)).clamp(*self.scale_bounds)

        self.m = torch.where(touched, self.beta * self.m + (1 - self.beta) * g_tilde, self.m)

        # (3), with the new p and s; with Nesterov the step looks ahead once more.
        nu = self.mu * self.nu + self.eta * self.p * g_tilde
        self.nu = torch.where(touched, nu, self.nu)
        d = self.mu * self.nu + self.eta * self.p * g_tilde if self.nesterov else self.nu
        self.t = self.t + touched
        return torch.where(touched, w - self.eta * self.weight_decay * w - self.s * d, w)
