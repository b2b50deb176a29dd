"""The optimizers by name, each as the experts of a pool; Funnel and the plain ones have one. The
losses by task."""

from collections.abc import Sequence

from funnel import SGD, Adagrad, AdagradEMA, Adam, Inner, RMSprop
from funnel.pool.expert import DEFAULT_EXPERTS, MATTER_MOST, NUMBER_EXPERTS, Expert, for_width
from funnel.pool.loss import Binary, CrossEntropy, Gaussian, Loss, Pinball
from service.fold.spec import MAX_EXPERTS, Hyperparameters, Spec
from service.fold.task import Task

INNER: dict[str, Inner] = {
    "sgd": SGD(),
    "adagrad": Adagrad(initial_accumulator_value=0.1),
    "adagrad-ema": AdagradEMA(initial_accumulator_value=0.1),
    "rmsprop": RMSprop(),
    "adam": Adam(),
}


def loss_of(spec: Spec) -> Loss:
    """Return the loss by which the experts of a model learn."""
    quick = spec.is_quick, spec.follows_jumps
    return loss_for(spec.predicts, spec.no_change, bool(spec.schema), *quick)


def loss_for(
    task: Task,
    no_change: bool,
    can_close: bool,
    is_quick: bool = False,
    follows_jumps: bool = False,
) -> Loss:
    """Return the loss of a task.

    Args:
        task: what is predicted.
        no_change: whether the last known label is an expert.
        can_close: whether there is room for classes that were not seen yet.
        is_quick: whether deviations follow errors that shrink or grow fast. It matters for a loss
            that has learned nothing yet alone.
        follows_jumps: whether they follow errors that have become many times larger, after one
            large batch.
    """
    match task.kind:
        case "multiclass":
            return CrossEntropy(no_change, can_close=can_close)
        case "binary":
            return Binary(no_change, can_close=False)
        case "regression":
            return Gaussian(is_quick, follows_jumps)
        case "quantile":
            return Pinball(task.quantiles)


def experts_of(
    spec: Spec, optimizer: str, hyperparameters: Hyperparameters, active: int
) -> list[Expert]:
    """Return the experts of an optimizer, one of `service.fold.spec.OPTIMIZERS`.

    The pool's have rates of their own. ``funnel`` is Funnel(AdaGrad); the plain ones are Funnel at
    γp = γs = 0, which is the inner optimizer with heavy-ball momentum, bit for bit.

    Args:
        spec: of the served model.
        optimizer: its name.
        hyperparameters: of all optimizers but the pool.
        active: inputs that are not 0 in a typical example (`service.fold.spec.Size`).
    """
    if optimizer == "pool":
        count = spec.experts or MAX_EXPERTS  # a shadow has no count of its own
        among = NUMBER_EXPERTS if spec.predicts.is_numeric else DEFAULT_EXPERTS
        return some_experts(count, active, among)
    learns = optimizer == "funnel"
    return [
        Expert(
            INNER["adagrad" if learns else optimizer],
            lr=hyperparameters.lr,
            gain_lr=hyperparameters.gain_lr if learns else 0.0,
            scale_lr=hyperparameters.scale_lr if learns else 0.0,
            momentum=hyperparameters.momentum,
        )
    ]


def some_experts(
    count: int, features: int, among: Sequence[Expert] = DEFAULT_EXPERTS
) -> list[Expert]:
    """Return the ``count`` experts that matter most, for inputs of this width.

    >>> len(some_experts(4, 784))
    4
    """
    experts = for_width(features, among)
    return [experts[k] for k in sorted(MATTER_MOST[:count])]


def expert_name(expert: Expert) -> str:
    """Return a name that tells an expert from the others.

    >>> expert_name(Expert(SGD(), lr=0.1, gain_lr=0.01, scale_lr=0.03))
    'SGD lr=0.1 gain_lr=0.01 scale_lr=0.03'
    """
    names = ("lr", "gain_lr", "scale_lr", *(("steps",) if expert.steps > 1 else ()))
    rates = (f"{name}={getattr(expert, name):g}" for name in names)
    return f"{type(expert.inner).__name__} {' '.join(rates)}"
