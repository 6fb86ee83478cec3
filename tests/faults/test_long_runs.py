"""Long runs do not grow, and the number of workers and processes changes nothing but what floating point forbids."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from maskmend.cli import main
from maskmend.predict.output import Output
from maskmend.train.loop import _Training

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory and files are read from /proc")
MIB = 1 << 20


def _memory() -> int:
    """Bytes of main memory this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _flat(memory: list[int], files: list[int], least: int) -> None:
    """The last third holds no more than the second: a leak would move the median, one picture only the largest."""
    assert len(memory) >= least
    third = len(memory) // 3
    before, after = (median(part) for part in (memory[third : 2 * third], memory[2 * third :]))
    print(
        f"{len(memory)} samples: {before / MIB:.1f} MiB, then {after / MIB:.1f}; files {sorted(set(files[third:]))}"
    )
    assert after - before < 8 * MIB
    assert max(memory[2 * third :]) - max(memory[third : 2 * third]) < 32 * MIB
    assert max(files[2 * third :]) <= max(files[third : 2 * third])


def _watch_steps(monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[int]]:
    memory: list[int] = []
    files: list[int] = []
    original = _Training._between_steps

    def between(self):
        original(self)
        if self.step % 5 == 0:
            memory.append(_memory())
            files.append(len(os.listdir("/proc/self/fd")))

    monkeypatch.setattr(_Training, "_between_steps", between)
    return memory, files


def _train_long(train_words, forked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    memory, files = _watch_steps(monkeypatch)
    words = train_words(
        tmp_path / "run", "method.name=pint_posterior", f"train.steps={steps}", "train.checkpoint_every=20",
        f"train.picture_every={steps // 2}",
    )  # fmt: skip

    def child():
        assert main(words) == 0
        _flat(memory, files, steps // 5)

    code, said = forked(child)
    assert code == 0, said
    print(said.splitlines()[-2:])


@linux
def test_memory_and_files_stay_flat_over_150_steps(train_words, forked, tmp_path, monkeypatch):
    _train_long(train_words, forked, tmp_path, monkeypatch, 150)


@linux
@pytest.mark.faults
def test_memory_and_files_stay_flat_over_2000_steps(train_words, forked, tmp_path, monkeypatch):
    _train_long(train_words, forked, tmp_path, monkeypatch, 2000)


def _predict_long(straight, forked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    (tmp_path / "in").mkdir()
    for number in range(images):
        noise = np.random.default_rng(number).integers(0, 255, (40 + number % 7, 48), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "in" / f"i{number:04d}.png")
    memory: list[int] = []
    files: list[int] = []
    original = Output.write

    def write(self, *arguments):
        original(self, *arguments)
        memory.append(_memory())
        files.append(len(os.listdir("/proc/self/fd")))

    monkeypatch.setattr(Output, "write", write)
    words = ["predict", str(straight), str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--save",
             "labels,probs,uncertainty"]  # fmt: skip

    def child():
        assert main(words) == 0
        _flat(memory, files, images)

    code, said = forked(child)
    assert code == 0, said
    print(said.splitlines()[-1])


@linux
def test_memory_and_files_stay_flat_over_60_predictions(straight, forked, tmp_path, monkeypatch):
    _predict_long(straight, forked, tmp_path, monkeypatch, 60)


@linux
@pytest.mark.faults
def test_memory_and_files_stay_flat_over_500_predictions(straight, forked, tmp_path, monkeypatch):
    _predict_long(straight, forked, tmp_path, monkeypatch, 500)


def test_four_workers_give_the_weights_of_none(train_words, same_as_straight, tmp_path):
    assert main(train_words(tmp_path / "run", "train.workers=4")) == 0
    same_as_straight(tmp_path / "run")


@pytest.mark.faults
def test_two_processes_agree_with_themselves_and_nearly_with_one(train_words, straight, tmp_path):
    """Two processes sum a batch's gradients in another order than one, so only nearly the same is possible."""
    for name in ("a", "b"):
        assert main(train_words(tmp_path / name, "train.processes=2")) == 0
    a, b, one = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "a", tmp_path / "b", straight)
    )
    assert all(torch.equal(a[name], b[name]) for name in a)
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("a", "b")]
    assert metrics[0] == metrics[1]
    filled = [name for name in a if a[name].numel()]
    apart = max(float((a[name].float() - one[name].float()).abs().max()) for name in filled)
    moved = json.loads((straight / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    print(f"largest difference of a weight after 12 steps: {apart:.2g} (loss {moved})")
    assert apart < 0.02
