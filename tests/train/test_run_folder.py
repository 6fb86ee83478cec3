"""Who may write to a run folder, what is read from it, and what happens when training goes wrong."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from maskmend.data import owner
from maskmend.data.phantom import make_phantom
from maskmend.errors import DataError, Interrupted, UsageError
from maskmend.train import checkpoint, lock
from maskmend.train.run_folder import Run

Train = Callable[..., Run]

NAN_METHOD = '''
"""A method whose loss turns NaN."""
from maskmend.methods.supervised import Supervised


class Breaks(Supervised):
    """NaN from half of training on."""

    def training_step(self, batch, progress):
        """As supervised, until it is not."""
        output = super().training_step(batch, progress)
        if progress > 0.5:
            output.loss = WRONG
        return output
'''


@pytest.fixture(scope="module")
def finished(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from maskmend.config import load
    from maskmend.train.run import train

    out = tmp_path_factory.mktemp("finished") / "run"
    small = ["device=cpu", "train.steps=4", "train.batch=2", "train.patch=[32, 32]"]
    train(
        phantoms, out, load(None, [*small, "method.name=supervised", "network.options={base: 4, limit: 8}"])
    )
    return out


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/fd")
def test_a_model_is_written_into_the_file_that_is_swept_after_a_kill(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And into no other beside it: in /dev/fd nobody, not even root, can make one."""
    from maskmend.train import run

    written = tmp_path / "written"

    def only_there(path: Path, writer: Callable[[Path], object]) -> None:
        with written.open("wb") as file:
            writer(Path(f"/dev/fd/{file.fileno()}"))

    monkeypatch.setattr(run, "atomic_write", only_there)
    opened = Run.open(finished)
    run._export(finished, opened.config, opened.plan)
    assert written.read_bytes() == (finished / "model.safetensors").read_bytes()


@pytest.fixture
def sleeper() -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def hold(folder: Path, pid: int, **facts: object) -> None:
    folder.mkdir(exist_ok=True)
    holder = {"pid": pid, "host": socket.gethostname(), "born": owner.born(pid), "start": "today", **facts}
    (folder / lock.NAME).write_text(json.dumps(holder))


def test_lock_of_a_live_process_is_refused(small_train: Train, tmp_path: Path, sleeper) -> None:
    hold(tmp_path / "run", sleeper.pid)
    with pytest.raises(UsageError, match=f"process {sleeper.pid} on {socket.gethostname()}") as caught:
        small_train(tmp_path / "run")
    assert caught.value.exit_code == 2
    assert (tmp_path / "run" / lock.NAME).exists()


def test_lock_of_another_host_is_refused(tmp_path: Path) -> None:
    hold(tmp_path, 1, host="elsewhere", born=None)
    with pytest.raises(UsageError, match="on elsewhere"), lock.locked(tmp_path):
        pass


@pytest.mark.parametrize("how", ["gone", "number used again", "half written"])
def test_stale_lock_is_taken_over(tmp_path: Path, sleeper, capsys, how: str) -> None:
    if how == "gone":
        sleeper.kill()
        sleeper.wait()
        hold(tmp_path, sleeper.pid, born="1")
    elif how == "number used again":
        hold(tmp_path, sleeper.pid, born="1")
    else:
        (tmp_path / lock.NAME).write_text('{"pid": ')
    with lock.locked(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
    assert "stale lock" in capsys.readouterr().err
    assert not (tmp_path / lock.NAME).exists()


def test_two_runs_in_one_folder(small_train: Train, finished: Path, tmp_path: Path) -> None:
    before = (finished / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="holds a run already"):
        small_train(finished)
    assert (finished / "model.safetensors").read_bytes() == before
    with pytest.raises(UsageError, match="no run to resume"):
        small_train(tmp_path / "nothing", resume=True)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not deleting"):
        small_train(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_overwrite_starts_again(small_train: Train, tmp_path: Path) -> None:
    out = tmp_path / "run"
    small_train(out, "method.name=supervised", "train.steps=2")
    (out / "old.txt").write_text("left over")
    small_train(out, "method.name=supervised", "train.steps=3", overwrite=True)
    assert not (out / "old.txt").exists()
    assert checkpoint.load(out)["step"] == 3


class Malice:
    """What a pickle may do to those who load it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_state_is_not_run(tmp_path: Path) -> None:
    torch.save({"step": 1, "memory": Malice(tmp_path / "owned")}, tmp_path / "state.pt")
    with pytest.raises(DataError, match="no state"):
        checkpoint.load(tmp_path)
    checkpoint.memories_in_use(tmp_path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("kind", ["pickle", "another program", "truncated"])
def test_model_of_another_kind_is_refused(finished: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "plan.json", "run.json", "model.safetensors"):
        (folder / name).write_bytes((finished / name).read_bytes())
    Run.open(folder).method()
    model = folder / "model.safetensors"
    if kind == "pickle":
        model.write_bytes(pickle.dumps(Malice(tmp_path / "owned")))
    elif kind == "truncated":
        model.write_bytes(model.read_bytes()[:-100])
    else:
        save_file({"weight": torch.zeros(3)}, model, metadata={"format": "pt"})
    with pytest.raises(
        UsageError, match="another program" if kind == "another program" else "not a safetensors"
    ):
        Run.open(folder).method()
    assert not (tmp_path / "owned").exists()


def test_run_folders_that_are_none(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        Run.open(tmp_path)
    for name in ("config.yaml", "plan.json"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    (tmp_path / "run.json").write_text('{"format": "maskmend 9"}')
    with pytest.raises(UsageError, match="maskmend 9"):
        Run.open(tmp_path)


NAN_LOSS = 'output.loss * float("nan")'
NAN_GRADIENT = "output.loss + 0 * (output.loss - output.loss.detach()).sqrt()"  # the loss itself stays finite


@pytest.mark.parametrize(("what", "wrong"), [("loss", NAN_LOSS), ("gradient", NAN_GRADIENT)])
def test_nan_stops_and_names_the_cases(
    small_train: Train, tmp_path: Path, phantoms: Path, what: str, wrong: str
) -> None:
    file = tmp_path / "breaks.py"
    file.write_text(NAN_METHOD.replace("WRONG", wrong))
    with pytest.raises(DataError, match=f"{what} is nan at step 9") as caught:
        small_train(tmp_path / "run", f"method.name={file}")
    ids = {p.stem for p in (phantoms / "images").iterdir()}
    named = str(caught.value).split("cases ")[1]
    assert sum(name in named for name in ids) == 2
    state = checkpoint.load(tmp_path / "run")
    assert state["step"] == 5
    assert all(torch.isfinite(t).all() for t in state["method"].values())
    assert not (tmp_path / "run" / lock.NAME).exists()


@pytest.mark.parametrize("mode", ["none", "noisy", "trusted"])
def test_validation(small_train: Train, tmp_path: Path, mode: str) -> None:
    data = make_phantom(tmp_path / "data", train=8, test=0, shape=(32, 32))
    side = json.loads((data / "maskmend.json").read_text())
    trusted = sorted(p.stem for p in (data / "images").iterdir())[:3]
    (data / "maskmend.json").write_text(json.dumps(side | {"trusted": trusted}))
    run = small_train(
        tmp_path / "run", f"train.validation={mode}", "train.validation_fraction=0.25",
        "method.name=supervised", data=data,
    )  # fmt: skip
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    scores = [line["validation_dice"] for line in lines if "validation_dice" in line]
    assert run.facts["held_out"] == {"none": 0, "noisy": 2, "trusted": 3}[mode]
    assert run.facts["cases"] + run.facts["held_out"] == 8
    assert len(scores) == (0 if mode == "none" else 4), "after steps 5, 10, 15 and the last"
    state = checkpoint.load(run.folder)
    exported = run.method().state_dict()
    if mode == "none":
        assert state["validation"] is None
        expected = state["method"]
    else:
        assert np.isclose(state["validation"]["best"], max(scores), rtol=1e-5)
        expected = state["validation"]["weights"]
    assert all(torch.equal(exported[k], v) for k, v in expected.items())


def test_trusted_validation_needs_trusted_cases(small_train: Train, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 of 8 cases are trusted"):
        small_train(tmp_path / "run", "train.validation=trusted")


def test_unknown_method_leaves_no_folder(small_train: Train, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pint"):
        small_train(tmp_path / "run", "method.name=pnit")
    assert not (tmp_path / "run").exists()


def test_interrupted_run_has_no_model_yet(small_train: Train, tmp_path: Path, at_step) -> None:
    import signal

    at_step(3, lambda: os.kill(os.getpid(), signal.SIGINT))
    out = tmp_path / "my run"
    with pytest.raises(Interrupted) as caught:
        small_train(out, "method.name=supervised")
    assert caught.value.exit_code == 130
    with pytest.raises(UsageError, match="no model yet") as refused:
        Run.open(out).method()
    for said in (str(caught.value), str(refused.value)):
        command = said.splitlines()[-1].partition("maskmend train ... ")[2].rstrip("`")
        assert shlex.split(command) == ["-o", str(out), "--resume"]


@pytest.mark.parametrize("begun", [False, True])
def test_stopped_before_the_first_step(
    small_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """The advice holds: there is nothing to resume before the run has its files."""

    def stop(*arguments: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr("maskmend.train.engine.launch" if begun else "maskmend.train.run.check", stop)
        with pytest.raises(Interrupted) as caught:
            small_train(out, "method.name=supervised")
    assert ("--resume" in str(caught.value)) == begun
    assert ("begins anew" in str(caught.value)) != begun
    assert small_train(out, "method.name=supervised", resume=begun).method()
