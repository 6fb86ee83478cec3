"""SIGKILL at random instants: the next call finishes with the same bytes and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("children are forked and watched through /proc", allow_module_level=True)

KILLS = Path(__file__).with_name("kills.py")
VERBS = ("train", "audit", "benchmark", "predict", "cache", "fix", "corrupt")


def _trials(count: int, place: Path, seed: int) -> dict[str, dict[str, int]]:
    words = [
        sys.executable,
        str(KILLS),
        "--trials",
        str(count),
        "--seed",
        str(seed),
        "--json",
        str(place / "a.json"),
    ]
    source = str(KILLS.parents[2] / "src")
    done = subprocess.run(
        words,
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    counts: dict[str, dict[str, int]] = json.loads((place / "a.json").read_text())["verbs"]
    return counts


def test_fourteen_trials(tmp_path):
    counts = _trials(14, tmp_path, seed=0)
    assert {name: row["trials"] for name, row in counts.items()} == dict.fromkeys(VERBS, 2)
    assert sum(row["kills"] for row in counts.values()) >= 7, "else it shows nothing"


@pytest.mark.faults
def test_two_hundred_and_ten_trials(tmp_path):
    counts = _trials(210, tmp_path, seed=2026)
    assert all(row["trials"] == 30 and row["kills"] >= 15 for row in counts.values()), counts
