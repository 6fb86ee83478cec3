"""Boxes around masks, found by projections: faster than labelling what is in them."""

from __future__ import annotations

import numpy as np


def bounding_box(mask: np.ndarray, margin: int = 0) -> tuple[slice, ...]:
    """The smallest box around (*S) bool, `margin` wider where the image allows; one voxel when it is empty."""
    box: list[slice] = []
    part = mask
    for axis in range(mask.ndim):
        hit = np.flatnonzero(part.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not len(hit):
            return (slice(0, 1),) * mask.ndim
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
        part = mask[tuple(box)]  # the next axis scans only what is left
    return tuple(
        slice(max(one.start - margin, 0), min(one.stop + margin, size))
        for one, size in zip(box, mask.shape, strict=True)
    )


def bounding_boxes(masks: np.ndarray, margin: int = 0) -> list[tuple[slice, ...]]:
    """`bounding_box` of each of (G, *S) bool."""
    spans = []
    for axis in range(1, masks.ndim):
        hit = np.any(masks, axis=tuple(a for a in range(1, masks.ndim) if a != axis))
        size = hit.shape[1]
        first, last = hit.argmax(axis=1), size - hit[:, ::-1].argmax(axis=1)
        empty = ~hit[np.arange(len(hit)), first]
        start = np.where(empty, 0, np.maximum(first - margin, 0))
        stop = np.where(empty, 1, np.minimum(last + margin, size))
        spans.append([slice(*ends) for ends in zip(start.tolist(), stop.tolist(), strict=True)])
    return list(zip(*spans, strict=True))
