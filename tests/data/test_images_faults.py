"""Faults 4 to 9, 14, 16, 19 to 21 of single files, made for real; and writing that never loses a file."""

from __future__ import annotations

import errno
import gzip
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from maskmend.data import images
from maskmend.data.case import Geometry
from maskmend.errors import DataError, ResourceError, UsageError

GEOMETRY = Geometry((8, 9, 10), (1.0, 1.0, 1.0), np.eye(4))


def _volume(path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 4, GEOMETRY.shape)
    images.write_label(path, noise, GEOMETRY)
    return path


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".png", ".tif", ".nrrd", ".mha"])
def test_missing_and_empty_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with pytest.raises(DataError, match="no such file"):
        images.read_image(path)
    path.touch()
    for read in (images.read_image, images.read_label, images.read_header):
        with pytest.raises(DataError, match="empty file"):
            read(path)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".png", ".tif", ".nrrd", ".mha", ".bmp"])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.95])
def test_truncated_files(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix in (".png", ".bmp"):
        noise = np.random.default_rng(0).integers(0, 255, (64, 64))
        images.write_label(path, noise, Geometry((64, 64), (1.0, 1.0)))
    else:
        _volume(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    for read in (images.read_image, images.read_label):
        with pytest.raises(DataError):
            read(path)


def test_truncated_gzip_says_so(tmp_path: Path) -> None:
    path = _volume(tmp_path / "a.nii.gz")
    whole = path.read_bytes()
    for cut in (1, 4, 8, len(whole) // 2):
        path.write_bytes(whole[:-cut])
        with pytest.raises(DataError, match="ends early"):
            images.read_image(path)


def test_truncated_tiff_says_so(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.eye(64, dtype=np.uint8), photometric="minisblack", rowsperstrip=8)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="ends early: 4,360 of 4,400 bytes"):
        images.read_image(path)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_every_flipped_byte_of_the_body_is_found(tmp_path: Path, suffix: str) -> None:
    path = _volume(tmp_path / f"a{suffix}")
    whole = path.read_bytes()
    expected = images.read_label(path)[0]
    start = 20 if suffix == ".nii.gz" else len(whole) // 2
    for position in range(start, len(whole) - 1, 23):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            found = images.read_label(path)[0]
        except (DataError, ResourceError):
            continue
        np.testing.assert_array_equal(found, expected)  # a spare bit of the deflate stream
    damaged = bytearray(whole)
    damaged[-6 if suffix == ".nii.gz" else -2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="checksum"):
        images.read_label(path)


def test_every_flipped_byte_of_a_png_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    images.write_label(
        path, np.random.default_rng(0).integers(0, 4, (40, 41)), Geometry((40, 41), (1.0, 1.0))
    )
    whole = path.read_bytes()
    for position in range(0, len(whole) - 12, 5):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises((DataError, ResourceError)):
            images.read_label(path)


def test_what_is_not_an_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_text("<!DOCTYPE html><html>404</html>")
    with pytest.raises(DataError, match="HTML page"):
        images.read_image(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(DataError, match="Git LFS pointer"):
        images.read_image(path)
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / "b.png")
    (tmp_path / "b.png").rename(tmp_path / "b.tif")
    with pytest.raises(DataError, match=r"named \.tif but holds a PNG"):
        images.read_image(tmp_path / "b.tif")
    path.write_bytes(gzip.compress(b"hello" * 200))
    with pytest.raises(DataError, match="no single-file NIfTI"):
        images.read_image(path)
    np.save(tmp_path / "c.npy", np.zeros(3))
    with pytest.raises(DataError, match="NumPy array"):
        images.read_image(tmp_path / "c.npy")


def _header(shape: tuple[int, ...]) -> bytes:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return bytes(header.binaryblock) + b"\0" * 4


def test_absurd_size_is_refused_before_allocation(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(_header((30000, 30000, 30000))))
    for read in (images.read_image, images.read_label, images.read_header):
        with pytest.raises(ResourceError, match=r"27,000,000,000,000 voxels.*limit is 536,870,912") as info:
            read(path)
        assert "data.max_voxels=27000000000000" in str(info.value)


def test_gzip_bombs(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(_header((2048, 1024, 1024)) + bytes(1 << 20)))
    with pytest.raises(ResourceError, match="2,147,483,648 voxels"):
        images.read_image(path)
    path.write_bytes(gzip.compress(_header((10, 10, 10)) + bytes(1 << 26)))  # claims little, holds much
    with pytest.raises(ResourceError, match="decompresses to more"):
        images.read_image(path)


def test_huge_flat_image(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (20000, 10000)).save(path)
    with pytest.raises(ResourceError, match=r"200,000,000 voxels.*\n.*tiles"):
        images.read_header(path)
    assert images.read_header(path, max_voxels=200_000_000).shape == (10000, 20000)


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.ones((4, 4))])
def test_unusable_affine_and_its_override(tmp_path: Path, affine: np.ndarray) -> None:
    raw = bytearray(_header((3, 4, 5)) + bytes(60))
    raw[254:256] = np.int16(1).tobytes()  # sform_code
    raw[280:328] = affine[:3].astype("<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(DataError, match="affine") as info:
        images.read_image(tmp_path / "a.nii")
    assert "data.spacing_mm=[1.0, 1.0, 1.0]" in str(info.value)
    _, geometry = images.read_image(tmp_path / "a.nii", spacing_mm=(3.0, 2.0, 1.0))
    assert geometry.spacing_mm == (3.0, 2.0, 1.0)
    np.testing.assert_array_equal(np.diag(geometry.affine), [1, 2, 3, 1])


def test_jpeg_is_no_label(tmp_path: Path) -> None:
    Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(tmp_path / "a.jpg")
    assert images.read_image(tmp_path / "a.jpg")[0].shape == (1, 16, 16)
    with pytest.raises(DataError, match="JPEG"):
        images.read_label(tmp_path / "a.jpg")
    Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(tmp_path / "a.tif", compression="jpeg")
    with pytest.raises(DataError, match="JPEG"):
        images.read_label(tmp_path / "a.tif")


def test_labels_of_floats(tmp_path: Path) -> None:
    whole = np.arange(60, dtype=np.float32).reshape(3, 4, 5) % 3
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(whole, np.eye(4)), path)
    assert images.read_label(path)[0].dtype == np.int32
    nibabel.save(
        nibabel.Nifti1Image(np.linspace(0, 1, 60, dtype=np.float32).reshape(3, 4, 5), np.eye(4)), path
    )
    with pytest.raises(DataError, match="60 values, not whole numbers: saved as JPEG or resized"):
        images.read_label(path)
    nibabel.save(nibabel.Nifti1Image(np.where(whole == 1, np.nan, whole), np.eye(4)), path)
    with pytest.raises(DataError, match="NaN"):
        images.read_label(path)
    assert np.isnan(images.read_image(path)[0]).any()


def test_png_cannot_hold_fractions(tmp_path: Path) -> None:
    flat = Geometry((2, 2), (1.0, 1.0))
    with pytest.raises(UsageError, match=r"a\.png: \.png cannot hold float32"):
        images.write_image(tmp_path / "a.png", np.full((2, 2), 0.5), flat)
    with pytest.raises(UsageError, match="int32"):
        images.write_label(tmp_path / "a.png", np.full((2, 2), -1), flat)
    assert not list(tmp_path.iterdir())
    images.write_image(tmp_path / "a.png", np.full((2, 2), 200.0), flat)
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[200, 200], [200, 200]]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fill(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ResourceError, match=r"disk is full \([\d,]+ bytes free\)"):
        images.atomic_write(path, fill)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_no_temporary_file_is_taken_for_a_case(tmp_path: Path) -> None:
    seen: list[str] = []

    def writer(temporary: Path) -> None:
        seen.append(temporary.name)
        temporary.write_text("x")

    images.atomic_write(tmp_path / "new/deep/a.nii.gz", writer)
    assert seen[0].startswith(".")
    assert seen[0].endswith(".nii.gz")
    assert (tmp_path / "new/deep/a.nii.gz").read_text() == "x"


def test_missing_extra_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _volume(tmp_path / "a.mha")
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    with pytest.raises(UsageError, match=r"pip install 'maskmend\[formats\]'"):
        images.read_image(path)
