"""`check --fix` and `corrupt` build beside the output: what the dead left goes, what the living make stays."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from maskmend.cli import main
from maskmend.data import atomic, owner
from maskmend.data import fix as fixing
from maskmend.data.atomic import atomic_write
from maskmend.noise import dataset as corrupting


@pytest.fixture(params=["check --fix", "corrupt"])
def verb(request, volumes: Path) -> tuple[Callable[[Path], int], object, str]:
    """The call, and the function in it after which the copy is half done."""
    if request.param == "corrupt":
        return lambda out: main(["corrupt", str(volumes), "-o", str(out)]), corrupting, "_write_case"
    path = volumes / "images" / "v1.nii.gz"
    image = nibabel.load(path)
    voxels = np.asarray(image.dataobj).copy()
    voxels[0, 0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)
    return lambda out: main(["check", str(volumes), "--fix", str(out)]), fixing, "_copy"


def _wait_for(reached: Path) -> None:
    deadline = time.monotonic() + 120
    while not reached.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def _stop_half_way(fork, monkeypatch, verb, out: Path):
    """A child that made a half-finished copy and waits."""
    call, module, name = verb
    reached, original = out.with_name("reached"), getattr(module, name)

    def wait(*arguments):
        done = original(*arguments)
        reached.touch()
        time.sleep(600)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(module, name, wait)
        child = fork(lambda: call(out))
    _wait_for(reached)
    assert reached.exists(), child.said()
    reached.unlink()
    return child


def test_the_dead_are_swept_and_the_living_left_alone(fork, monkeypatch, snapshot, verb, tmp_path):
    place, calm = tmp_path / "place", tmp_path / "calm"
    place.mkdir()
    assert verb[0](calm / "out") == 0
    child = _stop_half_way(fork, monkeypatch, verb, place / "out")
    (staging,) = place.iterdir()
    half = snapshot(staging)
    assert half, "it is in the middle"
    assert verb[0](place / "other") == 0
    assert snapshot(staging) == half, "its owner lives"
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert verb[0](place / "out") == 0
    assert sorted(path.name for path in place.iterdir()) == ["other", "out"]
    assert snapshot(place / "out") == snapshot(place / "other") == snapshot(calm / "out")


def test_what_another_process_made_meanwhile_is_not_replaced(monkeypatch, verb, tmp_path, capsys):
    call, module, name = verb
    out, original = tmp_path / "place" / "out", getattr(module, name)

    def meanwhile(*arguments):
        out.mkdir(exist_ok=True)
        (out / "kept.txt").write_text("of another process")
        return original(*arguments)

    monkeypatch.setattr(module, name, meanwhile)
    assert call(out) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "kept.txt").read_text() == "of another process"


def test_a_file_in_the_making_is_not_seen(fork, tmp_path):
    """Killed half-way through writing: small files take microseconds, which random kills hardly meet."""
    path, reached = tmp_path / "file.txt", tmp_path / "reached"
    path.write_text("the old one")

    def half(place: Path) -> None:
        place.write_text("the ne")
        reached.touch()
        time.sleep(600)

    child = fork(lambda: atomic_write(path, half))
    _wait_for(reached)
    reached.unlink()
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert path.read_text() == "the old one"
    atomic_write(path, lambda place: place.write_text("the new one"))
    owner.sweep(tmp_path)
    assert path.read_text() == "the new one"
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []


def test_an_earlier_copy_is_replaced_whole(fork, monkeypatch, snapshot, volumes, tmp_path):
    """Killed while the earlier copy is deleted: the new one is in place, and nothing stays that is refused later."""
    import shutil

    out, delete, reached = tmp_path / "place" / "out", shutil.rmtree, tmp_path / "reached"
    words = ["corrupt", str(volumes), "-o", str(out), "--overwrite"]
    assert main([*words, "--seed", "1"]) == 0

    def deleted_in_part(path, **options):
        (Path(path) / "noise.json").unlink()
        reached.touch()
        time.sleep(600)

    with monkeypatch.context() as patch:
        patch.setattr("maskmend.data.atomic.shutil.rmtree", deleted_in_part)
        child = fork(lambda: main(words))
    _wait_for(reached)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert shutil.rmtree is delete
    assert main(words) == 0
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert main(["corrupt", str(volumes), "-o", str(tmp_path / "calm")]) == 0
    assert snapshot(out) == snapshot(tmp_path / "calm")


def test_killed_at_the_very_end_nothing_stays_beside_a_new_copy(fork, monkeypatch, verb, tmp_path):
    """Nobody calls `check --fix` again where the copy is there already: what lay beside it would stay for ever."""
    call, out, reached = verb[0], tmp_path / "place" / "out", tmp_path / "reached"
    original = atomic.to_disk

    def wait(path):
        original(path)
        if path == out.parent and out.exists():
            reached.touch()
            time.sleep(600)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "to_disk", wait)
        child = fork(lambda: call(out))
    _wait_for(reached)
    assert reached.exists(), child.said()
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_every_file_is_on_the_disk_before_the_copy_is_there(monkeypatch, verb, tmp_path):
    call, out, flushed = verb[0], tmp_path / "place" / "out", []
    original = atomic.to_disk

    def noted(path):
        if path.is_file():
            assert not out.exists()
            flushed.append(path.name)
        original(path)

    monkeypatch.setattr(atomic, "to_disk", noted)
    assert call(out) == 0
    written = {path.name for path in out.rglob("*") if path.is_file() and path.stat().st_nlink == 1}
    assert written
    assert written - {path.name for path in out.rglob("*") if path.is_symlink()} <= set(flushed)


def test_what_may_not_be_deleted_stops_nobody(fork, monkeypatch, tmp_path):
    """In a folder that is everyone's lies what another user's killed call left."""
    dead = fork(lambda: 0)
    dead.wait()
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: dead.pid)
        left = tmp_path / owner.temporary_name("file", ".tmp")
    left.touch()

    def refuse(self, missing_ok=False):
        raise PermissionError(1, "Operation not permitted", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    owner.sweep(tmp_path)
    assert left.exists()
    monkeypatch.undo()
    owner.sweep(tmp_path)
    assert not left.exists()
