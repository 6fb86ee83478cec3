"""Pieces that are missed, made up or renamed: whole pieces, with the probability that was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from maskmend.errors import UsageError
from maskmend.noise import Annotation, Blank, DropComponents, Fracture, InventComponents, SwapClasses, flaw

FOUR_DEVIATIONS = 4 * (900 * 0.3 * 0.7) ** 0.5


def drawn(noise, truth, seed=0):
    return noise.choose(np.random.default_rng(seed), truth)


def lesions(ndim: int = 2) -> Annotation:
    """900 pieces of 2 x 2 (x 2) voxels, in classes 1 and 2 by turns."""
    side = (30, 30) if ndim == 2 else (9, 10, 10)
    label = np.zeros([5 * n for n in side], np.uint8)
    for number, place in enumerate(np.ndindex(*side)):
        label[tuple(slice(5 * p, 5 * p + 2) for p in place)] = 1 + number % 2
    return Annotation(label, (1.0,) * ndim, names={"background": 0, "a": 1, "b": 2, "c": 5})


def pieces(mask: np.ndarray) -> int:
    return ndimage.label(mask, np.ones((3,) * mask.ndim))[1]


@pytest.mark.parametrize("ndim", [2, 3])
def test_whole_components_are_dropped_with_the_probability(ndim) -> None:
    truth = lesions(ndim)
    flawed = flaw(truth, drawn(DropComponents(0.3), truth))
    assert ((flawed == truth.label) | (flawed == 0)).all()
    assert pieces(flawed > 0) * 2**ndim == (flawed > 0).sum()  # none is halved
    assert abs(900 - pieces(flawed > 0) - 270) < FOUR_DEVIATIONS


def test_a_stronger_flaw_drops_what_the_weaker_dropped() -> None:
    truth = lesions()
    choice = drawn(DropComponents(0.6), truth)
    weak, strong = flaw(truth, choice, 0.4), flaw(truth, choice, 1.0)
    assert (strong[weak == 0] == 0).all()
    assert (strong > 0).sum() < (weak > 0).sum()


def test_components_that_touch_over_corners_are_one() -> None:
    label = np.zeros((12, 12), np.uint8)
    label[2:5, 2:5] = label[5:8, 5:8] = 1
    truth = Annotation(label, (1.0, 1.0))
    left = [(flaw(truth, drawn(DropComponents(0.5), truth, seed)) > 0).sum() for seed in range(30)]
    assert set(left) == {0, 18}


def test_a_dropped_layer_shows_what_lies_below() -> None:
    label = np.zeros((40, 40), np.uint8)
    label[5:25, 5:25], label[10:15, 10:15], label[30:35, 30:35] = 1, 2, 2
    truth, below, apart = Annotation(label, (1.0, 1.0), layered=True), 0, 0
    for seed in range(30):
        flawed = flaw(truth, {"transform": "drop", "seed": seed, "probability": 0.5})
        if (flawed[5:10] == 1).any() and not (flawed[10:15] == 2).any():
            below += 1
            assert (flawed[5:25, 5:25] == 1).all()
        if not (flawed[30:35] == 2).any():
            apart += 1
            assert not flawed[30:35, 30:35].any()
    assert below > 3
    assert apart > 3


@pytest.mark.parametrize("ndim", [2, 3])
def test_invented_blobs_are_new_apart_and_no_larger_than_asked(organ, ndim) -> None:
    truth = organ(ndim)
    noise, found = InventComponents((2, 2), (2.0, 3.0), gap_mm=7.0), 0
    place = np.argwhere(truth.label > 0) * truth.spacing_mm
    for seed in range(12):
        flawed = flaw(truth, drawn(noise, truth, seed))
        np.testing.assert_array_equal(flawed[truth.label > 0], truth.label[truth.label > 0])
        numbered, count = ndimage.label((flawed > 0) & (truth.label == 0), np.ones((3,) * ndim))
        found += count
        for box in ndimage.find_objects(numbered):
            for piece, size in zip(box, truth.spacing_mm, strict=True):
                assert (piece.stop - piece.start - 1) * size <= 2 * 1.4 * 3.0 + size
            centre = [(piece.start + piece.stop - 1) / 2 for piece in box] * np.array(truth.spacing_mm)
            if count == 2:  # two that overlap have no centre to speak of
                assert np.linalg.norm(place - centre, axis=1).min() > 7.0 - 1.4 * 3.0
    assert found > 12


def test_where_there_is_no_room_nothing_is_invented() -> None:
    truth = Annotation(np.ones((20, 20), np.uint8), (1.0, 1.0))
    np.testing.assert_array_equal(flaw(truth, drawn(InventComponents(), truth)), truth.label)


@pytest.mark.parametrize("ndim", [2, 3])
def test_swapped_components_keep_their_shape_and_get_a_known_class(ndim) -> None:
    truth = lesions(ndim)
    flawed = flaw(truth, drawn(SwapClasses(0.3), truth))
    np.testing.assert_array_equal(flawed > 0, truth.label > 0)
    changed = flawed != truth.label
    assert set(np.unique(flawed[changed])) == {1, 2, 5}  # 5 is named, though it does not occur
    assert abs(changed.sum() / 2**ndim - 270) < FOUR_DEVIATIONS
    assert sum(pieces(flawed == value) for value in (1, 2, 5)) == 900


def test_one_class_has_no_other_name() -> None:
    label = np.zeros((20, 20), np.uint8)
    label[3:9, 3:9] = 1
    truth = Annotation(label, (1.0, 1.0))
    np.testing.assert_array_equal(flaw(truth, drawn(SwapClasses(1.0), truth)), label)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 1.5), (2.0, 1.0, 1.0)])
def test_a_cut_is_a_gap_of_its_width_in_millimetres(ball, spacing) -> None:
    """The cut plane's points spread by width / sqrt 12 along the normal, which is their thinnest direction."""
    truth = Annotation(ball(25.0, 60.0, spacing), spacing)
    widths = []
    for seed in range(12):
        flawed = flaw(truth, drawn(Fracture((1, 1), (6.0, 6.0)), truth, seed))
        points = np.argwhere((truth.label > 0) & (flawed == 0)) * spacing
        assert not flawed[truth.label == 0].any()
        if (
            len(points) > 0.5 * (flawed > 0).sum() ** (1 - 1 / truth.ndim) * 6
        ):  # a cut along the rim is no slab
            widths.append(
                np.linalg.svd(points - points.mean(0), compute_uv=False)[-1] / len(points) ** 0.5 * 12**0.5
            )
    assert len(widths) > 5
    assert np.mean(widths) == pytest.approx(6.0, rel=0.1)


def test_number_of_cuts(organ) -> None:
    truth, rng = organ(), np.random.default_rng(0)
    numbers = [len(Fracture((1, 3)).choose(rng, truth)["widths_mm"]) for _ in range(300)]
    assert [numbers.count(n) > 70 for n in (1, 2, 3)] == [True] * 3
    assert set(numbers) == {1, 2, 3}


def test_blank_is_blank(organ) -> None:
    truth = organ()
    assert not flaw(truth, drawn(Blank(), truth)).any()


def test_bad_settings(organ) -> None:
    for noise, name in (
        (DropComponents(1.5), "probability"),
        (SwapClasses(-0.1), "probability"),
        (InventComponents((3, 1)), "count"),
        (InventComponents(gap_mm=-1.0), "gap_mm"),
        (Fracture((-1, 1)), "cuts"),
        (Fracture(width_mm=(2, 1)), "width_mm"),
    ):
        with pytest.raises(UsageError, match=name):
            drawn(noise, organ())
