"""Spatial correction on shapes whose bias is known: measured from trusted masks and from edges, then undone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests_toys import toy_network

from maskmend.errors import UsageError
from maskmend.methods import spatial_correction as sc
from maskmend.methods.spatial_correction import SpatialCorrection


def ball(radius: float, ndim: int = 2, size: int = 48) -> np.ndarray:
    """Distance from a circle or sphere about the middle, negative inside."""
    axes = np.meshgrid(*[np.arange(size) - size / 2 + 0.5] * ndim, indexing="ij")
    return np.sqrt(sum(a**2 for a in axes)) - radius


def prediction(radius: float, ndim: int = 2, size: int = 48, slope: float = 1.0) -> torch.Tensor:
    """Two-class probabilities with a margin of `slope` per voxel from a circle."""
    p = 1 / (1 + np.exp(slope * ball(radius, ndim, size)))
    return torch.tensor(np.stack([1 - p, p])).float()


def look(method, radii, true, trusted=(), ndim=2, size=48):
    """One measuring look at cases predicted with `radii` in images of bright balls of radius `true`."""
    method.begin(len(radii), trusted)
    truth = torch.tensor(ball(true, ndim, size) < 0)
    image = truth.float()[None] + 0.05 * torch.randn(1, *truth.shape)
    everywhere = torch.ones_like(truth)
    for i, radius in enumerate(radii):
        label = truth.long() if i in trusted else torch.tensor(ball(radius, ndim, size) < 0).long()
        method.revise(i, prediction(radius, ndim, size), label, everywhere, None, 0.5, image)
    method.after_revision(0.5)
    return image, truth, everywhere


def test_signed_distance_against_the_closed_form():
    distance = sc.signed_distance(np.arange(20) < 7)
    np.testing.assert_allclose(distance, np.arange(20) - 6.5)
    exact = ball(15.0)
    # A digital circle differs from the true one by less than a voxel.
    assert np.abs(sc.signed_distance(exact < 0) - exact).max() < 0.8


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("bias", [-3, 3])
@pytest.mark.parametrize("trusted", [(), (0, 1)], ids=["edges", "trusted"])
def test_bias_is_measured_and_undone(ndim, bias, trusted):
    torch.manual_seed(0)
    size, true = (48, 12) if ndim == 2 else (32, 9)
    method = SpatialCorrection(toy_network, estimate="auto" if trusted else "edges")
    image, truth, everywhere = look(method, [true + bias] * 4, true, trusted, ndim, size)
    assert method.bias.item() == pytest.approx(bias, abs=0.5)
    assert method.pending
    assert method.wants_revision(0.5)
    label = torch.zeros_like(truth, dtype=torch.long)
    probs = prediction(true + bias, ndim, size)
    new = method.revise(3, probs, label, everywhere, None, 0.5, image)
    overlap = 2 * (new[1].bool() & truth).sum() / (new[1].sum() + truth.sum())
    before = 2 * ((probs[1] > 0.5) & truth).sum() / ((probs[1] > 0.5).sum() + truth.sum())
    assert before < 0.85
    assert overlap > 0.95
    method.after_revision(0.5)
    assert not method.pending


@pytest.mark.parametrize("estimate", ["trusted", "edges"])
def test_no_bias_no_correction(estimate):
    torch.manual_seed(0)
    method = SpatialCorrection(toy_network, estimate=estimate)
    look(method, [12, 12, 12], 12, (0,))
    assert method.bias.item() == 0
    assert not method.pending


def test_without_trusted_cases_labels_stay_unless_edges_are_asked_for():
    method = SpatialCorrection(toy_network)
    look(method, [15] * 3, 12)
    assert method.bias.item() == 0
    assert not method.wants_revision(0.9)
    method = SpatialCorrection(toy_network, estimate="edges")
    look(method, [15] * 3, 12)
    assert method.wants_revision(0.9)


def test_a_bias_below_one_voxel_is_left_alone():
    method = SpatialCorrection(toy_network, least=4)
    look(method, [15, 15], 12, (0,))
    assert not method.pending


@pytest.mark.parametrize("bias", [2.0, -2.0])
def test_the_shift_is_the_published_bump(bias):
    probs = prediction(12)
    found = sc.shifted(probs.clone(), torch.tensor([bias]), torch.tensor([3.0])).double().numpy()
    distance = np.abs(sc.signed_distance(probs[1].numpy() > 0.5))
    logit = np.log(probs.double().numpy().clip(sc.TINY))
    expected = logit[1] - np.sign(bias) * 3.0 * np.exp(-(distance**2) / (2 * bias**2))
    np.testing.assert_allclose(found[1], expected, atol=1e-4)
    np.testing.assert_allclose(found[0], logit[0], atol=1e-4)


def test_each_class_has_its_own_bias():
    """A ring around a disc: the ring's outer boundary moves, the disc's does not."""
    inner, outer = ball(8), ball(16)
    truth = np.where(inner < 0, 1, np.where(outer < 0, 2, 0))
    logits = np.stack([np.zeros_like(inner), -10 * inner, -outer])
    probs = torch.tensor(logits).softmax(0).float()
    assert (probs.argmax(0).numpy() == truth).mean() > 0.98
    moved = (
        sc.shifted(probs, torch.tensor([0.0, 3.0]), torch.tensor([0.0, 3 * math.exp(0.5)])).argmax(0).numpy()
    )
    radius = np.sqrt((moved > 0).sum() / math.pi)
    assert radius == pytest.approx(13, abs=0.3)
    assert ((moved == 1) == (inner < 0)).mean() > 0.99


def test_trusted_cases_keep_their_labels():
    method = SpatialCorrection(toy_network)
    image, truth, everywhere = look(method, [15] * 3, 12, (1,))
    kept = method.revise(1, prediction(15), truth.long(), everywhere, None, 0.5, image)
    assert torch.equal(kept[1].bool(), truth)


def test_measurements_are_spread_over_training():
    method = SpatialCorrection(toy_network, start=0.4, every=0.2)
    method.begin(1, (0,))
    assert not method.wants_revision(0.39)
    assert method.wants_revision(0.4)
    look(method, [12], 12, (0,))
    assert not method.wants_revision(0.59)
    assert method.wants_revision(0.6)


def test_measuring_on_trusted_cases_needs_some():
    with pytest.raises(UsageError, match="no trusted cases"):
        SpatialCorrection(toy_network, estimate="trusted").begin(5)
