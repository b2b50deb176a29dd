"""Funnel: an optimizer around any optimizer that learns its own step sizes as it goes.

E. Amid, R. Anil, C. Fifty, M. K. Warmuth, 'Step-size Adaptation Using Exponentiated Gradient
Updates', arXiv:2202.00145.
"""

from funnel.inner.native import SGD, Adagrad, AdagradEMA, Adam, ForeignInner, Inner, RMSprop
from funnel.optimizer import Funnel
from funnel.pool.expert import Expert
from funnel.pool.pool import Pool

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
