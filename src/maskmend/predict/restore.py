"""From probabilities on the network's grid to a label on the input's own, one class at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskmend.data.preprocess import Inverse, resample
from maskmend.predict.uncertainty import entropy_term


@dataclass(frozen=True)
class Restored:
    """A prediction on the input's grid.

    Args:
        label: (*S) uint8 class indices.
        probs: (K, *S) float16 when they were asked for.
        uncertainty: (*S) float32, normalised entropy in [0, 1], when it was asked for.
    """

    label: np.ndarray
    probs: np.ndarray | None
    uncertainty: np.ndarray | None


def restore(
    probs: np.ndarray, inverse: Inverse, *, keep_probs: bool = False, keep_uncertainty: bool = False
) -> Restored:
    """The most probable class of each voxel of the input, and on request the probabilities behind it.

    Equal to the argmax of `inverse.restore(probs)`, but at most three float maps of one class exist at a time
    beside `probs`: a volume of 512 x 512 x 400 stays within a laptop's memory, however many classes.

    Args:
        probs: (K, *P) on the prepared grid; K <= 255.
        inverse: the way back, as `prepare` gave it.
        keep_probs: return probabilities too.
        keep_uncertainty: return the uncertainty too.
    """
    label = np.zeros(inverse.shape, np.uint8)
    best = np.full(inverse.shape, -1, np.float32)
    kept = np.empty((len(probs), *inverse.shape), np.float16) if keep_probs else None
    unsure = np.zeros(inverse.shape, np.float32) if keep_uncertainty else None
    for index in range(len(probs)):
        here = _restored_class(probs, index, inverse)
        label[here > best] = index
        np.maximum(best, here, out=best)
        if kept is not None:
            kept[index] = here
        if unsure is not None:
            unsure += entropy_term(here, len(probs))
    if unsure is not None:
        np.clip(unsure, 0, 1, out=unsure)
    return Restored(label, kept, unsure)


def _restored_class(probs: np.ndarray, index: int, inverse: Inverse) -> np.ndarray:
    inner = tuple(stop - start for start, stop in inverse.box)
    one: np.ndarray = resample(probs[index : index + 1], inner)[0]
    if inner == inverse.shape:
        return one
    whole = np.full(inverse.shape, 1 if index == 0 else 0, np.float32)  # what was cropped is background
    whole[tuple(slice(start, stop) for start, stop in inverse.box)] = one
    return whole
