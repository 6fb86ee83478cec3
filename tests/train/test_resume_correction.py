"""Methods that correct labels or lean on trusted cases stop and resume like any other, on a real run folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maskmend.errors import Interrupted
from maskmend.train.run_folder import Run

Train = Callable[..., Run]
METHODS = {
    "mean_teacher": ["method.gate=true", "method.passes=2"],
    "confident_learning": ["method.start=0.2"],
    "adele": ["method.scales=[0.7]"],
    "sgl": ["method.folds=2", "method.start=0.2"],
    "spatial_correction": ["method.start=0.2", "method.least=0", "method.gain=0"],
    "self_cleansing": [],
    "mtcl": [],
    "dast": ["method.queue=4"],
    "meta_reweighting": [],
}


@pytest.fixture(scope="module")
def data(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantoms with three trusted cases."""
    folder = shutil.copytree(phantoms, tmp_path_factory.mktemp("trusted") / "data")
    side = folder / "maskmend.json"
    content = json.loads(side.read_text()) if side.exists() else {}
    side.write_text(json.dumps(content | {"trusted": ["train_000", "train_003", "train_005"]}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_stop_and_resume_equal_a_straight_run(
    small_train: Train, tmp_path: Path, at_step, data: Path, method: str
) -> None:
    settings = [f"method.name={method}", *METHODS[method]]
    small_train(tmp_path / "straight", *settings, data=data)
    at_step(10, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        small_train(tmp_path / "stopped", *settings, data=data)
    small_train(tmp_path / "stopped", *settings, data=data, resume=True)
    one, two = (load_file(tmp_path / run / "model.safetensors") for run in ("straight", "stopped"))
    assert one.keys() == two.keys()
    assert [k for k in one if not torch.equal(one[k], two[k])] == []
    assert all(torch.isfinite(t).all() for t in one.values() if t.is_floating_point())
    figures = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in ("straight", "stopped")]
    assert figures[0] == figures[1]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["confident_learning", "sgl", "dast", "meta_reweighting"])
def test_two_processes_train(small_train: Train, tmp_path: Path, data: Path, method: str) -> None:
    settings = [f"method.name={method}", *METHODS[method], "train.processes=2", "train.batch=4"]
    run = small_train(tmp_path / "run", *settings, data=data)
    assert run.facts["status"] == "finished"
    run.method()
