"""Real images through the command line: check, train, stop and resume, predict, evaluate, in 2-D and 3-D."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from maskmend.cli import main

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
ENTRY = [sys.executable, "-m", "maskmend"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
SMALL = [
    "train.steps=20",
    "train.picture_every=1000",
    "device=cpu",
    "network.options={base: 8}",
]


@pytest.fixture
def maskmend(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a verb; stdout when it exits as expected. In this process: a new one imports for seconds."""

    def run(*arguments: object, code: int = 0) -> str:
        capsys.readouterr()
        exit_code = main([str(word) for word in arguments])
        out, err = capsys.readouterr()
        assert exit_code == code, f"exit {exit_code}\n{out}\n{err}"
        assert "Traceback" not in err
        return out

    return run


def dice(evaluation: str) -> float:
    """The mean Dice of the first class in the answer of `evaluate --json`."""
    found: float = next(row["mean"] for row in json.loads(evaluation)["summary"] if row["metric"] == "dice")
    return found


@pytest.mark.parametrize("method", ["supervised", "pint"])
def test_flat_images(maskmend: Callable[..., str], real_data: Path, tmp_path: Path, method: str) -> None:
    data = real_data / "tiny_unit_test" / "binary_2d"
    checked = json.loads(maskmend("check", data, "--json"))
    assert checked
    run, out = tmp_path / "run", tmp_path / "out"
    maskmend("train", data, "-o", run, f"method.name={method}", *SMALL, "train.batch=4")
    assert (run / "model.safetensors").exists()
    assert "<html" in (run / "report.html").read_text()
    printed = maskmend("predict", run, data / "images", "-o", out)
    names = sorted(p.name for p in (data / "images").iterdir())
    assert sorted(p.name for p in out.glob("*.png")) == names
    assert all(name in printed for name in names)
    image, label = Image.open(data / "images" / names[0]), Image.open(out / names[0])
    assert label.size == image.size
    assert set(np.unique(np.asarray(label))) <= {0, 1}
    answer = maskmend("evaluate", out, data / "labels", "--json")
    assert 0 <= dice(answer) <= 1
    perfect = maskmend("evaluate", data / "labels", data / "labels", "--json")
    assert dice(perfect) == 1


def test_volumes(maskmend: Callable[..., str], real_data: Path, tmp_path: Path) -> None:
    data = real_data / "tiny_unit_test" / "volume_3d"
    maskmend("check", data, "--json")
    run, out = tmp_path / "run", tmp_path / "out"
    maskmend(
        "train", data, "-o", run, "method.name=pint", *SMALL, "train.batch=2", "train.patch=[32, 32, 32]"
    )
    maskmend("predict", run, data, "-o", out, "--save", "labels,probs,uncertainty")
    images = sorted((data / "images").glob("*.nii.gz"))
    labels = sorted(out.glob("*.nii.gz"))
    assert len(labels) == len(images) == 6
    for image_path, label_path in zip(images, labels, strict=True):
        image, label = nibabel.load(image_path), nibabel.load(label_path)
        assert label.shape == image.shape
        np.testing.assert_allclose(label.affine, image.affine, atol=1e-4)
        assert (out / "probs" / label_path.name).exists()
        assert (out / "uncertainty" / label_path.name).exists()
    assert 0 <= dice(maskmend("evaluate", out, data / "labels", "--json")) <= 1


def test_stopped_and_resumed_equals_straight(
    maskmend: Callable[..., str], real_data: Path, tmp_path: Path
) -> None:
    data = real_data / "tiny_unit_test" / "binary_2d"
    settings = [
        "method.name=supervised",
        *SMALL,
        "train.batch=4",
        "train.steps=120",
        "train.checkpoint_every=10",
    ]
    maskmend("train", data, "-o", tmp_path / "straight", *settings)
    stopped = tmp_path / "stopped"
    process = subprocess.Popen(
        [*ENTRY, "train", str(data), "-o", str(stopped), *settings],
        env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics, patience = stopped / "metrics.jsonl", time.monotonic() + 60
    while time.monotonic() < patience and process.poll() is None and not metrics.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "--resume" in told
    maskmend("train", data, "-o", stopped, *settings, "--resume")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "stopped"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_wrong_use_is_told_without_traceback(
    maskmend: Callable[..., str], real_data: Path, tmp_path: Path
) -> None:
    data = real_data / "tiny_unit_test" / "binary_2d"
    maskmend("train", data, "-o", tmp_path / "run", "train.stpes=5", code=2)
    maskmend("predict", tmp_path / "no-run", data, "-o", tmp_path / "out", code=2)
    maskmend("check", tmp_path / "nowhere", code=2)
