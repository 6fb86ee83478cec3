"""The weights against float64 NumPy, and that weight moves from wrong masks to right ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests_selection import numpy_ce_dice, numpy_probs, trained
from tests_toys import toy_batch, toy_network
from tests_variants import keeps_the_contract

from maskmend.methods.pick_and_learn import PickAndLearn


def numpy_weights(output, label, valid, control):
    scores = []
    for one, given, inside in zip(output, label, valid, strict=True):
        centred = one - one.mean(0)
        voxels = np.take_along_axis(centred, given[None], 0)[0]
        scores.append(control * np.tanh(voxels[inside].mean()))
    share = np.exp(scores)
    return share / share.sum()


def test_the_loss_is_the_weighted_sum_of_the_samples_losses():
    torch.manual_seed(0)
    method, batch = PickAndLearn(toy_network, control=1.5), toy_batch()
    method.student.eval(), method.quality.eval()
    batch["label"][1] = (batch["label"][1] + 1) % 3
    probs = numpy_probs(method.student(batch["image"]))
    label, valid = batch["label"].numpy(), batch["valid"].numpy()
    output = method.quality(batch["image"]).detach().numpy().astype(np.float64)
    weights = numpy_weights(output, label, valid, 1.5)
    losses = [numpy_ce_dice(probs[i][None], label[i][None], valid[i][None]) for i in range(4)]
    assert method.training_step(batch, 0.5).loss.item() == pytest.approx(np.dot(weights, losses), rel=1e-5)


def test_no_sample_outweighs_another_beyond_the_control():
    method, batch = PickAndLearn(toy_network, control=0.5), toy_batch()
    for p in method.quality.parameters():
        p.data.mul_(1000)
    weights = method.weights(batch)
    assert (weights.max() / weights.min()).item() <= np.exp(1.0) + 1e-4


def test_weight_moves_to_masks_that_fit_their_images():
    torch.manual_seed(0)
    batch = toy_batch()
    batch["label"][0] = batch["label"][0].flip(-1).roll(2, -1)  # a mask of another place
    method = trained(PickAndLearn(toy_network), batch, steps=100)
    weights = method.eval().weights(batch)
    assert weights[0] < 0.5 * weights[1:].min()


def test_one_sample_per_batch_is_plain_training():
    method, batch = PickAndLearn(toy_network), toy_batch(batch=1)
    output = method.training_step(batch, 0.5)
    output.loss.backward()
    assert output.logs["heaviest"].item() == pytest.approx(1)
    gradients = [p.grad for p in method.quality.parameters()]
    assert all(g is not None and g.abs().max() < 1e-6 for g in gradients)


def test_a_sample_without_valid_voxels_takes_no_weight():
    method, batch = PickAndLearn(toy_network), toy_batch()
    batch["valid"][2] = False
    weights = method.weights(batch)
    assert weights[2] == 0
    assert weights.sum().item() == pytest.approx(1)


def test_a_tight_control_keeps_the_contract(monkeypatch):
    keeps_the_contract(monkeypatch, "pick_and_learn", control=0.1, ema=0.0)
