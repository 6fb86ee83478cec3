"""Sound inputs of every kind that maskmend reads, made in code; the fuzzer spoils them."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

TEXTS: dict[str, list[bytes]] = {
    "dataset.json": [
        json.dumps(
            {
                "channel_names": {"0": "CT"},
                "labels": {"background": 0, "organ": 1, "ignore": 2},
                "numTraining": 2,
                "file_ending": ".png",
            }
        ).encode(),
        json.dumps(
            {
                "name": "set",
                "modality": {"0": "MRI"},
                "labels": {"0": "background", "1": "organ"},
                "training": [
                    {"image": "./imagesTr/a_0000.png", "label": "./labelsTr/a.png"},
                    {"image": "./imagesTr/b_0000.png", "label": "./labelsTr/b.png"},
                ],
                "test": [],
            }
        ).encode(),
    ],
    "maskmend.json": [
        json.dumps(
            {
                "labels": {"background": 0, "organ": 1},
                "ignore": 255,
                "channels": ["CT"],
                "spacing_mm": [0.5, 0.5],
                "trusted": ["a"],
                "raters": {"ann": "labelsTr_ann"},
                "groups": {"a": "patient 1"},
                "ignore_masks": {"b": "labelsTr/b.png"},
                "test": ["b"],
                "sites": {"a": "north"},
            }
        ).encode()
    ],
    "config.yaml": [
        b"method:\n  name: pint\ntrain:\n  steps: 500\n  lr: 1e-3\n  patch: [64, 64]\n  seed: 3\n"
        b"data:\n  labels: {background: 0, organ: 1}\n  flips: none\n  spacing_mm: [1.0, 2.5]\n"
        b"device: cpu\npredict: {overlap: 0.5, save: [labels, probs]}\n"
    ],
    "manifest.csv": [
        b"id,image,label,trusted,group,split,site\na,imagesTr/a_0000.png,labelsTr/a.png,1,p1,train,north\n"
        b"b,imagesTr/b_0000.png,labelsTr/b.png,0,p2,test,\n",
        b"image_0;image_1;label;rater_ann\nimagesTr/a_0000.png;imagesTr/b_0000.png;labelsTr/a.png;labelsTr/b.png\n",
    ],
}  # fmt: skip


def pixels(shape: tuple[int, ...] = (12, 10), classes: int = 0) -> np.ndarray:
    """A grey ramp with noise, or a mask of `classes` classes."""
    rng = np.random.default_rng(len(shape))
    if classes:
        mask = np.zeros(shape, np.uint8)
        mask[tuple(slice(2, 7) for _ in shape)] = 1
        return mask
    return rng.integers(0, 200, shape).astype(np.uint8)


def nifti() -> list[bytes]:
    """NIfTI-1 and -2, several types, scaled, colour, flat and with a fourth axis of one."""
    import nibabel

    affine = np.diag([1, 1.5, 2, 1.0])
    array = pixels((8, 7, 6))
    colour = np.zeros((6, 5, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    made = [
        nibabel.Nifti1Image(array, affine),
        nibabel.Nifti1Image(array.astype(">i2"), affine),
        nibabel.Nifti1Image(array.astype(np.float32), affine),
        nibabel.Nifti1Image(pixels((8, 7, 6), classes=1), affine),
        nibabel.Nifti1Image(pixels((12, 10)), np.eye(4)),
        nibabel.Nifti1Image(pixels((5, 4, 3, 1)), affine),
        nibabel.Nifti2Image(array.astype(np.float64), affine),
        nibabel.Nifti1Image(colour, affine),
    ]
    scaled = nibabel.Nifti1Image(array.astype(np.int16), affine)
    scaled.header.set_slope_inter(2.5, -3)
    return [image.to_bytes() for image in [*made, scaled]]


def nifti_gz() -> list[bytes]:
    """The same, compressed."""
    return [gzip.compress(one, mtime=0) for one in nifti()]


def _itk(suffix: str) -> list[bytes]:
    import SimpleITK as sitk

    made = []
    for array, vector in (
        (pixels((6, 5, 4)), False),
        (pixels((12, 10), 1), False),
        (pixels((6, 5, 3)), True),
    ):
        for compressed in (False, True):
            image = sitk.GetImageFromArray(array, isVector=vector)
            image.SetSpacing([1.5] * image.GetDimension())
            made.append(_saved(suffix, lambda path, i=image, c=compressed: sitk.WriteImage(i, path, c)))
    return made


def nrrd() -> list[bytes]:
    """NRRD, raw and gzip, volumes, flat and with vectors."""
    return _itk(".nrrd")


def mha() -> list[bytes]:
    """MetaImage, raw and zlib."""
    return _itk(".mha")


def _saved(suffix: str, write: Callable[[str], object]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"seed{suffix}"
        write(str(path))
        return path.read_bytes()


def _pillow(kind: str, modes: tuple[str, ...], **options: object) -> list[bytes]:
    from PIL import Image

    made = []
    for mode in modes:
        if mode == "I;16":
            image = Image.fromarray(pixels().astype(np.uint16) * 256)
        else:
            image = Image.fromarray(pixels()).convert(mode)
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        made.append(stream.getvalue())
    stream = io.BytesIO()
    if kind == "PNG":
        exif = Image.Exif()
        exif[274] = 6
        Image.fromarray(pixels(classes=1)).save(stream, kind, exif=exif)
        made.append(stream.getvalue())
    return made


def png() -> list[bytes]:
    """PNG of every colour kind, one with EXIF."""
    return _pillow("PNG", ("L", "1", "P", "RGB", "RGBA", "LA", "I;16"))


def jpeg() -> list[bytes]:
    """JPEG, grey, colour, CMYK and progressive."""
    return _pillow("JPEG", ("L", "RGB", "CMYK")) + _pillow("JPEG", ("RGB",), progressive=True)


def bmp() -> list[bytes]:
    """BMP of the kinds Pillow writes."""
    return _pillow("BMP", ("L", "1", "P", "RGB"))


def tiff() -> list[bytes]:
    """TIFF: strips, tiles, pages, colours, both byte orders, big, compressed."""
    import tifffile

    def made(array: np.ndarray, **options: object) -> bytes:
        stream = io.BytesIO()
        file_options = {key: options.pop(key) for key in ("bigtiff", "byteorder") if key in options}
        with tifffile.TiffWriter(stream, **file_options) as writer:
            writer.write(array, **options)
        return stream.getvalue()

    grey = "minisblack"
    return [
        made(pixels(), photometric=grey),
        made(pixels(classes=1), photometric=grey, compression="zlib"),
        made(pixels((4, 12, 10)), photometric=grey, metadata={"axes": "ZYX"}),
        made(pixels((12, 10, 3)), photometric="rgb"),
        made(pixels().astype(np.float32), photometric=grey, byteorder=">"),
        made(pixels().astype(np.uint16), photometric=grey, bigtiff=True, rowsperstrip=3),
        made(pixels((32, 48)), photometric=grey, tile=(16, 16), compression="zlib"),
        *_pillow("TIFF", ("P", "1", "CMYK")),
        *_pillow("TIFF", ("L",), compression="packbits"),
        *_pillow("TIFF", ("L",), compression="tiff_lzw"),
    ]


def dicom() -> list[bytes]:
    """Single slices in three transfer syntaxes."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import (
        CTImageStorage,
        ExplicitVRBigEndian,
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
    )

    made = []
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = "1.2.3.4"
        meta.TransferSyntaxUID = syntax
        one = Dataset()
        one.file_meta = meta
        one.SOPClassUID, one.SOPInstanceUID, one.SeriesInstanceUID = CTImageStorage, "1.2.3.4", "1.2.3"
        one.Modality, one.InstanceNumber = "CT", "1"
        one.ImagePositionPatient, one.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
        one.PixelSpacing, one.SliceThickness = [0.5, 0.75], 2
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.Rows, one.Columns = 12, 10
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 12, 11, 0
        one.RescaleSlope, one.RescaleIntercept = 1, -1024
        array = pixels().astype(">u2" if syntax == ExplicitVRBigEndian else "<u2")
        one.PixelData = array.tobytes()
        one["PixelData"].VR = "OW"
        stream = io.BytesIO()
        little = syntax != ExplicitVRBigEndian
        one.save_as(
            stream,
            implicit_vr=syntax == ImplicitVRLittleEndian,
            little_endian=little,
            enforce_file_format=True,
        )
        made.append(stream.getvalue())
    return made


IMAGES: dict[str, Callable[[], list[bytes]]] = {
    ".nii": nifti, ".nii.gz": nifti_gz, ".nrrd": nrrd, ".mha": mha, ".png": png, ".jpg": jpeg, ".bmp": bmp,
    ".tif": tiff, ".dcm": dicom,
}  # fmt: skip
"""Suffix to its sound files."""


def noise() -> list[bytes]:
    """Descriptions of label noise as `maskmend corrupt --noise FILE` takes them."""
    from maskmend.noise.presets import PRESETS

    return [json.dumps(one.noise.describe()).encode() for one in PRESETS.values()]
