"""Elastic deformation: displacements are read off a label whose value is its own place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from maskmend.errors import UsageError
from maskmend.noise import Annotation, Elastic, flaw


def displacement(truth: Annotation, noise: Elastic, seed: int) -> np.ndarray:
    """Voxels (*S) along axis 0 from where each label came; the label numbers the rows."""
    flawed = flaw(truth, noise.choose(np.random.default_rng(seed), truth))
    rows = np.arange(truth.label.shape[0]).reshape(-1, *[1] * (truth.ndim - 1))
    return np.where(flawed > 0, flawed.astype(float) - 1 - rows, np.nan)


def numbered(shape: tuple[int, ...]) -> np.ndarray:
    rows = np.arange(1, shape[0] + 1, dtype=np.int32)
    return np.broadcast_to(rows.reshape(-1, *[1] * (len(shape) - 1)), shape).copy()


@pytest.mark.parametrize(("shape", "spacing"), [((81, 41), (0.5, 1.0)), ((41, 21, 21), (2.0, 1.0, 0.5))])
def test_knots_move_by_sigma_in_millimetres(shape, spacing) -> None:
    truth, noise = Annotation(numbered(shape), spacing), Elastic((3.0, 3.0), knots=5)
    inner = np.ix_(*[np.linspace(0, n - 1, 5).astype(int)[1:4] for n in shape])  # the knots off the border
    moves = [displacement(truth, noise, seed)[inner] * spacing[0] for seed in range(60)]
    assert np.nanstd(moves) == pytest.approx(3.0, rel=0.12)
    assert abs(np.nanmean(moves)) < 0.5


def test_between_knots_the_field_is_smooth() -> None:
    truth = Annotation(numbered((101, 101)), (1.0, 1.0))
    field = displacement(truth, Elastic((4.0, 4.0)), 2)[20:80, 20:80]
    assert np.abs(np.diff(field, axis=1)).max() <= 2  # knots are 25 voxels apart
    assert np.ptp(field) > 4


def test_strength_scales_the_field() -> None:
    truth = Annotation(numbered((101, 101)), (1.0, 1.0))
    choice = Elastic((4.0, 4.0)).choose(np.random.default_rng(1), truth)
    whole, half = (
        flaw(truth, choice, s)[30:70, 30:70].astype(float) - truth.label[30:70, 30:70] for s in (1.0, 0.5)
    )
    assert np.abs(half - whole / 2).max() <= 1.01  # rounding to whole voxels


def test_small_organ_in_a_large_image_is_bent_and_not_only_shifted(ball) -> None:
    label = np.pad(ball(10.0, 24.0, (1.0, 1.0)), 100)
    bent = 0
    for seed in range(10):
        truth = Annotation(label, (1.0, 1.0))
        flawed = flaw(truth, Elastic((3.0, 3.0)).choose(np.random.default_rng(seed), truth))
        centre = [ndimage.center_of_mass(mask) for mask in (label, flawed)]
        back = np.roll(flawed, np.round(np.subtract(*centre)).astype(int), (0, 1))
        bent += (back != label).sum() > 0.1 * label.sum()
    assert bent >= 8


def test_no_class_is_invented(organ) -> None:
    truth = organ(3)
    truth = replace(truth, label=np.where(truth.label == 2, 7, truth.label))
    flawed = flaw(truth, Elastic((2, 4)).choose(np.random.default_rng(0), truth))
    assert set(np.unique(flawed)) == {0, 1, 7}


def test_bad_settings(organ) -> None:
    with pytest.raises(UsageError, match="knots"):
        Elastic(knots=1).choose(np.random.default_rng(0), organ())
