"""The images as witnesses: flawed outlines are found without a model, at any size, spacing and number of axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from tests.audit.conftest import blob
from tests.test_fanout import discs

from maskmend.appearance import PLACES
from maskmend.audit import outlines
from maskmend.audit.outlines import ImageWitness, scaled_looks
from maskmend.audit.run import audit


def case(seed: int, radius: float, by: float, ndim: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """An image (1, *S) of a blob among blotches, and its mask drawn `by` voxels too large."""
    rng = np.random.default_rng(seed)
    shape = [int(2.6 * radius)] * ndim
    truth = blob(rng, shape, radius)
    image = 1.5 * ndimage.gaussian_filter(truth.astype(float), radius / 20)
    image += ndimage.gaussian_filter(rng.normal(size=shape), radius / 6) * radius / 4 + rng.normal(
        0, 0.15, shape
    )
    away = ndimage.distance_transform_edt(~truth) - ndimage.distance_transform_edt(truth)
    return image[None], (away <= by).astype(np.uint8)


@pytest.mark.parametrize(("radius", "ndim"), [(16, 2), (60, 2), (12, 3)])
def test_flawed_outlines_stand_out_without_any_model(radius: float, ndim: int) -> None:
    count = 28
    flawed = np.arange(count) % 4 == 0
    looks = {}
    for i in range(count):
        image, label = case(i, radius, 0.2 * radius if flawed[i] else 0.0, ndim)
        looks[f"{i:02d}"] = scaled_looks(image, label, (1.0,) * ndim)
    witness = ImageWitness.of(looks)
    odds = np.array([witness(name) for name in looks])
    wins = (odds[flawed][:, None] > odds[~flawed]).mean()
    assert wins > 0.95
    least, most = (
        outlines.EXPECTED * away + outlines.CONVENTION * breaks - outlines.EXPECTED**2 / 2
        for away, breaks in zip(outlines.RANGE, outlines.CONVENTION_RANGE, strict=True)
    )
    assert odds.min() >= least
    assert odds.max() <= most


def test_a_broken_convention_counts_and_a_kept_one_hardly_speaks_for_a_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two ways of drawing: the odds of those who break the way that images explain rise by more than others fall."""
    looks = {
        f"{i:02d}": scaled_looks(*case(i, 16, 3.2 if i % 4 == 0 else 0.0), (1.0, 1.0)) for i in range(28)
    }
    witness = ImageWitness.of(looks)
    monkeypatch.setattr(outlines, "CONVENTION", 0.0)
    without = ImageWitness.of(looks)
    more = {name: witness(name) - without(name) for name in looks}
    broken = [name for name in looks if witness.disbelieves(name)]
    assert broken
    assert min(more[name] for name in broken) >= 0
    assert max(more[name] for name in broken) == pytest.approx(1.5)  # log odds of 3, at half their weight
    kept = [more[name] for name in looks if witness.convention[name] > 0.9]
    assert kept == pytest.approx([-0.5] * len(kept))
    alike = {name: one for name, one in looks.items() if int(name) % 4}
    one_way = ImageWitness.of(alike)
    monkeypatch.undo()
    assert not any(one_way.disbelieves(name) for name in alike)
    assert all(ImageWitness.of(alike)(name) == one_way(name) for name in alike)


def test_the_images_are_believed_as_far_as_a_model_bears_them_out() -> None:
    """By the formula written out; a model that finds the same outlines flawed makes them speak louder, one that finds
    others silences them, and what says nothing of any changes nothing."""
    looks = {
        f"{i:02d}": scaled_looks(*case(i, 16, 3.2 if i % 4 == 0 else 0.0), (1.0, 1.0)) for i in range(41)
    }
    witness = ImageWitness.of(looks)
    shares = np.array(list(witness.unexplained.values()))
    middle = np.median(shares)
    away = np.clip(
        (shares - middle) / (1.4826 * np.median(np.abs(shares - middle)) + 1e-3 + 0.02 * middle), -2, 4
    )
    agreeing = {name: 0.9 if int(name) % 4 == 0 else 0.1 for name in looks}
    weight = np.array(list(agreeing.values()))
    apart = weight @ away / weight.sum() - (1 - weight) @ away / (1 - weight).sum()
    expected = min((weight.sum() * apart + 10 * 0.75) / (weight.sum() + 10), 1.5)
    assert expected > 1
    believed = np.clip(np.array(list(witness.convention.values())), 1e-6, 1 - 1e-6)
    breaks = 0.5 * np.clip(-np.log(believed / (1 - believed)), -1, 3)
    louder = witness.weighed(agreeing)
    assert [louder(name) for name in looks] == pytest.approx(
        expected * away - expected**2 / 2 + breaks, abs=1e-3
    )
    opposed = witness.weighed({name: 1 - chance for name, chance in agreeing.items()})
    assert [opposed(name) for name in looks] == pytest.approx(breaks, abs=1e-3)
    assert witness.weighed({}) is witness
    sound = witness.weighed(dict.fromkeys(looks, 0.0))
    assert [sound(name) for name in looks] == pytest.approx([witness(name) for name in looks])
    assert [one.backing for one in (witness, louder, opposed, sound)] == pytest.approx([1, 1, 0, 1])
    blurred = {name: 0.5 + (0.06 if int(name) % 4 == 0 else -0.06) for name in looks}
    weight = np.array(list(blurred.values()))
    apart = weight @ away / weight.sum() - (1 - weight) @ away / (1 - weight).sum()
    told = min(weight.sum(), (1 - weight).sum())
    partly = (told * apart + 10 * 0.75) / (told + 10) / 0.75
    assert 0.2 < partly < 0.9
    assert witness.weighed(blurred).backing == pytest.approx(partly**2, abs=1e-4)


def test_an_audit_weighs_the_images_by_its_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they say of every case is told to the witness, and it is the weighed one that is heard."""
    told: list[Mapping[str, float]] = []

    def silenced(witness: ImageWitness, flawed: Mapping[str, float]) -> ImageWitness:
        told.append(flawed)
        return ImageWitness()

    source = discs(tmp_path / "data")
    heard = audit(source, tmp_path / "heard", probs=source / "probs")
    monkeypatch.setattr(ImageWitness, "weighed", silenced)
    unheard = audit(source, tmp_path / "unheard", probs=source / "probs")
    assert [sorted(one) for one in told] == [[f"{number:02d}" for number in range(26)]]
    assert all(0 <= chance <= 1 for chance in told[0].values())
    assert heard["records"] != unheard["records"]


def test_an_audit_whose_images_bear_out_nothing_orders_by_dice_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, weighed = discs(tmp_path / "data"), ImageWitness.weighed
    usual = audit(source, tmp_path / "usual", probs=source / "probs")
    monkeypatch.setattr(
        ImageWitness, "weighed", lambda self, flawed: replace(weighed(self, flawed), expected=0.0)
    )
    answer = audit(source, tmp_path / "unborne", probs=source / "probs")
    assert usual["facts"]["images_bear_out"] == pytest.approx(1.0)
    assert answer["facts"]["images_bear_out"] == 0.0
    told = "hardly bear out what the models say"
    assert told in Path(answer["report"]).read_text()
    assert told not in Path(usual["report"]).read_text()
    assert [one["priority"] for one in answer["records"]] == pytest.approx(
        [1 - one["quality"] for one in answer["records"]], abs=2e-4
    )
    correlations = [one["facts"]["check"]["dice_correlation"] for one in (usual, answer)]
    assert correlations[0] != correlations[1]  # the exam is judged in the same way


def test_looks_go_by_millimetres_and_by_the_size_of_the_object() -> None:
    """Twice the voxels at half the spacing, or an object in a large empty field: the same looks."""
    image, label = case(3, 24, 0.0)
    plain = scaled_looks(image, label, (1.0, 1.0))
    stretched = scaled_looks(np.repeat(image, 2, axis=1), np.repeat(label, 2, axis=0), (0.5, 1.0))
    wide = scaled_looks(
        np.pad(image, [(0, 0), (40, 9), (5, 80)], mode="edge"), np.pad(label, [(40, 9), (5, 80)]), (1, 1)
    )
    for other in (stretched, wide):
        for side in (slice(None, PLACES), slice(PLACES, None)):  # brightness and edges inside and outside
            np.testing.assert_allclose(other[side, :2].mean(0), plain[side, :2].mean(0), atol=0.35)


@pytest.mark.parametrize("shape", [(30, 41), (12, 17, 20)])
@pytest.mark.parametrize("factor", [0.45, 1.3, 2.0])
def test_an_image_at_another_scale_is_scipys(shape: tuple[int, ...], factor: float) -> None:
    array = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    zoom = np.array([factor, 1.0, 0.8, 1.1][: len(shape)])
    wanted = np.stack([ndimage.zoom(one, zoom, order=1, mode="nearest") for one in array])
    assert np.abs(outlines._zoomed(array, zoom) - wanted).max() < 1e-5


def test_what_is_not_known_is_not_looked_at() -> None:
    image, label = case(3, 24, 0.0)
    valid = np.ones(label.shape, bool)
    valid[:, : label.shape[1] // 2] = False
    image[0][~valid] = 50.0  # would be seen
    assert scaled_looks(image, label, (1, 1), valid)[:, 0].max() < 5
    assert not scaled_looks(image, label, (1, 1), np.zeros_like(valid)).any()


def test_nothing_is_said_of_empty_masks_and_of_few() -> None:
    looks = {f"{i:02d}": scaled_looks(*case(i, 16, 0.0), (1, 1)) for i in range(30)}
    image, label = case(99, 16, 0.0)
    looks["empty"] = scaled_looks(image, np.zeros_like(label), (1, 1))
    assert looks["empty"].shape == (2 * PLACES, looks["00"].shape[1])
    witness = ImageWitness.of(looks)
    assert witness("empty") == 0
    assert witness("unheard of") == 0
    assert any(witness(name) for name in looks)
    assert ImageWitness.of(dict(list(looks.items())[:15])).odds == {}


def test_flat_and_broken_images_do_no_harm() -> None:
    label = case(0, 16, 0.0)[1]
    for image in (np.zeros((1, *label.shape)), np.full((1, *label.shape), np.nan)):
        assert bool(torch.isfinite(scaled_looks(image, label, (1, 1))).all())


def test_large_objects_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scattered specks in a large field: the zoom is limited so that memory is."""
    monkeypatch.setattr(outlines, "MOST_VOXELS", 10_000)
    label = np.zeros((300, 300), np.uint8)
    label[::50, ::50] = 1
    image = np.random.default_rng(0).normal(size=(1, 300, 300))
    assert scaled_looks(image, label, (1, 1)).shape[0] == 2 * PLACES


def test_no_mask_has_a_part_in_the_overview() -> None:
    """It is of the image, whole and at any size."""
    image = np.random.default_rng(0).normal(5, 3, (2, 200, 150))
    view = outlines.overview(image)
    assert view.shape == (5, 2 * outlines_features())
    np.testing.assert_allclose(view.numpy(), outlines.overview(10 * image - 3).numpy(), atol=1e-4)
    # Brightness: the median of what has mean 0 and spread 1.
    assert abs(view[2, 0].item()) < 0.1


def outlines_features() -> int:
    from maskmend.appearance import FEATURES

    return FEATURES


def test_kinds_of_images_are_asked_one_by_one() -> None:
    """Scenes that foretell the suspicion split the cases; the witness hands them on."""
    rng = np.random.default_rng(0)
    looks = {f"{kind}{i}": case(i, 16, 0.0) for kind in "ab" for i in range(25)}
    sign = {name: 1 if name[0] == "a" else -1 for name in looks}
    tables = {name: scaled_looks(sign[name] * one[0], one[1], (1, 1)) for name, one in looks.items()}
    views = {
        name: torch.full((5, 4), float(sign[name]))
        + 0.1 * torch.tensor(rng.normal(size=(5, 4)), dtype=torch.float32)
        for name in looks
    }
    told = ImageWitness.of(tables, views)
    assert min(told.convention.values()) > 0.5
    assert told.mender is not None
    assert told.numbers == {name: i for i, name in enumerate(looks)}
