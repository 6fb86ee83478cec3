"""Boxes around masks, beside the extremes of the places of their voxels."""

from __future__ import annotations

import numpy as np
import pytest

from maskmend.boxes import bounding_box, bounding_boxes


def by_places(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    at = np.argwhere(mask)
    low, high = at.min(axis=0) - margin, at.max(axis=0) + 1 + margin
    return tuple(slice(max(int(a), 0), min(int(b), n)) for a, b, n in zip(low, high, mask.shape, strict=True))


@pytest.mark.parametrize("shape", [(7,), (9, 12), (6, 1, 11), (3, 4, 5, 6)])
@pytest.mark.parametrize("margin", [0, 1, 3])
def test_a_box_holds_what_is_drawn_and_no_more(shape: tuple[int, ...], margin: int) -> None:
    rng = np.random.default_rng(len(shape) + margin)
    masks = np.stack([rng.random(shape) < share for share in (0.02, 0.1, 0.9, 1.0) for _ in range(20)])
    masks = masks[masks.reshape(len(masks), -1).any(axis=1)]
    wanted = [by_places(mask, margin) for mask in masks]
    assert [bounding_box(mask, margin) for mask in masks] == wanted
    assert bounding_boxes(masks, margin) == wanted


def test_where_nothing_is_drawn_the_box_is_one_voxel() -> None:
    nothing = np.zeros((4, 5), bool)
    one = (slice(0, 1), slice(0, 1))
    assert bounding_box(nothing, 2) == one
    assert bounding_boxes(np.stack([nothing, ~nothing]), 2) == [one, (slice(0, 4), slice(0, 5))]
