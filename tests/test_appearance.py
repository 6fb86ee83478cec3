"""The image as a judge of outlines: known make-ups, a second implementation of the fit, and a real data set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from tests_outlines import SIZE, ball, looked, outlines, scenes

from maskmend.appearance import (
    FEATURES,
    FOLDS,
    PLACES,
    RIDGE,
    SCENE,
    SCENE_VOXELS,
    WAVES,
    Mender,
    OutlineModel,
    _blur,
    _fourier,
    _looks,
    image_support,
    moved_labels,
    outline_looks,
    scene_looks,
    signed_distance,
    unexplained,
)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("grow", [-3, 3])
def test_outlines_on_the_boundary_are_explained_best(ndim: int, grow: int) -> None:
    true, off = outlines(0, ndim), outlines(grow, ndim)
    assert unexplained(true).mean() < unexplained(off).mean() - 0.1
    assert image_support(true) > image_support(off) + 1


def test_pure_noise_explains_nothing() -> None:
    looks = torch.randn(40, 2 * PLACES, FEATURES, generator=torch.Generator().manual_seed(0))
    assert unexplained(looks).mean().item() == pytest.approx(1, abs=0.1)
    assert abs(image_support(looks)) < 1.5


def test_a_side_that_the_looks_tell_is_explained_fully() -> None:
    looks = torch.randn(40, 2 * PLACES, FEATURES, generator=torch.Generator().manual_seed(0)) * 0.1
    looks[:, :PLACES, 0] += 1
    looks[:, PLACES:, 0] -= 1
    assert unexplained(looks).max() < 0.1


def test_each_case_is_judged_by_the_others() -> None:
    """The same regression, fold by fold, through numpy's least squares with the ridge as extra rows."""
    looks = outlines(0)[:12]
    flat = looks.flatten(0, 1).double()
    flat = ((flat - flat.mean(0)) / flat.std(0)).clamp(-4, 4)
    waves = _fourier(flat.float()).view(12, 2 * PLACES, -1).numpy()
    side = np.r_[np.ones(PLACES), -np.ones(PLACES)]
    expected = np.zeros(12)
    for k in range(FOLDS):
        others = [i for i in range(12) if i % FOLDS != k]
        left = np.concatenate([*waves[others], np.sqrt(RIDGE) * np.eye(waves.shape[2])])
        right = np.concatenate([*[side] * len(others), np.zeros(waves.shape[2])])
        weights = np.linalg.lstsq(left, right, rcond=None)[0]
        for i in range(12):
            if i % FOLDS == k:
                expected[i] = np.mean((waves[i] @ weights - side) ** 2)
    np.testing.assert_allclose(unexplained(looks).numpy(), expected, rtol=1e-4)


def test_places_lie_beside_the_outline_and_only_where_valid() -> None:
    mask = ball(10, (24, 24))
    distance = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    image = torch.tensor(distance, dtype=torch.float32)[None]
    valid = torch.zeros_like(mask)
    valid[:, :24] = True
    looks = outline_looks(image, mask, valid)
    assert looks.shape == (2 * PLACES, FEATURES)
    assert (looks[:PLACES, 0] > 0).all()
    assert (looks[PLACES:, 0] < 0).all()
    assert looks[:, 0].abs().max() < 2
    columns = torch.arange(SIZE).float().expand(SIZE, SIZE)[None]
    assert outline_looks(columns, mask, valid)[:, 0].max() < 24


@pytest.mark.parametrize("mask", [torch.zeros(9, 9).bool(), torch.ones(9, 9).bool()])
def test_no_outline_no_looks(mask: torch.Tensor) -> None:
    assert not outline_looks(torch.randn(2, 9, 9), mask, torch.ones(9, 9).bool()).any()
    assert image_support(torch.zeros(30, 2 * PLACES, FEATURES)) == 0


def test_a_single_slice_is_looked_at() -> None:
    mask = ball(10, (24, 24))[None]
    looks = outline_looks(torch.randn(1, 1, SIZE, SIZE), mask, torch.ones_like(mask))
    assert torch.isfinite(looks).all()


@pytest.mark.parametrize("scale", [0.7, 1.4, 2.8])
def test_blur_is_scipys(scale: float) -> None:
    image = torch.randn(2, 30, 25, generator=torch.Generator().manual_seed(1))
    truncate = (round(2.5 * scale) + 0.01) / scale
    expected = [ndimage.gaussian_filter(c, scale, mode="nearest", truncate=truncate) for c in image.numpy()]
    np.testing.assert_allclose(_blur(image, scale).numpy(), np.stack(expected), atol=1e-5)


def test_only_believed_outlines_are_learnt_from() -> None:
    """Leaving cases out by belief is leaving them out; other outlines of the same cases are judged by the same fit."""
    looks, other = outlines(0)[:20], outlines(3)[:20]
    believed = torch.ones(20)
    believed[5:10] = 0
    model = OutlineModel(looks)
    both = model.errors(believed, torch.cat([looks])), model.errors(believed, other)
    waves = model.waves.numpy()
    side = np.r_[np.ones(PLACES), -np.ones(PLACES)]
    for i in (0, 7, 19):
        learnt = [j for j in range(20) if j % FOLDS != i % FOLDS and not 5 <= j < 10]
        left = np.concatenate([*waves[learnt], np.sqrt(RIDGE) * np.eye(waves.shape[2])])
        right = np.concatenate([*[side] * len(learnt), np.zeros(waves.shape[2])])
        weights = np.linalg.lstsq(left, right, rcond=None)[0]
        assert both[0][i].item() == pytest.approx(np.mean((waves[i] @ weights - side) ** 2), rel=1e-4)
        theirs = model._waves(other[i : i + 1])[0].numpy()
        assert both[1][i].item() == pytest.approx(np.mean((theirs @ weights - side) ** 2), rel=1e-4)


def test_believing_one_outline_alone() -> None:
    model = OutlineModel(outlines(0)[:12])
    waves, side = model.waves.numpy(), np.r_[np.ones(PLACES), -np.ones(PLACES)]
    weights = np.linalg.solve(waves[3].T @ waves[3] + RIDGE * np.eye(waves.shape[2]), waves[3].T @ side)
    np.testing.assert_allclose(model.alone()[3].numpy(), ((waves @ weights - side) ** 2).mean(1), rtol=1e-6)


def test_a_scene_is_the_quantiles_of_the_looks() -> None:
    image = torch.randn(2, 40, 30, generator=torch.Generator().manual_seed(0))
    fine = np.stack(
        [ndimage.gaussian_filter(c, 0.7, mode="nearest", truncate=2.01 / 0.7) for c in image.numpy()]
    )
    expected = np.quantile(fine.reshape(2, -1), SCENE, axis=1)
    assert scene_looks(image).shape == (len(SCENE), 2 * FEATURES)
    np.testing.assert_allclose(scene_looks(image)[:, :2].numpy(), expected, atol=1e-5)
    for size in ((40, 30), (5, 3), (1, 2), (201, 300)):  # the last is thinned
        image = torch.randn(1, *size, generator=torch.Generator().manual_seed(1))
        looks = _looks(image).flatten(1)
        looks = looks[:, :: max(1, looks.shape[1] // SCENE_VOXELS)]
        assert torch.equal(scene_looks(image), torch.quantile(looks, torch.tensor(SCENE), dim=1))


# A ball of few voxels does not grow back from the core of it, so 3-D shrinks less.
@pytest.mark.parametrize(("ndim", "grow"), [(2, -3), (2, -1.5), (2, 2), (2, 3), (3, -1.5), (3, 2), (3, 3)])
def test_an_outline_is_moved_to_the_boundary(ndim: int, grow: float) -> None:
    sound, flawed = scenes(0, ndim, count=30), scenes(grow, ndim, count=10, seed=1)
    mender = Mender.fit(looked(sound), torch.ones(30))
    moved = 0
    for index, (image, given, truth) in enumerate(flawed):
        found = mender.offset(image, given, torch.ones_like(given), index)
        if found is None:
            continue
        offset, distance = found
        moved += 1
        assert offset == pytest.approx(grow, abs=1)
        np.testing.assert_allclose(
            (distance > offset).sum(), truth.sum().item(), rtol=0.3 if ndim == 3 else 0.2
        )
    assert moved >= 6


def test_an_outline_stays_where_the_images_do_not_say_better() -> None:
    sound = scenes(0, count=30)
    mender = Mender.fit(looked(sound), torch.ones(30))
    for index, (image, given, _) in enumerate(scenes(0, count=10, seed=1)):
        everywhere = torch.ones_like(given)
        assert mender.offset(image, given, everywhere, index) is None
        assert mender.offset(torch.randn_like(image), given, everywhere, index) is None
        assert mender.offset(image, given & False, everywhere, index) is None
        assert mender.offset(image, given, everywhere & False, index) is None


@pytest.mark.parametrize("shape", [(40, 33), (18, 20, 16), (1, 30, 30)])
@pytest.mark.parametrize("known", ["everywhere", "a part"])
def test_an_outline_is_judged_by_the_voxels_within_a_diagonal_of_it(
    shape: tuple[int, ...], known: str
) -> None:
    """Against distances to it, worked out voxel by voxel."""
    rng = np.random.default_rng(len(shape))
    drawn = ndimage.gaussian_filter(rng.normal(size=shape), 3) > 0
    valid = np.ones(shape, bool)
    if known == "a part":
        valid[..., :10] = False
        drawn[..., :10] = drawn[..., 10:11]  # as the nearest known voxel says
    image = torch.from_numpy(rng.normal(size=(1, *shape))).float()
    looks = _looks(image).flatten(1)
    scale = torch.stack([looks.mean(1), looks.std(1)])
    weights = torch.from_numpy(rng.normal(size=(FOLDS, 1 + len(looks) + WAVES)))
    mender = Mender(scale, weights, torch.tensor([0.5, 0.3]))
    places = np.argwhere(np.ones(shape, bool))
    squares = {inside: np.argwhere(drawn == inside) for inside in (True, False)}
    halves = []
    for inside, aim in ((True, 1), (False, -1)):
        others = squares[not inside]
        beside = [
            number
            for number, at in enumerate(places)
            if drawn[tuple(at)] == inside and valid[tuple(at)] and ((others - at) ** 2).sum(1).min() <= 2
        ]
        waves = _fourier(((looks[:, beside].T - scale[0]) / scale[1]).clamp(-4, 4))
        halves.append(float(((waves @ weights[2]) - aim).square().mean()))
    found = mender.unexplained(image, torch.from_numpy(drawn), torch.from_numpy(valid), 2)
    assert found == pytest.approx(np.mean(halves), rel=1e-6)
    assert (
        mender.unexplained(image, torch.ones(shape, dtype=torch.bool), torch.from_numpy(valid), 2) == np.inf
    )


def test_signed_distance_of_a_half_plane() -> None:
    mask = np.zeros((4, 9), bool)
    mask[:, :5] = True
    np.testing.assert_allclose(signed_distance(mask)[0], 4.5 - np.arange(9))


def test_moved_labels_take_the_nearest_class() -> None:
    label = np.zeros((7, 12), int)
    label[2:5, 3:6], label[2:5, 6:9] = 1, 2
    distance = signed_distance(label > 0)
    np.testing.assert_array_equal(moved_labels(label, distance, 0.0), label)
    wider, tighter = moved_labels(label, distance, -1.0), moved_labels(label, distance, 1.0)
    assert wider[3].tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0]
    assert tighter[3].tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 0, 0, 0, 0]
    assert not tighter[[2, 4]].any()


@pytest.mark.parametrize("kind", ["dilate", "erode"])
@pytest.mark.parametrize(
    ("folder", "radius", "step"), [("msd_hippocampus_2d", 2, 1), ("hc18_fetal_head_2d", 20, 4)]
)
def test_true_outlines_of_real_images_win(
    real_data, folder: str, radius: float, step: int, kind: str
) -> None:
    from maskmend.data.dataset import find_cases
    from maskmend.data.images import read_image, read_label
    from maskmend.noise.morphology import grow_all, shrink_all

    true, flawed = [], []
    for number, case in enumerate(find_cases(real_data / folder).cases[:80]):
        label, image = read_label(case.label)[0] > 0, read_image(case.images)[0]
        spacing = (1.0,) * label.ndim
        change = grow_all if kind == "dilate" else shrink_all
        given = label if number % 2 else change(label.astype("uint8"), spacing, radius) > 0
        small = torch.from_numpy(
            ndimage.uniform_filter(image[0].astype("float32"), step)[None, ::step, ::step]
        )
        small = (small - small.mean()) / small.std()
        mask = torch.from_numpy(np.ascontiguousarray(given[::step, ::step]))
        (true if number % 2 else flawed).append(outline_looks(small, mask, torch.ones_like(mask)))
    assert image_support(torch.stack(true)) > image_support(torch.stack(flawed)) + 0.3
