"""Which network learns what, against float64 NumPy."""

from __future__ import annotations

import pytest
import torch
from tests_selection import numpy_ce, numpy_ce_dice, numpy_keep, numpy_probs
from tests_toys import toy_batch, toy_network
from tests_variants import keeps_the_contract

from maskmend.methods.tri_network import TriNetwork, _or_either


def test_each_network_learns_what_both_others_find_easy():
    torch.manual_seed(0)
    method, batch = TriNetwork(toy_network, forget_foreground=0.3, forget_background=0.2), toy_batch()
    method.networks.eval()
    label, valid = batch["label"].numpy(), batch["valid"].numpy()
    probs = [numpy_probs(network(batch["image"])) for network in method.networks]
    easy = [numpy_keep(numpy_ce(p, label), label, valid, (0.2, 0.3, 0.3)) for p in probs]
    pairs = {0: (1, 2), 1: (0, 2), 2: (0, 1)}
    expected = sum(numpy_ce_dice(probs[i], label, easy[j] & easy[k]) for i, (j, k) in pairs.items())
    assert method.training_step(batch, 1.0).loss.item() == pytest.approx(expected, rel=1e-5)
    own = sum(numpy_ce_dice(probs[i], label, easy[i] & easy[j]) for i, (j, _) in pairs.items())
    assert abs(own - expected) > 1e-4  # the test can tell


def test_the_mean_of_the_three_predicts():
    method = TriNetwork(toy_network).eval()
    image = toy_batch()["image"]
    votes = [average(image).softmax(1) for average in method.averages]
    torch.testing.assert_close(method.predict(image), sum(votes) / 3)


def test_judges_with_nothing_in_common_leave_something_to_learn():
    one, other = torch.tensor([True, False, False]), torch.tensor([False, True, False])
    assert _or_either(one, other).tolist() == [True, True, False]
    assert _or_either(one, one | other).tolist() == [True, False, False]


def test_variants_keep_the_contract(monkeypatch):
    keeps_the_contract(monkeypatch, "tri_network", forget_foreground=None, forget_background=None, dice=False)
