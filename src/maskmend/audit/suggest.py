"""The mask that a model suggests: changed only where the evidence supports it, and not by single voxels."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from maskmend.audit.estimate import Opinion

SUPPORTED = 0.5
"""Probability of being wrong above which a voxel is changed."""

SPECK = 3
"""Changes in one piece of fewer voxels are not made."""


def suggest(opinion: Opinion) -> np.ndarray:
    """The proposed mask (*B) uint8: the most likely other class where the given one is probably wrong.

    Changes of fewer than `SPECK` voxels in one piece are left out: nobody draws them. What a larger change leaves of
    the given mask stays, however small, and so do holes that it makes.
    """
    look = opinion.look
    change = opinion.noise > SUPPORTED
    if look.valid is not None:
        change &= look.valid
    change = _without_specks(change)
    if not change.any():
        return look.label.copy()
    given, others = look.label[change], look.probs[:, change]
    others[given, np.arange(len(given))] = 0
    better = look.label.copy()
    better[change] = others.argmax(axis=0)
    return better


def _without_specks(mask: np.ndarray) -> np.ndarray:
    numbered, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    if not count:
        return mask
    sizes = np.bincount(numbered.ravel())
    sizes[0] = 0
    kept: np.ndarray = (sizes >= SPECK)[numbered]
    return kept
