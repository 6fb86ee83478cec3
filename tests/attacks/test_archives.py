"""Archives: bombs, members that point elsewhere, links, encryption. Nothing is unpacked to the disk, ever."""

from __future__ import annotations

import gzip
import io
import stat
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from maskmend.audit.looks import read_mask
from maskmend.audit.sources import ProbsFolder
from maskmend.cli import main
from maskmend.data.dataset import find_cases
from maskmend.data.images import read_image
from maskmend.errors import DataError, ResourceError, UserError
from maskmend.train import checkpoint


def _array(shape: tuple[int, ...], body: bytes = b"") -> bytes:
    stream = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + body


@pytest.fixture
def source(data, tmp_path):
    """Puts a file in as the first case's probabilities and reads it."""
    folder = tmp_path / "probs"
    folder.mkdir()
    dataset = find_cases(data, labels={"background": 0, "organ": 1})

    def read(content: bytes, suffix: str = ".npz") -> np.ndarray:
        for old in folder.iterdir():
            old.unlink()
        (folder / f"c00{suffix}").write_bytes(content)
        return ProbsFolder(folder, dataset)(dataset.cases[0], read_mask(dataset.cases[0], dataset)[2])

    return read


def _zip(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def test_sound_probabilities_are_read(source):
    probs = np.full((2, 12, 10), 0.5, "<f4")
    assert source(_zip(**{"probs.npy": _array(probs.shape, probs.tobytes())})).shape == (2, 12, 10)
    assert source(_array(probs.shape, probs.tobytes()), ".npy").shape == (2, 12, 10)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
@pytest.mark.parametrize("shape", [(2, 100_000, 100_000), (2**40,), (2, 1200, 1000)])
def test_bomb_is_refused_by_its_claim(source, suffix, shape):
    """256 MiB of zeros in 260 kB, or a mere claim of terabytes."""
    content = _array(shape, bytes(2**26))
    content = _zip(**{"probs.npy": content}) if suffix == ".npz" else content[:100_000]
    tracemalloc.start()
    with pytest.raises(ResourceError, match="the case has 240"):
        source(content, suffix)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23


def test_honest_header_with_a_bomb_behind_it(source):
    content = _zip(**{"probs.npy": _array((2, 12, 10), np.full(240, 0.5, "<f4").tobytes() + bytes(2**26))})
    tracemalloc.start()
    assert source(content).shape == (2, 12, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23, "what lies behind the array is not unpacked"


@pytest.mark.parametrize("name", ["../../evil.npy", "/tmp/evil.npy", "probs/../../evil.npy", "C:\\evil.npy"])
def test_member_that_points_outside(source, data, tmp_path, tree, name):
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"c00\.npz"):
        source(_zip(**{name: b"#!/bin/sh", "other.npy": b""}))
    after = tree(tmp_path)
    assert set(after) - set(before) == {"probs/c00.npz"}, "nothing was written"


def test_member_that_is_a_link(source, tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        link = zipfile.ZipInfo("probs.npy")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="NumPy"):
        source(stream.getvalue())


def test_encrypted_and_unknown_packing(source):
    content = bytearray(_zip(**{"probs.npy": _array((2, 12, 10), bytes(960))}))
    locked = bytearray(content)
    for at in (locked.index(b"PK\x03\x04") + 6, locked.index(b"PK\x01\x02") + 8):
        locked[at] |= 1
    with pytest.raises(DataError, match="NumPy"):
        source(bytes(locked))
    for at in (content.index(b"PK\x03\x04") + 8, content.index(b"PK\x01\x02") + 10):
        content[at] = 98  # PPMd
    with pytest.raises(DataError, match="NumPy"):
        source(bytes(content))
    with pytest.raises(DataError, match="NumPy"):
        source(b"PK\x03\x04 and no more")


def test_packed_training_state(run_folder):
    """Torch stores tensors as they are; a packed one of 64 MiB of zeros would come out of 64 kB."""
    stream = io.BytesIO()
    torch.save({"step": 1, "method": torch.zeros(2**24), "memory": None}, stream)
    with (
        zipfile.ZipFile(stream) as plain,
        zipfile.ZipFile(run_folder / "state.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for part in plain.infolist():
            packed.writestr(part.filename, plain.read(part))
    assert (run_folder / "state.pt").stat().st_size < 2**20
    with pytest.raises(DataError, match="no state"):
        checkpoint.load(run_folder)
    (run_folder / "state.pt").write_bytes(stream.getvalue())
    assert checkpoint.load(run_folder)["step"] == 1


def test_safetensors_that_claims_gigabytes(run_folder, data, tmp_path):
    for claim in (2**62, 2**31, 50_000_000):
        (run_folder / "model.safetensors").write_bytes(claim.to_bytes(8, "little") + b"{" * 100)
        assert main(["predict", str(run_folder), str(data), "-o", str(tmp_path / "out")]) == 2


def test_gzip_bomb_in_an_image(tmp_path):
    from fuzz_seeds import nifti

    path = tmp_path / "volume.nii.gz"
    path.write_bytes(gzip.compress(nifti()[0] + bytes(2**27), 9))
    tracemalloc.start()
    with pytest.raises(ResourceError, match="decompresses to more"):
        read_image(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q"]))
