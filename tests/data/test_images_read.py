"""Each format is read as an independent library reads it, and comes back unchanged after writing."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from maskmend.data import images
from maskmend.data.case import Geometry
from maskmend.errors import DataError, UsageError

AFFINE = np.array([[0.5, 0, 0, -7.0], [0, 0.8, -1.2, 3.0], [0, 0.6, 1.6, 11.0], [0, 0, 0, 1]])
VOLUME = Geometry((4, 5, 6), (2.0, 1.0, 0.5), AFFINE)
FLAT = Geometry((5, 6), (1.0, 1.0))


def test_real_volume_equals_nibabel(real_data: Path) -> None:
    path = real_data / "tiny_unit_test/volume_3d/images/hippocampus_070.nii.gz"
    array, geometry = images.read_image(path)
    reference = nibabel.load(path)
    np.testing.assert_allclose(array[0], reference.get_fdata().transpose(2, 1, 0))
    np.testing.assert_allclose(geometry.affine, reference.affine)
    assert geometry.shape == reference.shape[::-1]
    assert images.read_header(path).geometry == geometry
    assert array.dtype == np.float32
    assert array.flags.c_contiguous


def test_real_png_equals_pillow(real_data: Path) -> None:
    folder = real_data / "tiny_unit_test/multiclass_2d"
    label, geometry = images.read_label(folder / "labels/hippocampus_019.png")
    np.testing.assert_array_equal(label, np.asarray(Image.open(folder / "labels/hippocampus_019.png")))
    image, _ = images.read_image(folder / "images/hippocampus_019.png")
    assert image.shape == (1, *geometry.shape)


@pytest.mark.parametrize("suffix", images.LABEL_SUFFIXES)
@pytest.mark.parametrize("geometry", [FLAT, VOLUME], ids=["2d", "3d"])
def test_labels_come_back(tmp_path: Path, suffix: str, geometry: Geometry) -> None:
    label = np.random.default_rng(0).integers(0, 300 if suffix != ".bmp" else 200, geometry.shape)
    path = tmp_path / f"a{suffix}"
    if suffix in (".png", ".bmp") and geometry.ndim == 3:
        with pytest.raises(UsageError, match="cannot hold"):
            images.write_label(path, label, geometry)
        return
    images.write_label(path, label, geometry)
    back, found = images.read_label(path)
    np.testing.assert_array_equal(back, label)
    if geometry.affine is not None and suffix not in (".tif", ".tiff"):
        np.testing.assert_allclose(found.affine, geometry.affine, atol=1e-5)
        np.testing.assert_allclose(found.spacing_mm, geometry.spacing_mm, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("geometry", [FLAT, VOLUME], ids=["2d", "3d"])
def test_images_come_back(tmp_path: Path, suffix: str, channels: int, geometry: Geometry) -> None:
    image = np.random.default_rng(1).normal(size=(channels, *geometry.shape)).astype(np.float32)
    images.write_image(tmp_path / f"a{suffix}", image, geometry)
    back, _ = images.read_image(tmp_path / f"a{suffix}", channels=channels)
    np.testing.assert_array_equal(back, image)


def test_nifti_in_physical_space_as_simpleitk_sees_it(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    label = np.zeros(VOLUME.shape, int)
    label[3, 1, 2] = 1
    for suffix in (".nii.gz", ".mha", ".nrrd"):
        images.write_label(tmp_path / f"a{suffix}", label, VOLUME)
        image = sitk.ReadImage(str(tmp_path / f"a{suffix}"))
        lps = image.TransformIndexToPhysicalPoint((2, 1, 3))
        expected = AFFINE @ (2, 1, 3, 1)
        np.testing.assert_allclose(lps, expected[:3] * (-1, -1, 1), atol=1e-4)
        assert sitk.GetArrayFromImage(image)[3, 1, 2] == 1


def test_writing_is_reproducible_and_copies_no_header_text(tmp_path: Path) -> None:
    source = nibabel.Nifti1Image(np.ones((4, 5, 6), np.float32), AFFINE)
    source.header["descrip"] = b"Doe^John"
    nibabel.save(source, tmp_path / "in.nii.gz")
    _, geometry = images.read_image(tmp_path / "in.nii.gz")
    for name in ("a.nii.gz", "b.nii.gz"):
        images.write_label(tmp_path / name, np.zeros((6, 5, 4), int), geometry)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert not bytes(nibabel.load(tmp_path / "a.nii.gz").header["descrip"]).strip(b"\0")


@pytest.mark.parametrize(
    ("high", "dtype"), [(255, "uint8"), (256, "int16"), (40000, "uint16"), (70000, "int32")]
)
def test_labels_take_the_smallest_type(tmp_path: Path, high: int, dtype: str) -> None:
    images.write_label(tmp_path / "a.nii.gz", np.full(VOLUME.shape, high), VOLUME)
    assert nibabel.load(tmp_path / "a.nii.gz").get_data_dtype() == dtype
    assert images.read_label(tmp_path / "a.nii.gz")[0].max() == high


def test_scaled_and_negative_labels_never_wrap(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.array([[[0, 1, 2]]], np.int16), np.eye(4))
    image.header.set_slope_inter(300.0, -1.0)
    raw = bytearray(image.to_bytes())
    raw[112:120] = np.array([300.0, -1.0], "<f4").tobytes()  # nibabel rescales on writing, scanners do not
    (tmp_path / "a.nii").write_bytes(raw)
    stored = np.frombuffer(bytes(raw), "<i2", 3, 352)
    assert images.read_label(tmp_path / "a.nii")[0].ravel().tolist() == [int(v) * 300 - 1 for v in stored]


def test_four_axes_are_channels_only_on_request(tmp_path: Path) -> None:
    data = np.random.default_rng(2).normal(size=(3, 4, 5, 2)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match=r"4 axes \(3 x 4 x 5 x 2\)"):
        images.read_image(tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match="4 axes"):
        images.read_image(tmp_path / "a.nii.gz", channels=3)
    image, _ = images.read_image(tmp_path / "a.nii.gz", channels=2)
    np.testing.assert_array_equal(image, data.transpose(3, 2, 1, 0))


def test_trailing_axes_of_one_are_dropped(tmp_path: Path) -> None:
    for shape, expected in (((3, 4, 5, 1), (5, 4, 3)), ((3, 4, 1), (4, 3)), ((3, 4, 1, 1, 1), (4, 3))):
        nibabel.save(nibabel.Nifti1Image(np.ones(shape, np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
        assert images.read_label(tmp_path / "a.nii.gz")[0].shape == expected


def test_palette_gives_indices_to_labels_and_colours_to_images(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "a.png")
    assert images.read_label(tmp_path / "a.png")[0].tolist() == [[0, 1, 2]]
    assert images.read_image(tmp_path / "a.png")[0][:, 0, 1].tolist() == [255, 0, 0]


@pytest.mark.parametrize("bits", [2, 4])
def test_low_bit_grey_keeps_its_values(tmp_path: Path, bits: int) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = bytes([0, 0b00_01_10_11]) if bits == 2 else bytes([0, 0x01, 0x23])
    header = struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert images.read_label(tmp_path / "a.png")[0].tolist() == [[0, 1, 2, 3]]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    image.save(tmp_path / "a.png", exif=exif)
    label, geometry = images.read_label(tmp_path / "a.png")
    assert label.tolist() == [[3, 0], [4, 1], [5, 2]]
    assert geometry.shape == images.read_header(tmp_path / "a.png").shape == (3, 2)


def test_rgb_images_and_grey_rgb_labels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 3, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.png")[0], pixels.transpose(2, 0, 1))
    with pytest.raises(DataError, match="3 colour channels and"):
        images.read_label(tmp_path / "a.png")
    Image.fromarray(np.repeat(pixels[..., :1], 3, axis=2)).save(tmp_path / "b.png")
    np.testing.assert_array_equal(images.read_label(tmp_path / "b.png")[0], pixels[..., 0])


def test_sixteen_bit_png(tmp_path: Path) -> None:
    pixels = np.array([[0, 300], [65535, 7]], np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert images.read_label(tmp_path / "a.png")[0].tolist() == pixels.tolist()


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate"])
def test_tiff_of_other_writers(tmp_path: Path, compression: str) -> None:
    pages = [Image.fromarray(np.full((6, 7), n, np.uint8)) for n in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], compression=compression)
    label, _ = images.read_label(tmp_path / "a.tif")
    assert label.shape == (3, 6, 7)
    assert label[:, 0, 0].tolist() == [0, 1, 2]


def test_one_file_per_channel(tmp_path: Path) -> None:
    parts = np.random.default_rng(4).integers(0, 255, (2, 5, 6)).astype(np.uint8)
    for n, part in enumerate(parts):
        Image.fromarray(part).save(tmp_path / f"a_{n:04d}.png")
    paths = sorted(tmp_path.iterdir())
    np.testing.assert_array_equal(images.read_image(paths)[0], parts)
    with pytest.raises(DataError, match="2 channels where 3"):
        images.read_image(paths, channels=3)
    Image.fromarray(parts[0][:4]).save(paths[1])
    with pytest.raises(DataError, match="differ in shape"):
        images.read_image(paths)


def _dicom_series(folder: Path, positions: list[float]) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir()
    series = generate_uid()
    for number, z in enumerate(positions):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        data.PatientName, data.SeriesInstanceUID, data.Modality = "Doe^John", series, "CT"
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.Rows, data.Columns, data.SamplesPerPixel = 3, 4, 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-10, -20, z]
        data.PixelSpacing, data.SliceThickness = [0.7, 0.5], 2.0
        data.RescaleSlope, data.RescaleIntercept = 2, -1024
        data.PixelData = np.full((3, 4), int(z), np.uint16).tobytes()
        pydicom.dcmwrite(folder / f"{number:02d}.dcm", data, enforce_file_format=True)


def test_dicom_series_is_sorted_by_position(tmp_path: Path) -> None:
    _dicom_series(tmp_path / "ct", [8.0, 4.0, 6.0, 2.0])
    image, geometry = images.read_image(tmp_path / "ct")
    assert image[0, :, 0, 0].tolist() == [2 * z - 1024 for z in (2, 4, 6, 8)]
    assert geometry.spacing_mm == (2.0, 0.7, 0.5)
    sitk = pytest.importorskip("SimpleITK")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "ct"))
    reference = sitk.ReadImage(names)
    point = np.array(reference.TransformIndexToPhysicalPoint((3, 2, 1))) * (-1, -1, 1)
    np.testing.assert_allclose((geometry.affine @ (3, 2, 1, 1))[:3], point)


def test_dicom_faults(tmp_path: Path) -> None:
    _dicom_series(tmp_path / "gap", [0.0, 2.0, 4.0, 8.0])
    with pytest.raises(DataError, match="a slice is missing"):
        images.read_header(tmp_path / "gap")
    _dicom_series(tmp_path / "twice", [0.0, 2.0, 2.0, 4.0])
    with pytest.raises(DataError, match="same position"):
        images.read_header(tmp_path / "twice")
    _dicom_series(tmp_path / "cut", [0.0, 2.0])
    cut = tmp_path / "cut/01.dcm"
    cut.write_bytes(cut.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"01\.dcm: ends early"):
        images.read_image(tmp_path / "cut")
    with pytest.raises(DataError, match="not read from DICOM"):
        images.read_label(tmp_path / "gap")
