"""Fingerprint, plan, normalisation, resampling and the way back, against numpy, torch and closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskmend.config import load
from maskmend.data.case import Case, Dataset, Geometry
from maskmend.data.fingerprint import Fingerprint, fingerprint
from maskmend.data.images import write_image, write_label
from maskmend.data.plan import ChannelPlan, Plan, choose_batch, choose_patch, make_plan
from maskmend.data.preprocess import IGNORED, classes_of, normalise, prepare, resample, resample_label
from maskmend.errors import DataError, UsageError


def plan_for(ndim: int, **changes) -> Plan:
    base = {
        "ndim": ndim,
        "spacing_mm": (1.0,) * ndim,
        "channels": (ChannelPlan(name="x", scheme="none"),),
        "classes": {"background": 0, "organ": 7},
        "patch": (16,) * ndim,
        "batch": 2,
        "depth": 2,
        "flips": (False,) * ndim,
    }
    return Plan(**(base | changes))


def write_dataset(
    root: Path, images, labels, *, suffix=".nii.gz", spacing=None, affine=None, **facts
) -> Dataset:
    cases = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        ndim = label.ndim
        geometry = Geometry(label.shape, tuple(spacing or (1.0,) * ndim), affine)
        paths = (root / f"image_{number}{suffix}", root / f"label_{number}{suffix}")
        write_image(paths[0], image, geometry)
        write_label(paths[1], label, geometry)
        cases.append(Case(f"case_{number}", (paths[0],), paths[1]))
    facts = {"labels": {"background": 0, "organ": 7}} | facts
    return Dataset(root, "folders", tuple(cases), **facts)


# --- fingerprint and plan ---------------------------------------------------------------------------------


def test_the_sample_of_voxels_is_bounded_and_fair(monkeypatch):
    """However many cases: quantiles as of all voxels, exact extremes, no more held than the limit."""
    from maskmend.data import fingerprint as module

    monkeypatch.setattr(module, "_VOXELS", 20_000)
    rng, sample = np.random.default_rng(0), module._Sample()
    every = [rng.normal(number / 50, 1 + number / 100, 3000).astype(np.float32) for number in range(100)]
    for values in every:
        sample.add(values)
        assert sum(map(len, sample.parts)) == sample.size <= 20_000
    assert {len(part) > 0 for part in sample.parts} == {True}
    facts, whole = sample.facts(), np.concatenate(every)
    assert (facts.minimum, facts.maximum) == (whole.min(), whole.max())
    assert facts.mean == pytest.approx(float(whole.mean()), abs=float(5 * whole.std() / sample.size**0.5))
    assert facts.std == pytest.approx(float(whole.std()), rel=0.03)
    for name, percent in (("p00_5", 0.5), ("median", 50), ("p99_5", 99.5)):
        assert getattr(facts, name) == pytest.approx(np.percentile(whole, percent), abs=0.15)


def test_fingerprint_counts_what_is_there(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.normal(100, 20, (1, 12, 14, 16)).astype(np.float32) for _ in range(3)]
    images[2][:] = 0
    images[2][0, 2:8, 3:9, 4:10] = 5
    images[2][0, 0, 0, 0] = np.nan
    labels = [np.zeros((12, 14, 16), np.int32) for _ in range(3)]
    labels[0][3:6, 3:6, 3:6] = 7
    affine = np.diag([0.5, 0.6, 2.0, 1.0])
    dataset = write_dataset(tmp_path, images, labels, spacing=(2.0, 0.6, 0.5), affine=affine)
    facts = fingerprint(dataset)
    assert facts.ndim == 3
    assert facts.median_spacing_mm == pytest.approx((2.0, 0.6, 0.5))
    assert [case.shape for case in facts.cases] == [(12, 14, 16)] * 3
    assert facts.cases[2].nonzero == (6, 6, 6)
    assert facts.class_voxels == {0: 3 * 12 * 14 * 16 - 27, 7: 27}
    assert facts.empty_masks == ("case_1", "case_2")
    assert facts.cases[0].left_right == 2
    images[2] = np.nan_to_num(images[2])
    everything = np.concatenate([image.ravel() for image in images])
    assert facts.channels[0].all.mean == pytest.approx(everything.mean(), rel=1e-4)
    assert facts.channels[0].all.maximum == pytest.approx(everything.max())
    inside = images[0][0][labels[0] == 7]
    assert facts.channels[0].foreground is not None
    assert facts.channels[0].foreground.std == pytest.approx(inside.std(), rel=1e-4)
    assert Fingerprint.model_validate_json(facts.model_dump_json()) == facts


def test_fingerprint_refuses_a_mixture(tmp_path):
    flat, deep = np.zeros((1, 8, 8), np.float32), np.zeros((1, 8, 8, 8), np.float32)
    one = write_dataset(tmp_path, [flat], [flat[0].astype(int)], suffix=".nrrd")
    (tmp_path / "b").mkdir()
    two = write_dataset(tmp_path / "b", [deep], [deep[0].astype(int)], suffix=".nrrd")
    with pytest.raises(DataError, match="3-D, while case_0 is 2-D"):
        fingerprint(Dataset(tmp_path, "folders", one.cases + two.cases, {"background": 0, "organ": 7}))
    with pytest.raises(DataError, match="no training case"):
        fingerprint(Dataset(tmp_path, "folders", ()))


def facts_of(
    shapes, spacing, *, channel="MR", low=0.0, high=900.0, left_right=None, nonzero=None
) -> Fingerprint:
    value = {
        "minimum": low,
        "p00_5": low,
        "median": 40.0,
        "p99_5": 200.0,
        "maximum": high,
        "mean": 50,
        "std": 30,
    }
    cases = [
        {
            "id": str(i),
            "shape": shape,
            "spacing_mm": spacing,
            "nonzero": nonzero or shape,
            "voxels": {0: 5, 7: 5},
            "left_right": left_right,
        }
        for i, shape in enumerate(shapes)
    ]
    channels = [{"name": channel, "all": value, "foreground": value}]
    return Fingerprint(ndim=len(spacing), cases=cases, channels=channels)


def dataset_of(**facts) -> Dataset:
    return Dataset(Path("/data"), "folders", (), **({"labels": {"organ": 7, "background": 0}} | facts))


@pytest.mark.parametrize(
    ("shape", "most", "patch", "depth"),
    [
        ((35, 51, 35), 64 * 96 * 96, (40, 56, 40), 3),
        ((48, 64), 256 * 256, (48, 64), 3),
        ((64, 64), 256 * 256, (64, 64), 4),
        ((256, 256), 256 * 256, (256, 256), 4),
        ((16, 512, 512), 64 * 96 * 96, None, None),
        ((3000, 40), 256 * 256, None, None),
        ((10, 10), 256 * 256, (12, 12), 2),
        ((500, 500, 500), 64 * 96 * 96, None, 4),
    ],
)
def test_patches_fit_memory_and_network(shape, most, patch, depth):
    found, levels = choose_patch(shape, most)
    assert all(n % 2**levels == 0 for n in found)
    assert np.prod(found) <= most
    assert np.prod(found) > 0.4 * min(most, np.prod(shape))
    assert patch in (None, found)
    assert depth in (None, levels)


def test_batches_shrink_with_patches():
    sizes = [(48, 64), (96, 96), (128, 128), (256, 256)]
    assert [choose_batch(size) for size in sizes] == [16, 16, 8, 4]
    assert choose_batch((40, 56, 40)) == 4
    assert choose_batch((64, 96, 96)) == 2


def test_plan_follows_the_data_and_the_user_wins():
    facts = facts_of([(30, 100, 100)] * 3, (3.0, 1.0, 1.0))
    plan = make_plan(dataset_of(), facts, load(None, ["device=cpu"]))
    assert plan.classes == {"background": 0, "organ": 7}
    assert list(plan.classes.values()) == [0, 7]
    assert plan.spacing_mm == (3.0, 1.0, 1.0)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    asked = ["train.patch=[32,32,32]", "train.batch=3", "data.target_spacing_mm=[2,2,2]", "data.flips=all"]
    mine = make_plan(dataset_of(), facts, load(None, [*asked, "data.normalise=minmax", "device=cpu"]))
    assert (mine.patch, mine.depth, mine.batch) == ((32, 32, 32), 3, 3)
    assert mine.spacing_mm == (2.0, 2.0, 2.0)
    assert mine.flips == (True, True, True)
    assert mine.channels[0].scheme == "minmax"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.patch=[32,32]", "one per axis"),
        ("train.patch=[30,32,32]", r"try train.patch=\[(28|32),32,32\]"),
        ("data.target_spacing_mm=[1,1]", "one per axis"),
        ("data.flips=[true]", "one per axis"),
        ("data.shape=[32,32]", "one per axis"),
    ],
)
def test_plan_explains_what_does_not_fit(override, message):
    facts = facts_of([(32, 32, 32)], (1.0, 1.0, 1.0))
    with pytest.raises(UsageError, match=message):
        make_plan(dataset_of(), facts, load(None, [override, "device=cpu"]))


def test_every_image_fills_the_shape_asked_for_and_goes_back_to_its_own():
    facts = facts_of([(20, 40), (60, 60), (200, 100)], (1.0, 1.0))
    plan = make_plan(dataset_of(), facts, load(None, ["data.shape=[48,64]", "device=cpu"]))
    assert plan.patch == (48, 64)
    assert plan.spacing_mm == (60 / 48, 60 / 64)
    for shape in ((20, 40), (200, 100)):
        label = np.zeros(shape, np.uint8)
        label[shape[0] // 4 : -shape[0] // 4, shape[1] // 4 : -shape[1] // 4] = 7
        geometry = Geometry(shape, (1.0, 1.0))
        ready = prepare(np.ones((1, *shape)), label, geometry, plan)
        assert ready.image.shape == (1, 48, 64)
        assert ready.label.mean() == pytest.approx((label > 0).mean(), abs=0.03)
        probs = np.stack([1.0 - ready.label, ready.label]).astype(np.float32)
        assert (ready.inverse.restore(probs).argmax(0) == (label > 0)).mean() > 0.97


def test_shape_and_target_spacing_exclude_one_another():
    with pytest.raises(UsageError, match="exclude"):
        load(None, ["data.shape=[48,64]", "data.target_spacing_mm=[1,1]"])


def test_class_numbers_follow_file_values_not_names():
    dataset = dataset_of(labels={"zone": 1, "apex": 5, "wall": 3, "void": 0})
    plan = make_plan(dataset, facts_of([(32, 32)], (1.0, 1.0)), load())
    assert list(plan.classes) == ["void", "zone", "wall", "apex"]


def test_plan_needs_classes():
    with pytest.raises(DataError, match=r"data\.labels"):
        make_plan(dataset_of(labels={}), facts_of([(32, 32)], (1.0, 1.0)), load())


@pytest.mark.parametrize(
    ("channel", "scheme"),
    [
        ("CT", "ct"),
        ("ct_venous", "ct"),
        ("T1", "zscore"),
        ("R", "rgb"),
        ("green", "rgb"),
        ("direct", "zscore"),
    ],
)
def test_normalisation_goes_by_channel_name(channel, scheme):
    plan = make_plan(dataset_of(), facts_of([(64, 64)], (1.0, 1.0), channel=channel), load())
    assert plan.channels[0].scheme == scheme


FLIPS = [
    ({}, {"spacing": (1.0, 1.0)}, (False, True)),
    ({}, {"spacing": (1.0, 1.0, 1.0), "left_right": 0}, (True, False, False)),
    ({"labels": {"background": 0, "left lung": 1, "right lung": 2}}, {"spacing": (1.0, 1.0)}, (False, False)),
    ({"labels": {"background": 0, "kidney_L": 1}}, {"spacing": (1.0, 1.0)}, (False, False)),
    ({"labels": {"background": 0, "bright spot": 1}}, {"spacing": (1.0, 1.0)}, (False, True)),
    ({}, {"spacing": (1.0, 1.0), "channel": "R"}, (True, True)),
]


@pytest.mark.parametrize(("dataset", "facts", "flips"), FLIPS)
def test_automatic_flips_respect_anatomy(dataset, facts, flips):
    fingerprint_ = facts_of([(32,) * len(facts["spacing"])], **facts)
    assert make_plan(dataset_of(**dataset), fingerprint_, load(None, ["device=cpu"])).flips == flips


def test_crop_only_when_it_pays():
    small = facts_of([(64, 64)], (1.0, 1.0), nonzero=(40, 40))
    large = facts_of([(64, 64)], (1.0, 1.0), nonzero=(60, 60))
    assert make_plan(dataset_of(), small, load()).crop
    assert make_plan(dataset_of(), small, load()).patch == (40, 40)
    assert not make_plan(dataset_of(), large, load()).crop


# --- intensities ------------------------------------------------------------------------------------------


def test_zscore_ct_rgb_and_minmax():
    image = np.random.default_rng(0).normal(60, 20, (1, 20, 20)).astype(np.float32)

    def scaled(**channel):
        return normalise(image, [ChannelPlan(name="x", **channel)])

    z = scaled(scheme="zscore")
    assert abs(z.mean()) < 1e-5
    assert z.std() == pytest.approx(1, abs=1e-4)
    ct = scaled(scheme="ct", low=40, high=80, mean=60, std=10)
    np.testing.assert_allclose(ct, (np.clip(image, 40, 80) - 60) / 10, atol=1e-5)
    rgb = scaled(scheme="rgb", low=0, high=255, mean=127.5, std=63.75)
    assert rgb.min() >= -2
    assert rgb.max() <= 2
    unit = scaled(scheme="minmax")
    assert (unit.min(), unit.max()) == pytest.approx((0, 1), abs=1e-6)
    np.testing.assert_array_equal(scaled(scheme="none"), image)


@pytest.mark.parametrize("scheme", ["zscore", "minmax"])
@pytest.mark.parametrize("value", [0.0, 0.1, 3.7, -1024.0, 1e9])
def test_a_constant_image_becomes_zero(scheme, value):
    image = np.full((1, 37, 101), value, np.float32)
    assert (normalise(image, [ChannelPlan(name="x", scheme=scheme)]) == 0).all()


def test_rounding_is_not_contrast():
    image = np.full((1, 9, 9), 1000, np.float32)
    image[0, 0, 0] = np.nextafter(image[0, 0, 0], np.float32(2000))
    assert (normalise(image, [ChannelPlan(name="x", scheme="zscore")]) == 0).all()


def test_nan_and_infinity_become_background():
    image = np.arange(64, dtype=np.float32).reshape(1, 8, 8) - 10
    image[0, 0, 5], image[0, 3, 3], image[0, 7, 7] = np.nan, np.inf, -np.inf
    result = prepare(image, None, Geometry((8, 8), (1, 1)), plan_for(2)).image
    assert np.isfinite(result).all()
    assert result[0, 0, 5] == result[0, 3, 3] == result[0, 7, 7] == -10
    image[:] = np.nan
    assert (prepare(image, None, Geometry((8, 8), (1, 1)), plan_for(2)).image == 0).all()


# --- grids ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", [(9, 7), (23, 31), (12, 8), (5, 40), (1, 1)])
def test_resampling_agrees_with_torch(new):
    array = np.random.default_rng(0).normal(size=(2, 12, 17)).astype(np.float32)
    expected = F.interpolate(
        torch.from_numpy(array)[None], new, mode="bilinear", align_corners=False, antialias=True
    )
    np.testing.assert_allclose(resample(array, new), expected[0].numpy(), atol=1e-5)


def test_enlarging_a_volume_agrees_with_torch():
    array = np.random.default_rng(0).normal(size=(2, 5, 7, 9)).astype(np.float32)
    expected = F.interpolate(
        torch.from_numpy(array)[None], (11, 7, 20), mode="trilinear", align_corners=False
    )
    np.testing.assert_allclose(resample(array, (11, 7, 20)), expected[0].numpy(), atol=1e-5)


def test_resampled_labels_keep_their_values_and_volume():
    label = np.zeros((20, 30), np.uint8)
    label[4:12, 5:20], label[12:18, 5:20] = 3, 200
    larger = resample_label(label, (40, 60))
    assert larger.dtype == np.uint8
    assert set(np.unique(larger)) == {0, 3, 200}
    np.testing.assert_array_equal(larger, label.repeat(2, 0).repeat(2, 1))
    smaller = resample_label(label, (13, 21))
    assert (smaller == 3).mean() == pytest.approx((label == 3).mean(), rel=0.15)


SPACINGS = [(2, (1.3, 0.7)), (2, (0.5, 0.5)), (3, (2.5, 0.8, 0.8)), (3, (1.1, 1.2, 0.6))]


@pytest.mark.parametrize(("ndim", "spacing"), SPACINGS)
@pytest.mark.parametrize("crop", [False, True])
def test_there_and_back_within_half_a_voxel(ndim, spacing, crop):
    """The centre and the border of a ball survive preparing and restoring, on odd sizes."""
    shape = (41, 53, 37)[:ndim]
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")).astype(float)
    centre = np.array([17.0, 28.0, 15.0][:ndim]).reshape(-1, *[1] * ndim)
    mm = np.array(spacing).reshape(-1, *[1] * ndim)
    radius = 9 * min(spacing) + 2
    label = np.where(np.sqrt((((grid - centre) * mm) ** 2).sum(0)) < radius, 7, 0)
    image = np.zeros((1, *shape), np.float32)
    image[(0, *[slice(2, n - 3) for n in shape])] = 1 + np.random.default_rng(0).random(
        [n - 5 for n in shape]
    )
    plan = plan_for(ndim, crop=crop)
    prepared = prepare(image, label, Geometry(shape, spacing), plan)
    assert prepared.label is not None
    assert prepared.image.shape[1:] == prepared.label.shape != shape
    assert (prepared.inverse.box[0] == (2, shape[0] - 3)) == crop
    probs = np.stack([prepared.label == 0, prepared.label == 1]).astype(np.float32)
    restored = prepared.inverse.restore(probs)
    assert restored.shape == (2, *shape)
    np.testing.assert_allclose(restored.sum(0), 1, atol=1e-5)
    before, after = label == 7, restored.argmax(0) == 1
    shift = [np.mean(axis[before]) - np.mean(axis[after]) for axis in grid]
    # The coarser of the two grids decides what half a voxel is.
    assert np.all(np.abs(shift) < 0.5 * np.maximum(1, 1 / np.array(spacing)) * 0.5)
    overlap = 2 * (before & after).sum() / (before.sum() + after.sum())
    assert overlap > 0.93
    back = prepared.inverse.restore_label(prepared.label)
    assert (back == after).mean() > 0.99


def test_cropped_border_is_background():
    image = np.zeros((1, 20, 24), np.float32)
    image[0, 5:15, 6:18] = 4
    prepared = prepare(image, None, Geometry((20, 24), (1, 1)), plan_for(2, crop=True))
    assert prepared.image.shape == (1, 10, 12)
    restored = prepared.inverse.restore(np.stack([np.zeros((10, 12)), np.ones((10, 12))]))
    np.testing.assert_array_equal(restored[1], image[0] / 4)
    np.testing.assert_array_equal(restored[0], 1 - image[0] / 4)
    np.testing.assert_array_equal(prepared.inverse.restore_label(np.ones((10, 12), np.uint8)), image[0] / 4)


def test_a_blank_image_is_not_cropped_away():
    prepared = prepare(
        np.zeros((1, 9, 7)), np.zeros((9, 7)), Geometry((9, 7), (1, 1)), plan_for(2, crop=True)
    )
    assert prepared.image.shape == (1, 9, 7)


def test_spacings_close_to_the_target_are_left_alone():
    image = np.random.default_rng(0).normal(size=(1, 11, 13)).astype(np.float32)
    near = prepare(image, None, Geometry((11, 13), (1.05, 0.95)), plan_for(2))
    np.testing.assert_array_equal(near.image, image)
    far = prepare(image, None, Geometry((11, 13), (1.2, 1.0)), plan_for(2))
    assert far.image.shape == (1, 13, 13)
    told = prepare(image, None, Geometry((11, 13), (1.0, 1.0)), plan_for(2, input_spacing_mm=(2.0, 1.0)))
    assert told.image.shape == (1, 22, 13)


# --- labels -----------------------------------------------------------------------------------------------


def test_labels_become_class_numbers_and_ignored_places():
    label = np.array([[0, 7, 9], [12, 0, 7]])
    plan = plan_for(2, classes={"background": 0, "organ": 7, "tumour": 12}, ignore=9)
    np.testing.assert_array_equal(classes_of(label, plan), [[0, 1, IGNORED], [2, 0, 1]])
    mask = np.array([[0, 0, 0], [0, 0, 1]])
    image = np.zeros((1, 2, 3), np.float32)
    prepared = prepare(image, label, Geometry((2, 3), (1, 1)), plan, ignore_mask=mask)
    assert prepared.label is not None
    np.testing.assert_array_equal(prepared.label, [[0, 1, 0], [2, 0, 0]])
    np.testing.assert_array_equal(prepared.valid, [[True, True, False], [True, True, False]])


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        ((1, 4, 4, 4), (4, 4, 4), "3-D; this run works on 2-D"),
        ((2, 4, 4), (4, 4), r"2 channel\(s\); 1 are expected \(x\)"),
        ((1, 4, 4), (4, 5), "label is"),
    ],
)
def test_what_does_not_fit_is_refused(image, label, message):
    with pytest.raises(DataError, match=message):
        prepare(np.zeros(image), np.zeros(label), Geometry(label, (1,) * len(label)), plan_for(2), where="c1")


def test_unknown_label_values_are_counted():
    label = np.zeros((4, 4), int)
    label[0, :3] = 5
    with pytest.raises(DataError, match=r"5 \(3 voxels\)"):
        prepare(np.zeros((1, 4, 4)), label, Geometry((4, 4), (1, 1)), plan_for(2))


@pytest.mark.parametrize("name", ["binary_2d", "multiclass_2d", "volume_3d"])
def test_real_files_go_through(real_data, name):
    from maskmend.data.dataset import find_cases, infer_labels

    dataset = find_cases(real_data / "tiny_unit_test" / name)
    dataset = dataset if dataset.labels else infer_labels(dataset)
    facts = fingerprint(dataset)
    plan = make_plan(dataset, facts, load(None, ["device=cpu"]))
    assert len(facts.cases) == len(dataset.train) > 0
    assert all(n % 2**plan.depth == 0 for n in plan.patch)
