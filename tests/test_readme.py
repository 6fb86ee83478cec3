"""Runs every block of the README and docs that is marked runnable, on tiny synthetic data."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"<!-- runnable -->\n```(\w+)\n(.*?)```", re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of each runnable block."""
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with my_data, new_images, true_labels and a `maskmend` command."""
    from maskmend.data.phantom import make_phantom

    make_phantom(tmp_path / "my_data", train=20, test=0, shape=(32, 32))
    other = make_phantom(tmp_path / "other", train=2, test=0, seed=1, shape=(32, 32))
    (other / "images").rename(tmp_path / "new_images")
    (other / "labels").rename(tmp_path / "true_labels")
    command = tmp_path / "bin" / "maskmend"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m maskmend "$@"\n')
    command.chmod(0o755)
    return tmp_path


def run(desk: Path, language: str, text: str) -> str:
    text = re.sub(r"train\.steps=\d+", "train.steps=4", text)
    path = f"{desk / 'bin'}{os.pathsep}{os.environ['PATH']}"
    source = f"{ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    command = ["bash", "-euc", text] if language == "sh" else [sys.executable, "-c", text]
    answer = subprocess.run(
        command, cwd=desk, env={**os.environ, "PATH": path, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, f"{text}\n{answer.stdout}\n{answer.stderr}"
    assert "Traceback" not in answer.stderr
    return answer.stdout


@pytest.mark.slow
def test_readme(desk: Path) -> None:
    first, screened, second = blocks("README.md")
    assert "Dice" in run(desk, *first) or "dice" in run(
        desk, "sh", "maskmend evaluate predictions true_labels --json"
    )
    assert len(list((desk / "predictions").glob("*.png"))) == 2
    run(desk, *screened)
    assert len((desk / "suspects.csv").read_text().splitlines()) == 21
    run(desk, *second)
    assert (desk / "runs/third/model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_python_page(desk: Path, number: int) -> None:
    run(desk, *blocks("docs/python.md")[number])


def test_the_two_commands_come_first() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    assert first is not None
    assert [line.split("#")[0].strip() for line in first[1].splitlines()] == ["make demo", "make test"]


def test_the_method_of_contributing_works(tmp_path: Path) -> None:
    import textwrap

    import torch

    from maskmend.methods import load

    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = re.search(r"   ```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    file = tmp_path / "trimmed.py"
    file.write_text(textwrap.dedent(code[1].rstrip(" ")), encoding="utf-8")
    method = load(str(file))(lambda: torch.nn.Conv2d(1, 2, 3, padding=1), drop=0.1)
    label = torch.randint(0, 2, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    batch = {
        "image": torch.ones(2, 1, 16, 16),
        "label": label,
        "valid": torch.ones_like(label, dtype=torch.bool),
    }
    method.training_step(batch, 0.9).loss.backward()
    assert next(method.parameters()).grad is not None
    ignored = batch | {"valid": torch.zeros_like(label, dtype=torch.bool)}
    assert method.training_step(ignored, 0.9).loss == 0
    assert method.predict(batch["image"]).shape == (2, 2, 16, 16)
