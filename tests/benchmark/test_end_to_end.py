"""The verb as users meet it: a tiny grid, more seeds, a method that fails, a kill, the smoke preset."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from maskmend.benchmark import run as run_module
from maskmend.cli import main
from maskmend.errors import Interrupted

SOURCES = str(Path(__file__).parents[2] / "src")
BROKEN = """
from maskmend.methods.supervised import Supervised


class Broken(Supervised):
    '''Fails until it is mended.'''

    def training_step(self, batch, progress):
        raise RuntimeError("cheese is out")
"""


@pytest.fixture
def benchmark(tmp_path, tiny, capsys):
    """Write the tiny benchmark with changes, run the verb, and give the answer and what was said."""

    def call(*words: str, code: int = 0, **changes):
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump(tiny(**changes)))
        capsys.readouterr()
        given = ["benchmark", str(file), "-o", str(tmp_path / "out"), "--workers", "0", "--json", *words]
        assert main(given) == code
        out, err = capsys.readouterr()
        return (json.loads(out) if out else None), err

    return call


def stored(tmp_path: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (tmp_path / "out" / "runs").glob("[!.]*.json")}


def test_a_grid_then_more_seeds(benchmark, tmp_path) -> None:
    answer, said = benchmark(seeds=1, methods=["supervised"])
    assert (answer["runs"], answer["done"], answer["last_call"]["runs"]) == (2, 2, 2)
    assert "2 runs: 0 done before, 2 to do" in said
    assert "estimated time:" in said
    before = stored(tmp_path)
    answer, said = benchmark("seeds=2", methods=["supervised"])
    assert "4 runs: 2 done before, 2 to do" in said
    assert (answer["done"], answer["last_call"]["runs"]) == (4, 2)
    after = stored(tmp_path)
    assert len(after) == 4
    assert {name: after[name] for name in before} == before  # not done again
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"README.md", "report.html", "tables.tex", "runs.csv", "comparison.csv", "benchmark.json"} <= names
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text()) == answer
    answer, said = benchmark("seeds=2", methods=["supervised"])
    assert "4 runs: 4 done before, 0 to do" in said
    assert stored(tmp_path) == after

    first = (tmp_path / "out").rename(tmp_path / "published")
    answer, said = benchmark("seeds=2", "--reuse", str(first / "results.jsonl.gz"), methods=["supervised"])
    assert "4 results taken over" in said
    assert "4 runs: 4 done before, 0 to do" in said
    for name in ("runs.csv", "comparison.csv", "README.md", "results.jsonl.gz"):
        assert (tmp_path / "out" / name).read_bytes() == (first / name).read_bytes()


def test_one_run_that_fails_does_not_stop_the_rest(benchmark, tmp_path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(BROKEN)
    methods = {"mine": {"name": str(mine)}, "supervised": {"name": "supervised"}}
    answer, said = benchmark(methods=methods, clean="none")
    assert (answer["done"], answer["failed"]) == (1, 1)
    assert "failed: toy, wide 50%, mine, seed 0: RuntimeError: cheese is out" in said
    assert "mine.py" in (tmp_path / "out" / "README.md").read_text()  # the traceback names the file
    answer, said = benchmark(methods=methods, clean="none")
    assert "1 done before, 1 to do, 1 of them failed before" in said
    mine.write_text(
        BROKEN.replace('raise RuntimeError("cheese is out")', "return super().training_step(batch, progress)")
    )
    answer, said = benchmark(methods=methods, clean="none")
    assert (answer["done"], answer["failed"]) == (2, 0)


def test_a_killed_benchmark_goes_on(benchmark, tmp_path, tiny) -> None:
    """SIGKILL between two runs: what was done stays, byte for byte, and only the rest is done."""
    changes = {"methods": ["supervised"], "seeds": 6, "clean": "none"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tiny(**changes)))
    words = [sys.executable, "-m", "maskmend", "benchmark", "mine.yaml", "-o", "out", "--workers", "0"]
    environment = {**os.environ, "PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    # Files that are still being written have names that begin with a dot.
    while not list((tmp_path / "out" / "runs").glob("[!.]*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    before = stored(tmp_path)
    assert 1 <= len(before) < 6
    assert not (tmp_path / "out" / "report.html").exists()
    answer, said = benchmark(**changes)
    assert f"6 runs: {len(before)} done before, {6 - len(before)} to do" in said
    assert "stale lock" in said
    assert (answer["done"], answer["last_call"]["runs"]) == (6, 6 - len(before))
    after = stored(tmp_path)
    assert {name: after[name] for name in before} == before


def test_ctrl_c_keeps_what_is_finished(benchmark, tmp_path, monkeypatch) -> None:
    real = run_module.run_trial

    def interrupted(trial):
        if list((tmp_path / "out" / "runs").glob("[!.]*.json")):
            raise Interrupted("stopped")
        return real(trial)

    monkeypatch.setattr(run_module, "run_trial", interrupted)
    answer, said = benchmark(code=130)
    assert answer is None
    assert "stopped; 1 of 3 runs are kept" in said
    assert len(stored(tmp_path)) == 1


def test_a_folder_of_other_things_is_left_alone(benchmark, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    _, said = benchmark(code=2)
    assert "holds something that is no benchmark" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] in (["thesis.txt"], ["LOCK", "thesis.txt"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing"], "unknown preset"),
        (["smoke", "--data", "/none"], "is no folder"),
        (["smoke", "sedes=3"], "did you mean 'seeds'?"),
    ],
)
def test_mistakes_end_before_anything_is_written(tmp_path, capsys, words: list[str], told: str) -> None:
    assert main(["benchmark", *words, "-o", str(tmp_path / "out")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_smoke_preset_shortened(tmp_path, capsys) -> None:
    short = ["seeds=1", "settings.train.steps=6", "settings.network.options={base: 4}", "curve_points=1"]
    assert main(["benchmark", "smoke", "-o", str(tmp_path), "--workers", "0", "--json", *short]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["done"], answer["failed"], answer["conditions"]) == (7, 0, 2)
