"""Rows 31 and 49 and what goes with them: full, read-only and odd disks, and outputs that exist already."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import mount

from maskmend.cli import main
from maskmend.data.atomic import atomic_write
from maskmend.errors import ResourceError
from maskmend.train import checkpoint
from maskmend.train.loop import _Training


def _fill(folder: Path) -> Path:
    """Take all the room that is left."""
    path = folder / "other program"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 14))
    return path


@pytest.mark.parametrize("step", [4, 12], ids=["at a checkpoint", "at the end"])
def test_row_31_disk_full_while_training_saves(
    forked, train_words, straight, same_as_straight, tmp_path, monkeypatch, step
):
    place, kept = tmp_path / "disk", tmp_path / "kept"
    place.mkdir()
    original = _Training._one_step

    def one_step(self, batch):
        original(self, batch)
        if self.step == step and "--resume" not in words:
            _fill(place)

    monkeypatch.setattr(_Training, "_one_step", one_step)
    words = train_words(place / "run", "data.cache=" + str(tmp_path / "cache"))

    def child():
        mount(str(place), "4m")
        assert main(words) == 4
        before = checkpoint.load(place / "run")
        assert (before and before["step"]) == (None if step == 4 else 8), "the state before is whole"
        assert not [path for path in (place / "run").rglob("*") if ".tmp" in path.name or path.name == "LOCK"]
        (place / "other program").unlink()
        words.append("--resume")
        assert main(words) == 0
        shutil.copytree(place / "run", kept)

    code, said = forked(child)
    assert code == 0, said
    assert "disk is full (0 bytes free)" in said
    assert "Traceback" not in said
    same_as_straight(kept)


def test_row_31_a_limit_of_file_size_is_told_as_one(forked, train_words, tmp_path):
    def child():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        return main(train_words(tmp_path / "run"))

    code, said = forked(child)
    assert code == 4, said
    assert "ulimit -f" in said
    assert "Traceback" not in said
    assert not [path for path in (tmp_path / "run").rglob("*") if ".tmp" in path.name]


def test_row_31_disk_full_while_predicting(forked, straight, phantoms, tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    words = [
        "predict",
        str(straight),
        str(phantoms / "images"),
        "-o",
        str(place / "out"),
        "--save",
        "labels,probs",
    ]

    def child():
        mount(str(place), "96k")
        assert main(words) == 4
        files = [path for path in (place / "out").rglob("*") if path.is_file()]
        assert len(files) > 5, "what was written stays"
        assert not [path for path in files if path.name[0] == "."]
        _same_call_goes_on_with_room(words, place)

    code, said = forked(child)
    assert code == 0, said
    assert "disk is full" in said
    assert "20 of 24 cases are already there" not in said
    assert "cases are already there" in said
    assert "Traceback" not in said


def _same_call_goes_on_with_room(words: list[str], place: Path) -> None:
    from forks import _call

    _call("mount", None, str(place).encode(), None, 32, b"size=4m")  # a larger disk
    assert main(words) == 0
    assert len(list((place / "out").glob("*.png"))) == 24
    assert len(list((place / "out" / "probs").glob("*.npz"))) == 24


def test_row_31_disk_full_while_preparing_cases(forked, train_words, tmp_path):
    place = tmp_path / "disk"
    place.mkdir()

    def child():
        mount(str(place), "64k")
        code = main(train_words(tmp_path / "run", f"data.cache={place / 'cache'}"))
        left = [path.name for path in (place / "cache").iterdir()]
        assert left
        assert not [name for name in left if name[0] == "."], left
        return code

    code, said = forked(child)
    assert code == 4, said
    assert "disk is full" in said
    assert "data.cache=" in said
    assert "Traceback" not in said


def _mha(path: Path) -> None:
    import SimpleITK

    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ones((64, 64, 64), np.float32)), str(path), False)


def _safetensors(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(200_000)}, path)


WRITERS = {
    "bytes": lambda path: path.write_bytes(bytes(800_000)),
    "torch": lambda path: torch.save({"weight": torch.zeros(200_000)}, path),
    "numpy": lambda path: np.save(path, np.zeros(200_000, np.float32)),
    "safetensors": _safetensors,
    "SimpleITK": _mha,
}


def test_row_31_whichever_library_writes(forked, tmp_path):
    """Some say "iostream error", some "8 requested and 4 written": all become one error, and the old file stays."""
    place = tmp_path / "disk"
    place.mkdir()

    def child():
        mount(str(place), "256k")
        for name, writer in WRITERS.items():
            suffix = {"numpy": ".npy", "SimpleITK": ".mha"}.get(name, ".bin")
            path = place / f"{name}{suffix}"
            path.write_text("old")
            with pytest.raises(ResourceError, match=r"disk is full \([\d,]+ bytes free\)"):
                atomic_write(path, writer)
            assert path.read_text() == "old"
            assert len(list(place.iterdir())) == 1
            path.unlink()

    code, said = forked(child)
    assert code == 0, said


def test_a_fault_of_the_writer_is_not_taken_for_a_full_disk(tmp_path):
    def writer(path: Path) -> None:
        path.write_text("half")
        raise ValueError("no such colour")

    with pytest.raises(ValueError, match="colour"):
        atomic_write(tmp_path / "a.txt", writer)
    assert list(tmp_path.iterdir()) == []


VERBS = {
    "train": lambda data, run, out: ["train", data, "-o", out, "device=cpu", "train.steps=2"],
    "predict": lambda data, run, out: ["predict", run, f"{data}/images", "-o", out],
    "audit": lambda data, run, out: ["audit", data, "-o", out, "--folds", "2", "device=cpu"],
    "benchmark": lambda data, run, out: ["benchmark", "smoke", "-o", out, "--workers", "0"],
    "corrupt": lambda data, run, out: ["corrupt", data, "-o", out, "--rate", "0.5"],
    "evaluate": lambda data, run, out: [
        "evaluate",
        f"{data}/labels",
        f"{data}/labels",
        "-o",
        f"{out}/table.json",
    ],
    "check --fix": lambda data, run, out: ["check", data, "--fix", out],
    "demo": lambda data, run, out: ["demo", "-o", out, "--steps", "2"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_row_49_read_only_disk(forked, phantoms, straight, tmp_path, verb):
    place = tmp_path / "disk"
    place.mkdir()

    def child():
        mount(str(place), read_only=True)
        return main(VERBS[verb](str(phantoms), str(straight), str(place / "out")))

    code, said = forked(child)
    assert code == 2, said
    assert str(place) in said
    assert "Traceback" not in said
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("verb", VERBS)
def test_row_49_a_file_is_in_the_way(phantoms, straight, tmp_path, capsys, verb):
    (tmp_path / "out").write_text("thesis")
    assert main(VERBS[verb](str(phantoms), str(straight), str(tmp_path / "out"))) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "out") in said
    assert "Traceback" not in said
    assert (tmp_path / "out").read_text() == "thesis"
    assert len(list(tmp_path.iterdir())) == 1


def test_row_49_a_network_drive_without_fsync(train_words, same_as_straight, tmp_path, monkeypatch):
    def unknown(handle: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", unknown)
    assert main(train_words(tmp_path / "run")) == 0
    same_as_straight(tmp_path / "run")


def test_row_49_a_network_drive_that_is_lost(train_words, tmp_path, capsys, monkeypatch):
    real = os.replace

    def lost(source: object, target: object) -> None:
        if str(target).endswith("state.pt"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(target))
        real(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", lost)
    assert main(train_words(tmp_path / "run")) == 4
    said = capsys.readouterr().err
    assert "mount it again" in said
    assert "Traceback" not in said
    monkeypatch.undo()
    assert main(train_words(tmp_path / "run", "--resume")) == 0
