"""Telemetry reports the state, changes nothing, and costs nothing until it is called."""

import pytest
import torch
from torch import nn

from funnel import SGD, Funnel
from funnel.telemetry import QUANTILES, SAMPLE, gain_quantiles


def stepped(steps: int = 5, **settings: object) -> tuple[nn.Parameter, Funnel]:
    w = nn.Parameter(torch.ones(3, 4))
    opt = Funnel([("layer.weight", w)], SGD(), **settings)
    for _ in range(steps):
        w.grad = torch.randn(3, 4)
        opt.step()
    return w, opt


def test_every_figure_follows_its_definition() -> None:
    w, opt = stepped(4, momentum=0.9, gain_lr=0.5, gain_bounds=(0.5, 2.0))
    velocity = opt.state[w]["velocity"].clone()
    before = w.detach().clone()
    w.grad = torch.randn(3, 4)
    opt.step()
    t, state = opt.telemetry()["layer.weight"], opt.state[w]
    gains = state["log_gain"].exp()
    torch.testing.assert_close(t["scale"], state["log_scale"].exp())
    torch.testing.assert_close(
        t["gain_quantiles"], torch.quantile(gains, torch.tensor(QUANTILES)), rtol=1e-6, atol=0
    )
    assert t["gain_at_lower_bound"] == (gains <= 0.5 + 1e-6).float().mean() > 0
    assert t["gain_at_upper_bound"] == (gains >= 2.0 - 1e-6).float().mean() > 0
    cosine = torch.cosine_similarity(w.grad.flatten(), velocity.flatten(), dim=0)
    torch.testing.assert_close(t["alignment"], cosine)
    torch.testing.assert_close(t["gradient_norm"], w.grad.norm())
    torch.testing.assert_close(t["update_norm"], (w.detach() - before).norm())
    assert (int(t["step"]), int(t["nonfinite_steps"])) == (5, 0)


@pytest.mark.parametrize("normalize_scale", [True, False])
def test_alignment_is_reported_whichever_scale_update_runs(normalize_scale: bool) -> None:
    w, opt = stepped(1, normalize_scale=normalize_scale)
    w.grad = 3 * w.grad
    opt.step()
    torch.testing.assert_close(opt.telemetry()["layer.weight"]["alignment"], torch.tensor(1.0))


def test_keys_are_names_if_given_and_otherwise_indices_over_all_groups() -> None:
    params = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    for p in params:
        p.grad = torch.ones(2)
    opt = Funnel([{"params": params[:1]}, {"params": params[1:]}])
    opt.step()
    assert list(opt.telemetry()) == [0, 1, 2]
    named = Funnel([{"params": [("w", p)]} for p in params])
    named.step()
    assert list(named.telemetry()) == ["w", "1.w", "2.w"]


def test_a_report_changes_no_state_and_later_steps_do_not_change_the_report() -> None:
    w, opt = stepped()
    before = {k: v.clone() for k, v in opt.state[w].items() if isinstance(v, torch.Tensor)}
    report = opt.telemetry()["layer.weight"]
    kept = {key: value.clone() for key, value in report.items()}
    assert all(torch.equal(opt.state[w][key], value) for key, value in before.items())
    w.grad = torch.randn(3, 4)
    opt.step()
    assert all(torch.equal(report[key], kept[key]) for key in kept)


def test_a_loaded_optimizer_reports_state_before_its_first_step() -> None:
    w, opt = stepped()
    v, twin = stepped()
    v.data.copy_(w.data)
    twin.load_state_dict(opt.state_dict())
    mine, theirs = twin.telemetry()["layer.weight"], opt.telemetry()["layer.weight"]
    for key in ("step", "scale", "gain_quantiles", "update_norm"):
        assert torch.equal(mine[key], theirs[key])
    assert mine["alignment"] == 0.0


@pytest.mark.parametrize("n", [SAMPLE + 1, 784 * 128, 1_000_003])
def test_quantiles_of_a_large_tensor_come_from_a_sample_spread_over_it(n: int) -> None:
    log_gain = torch.linspace(-3, 3, n)
    quantiles = gain_quantiles(log_gain)
    expected = torch.quantile(log_gain, torch.tensor(QUANTILES)).exp()
    torch.testing.assert_close(quantiles, expected, rtol=2e-3, atol=0)
    assert torch.equal(quantiles[[0, -1]], log_gain[[0, -1]].exp())


def test_a_sample_does_not_follow_one_column_of_a_matrix() -> None:
    columns = torch.arange(512.0).repeat(1024, 1) / 512
    quantiles = gain_quantiles(columns)
    torch.testing.assert_close(quantiles[3], torch.tensor(0.5).exp(), rtol=5e-3, atol=0)


def test_an_empty_tensor_has_no_quantiles() -> None:
    assert gain_quantiles(torch.empty(0, 3)).isnan().all()
