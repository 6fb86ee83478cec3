"""Rows 1 to 9: what is missing, damaged, mislabelled or too large."""

from __future__ import annotations

import gzip
import json
import struct
import tracemalloc
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from maskmend.cli import main
from maskmend.data.check import check
from maskmend.data.dataset import find_cases
from maskmend.data.images import read_image
from maskmend.errors import DataError, ResourceError, UsageError


@pytest.mark.parametrize("make", [None, Path.mkdir], ids=["missing", "empty"])
def test_row_1_missing_or_empty(tmp_path, monkeypatch, capsys, make):
    monkeypatch.chdir(tmp_path)
    if make:
        make(tmp_path / "nowhere")
    with pytest.raises(UsageError) as caught:
        check("nowhere")
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("nowhere:")
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert len((caught.value.remedy or "").splitlines()) >= 4
    assert main(["check", "nowhere"]) == 2
    told = capsys.readouterr()
    assert "images/ and labels/" in told.err
    assert "Traceback" not in told.err
    assert told.out == ""


def test_row_2_image_without_label_and_reverse(flat, expect):
    (flat / "labels" / "c1.png").unlink()
    (flat / "images" / "c3.png").unlink()
    result, _ = expect(flat, 2, "1 images without a label: c1", "1 labels without an image: c3")
    assert {facts.id for facts in result.facts} == {"c0", "c1", "c2", "c4"}, "the others are still looked at"
    assert len(find_cases(flat, need_labels=False).cases) == 4, "no error when predicting"


def test_row_2_lists_at_most_ten(flat):
    for number in range(25):
        Image.new("L", (8, 8)).save(flat / "images" / f"extra{number:02d}.png")
    with pytest.raises(DataError) as caught:
        find_cases(flat)
    assert "25 images without a label" in str(caught.value)
    assert str(caught.value).count("extra") == 10


def test_row_3_missing_channel(volumes, expect):
    for path in sorted((volumes / "images").iterdir()):
        stem = path.name.removesuffix(".nii.gz")
        (path.parent / f"{stem}_0001.nii.gz").write_bytes(path.read_bytes())
        path.rename(path.parent / f"{stem}_0000.nii.gz")
    for folder in ("images", "labels"):
        (volumes / folder).rename(volumes / f"{folder}Tr")
    (volumes / "imagesTr" / "v2_0001.nii.gz").unlink()
    facts = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "organ": 1},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    (volumes / "dataset.json").write_text(json.dumps(facts))
    expect(volumes, 3, "v2_0001.nii.gz")


def test_row_4_empty_file(volumes, expect):
    (volumes / "images" / "v1.nii.gz").write_bytes(b"")
    expect(volumes, 4, "images/v1.nii.gz", "empty file", case="v1")


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_row_5_truncated(volumes, expect, share):
    path = volumes / "labels" / "v1.nii.gz"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    expect(volumes, 5, "labels/v1.nii.gz", "ends early", case="v1")


def test_row_5_truncated_png(flat, expect):
    path = flat / "images" / "c2.png"
    path.write_bytes(path.read_bytes()[:-40])
    expect(flat, 5, "images/c2.png", "ends early", case="c2")


def test_row_6_flipped_byte(volumes, expect):
    path = volumes / "images" / "v4.nii.gz"
    raw = bytearray(gzip.decompress(path.read_bytes()))
    stored = bytearray(gzip.compress(bytes(raw), compresslevel=0))
    stored[len(stored) // 2] ^= 0x10  # a stored block: no structure breaks, only the checksum can tell
    path.write_bytes(stored)
    assert nibabel.load(path).get_fdata().shape == (14, 12, 10), "the known trap: others read it"
    expect(volumes, 6, "images/v4.nii.gz", "checksum", case="v4")


def test_row_7_not_an_image(flat, expect):
    (flat / "images" / "c0.png").write_text("<!doctype html><title>404</title>")
    expect(flat, 7, "images/c0.png", "an HTML page", case="c0")


def test_row_7_wrong_extension(volumes, flat, expect):
    (volumes / "images" / "v0.nii.gz").write_bytes((flat / "images" / "c0.png").read_bytes())
    expect(volumes, 7, "a PNG image", case="v0")


def _claiming(shape: tuple[int, ...]) -> bytes:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float32)
    header["dim"][:4] = (3, *shape)
    header["pixdim"][:4] = 1
    header["vox_offset"] = 352
    header["sform_code"] = 1
    header["srow_x"], header["srow_y"], header["srow_z"] = np.eye(4)[:3]
    header["magic"] = b"n+1"
    return header.binaryblock + bytes(4)


def test_row_8_absurd_size(volumes, expect):
    path = volumes / "images" / "v3.nii.gz"
    path.write_bytes(gzip.compress(_claiming((30000, 30000, 30000)) + bytes(1000)))
    tracemalloc.start()
    with pytest.raises(ResourceError):
        read_image(path)
    assert tracemalloc.get_traced_memory()[1] < 2**22, "refused before anything is allocated"
    tracemalloc.stop()
    expect(volumes, 8, "30000 x 30000 x 30000", "536,870,912", "data.max_voxels=", code=4, case="v3")


def test_row_8_gzip_bomb(volumes, expect):
    path = volumes / "images" / "v3.nii.gz"
    head = _claiming((8, 8, 8))
    packer = zlib.compressobj(9, wbits=31)
    block = bytes(2**22)
    parts = [packer.compress(head), *(packer.compress(block) for _ in range(64)), packer.flush()]
    path.write_bytes(b"".join(parts))  # 256 MiB in 260 KiB
    tracemalloc.start()
    with pytest.raises(ResourceError):
        read_image(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    expect(volumes, 8, "decompress", code=4, case="v3")


def test_row_9_huge_flat_image(flat, expect):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    (flat / "images" / "c1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    expect(flat, 9, "60000 x 60000", "tiles", "data.max_voxels=", code=4, case="c1")
