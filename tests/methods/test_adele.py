"""ADELE: curve, trigger, correction and divergence, each against a closed form or SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from tests_toys import toy_batch, toy_network

from maskmend.methods import adele
from maskmend.methods.adele import Adele


def curve(t, a=0.8, b=1.2, c=3.0):
    return a * (1 - np.exp(-(t**b) / c))


def test_slopes_are_those_of_the_true_curve():
    t = np.arange(1, 15.0)
    h = 1e-6
    expected = (curve(t + h) - curve(t - h)) / (2 * h)
    np.testing.assert_allclose(adele.fitted_slopes(curve(t)), expected, rtol=1e-3, atol=1e-6)


def test_the_trigger_comes_when_the_slope_has_fallen_by_its_share():
    t = np.arange(1, 20.0)
    h = 1e-6
    slope = (curve(t + h) - curve(t - h)) / (2 * h)
    first = int(np.argmax(1 - slope / slope[0] > 0.9))
    found = [adele.slope_has_fallen(curve(t[:n]), 0.9) for n in range(1, 20)]
    assert found.index(True) == first
    assert all(found[first:])


@pytest.mark.parametrize(
    "overlap", [[0.1, 0.2, 0.3], [0.1, 0.15, 0.2, 0.25, 0.3], [-1.0] * 8, [0.0] * 8], ids=str
)
def test_no_trigger_without_a_flattened_curve(overlap):
    assert not adele.slope_has_fallen(np.array(overlap), 0.9)


def test_divergence_is_scipys():
    torch.manual_seed(0)
    one, two = torch.randn(2, 3, 4, 5).softmax(1), torch.randn(2, 3, 4, 5).softmax(1)
    expected = jensenshannon(one.double().numpy(), two.double().numpy(), axis=1) ** 2
    np.testing.assert_allclose(adele.jensen_shannon([one, two]), expected, atol=1e-6)
    assert adele.jensen_shannon([one, one, one]).abs().max() < 1e-6


def test_only_confident_predictions_of_due_classes_are_written():
    label = torch.tensor([0, 0, 0, 1, 2])
    probs = torch.tensor([[0.2, 0.4, 0.1, 0.9, 0.1], [0.8, 0.6, 0.1, 0.0, 0.85], [0.0, 0.0, 0.8, 0.1, 0.05]])
    found = adele.corrected(label, probs, torch.tensor([False, True, False]), 0.7)
    assert found.tolist() == [1, 0, 0, 1, 1]


@pytest.mark.parametrize(("ndim", "size"), [(2, 16), (3, 8), (2, 12)])
@pytest.mark.parametrize("scale", [0.7, 1.0, 1.5])
def test_a_scaled_image_fits_the_strides_and_comes_back(ndim, size, scale):
    seen = []

    class Network(torch.nn.Module):
        def forward(self, image):
            seen.append(image.shape[2:])
            return torch.cat([image, -image], 1)

    ramp = torch.linspace(0, 1, size).expand(1, 1, *[size] * ndim)
    out = adele.seen_at_scale(Network(), ramp, scale)
    unit = size & -size
    assert all(n % unit == 0 for n in seen[0])
    assert out.shape == (1, 2, *[size] * ndim)
    inner = slice(2, -2)
    torch.testing.assert_close(out[0, 0, ..., inner], ramp[0, 0, ..., inner], atol=0.05, rtol=0)


def looks(method, answers, label, cases=2):
    """One look at each of `cases` alike cases per entry of `answers` (K, *S); the labels after each."""
    memory, after = [None] * cases, []
    valid = torch.ones_like(label, dtype=torch.bool)
    for probs in answers:
        memory = [method.revise(i, probs, label, valid, memory[i], 0.5, probs[:1]) for i in range(cases)]
        method.after_revision(0.5)
        after.append([m.argmax(0) for m in memory])
    return after


def test_a_flattened_class_is_corrected_once_at_the_next_look_but_not_in_trusted_cases():
    truth = torch.zeros(20, 20, dtype=torch.long)
    truth[5:15, 5:15] = 1
    label = truth.clone()
    label[5:8] = 0  # rows that were left out
    method = Adele(toy_network)
    method.begin(2, trusted=[1])
    answers = []
    for t in range(1, 14):
        wanted = curve(t, 1.0, 1.0, 1.5)
        grown = torch.zeros(20, 20)
        rows = round(10 * wanted)
        grown[15 - rows : 15, 5:15] = 0.9
        answers.append(torch.stack([1 - grown, grown]))
    after = looks(method, answers, label)
    changed = [int((one != label).sum()) for one, _ in after]
    first = next(i for i, n in enumerate(changed) if n)
    assert first >= adele.LEAST_LOOKS
    assert changed[first] == 30
    assert set(changed[first:]) == {30}
    assert method.done[1]
    assert all(torch.equal(trusted, label) for _, trusted in after)


def test_without_scales_it_is_supervised():
    torch.manual_seed(0)
    method, batch = Adele(toy_network, scales=()), toy_batch()
    assert method.training_step(batch, 0.5).logs == {}
