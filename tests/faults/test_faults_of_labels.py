"""Rows 17 to 24: label values that mean something else than classes, or nothing at all."""

from __future__ import annotations

import gzip
import json

import nibabel
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from maskmend.cli import main
from maskmend.config import load
from maskmend.data.check import check
from maskmend.data.dataset import find_cases
from maskmend.data.images import read_image, read_label

DECLARED = "data.labels={background: 0, organ: 1}"


def _mask(root, name):
    return np.array(Image.open(root / "labels" / name))


def test_row_17_value_outside_the_declared(flat, expect):
    mask = _mask(flat, "c2.png")
    mask[:3, :4] = 7
    Image.fromarray(mask).save(flat / "labels" / "c2.png")
    expect(flat, 17, "7 (12 voxels)", "data.labels={background: 0, organ: 1, class_7: 7}",
           case="c2", settings=[DECLARED])  # fmt: skip


def _save_as_0_and_255(root):
    for path in sorted((root / "labels").iterdir()):
        Image.fromarray(_mask(root, path.name) * np.uint8(255)).save(path)


def test_row_18_0_and_255(flat, expect):
    _save_as_0_and_255(flat)
    offered = '{"labels": {"foreground": 255}}'
    _, finding = expect(flat, 18, "0 and 255", offered, "maskmend.json", "data.labels={foreground: 255}")
    assert "5 of 5" in finding.text
    said = check(flat, data=load(None, ["data.labels={foreground: 255}"]).data)
    (flat / "maskmend.json").write_text(offered)
    for result in (said, check(flat)):
        assert not result.findings
        assert dict(result.dataset.labels) == {"background": 0, "foreground": 255}


@pytest.mark.parametrize("rate", ["0", "1"])
def test_row_18_0_and_255_are_not_flawed_either(flat, tmp_path, capsys, rate):
    """Refused whichever masks are drawn; the remedy is one that `corrupt`, which takes no settings, heeds."""
    _save_as_0_and_255(flat)
    words = ["corrupt", str(flat), "-o", str(tmp_path / "flawed"), "--rate", rate]
    assert main(words) == 3
    offered = '{"labels": {"foreground": 255}}'
    said = capsys.readouterr().err
    assert "5 of 5 labels hold the values 0 and 255" in said
    assert f"maskmend.json what 255 means: {offered}" in said
    assert not (tmp_path / "flawed").exists()
    (flat / "maskmend.json").write_text(offered)
    assert main(words) == 0
    assert find_cases(tmp_path / "flawed").labels == {"background": 0, "foreground": 255}


def test_row_19_is_not_flawed_either(flat, tmp_path, capsys):
    soft = gaussian_filter(_mask(flat, "c2.png") * 255.0, 2).astype(np.uint8)
    Image.fromarray(soft).save(flat / "labels" / "c2.png")
    assert main(["corrupt", str(flat), "-o", str(tmp_path / "flawed"), "--rate", "0.2"]) == 3
    said = capsys.readouterr().err
    assert "c2.png" in said
    assert "resized with interpolation?" in said
    assert not (tmp_path / "flawed").exists()


@pytest.mark.parametrize(
    ("values", "labels", "instead"),
    [
        ([255, 1], {"background": 255, "organ": 1}, "{background: 0, organ: 1}"),
        ([7, 0], {"background": 7, "organ": 0}, "{background: 0, organ: 7}"),
    ],
)
@pytest.mark.parametrize("declared", ["settings", "file"])
def test_no_background_but_0(flat, tmp_path, capsys, values, labels, instead, declared):
    """Whoever reads the declaration says so, and what is offered instead works."""
    pixels = {path: _mask(flat, path.name) for path in (flat / "labels").iterdir()}
    for path, mask in pixels.items():
        Image.fromarray(np.array(values, np.uint8)[mask]).save(path)
    settings = [f"data.labels={json.dumps(labels)}"] if declared == "settings" else []
    if declared == "file":
        (flat / "maskmend.json").write_text(json.dumps({"labels": labels}))
    masks, out = str(flat / "labels"), str(tmp_path / "out")
    verbs = [["check", str(flat)], ["train", str(flat), "-o", out], ["audit", str(flat), "-o", out],
             ["screen", str(flat)], ["evaluate", masks, str(flat)]]  # fmt: skip
    if settings:
        verbs.append(["evaluate", masks, masks])
    else:
        verbs.append(["corrupt", str(flat), "-o", out])
    for verb in verbs:
        assert main([*verb, *settings]) == 2, verb
        said = capsys.readouterr().err
        assert f"the background has the value {values[0]}; in masks it must be 0" in said
        assert f"labels: {instead}" in said
    for path, mask in pixels.items():
        Image.fromarray(np.uint8(values[1] or values[0]) * mask).save(path)
    (flat / "maskmend.json").unlink(missing_ok=True)
    assert not check(flat, data=load(None, [f"data.labels={instead}"]).data).findings


def test_row_18_255_beside_classes_is_not_guessed(flat, expect):
    mask = _mask(flat, "c2.png")
    mask[:3] = 255
    Image.fromarray(mask).save(flat / "labels" / "c2.png")
    expect(flat, 18, "data.ignore=255")


def test_row_19_anti_aliased(flat, expect):
    soft = gaussian_filter(_mask(flat, "c2.png") * 255.0, 2).astype(np.uint8)
    Image.fromarray(soft).save(flat / "labels" / "c2.png")
    count = len(np.unique(soft))
    assert count > 50
    expect(flat, 19, f"{count} values", "saved as JPEG or resized with interpolation?", case="c2")


def test_row_19_jpeg(flat, expect):
    mask = _mask(flat, "c2.png")
    (flat / "labels" / "c2.png").unlink()
    Image.fromarray(mask * np.uint8(255)).save(flat / "labels" / "c2.jpg")
    expect(flat, 19, "JPEG", case="c2")


def test_row_20_scaled_label(volumes, expect):
    path = volumes / "labels" / "v1.nii.gz"
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[112:120] = np.array([0.5, 0], np.float32).tobytes()  # scl_slope, scl_inter
    path.write_bytes(gzip.compress(bytes(raw)))
    assert 0.5 in nibabel.load(path).get_fdata()
    expect(volumes, 20, "0, 0.5 are no whole numbers", "scl_slope", case="v1")


def test_row_20_negative_value_never_wraps(volumes, expect):
    path = volumes / "labels" / "v1.nii.gz"
    image = nibabel.load(path)
    array = np.asarray(image.dataobj).astype(np.int16)
    array[0] = -1
    nibabel.save(nibabel.Nifti1Image(array, image.affine), path)
    assert read_label(path)[0].min() == -1
    expect(volumes, 20, "-1 (120 voxels)", case="v1", settings=[DECLARED, "data.ignore=255"])


def test_row_20_large_values_are_kept(volumes):
    path = volumes / "labels" / "v1.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj).astype(np.int16) * 257, image.affine), path)
    result = check(volumes)
    assert dict(result.dataset.labels) == {"background": 0, "class_1": 1, "class_257": 257}


def test_row_21_palette_index_is_the_class(flat):
    for path in sorted((flat / "labels").iterdir()):
        picture = Image.fromarray(_mask(flat, path.name) * np.uint8(2)).convert("P")
        picture.putdata((_mask(flat, path.name) * 2).ravel().tolist())
        picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0] + [0] * 759)
        picture.save(path)
    assert set(np.unique(Image.open(path).convert("L"))) != {0, 2}, "the trap: convert('L') gives luminance"
    result = check(flat)
    assert not result.errors
    assert dict(result.dataset.labels) == {"background": 0, "class_2": 2}


def test_row_21_rgb_label_needs_a_mapping(flat, expect):
    mask = _mask(flat, "c1.png")
    colours = np.array([[0, 0, 0], [255, 0, 0]], np.uint8)[mask]
    Image.fromarray(colours).save(flat / "labels" / "c1.png")
    expect(flat, 21, "(255, 0, 0)", "mapping", case="c1")


def test_row_21_exif_rotation_is_applied(tmp_path):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: show rotated by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert (read_image(tmp_path / "turned.png")[0][0] == np.rot90(pixels, -1)).all()


def test_row_22_empty_label(flat, expect):
    Image.new("L", (40, 32), 0).save(flat / "labels" / "c4.png")
    result, _ = expect(flat, 22, "empty label", severity="warning", case="c4")
    assert result.fingerprint["empty_labels"] == 1


def test_row_23_class_absent_from_training(flat, expect):
    labels = "data.labels={background: 0, organ: 1, tumour: 2}"
    mask = _mask(flat, "c4.png")
    mask[:2] = 2
    Image.fromarray(mask).save(flat / "labels" / "c4.png")
    (flat / "maskmend.json").write_text(json.dumps({"test": ["c4"]}))
    expect(flat, 23, "tumour (2)", "data.allow_missing_classes=true", settings=[labels])
    allowed = [labels, "data.allow_missing_classes=true"]
    expect(flat, 23, "tumour (2)", severity="warning", settings=allowed)


def test_row_24_everything_ignored(flat, expect):
    mask = _mask(flat, "c0.png")
    mask[:] = 9
    Image.fromarray(mask).save(flat / "labels" / "c0.png")
    expect(flat, 24, "ignored", severity="warning", case="c0", settings=["data.ignore=9"])


def test_row_24_ignore_mask_over_everything(flat, expect):
    (flat / "ignore").mkdir()
    Image.new("L", (40, 32), 1).save(flat / "ignore" / "c1.png")
    (flat / "maskmend.json").write_text(json.dumps({"ignore_masks": {"c1": "ignore/c1.png"}}))
    expect(flat, 24, "ignored", severity="warning", case="c1")
