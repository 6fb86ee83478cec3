"""How unsure a prediction is, voxel by voxel."""

from __future__ import annotations

import math

import numpy as np


def entropy_term(probs: np.ndarray, classes: int) -> np.ndarray:
    """What one class adds to the normalised entropy, so that a large volume is summed class by class.

    Args:
        probs: probability of one class, any shape, in [0, 1].
        classes: K >= 2.

    Returns:
        -p log p / log K as float32, 0 where p is 0. Over all classes it sums to a number in [0, 1].
    """
    term: np.ndarray = np.maximum(probs, np.float32(1e-30), dtype=np.float32)
    np.log(term, out=term)
    term *= probs
    term *= np.float32(-1 / math.log(classes))
    return term


def entropy(probs: np.ndarray) -> np.ndarray:
    """Normalised entropy of class probabilities: 0 where the network is sure, 1 where all classes are equal.

    Args:
        probs: (K, *S), sums to 1 over K.

    Returns:
        (*S) float32 in [0, 1].

    Example:
        >>> entropy(np.array([[1.0, 0.5], [0.0, 0.5]])).tolist()
        [0.0, 1.0]
    """
    total = np.zeros(probs.shape[1:], np.float32)
    for one in probs:
        total += entropy_term(one, len(probs))
    return np.clip(total, 0, 1, out=total)
