"""Slices left out, interpolated, repeated, or each drawn on its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from maskmend.errors import UsageError
from maskmend.noise import Annotation, Dilate, EachSlice, Move, SkipSlices, flaw


def drawn(noise, truth, seed=0):
    return noise.choose(np.random.default_rng(seed), truth)


def cone(spacing=(2.0, 1.0, 1.0)) -> Annotation:
    """A cone: its radius grows by 1 mm per slice, so that shapes between slices are known."""
    rows, columns = np.indices((60, 60)) - 29.5
    away = np.hypot(rows * spacing[1], columns * spacing[2])
    return Annotation(np.stack([away <= 6 + k for k in range(17)]).astype(np.uint8), spacing)


@pytest.mark.parametrize("fill", ["empty", "repeat", "interpolate"])
@pytest.mark.parametrize(("every", "first"), [(4, 0), (4, 2), (3, 1)])
def test_annotated_slices_are_true(fill, every, first) -> None:
    truth = cone()
    flawed = flaw(truth, {"transform": "slices", "every": every, "first": first, "fill": fill})
    annotated = np.arange(first, 17, every)
    np.testing.assert_array_equal(flawed[annotated], truth.label[annotated])
    for k in set(range(17)) - set(annotated.tolist()):
        nearest = annotated[np.abs(annotated - k).argmin()]
        if fill == "empty":
            assert not flawed[k].any()
        elif fill == "repeat":
            np.testing.assert_array_equal(flawed[k], truth.label[nearest])
        else:  # a cone is what interpolation gives, but for voxels on the rim
            assert (flawed[k] != truth.label[k]).sum() <= 0.08 * truth.label[k].sum()


def test_interpolation_is_between_the_neighbours_and_not_the_truth() -> None:
    """Two discs far apart in size: halfway lies their mean radius, whatever was there."""
    truth = cone()
    label = truth.label.copy()
    label[3] = label[5] = 0
    label[4] = 0
    flawed = flaw(
        replace(truth, label=label), {"transform": "slices", "every": 8, "first": 0, "fill": "interpolate"}
    )
    area = np.pi * (6 + 4) ** 2
    assert flawed[4].sum() == pytest.approx(area, rel=0.06)


def test_every_class_is_kept_from_its_first_to_its_last_slice(organ) -> None:
    truth = organ(3)
    flawed = flaw(truth, drawn(SkipSlices((5, 5)), truth))
    for value in (1, 2):
        ends = [np.flatnonzero((a == value).any((1, 2)))[[0, -1]] for a in (truth.label, flawed)]
        np.testing.assert_array_equal(*ends)


def test_n_and_the_first_slice_are_drawn(organ) -> None:
    truth, rng = organ(3), np.random.default_rng(0)
    choices = [SkipSlices((2, 5)).choose(rng, truth) for _ in range(400)]
    assert {choice["every"] for choice in choices} == {2, 3, 4, 5}
    assert all(0 <= choice["first"] < choice["every"] for choice in choices)


def test_a_weaker_flaw_leaves_out_fewer_slices() -> None:
    choice = {"transform": "slices", "every": 5, "first": 0, "fill": "empty"}
    left = [flaw(cone(), choice, s).any((1, 2)).sum() for s in (0.25, 0.5, 1.0)]
    assert left == [9, 6, 4]


def test_each_slice_is_flawed_by_itself(organ) -> None:
    truth = organ(3)
    choice = drawn(EachSlice(Dilate((1, 4))), truth)
    flawed = flaw(truth, choice)
    assert set(choice["slices"]) == {str(k) for k in np.flatnonzero(truth.label.any((1, 2)))}
    assert len({inner["radius_mm"] for inner in choice["slices"].values()}) == len(choice["slices"])
    for k, inner in choice["slices"].items():
        alone = Annotation(truth.label[int(k)], truth.spacing_mm[1:])
        np.testing.assert_array_equal(flawed[int(k)], flaw(alone, inner))


def test_an_image_is_one_slice(organ) -> None:
    truth = organ(2)
    assert drawn(EachSlice(Move((2, 2))), truth) == drawn(Move((2, 2)), truth)


def test_bad_settings(organ) -> None:
    with pytest.raises(UsageError, match="not in images"):
        drawn(SkipSlices(), organ(2))
    with pytest.raises(UsageError, match="interpolate"):
        drawn(SkipSlices(fill="interpolat"), organ(3))
    with pytest.raises(UsageError, match="every"):
        drawn(SkipSlices((0, 2)), organ(3))
