"""docs/audit.md: its commands and programs run, its tables say what the code says."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from maskmend.audit.record import Kind
from maskmend.data.images import read_label
from maskmend.data.phantom import make_phantom

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- runnable -->\n```(\w+)\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the page takes for granted: three data sets, and probabilities as nnU-Net saves them."""
    root = tmp_path_factory.mktemp("desk")
    make_phantom(root / "my_data", train=20, test=0, shape=(32, 32))
    make_phantom(root / "more_data", train=10, test=0, seed=1, shape=(32, 32))
    make_phantom(root / "my_volumes", ndim=3, train=10, test=0, shape=(24, 24, 28))
    make_phantom(root / "new_masks", train=3, test=0, seed=2, shape=(32, 32))
    (root / "nnunet_out").mkdir()
    for file in (root / "my_data" / "labels").iterdir():
        label = read_label(file)[0]
        probs = np.stack([np.where(label == k, 0.9, 0.05) for k in range(3)])[:, None]  # a depth of 1
        np.savez_compressed(root / "nnunet_out" / f"{file.stem}.npz", probabilities=probs.astype(np.float16))
    command = root / "bin" / "maskmend"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m maskmend "$@"\n')
    command.chmod(0o755)
    return root


def run(desk: Path, language: str, text: str) -> None:
    text = re.sub(r"train\.steps=\d+", "train.steps=4", text).replace("--folds 5", "--folds 2")
    command = ["bash", "-euc", text] if language == "sh" else [sys.executable, "-c", text]
    path = f"{ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    env = {**os.environ, "PATH": f"{desk / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": path}
    answer = subprocess.run(command, cwd=desk, env=env, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, f"{text}\n{answer.stdout}\n{answer.stderr}"


@pytest.mark.slow
def test_what_the_page_shows_runs(desk) -> None:
    assert [language for language, _ in BLOCKS] == ["sh", "sh", "sh", "python", *["sh"] * 4, "python"]
    for language, text in BLOCKS:
        run(desk, language, text)
    for out in (
        "audit",
        "audit_of_run",
        "audit_of_more",
        "audit_by_nnunet",
        "audit_by_monai",
        "audit_of_new",
        "audit_after",
    ):
        assert (desk / out / "report.html").is_file()
    listed = set(re.findall(r"^\| `([\w./]+)`", PAGE.split("| in `audit/export/` |")[1], re.MULTILINE))
    assert listed == {
        f"{file.name}/" if file.is_dir() else file.name for file in (desk / "audit/export").iterdir()
    }
    seen = list(csv.DictReader((desk / "audit_of_run" / "audit.csv").open()))
    assert {row["in_sample"] for row in seen} == {"True"}
    told = set(re.findall(r"`([^`]+)`", columns("audit.csv")))
    named = {
        re.sub(r"^(dice|dice_low|dice_high|offset_mm|kind) .*", lambda found: f"{found[1]} NAME", column)
        for column in seen[0]
    }
    assert told == named
    parts = list(csv.DictReader((desk / "audit" / "parts.csv").open()))
    assert set(re.findall(r"`([^`]+)`", columns("parts.csv"))) == set(parts[0])
    for row in parts:
        assert 0 <= float(row["quality_low"]) <= float(row["quality"]) <= float(row["quality_high"]) <= 1


def columns(file: str) -> str:
    """The rows of the table of columns, their first cells."""
    table = PAGE.split(f"## {file}")[1].split("\n## ")[0]
    return "\n".join(line[: line.index("|", 2) + 1] for line in table.splitlines() if line.startswith("| `"))


def test_every_kind_is_explained() -> None:
    table = PAGE.split("**Kinds of error.**")[1].split("**The budget curve**")[0]
    named = {
        x for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for x in re.findall(r"`([^`]+)`", row)
    }
    assert named == set(get_args(Kind))


def test_pictures_are_small() -> None:
    for name in re.findall(r"\(pictures/(\S+)\)", PAGE):
        assert (ROOT / "docs" / "pictures" / name).stat().st_size < 200_000
