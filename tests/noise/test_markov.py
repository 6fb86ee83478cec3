"""The Markov walk against a plain implementation step by step, and its mean against the measured law."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage

from maskmend.errors import UsageError
from maskmend.noise import Annotation, MarkovWalk, flaw


def plain_walk(region: np.ndarray, spacing, choice, seed) -> np.ndarray:
    """The walk as one would write it first: every step looks at the whole image."""
    rng, step = np.random.default_rng(seed), min(spacing)
    flips = np.random.default_rng(rng.integers(2**32)).random(region.shape)
    walked = region.copy()
    for _ in range(round(choice["length_mm"] / step)):
        grow = rng.random() < choice["grow"]
        side = walked if grow else ~walked
        chance = np.zeros(region.shape)
        for axis in np.argsort([-s for s in spacing], kind="stable"):  # the shortest voxel counts
            cross = ndimage.generate_binary_structure(region.ndim, 1)
            line = np.zeros_like(cross)
            line[tuple(slice(None) if a == axis else 1 for a in range(region.ndim))] = True
            reached = ndimage.binary_dilation(side, line, border_value=0 if grow else 1)
            chance[reached & ~side] = choice["take"] * step / spacing[axis]
        border = chance > 0
        taken = np.zeros_like(border)
        taken[border] = rng.random(border.sum()) < chance[border]
        walked[taken] = grow
    near = ndimage.binary_dilation(walked, iterations=3)
    walked ^= near & (flips < choice["flip"])
    sides = [2 * round(2 * step / s) + 1 for s in spacing]
    return ndimage.uniform_filter(walked.astype(np.float32), sides, mode="nearest") > 0.5


@pytest.mark.parametrize("grow", [0.8, 0.2, 0.5])
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.6, 1.2), (2.0, 1.0, 1.0)])
def test_equals_the_plain_walk(ball, grow, spacing) -> None:
    label = ball(9.0, 28.0, spacing)
    label[0, :3], label[-1] = 1, 0  # touches the image's edge
    noise = MarkovWalk(40.0, grow=grow, take=0.1, flip=0.2)
    truth = Annotation(label, spacing)
    choice = noise.choose(np.random.default_rng(1), truth)
    got = noise.flaw(truth, choice, 1.0)
    expected = plain_walk(label > 0, spacing, choice, [choice["seed"], 0])
    np.testing.assert_array_equal(got > 0, expected)
    assert (got != label).sum() > 20


def mean_move_mm(label, spacing, noise, seeds=4) -> float:
    """Change of the radius of the disc of equal area."""
    truth, pixel = Annotation(label, spacing), float(np.prod(spacing))
    areas = [flaw(truth, noise.choose(np.random.default_rng(s), truth)).sum() * pixel for s in range(seeds)]
    return float(np.mean(np.sqrt(np.divide(areas, np.pi))) - np.sqrt(label.sum() * pixel / np.pi))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 0.5)])
def test_published_walk_moves_the_outline_by_2_T_take_2_grow_minus_1(ball, spacing) -> None:
    """T 180, theta1 .8, theta2 .05: 10.8, not the 5.4 of a border voxel with one neighbour; in mm for any voxel."""
    law = 2 * 180 * 0.05 * (2 * 0.8 - 1)
    label = ball(35.0, 120.0, spacing)
    assert mean_move_mm(label, spacing, MarkovWalk(180.0, grow=0.8)) == pytest.approx(law, rel=0.15)
    assert mean_move_mm(label, spacing, MarkovWalk(180.0, grow=0.2)) == pytest.approx(-law, rel=0.2)


def test_even_chances_go_nowhere_on_average(ball) -> None:
    assert abs(mean_move_mm(ball(30.0, 90.0, (1.0, 1.0)), (1.0, 1.0), MarkovWalk(grow=0.5), seeds=8)) < 2.0


def test_a_stronger_walk_begins_with_the_steps_of_the_weaker(ball) -> None:
    truth = Annotation(ball(14.0, 80.0, (1.0, 1.0)), (1.0, 1.0))
    choice = MarkovWalk(60.0, grow=1.0, flip=0.0).choose(np.random.default_rng(0), truth)
    sizes = [flaw(truth, choice, s) > 0 for s in (0.3, 0.6, 1.0)]
    assert all((low <= high).mean() > 0.999 for low, high in itertools.pairwise(sizes))
    assert sizes[0].sum() < sizes[1].sum() < sizes[2].sum()


def test_walk_stays_within_its_reach(ball) -> None:
    truth = Annotation(ball(8.0, 120.0, (1.0, 1.0)), (1.0, 1.0))
    choice = MarkovWalk(180.0, grow=0.9).choose(np.random.default_rng(0), truth)
    box = abs(np.arange(120) - 59.5) <= 8 + MarkovWalk.reach_mm(choice, 1.0, truth.spacing_mm)
    far = ~np.logical_and.outer(box, box)
    assert not (MarkovWalk.flaw(truth, choice, 1.0).astype(bool) & far).any()


def test_bad_settings(ball) -> None:
    truth = Annotation(ball(8.0, 20.0, (1.0, 1.0)), (1.0, 1.0))
    for key, value in {"grow": 1.2, "take": -0.1, "flip": 0.6, "length_mm": -1.0}.items():
        with pytest.raises(UsageError, match=key):
            MarkovWalk(**{key: value}).choose(np.random.default_rng(0), truth)  # type: ignore[arg-type]
