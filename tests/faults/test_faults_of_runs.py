"""Rows 28 to 37, 50 and 52: memory, workers, signals, two processes in one place, no network, odd paths and clocks."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing import resource_sharer
from pathlib import Path

import pytest
import torch
from forks import cut_off, mount

from maskmend.cli import main
from maskmend.data import owner
from maskmend.errors import DataError, UsageError
from maskmend.predict.output import Output
from maskmend.train import loop, stream
from maskmend.train.lock import NAME as LOCK
from maskmend.train.lock import locked
from maskmend.train.loop import _Training

GREEDY = '''
"""A method that asks for more memory than a GPU has."""
import torch
from maskmend.methods.supervised import Supervised


class Greedy(Supervised):
    """Out of memory at the third step."""

    def training_step(self, batch, progress):
        """As supervised, then not."""
        if progress > 0.2:
            raise torch.cuda.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 8.00 GiB of which "
                "1.00 GiB is free. Of the allocated memory 6.00 GiB is allocated by PyTorch."
            )
        return super().training_step(batch, progress)
'''


@pytest.fixture
def after_step(monkeypatch):
    """Do something once, right after a step."""

    def arrange(step, what):
        original, left = _Training._one_step, [what]

        def one_step(self, batch):
            original(self, batch)
            if self.step == step and left:
                left.pop()()

        monkeypatch.setattr(_Training, "_one_step", one_step)

    return arrange


def test_row_28_gpu_out_of_memory(train_words, tmp_path, capsys):
    """What PyTorch says when a GPU is full; the next test fills a real one."""
    (tmp_path / "greedy.py").write_text(GREEDY)
    assert main(train_words(tmp_path / "run", f"method.name={tmp_path / 'greedy.py'}")) == 4
    said = capsys.readouterr().err
    for part in ("GPU out of memory", "Tried to allocate 20.00 GiB", "GiB free", "train.batch=", "train.patch=",
                 "network.options="):  # fmt: skip
        assert part in said
    assert "Traceback" not in said


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_row_28_a_real_gpu(train_words, tmp_path, capsys):
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(max(0, free - (300 << 20)), dtype=torch.uint8, device="cuda")
    words = train_words(tmp_path / "run", "device=cuda", "train.batch=4096", "network.options={base: 32}")
    assert main(words) == 4
    del held
    assert "GPU out of memory" in capsys.readouterr().err


def test_row_28_main_memory(forked, train_words, straight, tmp_path):
    straight  # noqa: B018 - what it imports would otherwise count
    words = train_words(tmp_path / "run", "train.batch=4096", "network.options={base: 32}")

    def child():
        used = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
        return main(words)

    code, said = forked(child)
    assert code == 4, said
    assert "not enough memory" in said
    assert "train.batch=" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / LOCK).exists()


def test_row_29_killed_workers(train_words, same_as_straight, tmp_path, capsys, after_step):
    killed: list[int] = []

    def kill() -> None:
        for worker in multiprocessing.active_children():
            killed.append(worker.pid)
            os.kill(worker.pid, signal.SIGKILL)

    after_step(2, kill)
    assert main(train_words(tmp_path / "run", "train.workers=2")) == 0
    said = capsys.readouterr().err
    assert len(killed) == 2
    assert re.search(r"worker process \d+(, \d+)* was lost", said)
    assert any(str(pid) in said for pid in killed)
    assert re.search(r"before step \d+, cases train_\d+", said)
    assert "going on without workers" in said
    same_as_straight(tmp_path / "run")


def test_row_29_killed_while_a_batch_is_handed_over(
    train_words, same_as_straight, tmp_path, capsys, after_step, monkeypatch
):
    """The connection breaks a moment before the worker counts as dead, so the loader passes the break on."""
    detach, killed = resource_sharer.DupFd.detach, []

    def broken(self):
        monkeypatch.setattr(resource_sharer.DupFd, "detach", detach)
        for worker in multiprocessing.active_children():
            killed.append(worker.pid)
            threading.Timer(0.2, os.kill, (worker.pid, signal.SIGKILL)).start()
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    after_step(2, lambda: monkeypatch.setattr(resource_sharer.DupFd, "detach", broken))
    assert main(train_words(tmp_path / "run", "train.workers=2")) == 0
    said = capsys.readouterr().err
    assert len(killed) == 2
    assert any(str(pid) in said for pid in killed)
    assert "was lost" in said
    assert "going on without workers" in said
    same_as_straight(tmp_path / "run")


def test_row_29_small_shared_memory(forked, train_words, same_as_straight, tmp_path):
    """PyTorch tells nobody when /dev/shm is full: the training would wait for ever."""

    def child():
        mount("/dev/shm", "64k")
        signal.alarm(240)
        return main(
            train_words(tmp_path / "run", "train.workers=1", "train.batch=12", "train.patch=[64, 64]")
        )

    code, said = forked(child)
    assert code == 0, said
    assert re.search(r"worker 0 cannot hand over a batch \(.*shared memory", said)
    assert re.search(r"before step 0, cases train_\d+", said)


def test_row_29_memory_without_workers_either(train_words, tmp_path, capsys, monkeypatch):
    def draw(*arguments, **keywords):
        raise MemoryError

    monkeypatch.setattr(stream, "draw", draw)
    assert main(train_words(tmp_path / "run", "train.workers=1")) == 4
    said = capsys.readouterr().err
    assert "going on without workers" in said
    assert re.search(r"not enough memory for a batch of the cases train_\d+", said)
    assert "Traceback" not in said


@pytest.mark.parametrize("workers", [0, 1])
def test_row_30_exception_in_a_worker(train_words, tmp_path, capsys, monkeypatch, workers):
    original = stream.draw

    def faulty_draw(cache, **keywords):
        sample = original(cache, **keywords)
        if sample.case == "train_007":
            raise ZeroDivisionError("no contrast")
        return sample

    monkeypatch.setattr(stream, "draw", faulty_draw)
    assert main(train_words(tmp_path / "run", f"train.workers={workers}")) == 1
    said = capsys.readouterr().err
    assert "in faulty_draw" in said, "the original traceback"
    assert "ZeroDivisionError: no contrast" in said
    assert re.search("the cases .*train_007", said)


def test_row_30_the_users_own_error_keeps_its_form(train_words, tmp_path, capsys, monkeypatch):
    def draw(*arguments, **keywords):
        raise DataError("was deleted", "train_003", "bring it back")

    monkeypatch.setattr(stream, "draw", draw)
    assert main(train_words(tmp_path / "run", "train.workers=1")) == 3
    said = capsys.readouterr().err
    assert "train_003: was deleted\n  bring it back" in said
    assert "Traceback" not in said


def test_row_33_sigterm_while_predicting(straight, phantoms, tmp_path, capsys, monkeypatch):
    original, written = Output.write, []

    def write(self, case, *rest):
        original(self, case, *rest)
        written.append(case.id)
        if len(written) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Output, "write", write)
    words = ["predict", str(straight), str(phantoms / "images"), "-o", str(tmp_path / "out")]
    assert main(words) == 130
    assert re.search("stopped after [45] of 24 cases", capsys.readouterr().err)
    assert len(list((tmp_path / "out").glob("*.png"))) == 5
    assert main(words) == 0
    assert "5 of 24 cases are already there" in capsys.readouterr().err
    assert len(written) == 24


def test_row_34_changed_data_or_version(train_words, phantoms, tmp_path, capsys, after_step):
    import shutil

    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(phantoms, data)
    words = [str(data) if word == str(phantoms) else word for word in train_words(out)]
    after_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main(words) == 130
    assert "--resume" in capsys.readouterr().err
    one, two = sorted((data / "labels").iterdir())[:2]
    mask = one.read_bytes()
    one.write_bytes(two.read_bytes())
    state = (out / "state.pt").read_bytes()
    assert main([*words, "--resume"]) == 2
    assert "data changed since this run was started" in capsys.readouterr().err
    one.write_bytes(mask)
    facts = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(facts | {"maskmend": "0.0.9"}))
    assert main([*words, "--resume"]) == 2
    assert "maskmend changed since this run was started: 0.0.9" in capsys.readouterr().err
    assert (out / "state.pt").read_bytes() == state
    (out / "run.json").write_text(json.dumps(facts))
    assert main([*words, "--resume"]) == 0
    assert "going on after step 4 of 12" in capsys.readouterr().err


def test_row_35_a_finished_run_is_left_as_it_is(train_words, same_as_straight, tmp_path, capsys):
    assert main(train_words(tmp_path / "run")) == 0
    assert main([*train_words(tmp_path / "run"), "--resume"]) == 0
    assert "already finished at step 12" in capsys.readouterr().err
    same_as_straight(tmp_path / "run")


def test_row_36_two_runs_in_one_folder_and_one_that_was_killed(
    fork, train_words, same_as_straight, tmp_path, capsys, after_step
):
    out, reached = tmp_path / "run", tmp_path / "reached"

    def wait() -> None:
        if not reached.exists():  # later calls go on
            reached.touch()
            time.sleep(600)

    after_step(6, wait)
    first = fork(lambda: main(train_words(out)))
    deadline = time.monotonic() + 120
    while not reached.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    capsys.readouterr()
    for more in ([], ["--resume"], ["--overwrite"]):
        assert main([*train_words(out), *more]) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        if more:
            assert re.search(rf"in use by process {first.pid} on \S+ since \d{{4}}-", said)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    assert (out / LOCK).exists()
    assert main([*train_words(out), "--resume"]) == 0
    said = capsys.readouterr().err
    assert f"removing the stale lock of process {first.pid}, which is gone" in said
    assert "going on after step 4 of 12" in said, "row 32: says where it resumes"
    same_as_straight(out)


def test_row_36_one_of_many_takes_a_stale_lock(fork, tmp_path, monkeypatch):
    """Between looking at a stale lock and deleting it another process may have put its own there."""
    turns, contenders, taken = 30, 6, tmp_path / "taken"
    barrier = multiprocessing.get_context("fork").Barrier(contenders)
    dead = fork(lambda: 0)
    dead.wait()
    lives, draw = owner.lives, random.Random

    def slowly(*arguments):  # however busy the machine, all have looked before the first decides
        time.sleep(draw(os.getpid()).uniform(0.01, 0.03))
        return lives(*arguments)

    monkeypatch.setattr(owner, "lives", slowly)
    facts = {"pid": dead.pid, "host": os.uname().nodename, "born": "1", "start": "today"}
    for turn in range(turns):
        (tmp_path / str(turn)).mkdir()
        (tmp_path / str(turn) / LOCK).write_text(json.dumps(facts))

    def contend():
        for turn in range(turns):
            barrier.wait(60)
            with suppress(UsageError), locked(tmp_path / str(turn)):
                os.close(os.open(taken, os.O_CREAT | os.O_EXCL))  # fails while another one holds it
                time.sleep(0.005)
                taken.unlink()

    children = [fork(contend) for _ in range(contenders)]
    assert [child.wait(120) for child in children] == [0] * contenders, children[0].said()
    assert not list(tmp_path.glob(f"*/{LOCK}"))


def test_row_37_two_trainings_share_one_new_cache(fork, train_words, same_as_straight, tmp_path):
    words = [train_words(tmp_path / name, f"data.cache={tmp_path / 'cache'}") for name in ("a", "b")]
    children = [fork(lambda own=own: main(own)) for own in words]
    assert [child.wait() for child in children] == [0, 0], children[0].said()
    for name in ("a", "b"):
        same_as_straight(tmp_path / name)
    entries = [path.name for path in (tmp_path / "cache").iterdir()]
    assert len(entries) == 24
    assert not [name for name in entries if name[0] == "."]


def test_row_37_benchmark_workers_make_the_phantoms_at_once(fork, tmp_path, monkeypatch):
    import tempfile

    from maskmend.benchmark.cases import _phantoms

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    facts = {"ndim": 2, "cases": 6, "seed": 0, "shape": [32, 32]}
    children = [fork(lambda: print(len(_phantoms(facts).cases))) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert {child.said() for child in children} == {"6\n"}
    (home,) = tmp_path.glob("maskmend-phantoms-*")
    assert len(list(home.iterdir())) == 1


def test_row_50_without_gpu_and_network(forked, train_words, straight, phantoms, tmp_path, monkeypatch):
    """The network is taken away, so that a download would fail; the estimate comes where training takes long."""
    monkeypatch.setattr(loop, "LINE_EVERY_S", 0.0)
    words = [word.replace("device=cpu", "device=auto") for word in train_words(tmp_path / "run")]

    def child():
        cut_off()
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        code = main(words)
        return code or main(["predict", str(straight), str(phantoms / "images"), "-o", str(tmp_path / "out")])

    code, said = forked(child)
    assert code == 0, said
    if not torch.cuda.is_available():
        assert said.count("no GPU found") == 1
        assert re.search(r"about [\d:]+ s? ?for the other 7 steps on the CPU", said)


def test_row_52_spaces_other_alphabets_and_long_names(train_words, phantoms, tmp_path, capsys):
    """A name may have 255 bytes, and a letter up to four."""
    place = tmp_path / "my räksmörgås 数据 🧠"
    for folder in ("images", "labels"):
        (place / folder).mkdir(parents=True)
        for number, path in enumerate(sorted((phantoms / folder).iterdir())):
            name = f"{'病例' * 38}{number}.png" if number < 2 else f"case {number} – ü.png"
            (place / folder / name).write_bytes(path.read_bytes())
    assert len(f"{'病例' * 38}0.png".encode()) > 230
    out = place / "run of today"
    words = [str(place) if word == str(phantoms) else word for word in train_words(out, "train.steps=4")]
    assert main(words) == 0, capsys.readouterr().err
    assert main(["predict", str(out), str(place / "images"), "-o", str(place / "vorhersage"), "--save",
                 "labels,uncertainty"]) == 0, capsys.readouterr().err  # fmt: skip
    assert main(["evaluate", str(place / "vorhersage"), str(place / "labels")]) == 0
    assert len(list((place / "vorhersage").glob("*.png"))) == 24


@pytest.mark.slow
def test_row_52_workers_that_are_spawned(train_words, same_as_straight, tmp_path):
    """As on Windows and macOS: the worker is a new process that gets the data set as a pickle."""
    code = (
        "import multiprocessing, sys; multiprocessing.set_start_method('spawn');"
        "from maskmend.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, *train_words(tmp_path / "run", "train.workers=1")]
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": source}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    same_as_straight(tmp_path / "run")


def test_a_clock_that_jumps(train_words, same_as_straight, tmp_path, monkeypatch):
    """Back and forth by days: no other bytes, no negative times, and no living process's file is taken for stale."""
    real, jumps = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + (next(jumps) % 3 - 1) * 10 * 24 * 3600)
    place = tmp_path / "cache"
    place.mkdir()
    living = place / owner.temporary_name("case")
    living.mkdir()
    assert main(train_words(tmp_path / "run", f"data.cache={place}")) == 0
    assert living.is_dir()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["seconds"] >= 0
    same_as_straight(tmp_path / "run")
