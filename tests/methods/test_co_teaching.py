"""Co-teaching and JoCoR against float64 NumPy; the choice of voxels; the estimate of the noise rate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from tests_selection import flawed_batch, numpy_ce, numpy_ce_dice, numpy_keep, numpy_probs, trained
from tests_toys import toy_batch, toy_network
from tests_variants import keeps_the_contract

from maskmend.errors import UsageError
from maskmend.losses import cross_entropy
from maskmend.methods._noise_rates import contradictions
from maskmend.methods._peers import keep_easiest, kept_shares, symmetric_divergence
from maskmend.methods.co_teaching import CoTeaching

FORGET = {"forget_foreground": 0.2, "forget_background": 0.1}


def both(method, batch):
    """Logits of the two networks without dropout, and label and valid as arrays."""
    method.networks.eval()
    logits = [network(batch["image"]) for network in method.networks]
    return logits, batch["label"].numpy(), batch["valid"].numpy()


def test_each_network_learns_what_its_peer_finds_easy():
    torch.manual_seed(0)
    method, batch = CoTeaching(toy_network, **FORGET), toy_batch()
    logits, label, valid = both(method, batch)
    probs = [numpy_probs(x) for x in logits]
    easy = [numpy_keep(numpy_ce(p, label), label, valid, (0.1, 0.2, 0.2)) for p in probs]
    expected = numpy_ce_dice(probs[0], label, easy[1]) + numpy_ce_dice(probs[1], label, easy[0])
    assert method.training_step(batch, 1.0).loss.item() == pytest.approx(expected, rel=1e-5)
    swapped = numpy_ce_dice(probs[0], label, easy[0]) + numpy_ce_dice(probs[1], label, easy[1])
    assert abs(swapped - expected) > 1e-4  # the test can tell


def test_jocor_is_the_published_sum_over_jointly_chosen_voxels():
    torch.manual_seed(0)
    method, batch = CoTeaching(toy_network, jocor=0.65, dice=False, **FORGET), toy_batch()
    logits, label, valid = both(method, batch)
    p, q = (numpy_probs(x) for x in logits)
    joint = 0.35 * (numpy_ce(p, label) + numpy_ce(q, label)) + 0.65 * (rel_entr(p, q) + rel_entr(q, p)).sum(1)
    keep = numpy_keep(joint, label, valid, (0.1, 0.2, 0.2))
    assert method.training_step(batch, 1.0).loss.item() == pytest.approx(joint[keep].mean(), rel=1e-5)


def test_divergence_is_that_of_scipy():
    first, second = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    p, q = numpy_probs(first), numpy_probs(second)
    expected = (rel_entr(p, q) + rel_entr(q, p)).sum(1)
    np.testing.assert_allclose(symmetric_divergence(first, second).numpy(), expected, rtol=1e-9)


def test_classes_are_ranked_apart():
    """Foreground that is harder than all background still keeps its share."""
    batch = toy_batch()
    loss = torch.rand(batch["label"].shape) + 10.0 * batch["label"]
    forget = torch.tensor([0.1, 0.3, 0.5])
    keep = keep_easiest(loss, batch, forget)
    expected = numpy_keep(loss.numpy(), batch["label"].numpy(), batch["valid"].numpy(), forget.tolist())
    assert np.array_equal(keep.numpy(), expected)
    assert kept_shares(keep, batch)["kept_background"].item() == pytest.approx(0.9, abs=0.01)
    assert kept_shares(keep, batch)["kept_foreground"].item() == pytest.approx(0.6, abs=0.01)


def test_trusted_cases_are_kept_whole_and_ignored_voxels_never():
    batch = toy_batch()
    batch["trusted"][1] = True
    keep = keep_easiest(torch.rand(batch["label"].shape), batch, torch.full((3,), 0.5))
    assert torch.equal(keep[1], batch["valid"][1])
    assert not (keep & ~batch["valid"]).any()


def test_the_dropped_part_grows_from_nothing():
    method, batch = CoTeaching(toy_network, **FORGET), toy_batch()
    shares = [method.training_step(batch, t).logs["kept_foreground"].item() for t in (0.0, 0.1, 0.2, 1.0)]
    assert shares == pytest.approx([1.0, 0.9, 0.8, 0.8], abs=0.01)


def test_what_is_dropped_is_mostly_wrong():
    torch.manual_seed(0)
    batch, wrong = flawed_batch(share=0.15)
    method = trained(CoTeaching(toy_network, forget_foreground=0.15, forget_background=0.15), batch)
    method.networks.eval()
    loss = cross_entropy(method.networks[0](batch["image"]), batch["label"])
    dropped = batch["valid"] & ~keep_easiest(loss, batch, torch.full((3,), 0.15))
    assert (dropped & wrong).sum() / dropped.sum() > 0.6  # by chance: 0.15


def test_the_noise_rate_is_estimated_from_contradictions():
    torch.manual_seed(0)
    batch, wrong = flawed_batch(share=0.2)
    method = trained(CoTeaching(toy_network), toy_batch()).eval()
    method.begin(4)
    assert not method.wants_revision(0.05)
    assert method.wants_revision(0.15)
    assert method.wants_revision(0.6)  # late, but nothing is known yet
    looks = method.observe(batch["image"])
    for i in range(4):
        assert (
            method.revise(i, looks[i], batch["label"][i], batch["valid"][i], None, 0.1, batch["image"][i])
            is None
        )
    method.after_revision(0.1)
    true = [
        (wrong & (batch["label"] == c)).sum() / (batch["valid"] & (batch["label"] == c)).sum()
        for c in range(3)
    ]
    assert not method.wants_revision(0.12)  # too soon
    assert method.wants_revision(0.16)
    assert method.noise_rates.tolist() == pytest.approx([float(x) for x in true], abs=0.03)
    assert not method.wants_revision(0.55)  # by now networks learn single flaws
    assert torch.equal(method.rates(looks), method.noise_rates)


def test_contradictions_are_counted_by_given_class():
    probs = torch.tensor([[0.9, 0.2, 0.1, 0.8], [0.1, 0.8, 0.9, 0.2]])
    label, valid = torch.tensor([0, 0, 1, 250]), torch.tensor([True, True, True, False])
    assert contradictions(probs, label, valid).tolist() == [[2, 1], [1, 0]]


def test_given_rates_override_the_estimate_one_by_one():
    method = CoTeaching(toy_network, forget_foreground=0.3)
    method.noise_rates = torch.tensor([0.01, 0.2, 0.2])
    torch.testing.assert_close(method.rates(torch.zeros(1, 3, 2, 2)), torch.tensor([0.01, 0.3, 0.3]))
    assert not CoTeaching(toy_network, **FORGET).wants_revision(0.15)


def test_variants_keep_the_contract(monkeypatch):
    keeps_the_contract(monkeypatch, "co_teaching", jocor=0.65, ensemble=True, dice=False, **FORGET)


def test_the_ensemble_is_the_mean_of_both():
    method = CoTeaching(toy_network, ensemble=True).eval()
    image = toy_batch()["image"]
    first, second = (average(image).softmax(1) for average in method.averages)
    torch.testing.assert_close(method.predict(image), (first + second) / 2)
    method.voters = 1
    torch.testing.assert_close(method.predict(image), first)


def test_settings_out_of_range_name_the_key():
    for bad in (
        {"forget_foreground": 1.0},
        {"forget_background": -0.1},
        {"ramp": 0},
        {"jocor": 1},
        {"ema": 1},
    ):
        with pytest.raises(UsageError, match=f"method.{next(iter(bad))}"):
            CoTeaching(toy_network, **bad)
