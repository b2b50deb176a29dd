"""The cap on the gradient norm."""

import math

import pytest
import torch

from funnel.pool.clipping import NormCap

KEEP = torch.tensor(True)


def test_a_gradient_beyond_ten_times_the_level_is_cut_to_that() -> None:
    cap = NormCap.fresh((), torch.device("cpu"))
    cap.update(torch.tensor(0.0), KEEP)
    assert cap.factor(torch.tensor(1e9)) == 1.0, "there is no level yet"
    cap.update(torch.tensor(2.0), KEEP)
    assert cap.factor(torch.tensor(20.0)) == pytest.approx(1.0)
    assert cap.factor(torch.tensor(40.0)) == pytest.approx(0.5)
    cap.update(torch.tensor(9.0), ~KEEP)
    assert float(cap.level) == pytest.approx(math.log(2.0))


def test_nine_norms_of_ten_stay_under_the_level() -> None:
    cap, above = NormCap.fresh((), torch.device("cpu")), 0
    for norm in torch.randn(4000).exp():
        above += bool(norm.log() > cap.level)
        cap.update(norm, KEEP)
    assert above / 4000 == pytest.approx(0.1, abs=0.005)
