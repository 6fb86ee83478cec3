"""Flawed inputs by the hundred: each is read or refused by name, without a crash, a hang or much memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fuzz_targets import KINDS as NAMES

if sys.platform != "linux":
    pytest.skip("children are forked and measured through /proc", allow_module_level=True)

FUZZ = Path(__file__).with_name("fuzz.py")
KINDS = 19


def _run(*words: str, seconds: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(FUZZ), "run", *words],
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.stdout, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    print({key: value for key, value in answer.items() if key != "failures"})
    return answer


def _sound(answer: dict[str, Any], count: int) -> None:
    assert answer["failures"] == [], "`python tests/faults/fuzz.py show KIND SEED` reads one again"
    assert answer["inputs"] == answer["read"] + answer["refused"] == count
    assert answer["peak_mib"] < 1024
    assert answer["slowest_s"] < 5


def test_four_hundred_inputs():
    answer = _run("--count", "400", seconds=600)
    _sound(answer, 400)
    assert answer["read"] > KINDS, "the first inputs of each kind are sound: without them nothing is tested"
    assert answer["refused"] > 200


@pytest.mark.faults
def test_twenty_thousand_inputs():
    _sound(_run("--count", "20000", "--first", "1000", seconds=6 * 3600), 20_000)


def _guided(kind: str, runs: int, keep: Path) -> str:
    """What atheris says of a run that found nothing."""
    pytest.importorskip("atheris", reason="coverage-guided fuzzing needs atheris (Linux, Python up to 3.13)")
    words = [
        sys.executable,
        str(FUZZ.with_name("fuzz_guided.py")),
        kind,
        "--runs",
        str(runs),
        "--keep",
        str(keep),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, (
        f"{[one.name for one in keep.iterdir()]}: {(done.stdout + done.stderr)[-3000:]}"
    )
    assert f"number_of_executed_units: {runs}" in done.stderr
    return done.stderr


def test_three_hundred_guided_inputs(tmp_path):
    said = _guided("dataset.json", 300, tmp_path)
    new = int(said.split("new_units_added:")[1].split()[0])
    assert new > 0, "no branch of the readers was seen to be new: nothing is instrumented"


@pytest.mark.faults
@pytest.mark.parametrize("kind", NAMES)
def test_two_thousand_guided_inputs(kind, tmp_path):
    _guided(kind, 2000, tmp_path)


FAULTS = {
    "crash": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    "hang": ("while True: pass", "hangs"),
    "memory": ("bytearray(2**31)", "MemoryError"),
    "traceback": ("{}['missing']", "KeyError"),
    "nameless": ("raise UserError('no file is named here')", "Unexplained"),
}


def test_the_harness_sees():
    """Each fault put into a reader must come out as a failure of its own kind."""
    program = f"""
import json, sys
sys.path.insert(0, {str(FUZZ.parent)!r})
import fuzz
from maskmend.data import images
from maskmend.errors import UserError
fuzz.SECONDS = 1.0
fuzz._warm = lambda kind: fuzz.input_of(kind, 0)
answers = []
for body in {[body for body, _ in FAULTS.values()]!r}:
    def broken(path, **options):
        exec(body, globals())
    images.read_header = broken
    answers.append(fuzz.run((".bmp",), 1))
print(json.dumps(answers))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    answers = json.loads(done.stdout)
    for (_, expected), answer in zip(FAULTS.values(), answers, strict=True):
        assert [expected in one["fact"] for one in answer["failures"]] == [True], answer
