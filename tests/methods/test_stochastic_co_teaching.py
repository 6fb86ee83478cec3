"""The random thresholds against scipy's Beta distribution, the loss against float64 NumPy, the rate it finds."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import beta, kstest
from tests_selection import flawed_batch, numpy_ce_dice, numpy_probs, trained
from tests_toys import toy_batch, toy_network
from tests_variants import keeps_the_contract

from maskmend.errors import UsageError
from maskmend.methods.stochastic_co_teaching import StochasticCoTeaching


@pytest.mark.parametrize(("a", "b"), [(32.0, 2.0), (5.0, 2.0), (20.0, 3.0)])
def test_thresholds_are_beta_distributed(a, b):
    torch.manual_seed(0)
    drawn = StochasticCoTeaching(toy_network, alpha=a, beta=b)._draw(torch.zeros(20000))
    assert kstest(drawn.numpy(), beta(a, b).cdf).pvalue > 0.01


def test_each_network_learns_what_its_peer_lets_pass(monkeypatch):
    torch.manual_seed(0)
    method, batch = StochasticCoTeaching(toy_network, least_kept=0.01), toy_batch()
    method.networks.eval()
    probs = [numpy_probs(network(batch["image"])) for network in method.networks]
    label, valid = batch["label"].numpy(), batch["valid"].numpy()
    thresholds = [0.1 + 0.3 * torch.rand(batch["label"].shape) for _ in range(2)]
    waiting = iter(thresholds)
    monkeypatch.setattr(method, "_draw", lambda like: next(waiting))
    given = [(p * (label[:, None] == [[[[0]], [[1]], [[2]]]])).sum(1) for p in probs]
    passed = [valid & (p > t.numpy()) for p, t in zip(given, thresholds, strict=True)]
    for keep, p in zip(passed, given, strict=True):  # the best 1 % of each class always passes
        for c in range(3):
            keep |= valid & (label == c) & (p >= p[valid & (label == c)].max())
    expected = numpy_ce_dice(probs[0], label, passed[1]) + numpy_ce_dice(probs[1], label, passed[0])
    output = method.training_step(batch, 1.0)
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)
    background = valid & (label == 0)
    assert output.logs["rejected_background"].item() == pytest.approx(
        1 - passed[0][background].mean(), abs=1e-6
    )


def test_nothing_is_rejected_before_the_delay_and_never_more_than_allowed():
    method, batch = StochasticCoTeaching(toy_network, delay=0.3, least_kept=0.4), toy_batch()
    logs = [method.training_step(batch, t).logs["rejected_foreground"].item() for t in (0.0, 0.3, 1.0)]
    assert logs[:2] == [0, 0]
    assert 0.5 < logs[2] < 0.61  # a fresh network believes no label: only the floor is learnt


def test_the_rejection_rate_estimates_the_noise_rate():
    torch.manual_seed(0)
    batch, wrong = flawed_batch(share=0.2)
    method = trained(StochasticCoTeaching(toy_network), toy_batch(), steps=150)  # sure of its right answers
    logs = method.training_step(batch, 1.0).logs
    for name, of in (("foreground", batch["label"] > 0), ("background", batch["label"] == 0)):
        true = (wrong & of).sum() / (batch["valid"] & of).sum()
        assert logs[f"rejected_{name}"].item() == pytest.approx(true.item(), abs=0.1)


def test_variants_keep_the_contract(monkeypatch):
    keeps_the_contract(monkeypatch, "stochastic_co_teaching", beta=3.0, ensemble=True, dice=False)


def test_settings_out_of_range_name_the_key():
    for bad in ({"alpha": 0}, {"beta": 0}, {"delay": 1}, {"ramp": 0}, {"least_kept": 0}):
        with pytest.raises(UsageError, match=f"method.{next(iter(bad))}"):
            StochasticCoTeaching(toy_network, **bad)
