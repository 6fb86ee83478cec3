"""The way back to the input's grid, against the plain computation on whole arrays."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy as scipy_entropy

from maskmend.data.preprocess import Inverse
from maskmend.predict.restore import restore
from maskmend.predict.uncertainty import entropy

CASES = [
    Inverse((9, 12), ((0, 9), (0, 12)), (9, 12)),
    Inverse((9, 12), ((2, 8), (1, 12)), (6, 11)),
    Inverse((9, 12), ((2, 8), (1, 12)), (4, 17)),
    Inverse((10, 12, 8), ((0, 10), (3, 12), (0, 8)), (20, 5, 8)),
]


@pytest.mark.parametrize("inverse", CASES)
def test_class_by_class_equals_the_whole(inverse: Inverse) -> None:
    rng = np.random.default_rng(0)
    probs = softmax(rng.normal(0, 3, (4, *inverse.prepared)), axis=0).astype(np.float32)
    whole = inverse.restore(probs)
    got = restore(probs, inverse, keep_probs=True, keep_uncertainty=True)
    assert got.label.dtype == np.uint8
    assert got.probs is not None
    assert got.uncertainty is not None
    np.testing.assert_array_equal(got.label, whole.argmax(0))
    np.testing.assert_allclose(got.probs, whole, atol=5e-4)
    np.testing.assert_allclose(got.uncertainty, scipy_entropy(whole, base=4, axis=0), atol=1e-5)


def test_nothing_is_kept_unasked() -> None:
    got = restore(np.full((2, 9, 12), 0.5, np.float32), CASES[0])
    assert got.probs is None
    assert got.uncertainty is None
    assert not got.label.any()  # a tie goes to the background


def test_entropy_equals_scipy_and_takes_zeros() -> None:
    probs = np.array([[1, 0.25, 0.5], [0, 0.25, 0.5], [0, 0.25, 0], [0, 0.25, 0]], np.float32)
    np.testing.assert_allclose(entropy(probs), scipy_entropy(probs, base=4, axis=0), atol=1e-6)
