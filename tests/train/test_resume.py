"""Stop and resume give the run that nothing interrupted; workers and processes change nothing else."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maskmend.errors import DataError, Interrupted, UsageError
from maskmend.train import checkpoint
from maskmend.train.loop import _Training
from maskmend.train.run_folder import Run

Train = Callable[..., Run]
METHODS = ["supervised", "pint", "pint_posterior"]


def send_sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def assert_same(one: Path, two: Path) -> None:
    """Weights and figures are equal to the last bit."""
    a, b = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    assert (one / "metrics.jsonl").read_bytes() == (two / "metrics.jsonl").read_bytes()


@pytest.fixture
def revisions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps before which the memory was revised."""
    steps: list[int] = []
    original = _Training._revise

    def revise(self: _Training) -> None:
        steps.append(self.step)
        original(self)

    monkeypatch.setattr(_Training, "_revise", revise)
    return steps


@pytest.mark.parametrize("stop", [7, 10], ids=["between checkpoints", "at a checkpoint"])
@pytest.mark.parametrize("method", METHODS)
def test_stop_and_resume_equal_a_straight_run(
    small_train: Train, tmp_path: Path, at_step, revisions: list[int], method: str, stop: int
) -> None:
    name = f"method.name={method}"
    small_train(tmp_path / "straight", name, "train.validation=noisy")
    straight = list(revisions)
    revisions.clear()
    at_step(stop, send_sigterm)
    with pytest.raises(Interrupted, match=f"step {stop} of 16"):
        small_train(tmp_path / "stopped", name, "train.validation=noisy")
    small_train(tmp_path / "stopped", name, "train.validation=noisy", resume=True)
    assert revisions == straight
    if method != "supervised":
        assert min(straight) < stop < max(straight), "the stop must lie between two revisions"
    assert_same(tmp_path / "straight", tmp_path / "stopped")


@pytest.mark.parametrize("method", ["pint", "pint_posterior"])
def test_killed_run_resumes_from_the_last_state(
    small_train: Train, tmp_path: Path, at_step, method: str
) -> None:
    name = f"method.name={method}"
    small_train(tmp_path / "straight", name)

    def die() -> None:
        raise MemoryError("as good as kill -9")

    at_step(14, die)
    with pytest.raises(MemoryError):
        small_train(tmp_path / "killed", name)
    assert checkpoint.load(tmp_path / "killed")["step"] == 10
    small_train(tmp_path / "killed", name, resume=True)
    assert_same(tmp_path / "straight", tmp_path / "killed")


def test_truncated_state_falls_back_to_the_one_before(
    small_train: Train, tmp_path: Path, at_step, capsys: pytest.CaptureFixture[str]
) -> None:
    out, name = tmp_path / "cut", "method.name=pint"
    small_train(tmp_path / "straight", name)
    at_step(13, send_sigterm)
    with pytest.raises(Interrupted):
        small_train(out, name)
    state = out / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    small_train(out, name, resume=True)
    assert "state.prev.pt, step 10" in capsys.readouterr().err
    assert_same(tmp_path / "straight", out)


def test_a_kill_between_two_renames_keeps_the_memory_that_is_needed(tmp_path: Path) -> None:
    for name, version in (("state.new.pt", 12), ("state.prev.pt", 8)):
        torch.save({"step": version, "memory": version}, tmp_path / name)
    assert checkpoint.load(tmp_path)["step"] == 12
    assert checkpoint.memories_in_use(tmp_path) == {8, 12}


def test_no_readable_state_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no state"):
        checkpoint.load(tmp_path)
    assert checkpoint.load(tmp_path / "empty") is None


def test_workers_change_nothing(small_train: Train, tmp_path: Path) -> None:
    small_train(tmp_path / "none", "method.name=pint", "train.workers=0")
    small_train(tmp_path / "two", "method.name=pint", "train.workers=2")
    assert_same(tmp_path / "none", tmp_path / "two")


def test_seed_changes_the_run(small_train: Train, tmp_path: Path) -> None:
    small_train(tmp_path / "a", "train.seed=1")
    small_train(tmp_path / "b", "train.seed=2")
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "a", tmp_path / "b")


def test_a_changed_configuration_is_refused_with_the_difference(
    small_train: Train, tmp_path: Path, at_step
) -> None:
    at_step(4, send_sigterm)
    with pytest.raises(Interrupted):
        small_train(tmp_path / "run")
    with pytest.raises(UsageError, match=r"train\.lr: 0\.001 -> 0\.5"):
        small_train(tmp_path / "run", "train.lr=0.5", resume=True)
    with pytest.raises(UsageError, match=r"method\.name: pint_posterior -> pint"):
        small_train(tmp_path / "run", "method.name=pint", resume=True)


def test_finished_is_done_and_more_steps_continue(
    small_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    small_train(out, "method.name=supervised")
    before = (out / "model.safetensors").read_bytes()
    small_train(out, "method.name=supervised", resume=True)
    assert "already finished at step 16" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == before
    run = small_train(out, "method.name=supervised", "train.steps=20", resume=True)
    assert run.config.train.steps == 20
    assert checkpoint.load(out)["step"] == 20
    assert (out / "model.safetensors").read_bytes() != before


def test_sigterm_while_finishing_does_not_undo_it(
    small_train: Train, tmp_path: Path, at_step, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maskmend.train import run as run_module

    export, called = run_module._export, []

    def exporting(*arguments: object) -> None:
        called.append(1)
        send_sigterm()
        export(*arguments)

    monkeypatch.setattr(run_module, "_export", exporting)
    at_step(16, send_sigterm)
    run = small_train(tmp_path / "run", "method.name=supervised")
    assert called == [1]
    assert run.facts["status"] == "finished"
    run.method()


@pytest.mark.slow
def test_two_processes_train_and_remember(small_train: Train, tmp_path: Path) -> None:
    run = small_train(tmp_path / "run", "method.name=pint", "train.processes=2", "train.steps=12")
    assert run.facts["status"] == "finished"
    assert checkpoint.load(run.folder)["step"] == 12
    version = checkpoint.load(run.folder)["memory"]
    assert {p.name for p in (run.folder / "memory" / str(version)).glob("*.json")} == {"0.json", "1.json"}
    assert all(torch.isfinite(t).all() for t in run.method().state_dict().values())


@pytest.mark.slow
def test_two_processes_share_what_they_know_of_the_cases(small_train: Train, tmp_path: Path) -> None:
    run = small_train(tmp_path / "run", "train.processes=2", "train.steps=12")
    assert (run.method().case_state.abs().sum(1) > 0).all()


STOPS = """
import os, signal
from pathlib import Path
import torch
from maskmend.methods.pint import Pint

class Stops(Pint):
    \"\"\"Where a flag lies beside this file, it is taken down and the starting process is stopped.\"\"\"
    def after_step(self, progress):
        super().after_step(progress)
        flag = Path(__file__).with_name("flag")
        if round(progress * 12) == 5 and torch.distributed.get_rank() == 1 and flag.exists():
            flag.unlink()
            os.kill(os.getppid(), signal.SIGTERM)
"""


@pytest.mark.slow
def test_two_processes_stop_and_resume_equal_a_straight_run(small_train: Train, tmp_path: Path) -> None:
    """A cluster's signal reaches the process that was started; the two that train save the state and say so."""
    (tmp_path / "stops.py").write_text(STOPS)
    words = (f"method.name={tmp_path / 'stops.py'}", "train.processes=2", "train.steps=12")
    small_train(tmp_path / "straight", *words)
    (tmp_path / "flag").touch()
    with pytest.raises(Interrupted, match=r"stopped after step \d+ of 12; the state is saved"):
        small_train(tmp_path / "stopped", *words)
    assert not (tmp_path / "flag").exists()
    assert 6 <= checkpoint.load(tmp_path / "stopped")["step"] < 12
    small_train(tmp_path / "stopped", *words, resume=True)
    assert_same(tmp_path / "straight", tmp_path / "stopped")
