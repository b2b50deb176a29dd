"""Funnel: an optimizer around any optimizer that learns its own step sizes as it goes.

E. Amid, R. Anil, C. Fifty, M. K. Warmuth, 'Step-size Adaptation Using Exponentiated Gradient
Updates', arXiv:2202.00145.

`Classifier`, `Regressor`, `Client` and its errors need more than torch and numpy. They are imported
when one is used, and an error names the extra that installs what is missing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from funnel.inner.native import SGD, Adagrad, AdagradEMA, Adam, ForeignInner, Inner, RMSprop
from funnel.optimizer import Funnel
from funnel.pool.expert import Expert
from funnel.pool.pool import Pool

if TYPE_CHECKING:
    from service.estimators.classifier import Classifier as Classifier
    from service.estimators.regressor import Regressor as Regressor
    from streams.client.async_client import AsyncClient as AsyncClient
    from streams.client.client import Client as Client
    from streams.client.errors import BacklogFull as BacklogFull
    from streams.client.errors import Forbidden as Forbidden
    from streams.client.errors import InvalidExamples as InvalidExamples
    from streams.client.errors import LearningHalted as LearningHalted
    from streams.client.errors import NotFound as NotFound
    from streams.client.errors import ServiceError as ServiceError
    from streams.client.errors import TooLarge as TooLarge
    from streams.client.errors import TooManyRequests as TooManyRequests
    from streams.client.errors import Unauthorized as Unauthorized
    from streams.client.errors import Unavailable as Unavailable
    from streams.client.errors import Unreachable as Unreachable
    from streams.client.errors import UnsupportedType as UnsupportedType
    from streams.errors import FunnelError as FunnelError

__all__ = [
    "SGD",
    "Adagrad",
    "AdagradEMA",
    "Adam",
    "Expert",
    "ForeignInner",
    "Funnel",
    "Inner",
    "Pool",
    "RMSprop",
]

_ERRORS, _CLIENT, _SERVICE = "streams.client.errors", "client", "service"
_ELSEWHERE = {
    "AsyncClient": ("streams.client.async_client", _CLIENT),
    "BacklogFull": (_ERRORS, _CLIENT),
    "Classifier": ("service.estimators.classifier", _SERVICE),
    "Client": ("streams.client.client", _CLIENT),
    "Forbidden": (_ERRORS, _CLIENT),
    "FunnelError": ("streams.errors", _CLIENT),
    "InvalidExamples": (_ERRORS, _CLIENT),
    "LearningHalted": (_ERRORS, _CLIENT),
    "NotFound": (_ERRORS, _CLIENT),
    "Regressor": ("service.estimators.regressor", _SERVICE),
    "ServiceError": (_ERRORS, _CLIENT),
    "TooLarge": (_ERRORS, _CLIENT),
    "TooManyRequests": (_ERRORS, _CLIENT),
    "Unauthorized": (_ERRORS, _CLIENT),
    "Unavailable": (_ERRORS, _CLIENT),
    "Unreachable": (_ERRORS, _CLIENT),
    "UnsupportedType": (_ERRORS, _CLIENT),
}
"""Names that need more than torch and numpy: their modules, which are imported when one is used,
and the extra that installs what those need."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _ELSEWHERE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, extra = _ELSEWHERE[name]
        try:
            return getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            raise ImportError(
                f"funnel.{name} needs {error.name}, which is not installed: "
                f"pip install 'funnel-stream[{extra}]'"
            ) from error
