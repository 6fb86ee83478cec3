"""Rows 10 to 16: voxels that are no numbers, grids that do not match, axes that nobody named."""

from __future__ import annotations

import json
import re

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from maskmend.cli import main
from maskmend.data.check import check
from maskmend.data.fix import fix
from maskmend.data.images import read_image
from maskmend.errors import DataError, UsageError


def _edit(path, change):
    """Rewrite a NIfTI file: `change(array, affine)` returns both anew."""
    image = nibabel.load(path)
    array, affine = change(np.asarray(image.dataobj).copy(), image.affine.copy())
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def _prepared(root, case_id):
    """The case's image as the network would see it."""
    from maskmend.config import Config
    from maskmend.data.dataset import find_cases, infer_labels
    from maskmend.data.images import read_case
    from maskmend.data.preprocess import fingerprint, make_plan, prepare

    dataset = infer_labels(find_cases(root))
    plan = make_plan(dataset, fingerprint(dataset), Config())
    return prepare(*_swap(read_case(dataset[case_id], dataset)), plan).image


def _swap(pair):
    return pair[0], None, pair[1]


def test_row_10_few_nans_are_replaced(volumes, expect):
    def poison(array, affine):
        array[7, 6, 5] = np.nan
        return array, affine

    _edit(volumes / "images" / "v2.nii.gz", poison)
    expect(volumes, 10, "1 of 1680 voxels", "replaced", severity="warning", case="v2")
    assert np.isfinite(_prepared(volumes, "v2")).all(), "one NaN must not poison the channel"


def test_row_10_many_nans_stop_and_are_fixed_in_a_copy(volumes, expect, tmp_path, snapshot):
    def poison(array, affine):
        array[:2] = np.inf
        array[3, 3] = np.nan
        return array, affine

    path = volumes / "images" / "v2.nii.gz"
    _edit(path, poison)
    before = snapshot(volumes)
    result, _ = expect(volumes, 10, "250 of 1680 voxels", "15 %", "--fix", case="v2")
    report = fix(result, tmp_path / "mended")
    assert snapshot(volumes) == before
    assert [one["action"] for one in report["fixed"]] == ["replace_nonfinite"]
    assert json.loads((tmp_path / "mended" / "fixes.json").read_text()) == report
    poisoned = nibabel.load(path).get_fdata()
    mended = nibabel.load(tmp_path / "mended" / "images" / "v2.nii.gz").get_fdata()
    good = np.isfinite(poisoned)
    assert (mended[good] == poisoned[good]).all()
    assert (mended[~good] == poisoned[good].min()).all()
    assert not check(tmp_path / "mended").findings
    other = "images/v1.nii.gz"
    assert (tmp_path / "mended" / other).read_bytes() == (volumes / other).read_bytes()


def test_row_11_constant_image(flat, expect):
    Image.new("L", (40, 32), 77).save(flat / "images" / "c1.png")
    expect(flat, 11, "constant (77", severity="warning", case="c1")
    image = _prepared(flat, "c1")
    assert np.isfinite(image).all()


def test_row_12_transposed(flat, expect):
    path = flat / "labels" / "c3.png"
    Image.open(path).transpose(Image.Transpose.TRANSPOSE).save(path)
    _, finding = expect(flat, 12, "(40, 32)", "(32, 40)", "transposed", case="c3")
    assert finding.fix is None, "a rotation would look the same: a person decides"


def test_row_12_resized(flat, expect):
    path = flat / "labels" / "c3.png"
    Image.open(path).resize((20, 16), Image.Resampling.NEAREST).save(path)
    expect(flat, 12, "(16, 20)", "resized: the factor is 2", case="c3")


def _shift(millimetres):
    def change(array, affine):
        affine[0, 3] += millimetres
        return array, affine

    return change


def test_row_13_small_differences_are_accepted(volumes):
    _edit(volumes / "labels" / "v1.nii.gz", _shift(0.09))
    assert not check(volumes).findings


def test_row_13_shifted_label_is_resampled_into_a_copy(volumes, expect, tmp_path, snapshot):
    path = volumes / "labels" / "v1.nii.gz"
    _edit(path, _shift(2.3))
    before = snapshot(volumes)
    result, _ = expect(volumes, 13, "2.3 mm", "--fix", case="v1")
    fix(result, tmp_path / "out")
    assert snapshot(volumes) == before
    mended = sitk.ReadImage(str(tmp_path / "out" / "labels" / "v1.nii.gz"))
    image = sitk.ReadImage(str(volumes / "images" / "v1.nii.gz"))
    reference = sitk.Resample(sitk.ReadImage(str(path)), image, sitk.Transform(), sitk.sitkNearestNeighbor)
    assert (sitk.GetArrayFromImage(mended) == sitk.GetArrayFromImage(reference)).all()
    assert sitk.GetArrayFromImage(mended).any()
    assert not check(tmp_path / "out").errors


def test_row_13_other_orientation_and_spacing_is_resampled(volumes, expect, tmp_path):
    path = volumes / "labels" / "v1.nii.gz"

    def turn(array, affine):
        step = np.diag([-1, 1, 1, 1.0])
        step[0, 3] = array.shape[0] - 1
        return array[::-1], affine @ step  # the same place in space, stored from the other side

    original = nibabel.load(path).get_fdata()
    _edit(path, turn)
    result, _ = expect(volumes, 13, "13 mm", case="v1")
    fix(result, tmp_path / "out")
    assert (nibabel.load(tmp_path / "out" / "labels" / "v1.nii.gz").get_fdata() == original).all()


@pytest.mark.parametrize("ignore", [None, 9])
def test_row_13_beyond_the_label_is_background_or_ignored(volumes, tmp_path, ignore):
    def fill(array, affine):
        array[:] = 1
        affine[0, 3] += 1.0
        return array, affine

    _edit(volumes / "labels" / "v1.nii.gz", fill)
    result = check(volumes, data=_data(ignore=ignore))
    fix(result, tmp_path / "out")
    mended = nibabel.load(tmp_path / "out" / "labels" / "v1.nii.gz").get_fdata()
    assert (mended[0] == (ignore or 0)).all(), "the label's first slab is the image's second"
    assert (mended[1:] == 1).all()


def test_row_12_finer_label_of_the_same_box_is_resampled(volumes, expect, tmp_path):
    path = volumes / "labels" / "v2.nii.gz"
    label = nibabel.load(path)
    coarse = np.asarray(label.dataobj)
    fine = coarse.repeat(2, 0)
    affine = label.affine @ np.diag([0.5, 1, 1, 1])
    affine[0, 3] -= 0.25 * label.affine[0, 0]
    nibabel.save(nibabel.Nifti1Image(fine, affine), path)
    result, _ = expect(volumes, 12, "(10, 12, 28)", "the same box", "--fix", case="v2")
    fix(result, tmp_path / "out")
    mended = nibabel.load(tmp_path / "out" / "labels" / "v2.nii.gz")
    assert (mended.get_fdata() == coarse).all()


@pytest.fixture
def two_channels(volumes):
    """The same volumes with two files per image, in one place."""
    for path in sorted((volumes / "images").iterdir()):
        first, second = (path.with_name(path.name.replace(".nii", f"_000{k}.nii")) for k in (0, 1))
        path.rename(first)
        image = nibabel.load(first)
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[...] * 2, image.affine), second)
    assert not check(volumes).findings
    return volumes


@pytest.mark.parametrize("fault", ["shifted", "reoriented"])
def test_row_13_channels_in_different_places(two_channels, expect, tmp_path, capsys, fault):
    path = two_channels / "images" / "v1_0001.nii.gz"
    if fault == "shifted":
        _edit(path, _shift(2.3))
    else:  # the voxels of one place have another index now: 13 voxels of 1 mm by 11 of 1.5 mm
        image = nibabel.load(path)
        turn = nibabel.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], [[0, -1], [1, -1], [2, 1]])
        nibabel.save(image.as_reoriented(turn), path)
    told = "2.3 mm" if fault == "shifted" else f"{np.hypot(13, 16.5):.3g} mm"
    _, finding = expect(two_channels, 13, told, "v1_0000.nii.gz", case="v1")
    assert finding.file == "images/v1_0001.nii.gz"
    assert [one.row for one in check(two_channels, quick=True).errors] == [13]
    paths = [path.with_name("v1_0000.nii.gz"), path]
    with pytest.raises(DataError, match=re.escape(told)):
        read_image(paths)
    assert read_image(paths, spacing_mm=(2, 1.5, 1))[0].shape == (
        2,
        10,
        12,
        14,
    )  # voxel by voxel, as was asked for
    assert main(["train", str(two_channels), "-o", str(tmp_path / "run")]) == 3
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run" / "model.safetensors").exists()
    first, second = (sitk.ReadImage(str(one)) for one in paths)
    sitk.WriteImage(sitk.Resample(second, first), str(path))  # the remedy
    assert not check(two_channels).errors


def test_row_13_channels_that_differ_by_rounding_are_one_image(two_channels):
    _edit(two_channels / "images" / "v1_0001.nii.gz", _shift(0.09))
    assert not check(two_channels).findings


def test_row_13_lost_header_is_not_resampled_away(volumes, expect, tmp_path):
    _edit(volumes / "labels" / "v1.nii.gz", lambda array, affine: (array, np.eye(4)))
    result, finding = expect(volumes, 13, "bare default", "data.spacing_mm=", case="v1")
    assert finding.fix is None
    report = fix(result, tmp_path / "out")
    assert report["fixed"] == []
    assert report["not_fixed"][0]["case"] == "v1"
    assert not check(volumes, data=_data(spacing_mm=[2, 1.5, 1])).findings


def test_row_13_fix_refuses_to_move_a_label_away(volumes, tmp_path):
    _edit(volumes / "labels" / "v1.nii.gz", _shift(500))
    report = fix(check(volumes), tmp_path / "out")
    assert report["fixed"] == []
    assert "0 % of the foreground" in report["not_fixed"][0]["detail"]
    copied = (tmp_path / "out" / "labels" / "v1.nii.gz").read_bytes()
    assert copied == (volumes / "labels" / "v1.nii.gz").read_bytes()


def test_fix_never_overwrites_nor_writes_into_the_data(volumes, snapshot, tmp_path):
    result, before = check(volumes), snapshot(volumes)
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "there", volumes / "fixed", volumes):
        with pytest.raises(UsageError):
            fix(result, out)
    assert snapshot(volumes) == before
    assert list((tmp_path / "there").iterdir()) == []


def _data(**keys):
    from maskmend.config import DataConfig

    return DataConfig(**keys)


@pytest.mark.parametrize(
    ("fault", "phrase"),
    [((0, 0), "zero"), ((0, np.nan), "NaN"), ((1, None), "singular")],
    ids=["zero", "nan", "singular"],
)
def test_row_14_unusable_affine(volumes, expect, fault, phrase):
    path = volumes / "images" / "v3.nii.gz"
    image = nibabel.load(path)
    rows = image.affine[:3].copy()
    rows[:, fault[0]] = rows[:, 0] if fault[1] is None else fault[1]
    for name, row in zip(("srow_x", "srow_y", "srow_z"), rows, strict=True):
        image.header[name] = row
    image.header["vox_offset"] = 352
    raw = image.header.binaryblock + bytes(4) + np.asarray(image.dataobj).tobytes(order="F")
    import gzip

    path.write_bytes(gzip.compress(raw))
    expect(volumes, 14, phrase, "data.spacing_mm=", case="v3")
    assert not check(volumes, data=_data(spacing_mm=[2, 1.5, 1])).errors


def test_row_15_left_right_flip(tmp_path, expect):
    root = tmp_path / "many"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(14):
        mask = np.zeros((32, 40), np.uint8)
        y, x = 10 + rng.integers(0, 4), 4 + rng.integers(0, 4)
        mask[y : y + 9, x : x + 11] = 1
        if number in (3, 8):
            mask = mask[:, ::-1]
        Image.fromarray(rng.integers(0, 255, mask.shape).astype(np.uint8)).save(
            root / f"images/p{number:02}.png"
        )
        Image.fromarray(np.ascontiguousarray(mask)).save(root / "labels" / f"p{number:02}.png")
    result, _ = expect(root, 15, "left-right", "look at it first", severity="warning", case="p03")
    assert [finding.case for finding in result.findings] == ["p03", "p08"]


def test_row_15_says_nothing_of_symmetric_or_scattered_objects(real_data):
    for name in ("hc18_fetal_head_2d", "msd_hippocampus_2d", "bubil_cells_crowd_vs_expert"):
        assert not [f for f in check(real_data / name).findings if f.row == 15]


def test_row_15_finds_a_flip_among_real_volumes(real_data, tmp_path):
    root = tmp_path / "hippocampus"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
        for path in sorted((real_data / "msd_hippocampus_3d" / folder).iterdir())[:30]:
            (root / folder / path.name).write_bytes(path.read_bytes())
    assert not check(root).findings
    # the hippocampus lies along y, so only a flip of that axis shows: turn the volume to make it left-right
    for path in sorted((root / "labels").iterdir()) + sorted((root / "images").iterdir()):
        image = nibabel.load(path)
        array = np.asarray(image.dataobj).swapaxes(0, 1)
        if path.name == "hippocampus_015.nii.gz":
            array = array[::-1]
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    assert [f.case for f in check(root).warnings] == ["hippocampus_015"]


def test_row_16_trailing_axes_of_length_1_are_dropped(volumes):
    for folder in ("images", "labels"):
        _edit(volumes / folder / "v1.nii.gz", lambda array, affine: (array[..., None, None], affine))
    result = check(volumes)
    assert not result.findings
    assert {facts.shape for facts in result.facts} == {(10, 12, 14)}


def test_row_16_a_fourth_axis_needs_a_name(volumes, expect):
    for path in (volumes / "images").iterdir():
        _edit(path, lambda array, affine: (np.stack([array, array * 2], -1), affine))
    expect(volumes, 16, "14 x 12 x 10 x 2", "data.channels=", case="v0")
    result = check(volumes, data=_data(channels=["T1", "T2"]))
    assert not result.findings
    assert len(result.facts[0].intensity) == 2
