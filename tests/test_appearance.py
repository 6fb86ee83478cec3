"""The image as a judge of outlines: known make-ups, a second implementation of the fit, and a real data set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from maskmend.appearance import (
    FEATURES,
    FOLDS,
    PLACES,
    RIDGE,
    SCENE,
    Mender,
    OutlineModel,
    Related,
    _blur,
    _fourier,
    _last_resort,
    explained,
    image_support,
    moved_labels,
    outline_looks,
    scene_looks,
    signed_distance,
    unexplained,
)

SIZE = 48


def ball(radius: float, centre: tuple[float, ...]) -> torch.Tensor:
    axes = torch.meshgrid(*[torch.arange(SIZE if len(centre) == 2 else 24)] * len(centre), indexing="ij")
    return sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) <= radius**2


def scenes(
    grow: float, ndim: int = 2, count: int = 30, seed: int = 0, contrast: float = 1.5
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Image, given and true mask: balls a little brighter than a blotchy background, drawn `grow` voxels too large."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(count):
        size = SIZE if ndim == 2 else 24
        radius = rng.uniform(10, 13) if ndim == 2 else rng.uniform(6, 7)
        centre = tuple(rng.uniform(size / 2 - 2, size / 2 + 2, ndim))
        truth, given = ball(radius, centre), ball(radius + grow, centre)
        blotches = ndimage.gaussian_filter(rng.normal(size=truth.shape), 2) * 3
        image = contrast * ndimage.gaussian_filter(truth.numpy().astype(float), 0.7) + blotches
        tensor = torch.tensor(image + rng.normal(0, 0.2, truth.shape), dtype=torch.float32)[None]
        made.append((tensor, given, truth))
    return made


def looked(made: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    return torch.stack([outline_looks(image, given, torch.ones_like(given)) for image, given, _ in made])


def outlines(grow: float, ndim: int = 2, count: int = 30, seed: int = 0) -> torch.Tensor:
    return looked(scenes(grow, ndim, count, seed))


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


@pytest.mark.parametrize("sound", [60, 40, 20])
def test_the_convention_that_images_explain_is_found_even_when_most_masks_are_wrong(sound: int) -> None:
    flawed = 80 - sound
    looks = torch.cat([outlines(0, count=sound), outlines(3, count=flawed, seed=1)])
    mixed = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    share = explained(looks[mixed])[torch.argsort(mixed)]
    assert share[:sound].mean() > 0.9
    assert share[sound:].mean() < 0.1


def told(strength: np.ndarray, seed: int) -> torch.Tensor:
    """Looks of outlines whose sides one feature tells apart, by a strength of their own; below 0 the wrong way."""
    looks = torch.randn(len(strength), 2 * PLACES, FEATURES, generator=torch.Generator().manual_seed(seed))
    by = torch.tensor(strength, dtype=torch.float32)[:, None]
    looks[:, :PLACES, 0] += 2 * by
    looks[:, PLACES:, 0] -= 2 * by
    return looks


@pytest.mark.parametrize("seed", range(4))
def test_flaws_of_many_sizes_are_told_from_sound_masks(seed: int) -> None:
    """Three quarters of the outlines are drawn off the boundary by more or less: they form no group."""
    rng = np.random.default_rng(seed)
    strength = rng.permutation(np.r_[rng.normal(1, 0.05, 25), rng.uniform(-1, 0.6, 75)])
    share = explained(told(strength, seed)).numpy()
    assert share[strength > 0.8].mean() > 0.95
    assert share[strength < 0.1].mean() < 0.05


@pytest.mark.parametrize("seed", range(4))
def test_images_of_several_kinds_are_not_asked_what_is_explained_at_all(seed: int) -> None:
    """The same outlines; now those off the boundary are all in images of their own kind."""
    rng = np.random.default_rng(seed)
    strength = rng.permutation(np.r_[rng.normal(1, 0.05, 25), rng.uniform(-1, 0.6, 75)])
    looks = told(strength, seed)
    views = torch.tensor(rng.normal(0, 0.3, (100, len(SCENE), FEATURES)), dtype=torch.float32)
    assert explained(looks, views).min() < 0.05
    views[strength < 0.1] += 1
    assert explained(looks, views).min() == 1


@pytest.mark.parametrize(("against", "decided"), [((-1.0, 0.6), True), ((-1.4, -0.6), False)])
def test_two_ways_of_drawing_that_explain_themselves_are_not_decided_between(
    against: tuple[float, float], decided: bool
) -> None:
    """Half of the outlines follow one edge; the others scatter about it, or all follow the opposite one."""
    rng = np.random.default_rng(0)
    strength = rng.permutation(np.r_[rng.uniform(0.6, 1.4, 50), rng.uniform(*against, 50)])
    looks = told(strength, 0)
    share = _last_resort(OutlineModel(looks), looks, None)
    assert (share.min().item() < 0.05) == decided
    assert share[strength > 0.7].min() > 0.9


@pytest.mark.parametrize("seed", range(4))
def test_boundaries_that_are_more_or_less_faint_are_sound(seed: int) -> None:
    strength = np.random.default_rng(seed).uniform(0.15, 0.6, 100)
    assert explained(told(strength, seed)).min() == 1


@pytest.mark.parametrize(
    ("errors", "two"),
    [
        (np.r_[np.full(40, 0.5), np.linspace(1, 1.5, 60)], True),
        (np.linspace(0.4, 0.96, 100), False),  # one kind, explained more or less
        (np.r_[np.full(95, 0.5), np.full(5, 1.4)], False),  # a few that nothing explains
        (np.r_[np.full(5, 0.5), np.full(95, 1.4)], False),  # too few to be the right ones
        (np.r_[np.full(60, 0.9), np.full(40, 1.05)], False),  # hardly anything is explained
    ],
)
def test_what_the_believed_outlines_explain_at_all(errors: np.ndarray, two: bool) -> None:
    shares = torch.tensor(errors)[:, None]
    judge = Related()
    judge.fit(shares)
    assert judge.several == two
    expected = 1 / (1 + np.exp((errors - 0.97) / 0.03)) if two else np.ones(len(errors))
    np.testing.assert_allclose(judge.posterior(shares).numpy(), expected, atol=1e-6)


def test_one_convention_is_one_convention() -> None:
    assert explained(outlines(0, count=60)).min() == 1
    assert explained(outlines(0, count=19)).tolist() == [1] * 19  # too few to tell
    looks = torch.cat([outlines(0, count=40), torch.zeros(5, 2 * PLACES, FEATURES)])
    assert explained(looks).tolist() == [1] * 45  # without an outline nothing is said of it


def test_a_kind_of_image_is_not_a_flaw() -> None:
    """Bright balls on a dark ground and dark ones on a bright ground; in each kind some drawn too large."""
    made = []
    for contrast, seed in ((1.5, 0), (-1.5, 10)):
        made += scenes(0, count=45, seed=seed, contrast=contrast)
        made += scenes(3, count=20, seed=seed + 1, contrast=contrast)
    order = np.random.default_rng(0).permutation(len(made))
    made = [made[i] for i in order]
    sound = torch.tensor([bool(torch.equal(given, truth)) for _, given, truth in made])
    views = torch.stack(
        [scene_looks(image + (2.0 if i >= 65 else 0)) for i, (image, *_) in zip(order, made, strict=True)]
    )
    blind, told = explained(looked(made)), explained(looked(made), views)
    assert told[sound].mean() > 0.9
    assert told[~sound].mean() < 0.15
    assert blind[sound].mean() < 0.8


def test_a_scene_that_foretells_nothing_changes_nothing() -> None:
    made = scenes(0, count=50) + scenes(3, count=30, seed=1)
    views = torch.randn(80, len(SCENE), FEATURES, generator=torch.Generator().manual_seed(0))
    assert torch.equal(explained(looked(made), views), explained(looked(made)))


def test_a_scene_is_the_quantiles_of_the_looks() -> None:
    image = torch.randn(2, 40, 30, generator=torch.Generator().manual_seed(0))
    fine = np.stack(
        [ndimage.gaussian_filter(c, 0.7, mode="nearest", truncate=2.01 / 0.7) for c in image.numpy()]
    )
    expected = np.quantile(fine.reshape(2, -1), SCENE, axis=1)
    assert scene_looks(image).shape == (len(SCENE), 2 * FEATURES)
    np.testing.assert_allclose(scene_looks(image)[:, :2].numpy(), expected, atol=1e-5)


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


def test_more_cases_than_are_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = torch.cat([outlines(0, count=60), outlines(3, count=40, seed=1)])
    whole = explained(looks)
    monkeypatch.setattr("maskmend.appearance.MOST", 50)
    part = explained(looks)
    assert ((part > 0.5) == (whole > 0.5)).float().mean() > 0.97


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
