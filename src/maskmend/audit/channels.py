"""Whether the channels of probabilities come in the order of the classes, by the masks with which they agree.

Probabilities in another order (background last, say) are sound numbers. All that can tell is that they agree with
hardly any mask as they are, and with most in another order; a bad model agrees with none in any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MOST_GIVEN = 0.3  # mean Dice of the classes in question as they are
LEAST_AGREED = 0.6  # and in the other order
MOST_VOXELS = 1 << 17  # of a case, spread over it: enough for a Dice to two digits


class Order(NamedTuple):
    """In which the channels seem to be.

    Args:
        classes: for each channel the class that it agrees with.
        given, agreed: mean Dice with the masks, of the classes that are elsewhere, as it is and in this order.
    """

    classes: tuple[int, ...]
    given: float
    agreed: float


def agreement(probs: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Dice (K channels, K classes) of probabilities (K, *S) with a mask (*S); NaN for classes that are not in it."""
    count, step = len(probs), max(1, label.size // MOST_VOXELS) | 1
    given = label.reshape(-1)[::step]
    sizes = np.bincount(given, minlength=count)
    seen = np.stack([channel.reshape(-1)[::step] for channel in probs])
    common = np.stack([np.bincount(given, one, count) for one in seen])
    dice: np.ndarray = 2 * common / (seen.sum(axis=1, keepdims=True) + sizes)
    dice[:, sizes == 0] = np.nan
    return dice


def disagree(found: Sequence[np.ndarray]) -> bool:
    """Whether the channels agree with hardly any object of the masks as they are."""
    dice, known = _mean(found)
    objects = np.diag(dice)[1:][known[1:]]
    return bool(len(objects)) and float(objects.mean()) < MOST_GIVEN


def other_order(found: Sequence[np.ndarray]) -> Order | None:
    """An order in which the channels agree with the masks far better than as they are, None where there is none.

    Args:
        found: `agreement` of cases.
    """
    from scipy.optimize import linear_sum_assignment

    dice, known = _mean(found)
    tied = 1e-6 * np.eye(len(dice))  # classes that no mask shows stay where they are
    channels, classes = linear_sum_assignment(-(dice + tied))
    moved = (channels != classes) & known[classes]
    if moved.sum() < 2:
        return None
    elsewhere = classes[moved]
    given, agreed = float(dice[elsewhere, elsewhere].mean()), float(dice[channels[moved], elsewhere].mean())
    if given >= MOST_GIVEN or agreed <= LEAST_AGREED:
        return None
    return Order(tuple(map(int, classes)), given, agreed)


def _mean(found: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Over the cases with the class, and which classes any case has."""
    every = np.stack(found)
    count = (~np.isnan(every[:, 0])).sum(axis=0)
    return np.nan_to_num(every).sum(axis=0) / np.maximum(count, 1), count > 0
