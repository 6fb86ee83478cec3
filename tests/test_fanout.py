"""Work in other processes: the same results, faults and endings as in this one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from maskmend import fanout
from maskmend.audit.run import audit
from maskmend.errors import DataError
from maskmend.fanout import in_turn, most_processes, spread
from maskmend.pseudonyms import pseudonyms


def squared(number: int) -> int:
    return number**2


def where(number: int) -> tuple[int, str]:
    return os.getpid(), os.getcwd()


def faulty(number: int) -> int:
    if number == 3:
        raise DataError("is torn", "/data/secret/case3.png", "scan it again")
    return number


def deadly(first: int, number: int) -> int:
    """Kills every process but the first."""
    if number == 5 and os.getpid() != first:
        os.kill(os.getpid(), signal.SIGKILL)
    return -number


def scaled(weight: torch.Tensor, number: int) -> float:
    return float(weight.sum() * number)


def told(number: int) -> str:
    return str(DataError("is torn", "/data/secret/case3.png"))


def slow(number: int) -> int:
    time.sleep(0.2 if number < 2 else 30)
    return number


@pytest.mark.parametrize("count", [0, 1, 7, 200])
def test_results_come_in_order(count: int) -> None:
    assert list(spread(3)(squared, range(count))) == [n**2 for n in range(count)]


def test_the_work_is_done_elsewhere_and_in_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = list(spread(2)(where, range(40)))
    assert os.getpid() not in {pid for pid, _ in found}
    assert {folder for _, folder in found} == {str(tmp_path)}
    assert [pid for pid, _ in spread(1)(where, range(2))] == [os.getpid()] * 2


def test_tensors_reach_the_other_processes() -> None:
    assert list(spread(2)(partial(scaled, torch.arange(4.0)), [1, 2, 3])) == [6.0, 12.0, 18.0]


def test_a_fault_is_the_callers() -> None:
    with pytest.raises(DataError) as caught:
        list(spread(2)(faulty, range(10)))
    assert caught.value.what == "is torn"
    assert caught.value.remedy == "scan it again"
    assert not multiprocessing.active_children()


def test_a_killed_worker_costs_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(spread(2)(partial(deadly, os.getpid()), range(12))) == [-n for n in range(12)]
    assert "a worker process was lost" in capsys.readouterr().err


def test_nobody_waits_for_work_that_is_not_wanted() -> None:
    began = time.monotonic()
    results = spread(2)(slow, range(20))
    assert next(results) == 0
    results.close()
    assert time.monotonic() - began < 20
    assert not multiprocessing.active_children()


def test_names_are_hidden_there_too(tmp_path: Path) -> None:
    with pseudonyms(tmp_path / "names.json") as names:
        names.know(["case3"])
        names.know_place(Path("/data/secret"))
        for text in spread(2)(told, range(4)):
            assert "secret" not in text
            assert "case3" not in text


_KILLED = """
import os, sys, time
from tests.test_fanout import *

def pid(number):
    time.sleep(0.1)
    return os.getpid()

if __name__ == "__main__":
    for found in spread(2)(pid, range(10000)):
        print(found, flush=True)
"""


def test_ctrl_c_ends_all_at_once_and_is_told_by_the_first_one(tmp_path: Path) -> None:
    """As a terminal sends it, to the whole group; one worker is at work for half a minute, one waits for some."""
    script = tmp_path / "script.py"
    script.write_text(_STOPPED)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["0\n", "1\n"]
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate()  # ends when the last process that holds a pipe has ended
    assert told == ("stopped\n", "")
    assert process.returncode == 0
    assert time.monotonic() - began < 15


_STOPPED = """
from tests.test_fanout import *

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started with `nohup ... &` ignores it
    try:
        for found in spread(2)(slow, range(3)):
            print(found, flush=True)
    except KeyboardInterrupt:
        print("stopped")
"""


def test_the_processes_end_with_the_first_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_KILLED)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    workers = {int(process.stdout.readline()) for _ in range(20)}
    process.kill()
    process.wait()
    limit = time.monotonic() + 20
    while any(_alive(pid) for pid in workers) and time.monotonic() < limit:
        time.sleep(0.1)
    assert workers
    assert not any(_alive(pid) for pid in workers)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_file_beside_the_data_is_no_module(tmp_path: Path) -> None:
    """Someone who keeps a `random.py` or `grp.py` where the data lie must not have it run."""
    script = tmp_path / "program" / "script.py"
    script.parent.mkdir()
    script.write_text(_BESIDE)
    (tmp_path / "data").mkdir()
    for name in ("random", "grp", "tarfile", "torch"):
        (tmp_path / "data" / f"{name}.py").write_text("open('was run', 'w')\nraise SystemExit(9)\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    found = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, cwd=tmp_path / "data"
    )
    assert (found.stdout.split(), found.stderr) == (["0", "1", "4", "9"], "")
    assert not (tmp_path / "data" / "was run").exists()


_BESIDE = """
from maskmend.fanout import prepare, spread
from tests.test_fanout import squared

if __name__ == "__main__":
    prepare("maskmend.audit.run")
    print(*spread(2)(squared, range(4)))
"""


def test_no_more_processes_than_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "usable_cores", lambda: 8)
    monkeypatch.setattr(fanout, "memory_gib", lambda: {"total": 20.0, "available": 10.0})
    assert most_processes(60, 0.1) == 8
    assert most_processes(1, 0.1) == 1, "not worth it"
    assert most_processes(60, 2.0) == 2
    assert most_processes(60, 100.0) == 1
    monkeypatch.setattr(fanout, "memory_gib", lambda: None)
    assert most_processes(60, 100.0) == 8


def test_one_process_needs_no_pickle() -> None:
    assert list(in_turn(lambda number: number + 1, [1, 2])) == [2, 3]
    assert list(spread(1)(lambda number: number + 1, [1, 2])) == [2, 3]


# ---- what is spread ------------------------------------------------------------------------------------


def test_an_audit_says_the_same_with_several_processes(tmp_path: Path) -> None:
    """Every file of it, byte for byte, but for the time that it took."""
    source = discs(tmp_path / "data")
    answers = [
        audit(source, tmp_path / str(n), probs=tmp_path / "data" / "probs", processes=n)["records"]
        for n in (1, 2)
    ]
    assert answers[0] == answers[1]
    one, two = (
        {path.relative_to(tmp_path / n): path.read_bytes() for path in sorted((tmp_path / n).rglob("*.*"))}
        for n in ("1", "2")
    )
    written = [path for path in one if path.suffix in (".png", ".csv", ".jpg")]
    assert len(written) > 50
    assert [path.suffix for path in one if path.suffix not in (".jpg",)] == [
        path.suffix for path in two if path.suffix not in (".jpg",)
    ]
    assert all(one[path] == two[path] for path in written if path.suffix != ".jpg")


def discs(folder: Path, seed: int = 0, count: int = 26) -> Path:
    """Discs in noise, of which every fifth is drawn too large, and soft discs as the probabilities."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    for name in ("images", "labels", "probs"):
        (folder / name).mkdir(parents=True)
    rows, columns = np.mgrid[:48, :48]
    for number in range(count):
        far = np.hypot(rows - rng.uniform(20, 28), columns - rng.uniform(20, 28)) - rng.uniform(9, 13)
        picture = np.clip(120 - 60 * np.tanh(far) + rng.normal(0, 8, far.shape), 0, 255)
        Image.fromarray(picture.astype(np.uint8)).save(folder / "images" / f"{number:02d}.png")
        mask = far < (4 if number % 5 == 0 else 0) + rng.normal(0, 0.3)
        Image.fromarray(mask.astype(np.uint8)).save(folder / "labels" / f"{number:02d}.png")
        inside = 1 / (1 + np.exp(2 * far))
        np.savez(folder / "probs" / f"{number:02d}.npz", probabilities=np.stack([1 - inside, inside]))
    return folder
