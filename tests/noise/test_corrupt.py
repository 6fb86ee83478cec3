"""Flaws: replayable, recorded truthfully, never deleting a structure, and the data set's copy is faithful."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import disk

from maskmend.data.case import Geometry
from maskmend.data.dataset import find_cases
from maskmend.data.images import read_label, write_image, write_label
from maskmend.data.phantom import make_phantom, phantom_case
from maskmend.errors import UsageError
from maskmend.noise import Annotation, Dilate, Erode, Move
from maskmend.noise.cases import choose_cases
from maskmend.noise.corrupt import apply, corrupt_label
from maskmend.noise.dataset import corrupt_dataset
from maskmend.noise.presets import corrupt_labels, make_noise

KINDS = {"dilate": ("dilate",), "erode": ("erode",), "move": ("move",), "mixed": ("dilate", "erode", "move")}


def organ(seed: int = 0, ndim: int = 2) -> np.ndarray:
    return phantom_case(np.random.default_rng(seed), ndim)[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("layered", [False, True])
def test_record_is_true_and_replays(kind, ndim, layered) -> None:
    label, spacing = organ(1, ndim), (1.2, 1.0, 0.9)[3 - ndim :]
    flawed, record = corrupt_label(
        label, spacing, make_noise(kind), np.random.default_rng(3), layered=layered
    )
    assert flawed.dtype == label.dtype
    assert record["changed"] == (flawed != label).sum() > 0
    for value in (1, 2):
        first, second = label == value, flawed == value
        overlap = 1 - 2 * (first & second).sum() / (first.sum() + second.sum())
        assert record["dice"][value] == pytest.approx(1 - overlap)
    stored = json.loads(json.dumps(record))
    again = apply(label, spacing, stored, strength=stored["strength"], layered=layered)
    np.testing.assert_array_equal(again, flawed)
    assert record["transform"] in KINDS[kind]


def test_dilation_is_the_drawn_radius() -> None:
    label = (organ() > 0).astype(np.uint8)
    flawed, record = corrupt_label(label, (1, 1), Dilate((3, 3)), np.random.default_rng(0))
    assert record["radius_mm"] == 3
    np.testing.assert_array_equal(flawed, ndimage.binary_dilation(label, disk(3)))


@pytest.mark.parametrize("kind", ["erode", "move", "mixed"])
def test_no_structure_vanishes_unless_asked(kind) -> None:
    label = np.zeros((60, 60), np.uint8)
    label[20:40, 20:40], label[2:4, 2:4] = 1, 2
    for seed in range(20):
        flawed, record = corrupt_label(label, (1, 1), make_noise(kind, (6, 9)), np.random.default_rng(seed))
        assert (flawed == 1).sum() >= 0.1 * (label == 1).sum()
        assert (flawed == 2).sum() >= 1
        assert 0 <= record["strength"] <= 1
    erased, _ = corrupt_label(label, (1, 1), Erode((6, 9)), np.random.default_rng(0), keep=0)
    assert not (erased == 2).any()


def test_classes_and_ignore_stay_where_told() -> None:
    label = organ(2).astype(np.int32)
    label[:, :30] = 255
    flawed, _ = corrupt_label(label, (1, 1), Dilate(), np.random.default_rng(0), ignore=255, classes=[1])
    np.testing.assert_array_equal(flawed == 255, label == 255)
    np.testing.assert_array_equal(flawed == 2, label == 2)
    assert (flawed == 1).sum() > (label == 1).sum()


def test_empty_mask_stays_empty() -> None:
    flawed, record = corrupt_label(
        np.zeros((9, 9), np.uint8), (1, 1), make_noise("mixed"), np.random.default_rng(0)
    )
    assert not flawed.any()
    assert record["dice"] == {}


def test_settings_are_checked() -> None:
    truth = Annotation(organ(), (1.0, 1.0))
    with pytest.raises(UsageError, match="dilate"):
        make_noise("dilat")
    with pytest.raises(UsageError, match="smallest"):
        Erode((3, 2)).choose(np.random.default_rng(0), truth)
    with pytest.raises(UsageError, match="share"):
        choose_cases("ab", 1.5, 0)
    with pytest.raises(UsageError, match="no setting"):
        make_noise("elastic", radius_mm=(1, 2))


def test_mixed_draws_all_three_evenly() -> None:
    rng, mixed, volume = np.random.default_rng(0), make_noise("mixed"), Annotation(organ(0, 3), (1, 1, 1))
    drawn = [mixed.choose(rng, volume)["transform"] for _ in range(600)]
    assert all(150 < drawn.count(name) < 250 for name in KINDS["mixed"])
    lengths = [np.linalg.norm(Move((2, 4)).choose(rng, volume)["shift_mm"]) for _ in range(50)]
    assert 2 <= min(lengths) <= max(lengths) <= 4


def test_rate_seed_and_independence_of_other_cases() -> None:
    cases = {f"c{i}": organ(i) for i in range(10)}
    flawed, record = corrupt_labels(cases, 0.6, "dilate", (2, 4), seed=1)
    changed = {name for name in cases if (flawed[name] != cases[name]).any()}
    assert changed == set(record["cases"])
    assert len(changed) == 6
    assert len({case["radius_mm"] for case in record["cases"].values()}) == 6
    assert all((flawed[name] >= np.minimum(cases[name], 1)).all() for name in cases)
    again, _ = corrupt_labels(dict(reversed(cases.items())), 0.6, "dilate", (2, 4), seed=1)
    assert all((again[name] == flawed[name]).all() for name in cases)
    everything, _ = corrupt_labels(cases, 1.0, "dilate", (2, 4), seed=1)
    assert all((everything[name] == flawed[name]).all() for name in changed)
    assert set(choose_cases(cases, 0.6, 2)) != changed


@pytest.mark.parametrize("ndim", [2, 3])
def test_copy_of_a_data_set(tmp_path, ndim) -> None:
    make_phantom(tmp_path / "true", ndim=ndim, train=5, test=2)
    before = {p: p.read_bytes() for p in (tmp_path / "true").glob("*/*")}
    out = corrupt_dataset(tmp_path / "true", tmp_path / "flawed", rate=0.6, kind="dilate", seed=3)
    true, flawed = find_cases(tmp_path / "true"), find_cases(out)
    assert [c.id for c in flawed.train] == [c.id for c in true.train]
    assert [c.id for c in flawed.test] == [c.id for c in true.test]
    assert dict(flawed.labels) == dict(true.labels)
    record = json.loads((out / "noise.json").read_text())
    assert len(record["cases"]) == 3
    assert record["settings"]["kind"] == "dilate"
    for case in true.cases:
        first, second = read_label(case.label), read_label(flawed[case.id].label)
        assert second[1].spacing_mm == first[1].spacing_mm
        wrong = first[0] != second[0]
        assert wrong.any() == (case.id in record["cases"])
        if wrong.any():
            stored = read_label(next((out / "noise_maps").glob(f"{case.id}.*")))[0]
            np.testing.assert_array_equal(stored, wrong)
    assert {p: p.read_bytes() for p in before} == before  # hard links, yet the originals are untouched
    with pytest.raises(UsageError, match="already"):
        corrupt_dataset(tmp_path / "true", out, rate=0.5)


def test_copy_keeps_values_channels_trusted_and_ignore(tmp_path) -> None:
    """Binary 0/255 labels, two channel files per case, a trusted case, an ignore value."""
    root, geometry = tmp_path / "set", Geometry((48, 48), (1.0, 1.0))
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for i in range(4):
        label = (organ(i)[24:72, 12:60] > 0) * 255
        label[:3] = 7
        for channel in range(2):
            image = np.random.default_rng(i).integers(0, 255, (48, 48)).astype(np.uint8)
            write_image(root / "images" / f"p{i}_{channel:04d}.png", image, geometry)
        write_label(root / "labels" / f"p{i}.png", label, geometry)
    side = {"labels": {"background": 0, "organ": 255}, "ignore": 7, "trusted": ["p1"], "channels": ["a", "b"]}
    (root / "maskmend.json").write_text(json.dumps(side))
    out = corrupt_dataset(root, tmp_path / "flawed", rate=1.0, kind="dilate")
    copy = find_cases(out)
    assert [len(case.images) for case in copy.cases] == [2] * 4
    assert [case.trusted for case in copy.cases] == [False, True, False, False]
    assert copy.ignore == 7
    assert sorted(json.loads((out / "noise.json").read_text())["cases"]) == ["p0", "p2", "p3"]
    for case in copy.cases:
        values = read_label(case.label)[0]
        assert set(np.unique(values)) == {0, 7, 255}
        assert (values[:3] == 7).all()
