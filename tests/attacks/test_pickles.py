"""Models, states and probabilities that are pickles: they are refused unread, and what they would run is not run."""

from __future__ import annotations

import io
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch

from maskmend.audit.looks import read_mask
from maskmend.audit.sources import ProbsFolder
from maskmend.cli import main
from maskmend.data.dataset import find_cases
from maskmend.errors import DataError, UsageError
from maskmend.train import checkpoint
from maskmend.train.run_folder import Run


def _torch_file(payload: object) -> bytes:
    stream = io.BytesIO()
    torch.save({"method": payload, "step": 1}, stream)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_model_file_is_a_pickle(run_folder, trap, data, tmp_path, capsys, kind):
    content = pickle.dumps(trap) if kind == "pickle" else _torch_file(trap)
    (run_folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match="not a safetensors file"):
        Run.open(run_folder).method()
    assert main(["predict", str(run_folder), str(data / "images"), "-o", str(tmp_path / "out")]) == 2
    assert "safetensors" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize("name", ["state.pt", "state.prev.pt", "state.new.pt"])
def test_state_is_a_pickle_with_code(run_folder, trap, name, capsys):
    for content in (pickle.dumps(trap), _torch_file(trap)):
        (run_folder / name).write_bytes(content)
        with pytest.raises(DataError, match="no state in this run can be read"):
            checkpoint.load(run_folder)
        assert checkpoint.memories_in_use(run_folder) == set()


def test_the_trap_itself_works(trap, tmp_path):
    """Else the tests above would prove nothing."""
    one = type(trap)(tmp_path / "mark")
    pickle.loads(pickle.dumps(one))
    assert one.mark.exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_probabilities_of_python_objects(data, trap, tmp_path, suffix):
    folder = tmp_path / "probs"
    folder.mkdir()
    objects = np.array([trap], dtype=object)
    for number in range(12):
        path = folder / f"c{number:02d}{suffix}"
        np.save(path, objects) if suffix == ".npy" else np.savez(path, probs=objects)
    dataset = find_cases(data, labels={"background": 0, "organ": 1})
    with pytest.raises(DataError, match="Python objects"):
        ProbsFolder(folder, dataset)(dataset.cases[0], read_mask(dataset.cases[0], dataset)[2])
    words = ["audit", str(data), "-o", str(tmp_path / "out"), "--probs", str(folder)]
    assert main(words) == 3


def test_raw_pickle_named_as_array(data, trap, tmp_path):
    folder = tmp_path / "probs"
    folder.mkdir()
    (folder / "c00.npy").write_bytes(pickle.dumps(trap))
    with zipfile.ZipFile(folder / "c01.npz", "w") as archive:
        archive.writestr("probs.npy", pickle.dumps(trap))
    dataset = find_cases(data, labels={"background": 0, "organ": 1})
    for number in (0, 1):
        with pytest.raises(DataError, match="NumPy"):
            ProbsFolder(folder, dataset)(dataset.cases[number], read_mask(dataset.cases[number], dataset)[2])


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q"]))
