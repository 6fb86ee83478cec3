"""docs/noise.md: its commands and programs run, its tables say what the code says, its figures are measured."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

from maskmend.data.phantom import make_phantom
from maskmend.noise.base import KINDS
from maskmend.noise.description import read_noise
from maskmend.noise.presets import PRESETS, corrupt_labels

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "noise.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- runnable -->\n```(\w+)\n(.*?)```", PAGE, re.DOTALL)
ROWS = {m[1]: m[0] for m in re.finditer(r"^\| \[`([\w-]+)`\].*$", PAGE, re.MULTILINE)}


@pytest.fixture(scope="module")
def sheets() -> ModuleType:
    spec = importlib.util.spec_from_file_location("noise_sheets", ROOT / "docs" / "noise_sheets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("number", range(3))
def test_what_the_page_shows_runs(tmp_path, number) -> None:
    make_phantom(tmp_path / "my_data", train=5, test=0, shape=(64, 64))
    command = tmp_path / "bin" / "maskmend"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m maskmend "$@"\n')
    command.chmod(0o755)
    language, text = BLOCKS[number]
    run = ["bash", "-euc", text] if language == "sh" else [sys.executable, "-c", text]
    path = f"{ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    env = {**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": path}
    answer = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert len(BLOCKS) == 3


def test_the_noise_of_ones_own_is_one(tmp_path, organ) -> None:
    text = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert text is not None
    (tmp_path / "own.yaml").write_text(text[1])
    noise = read_noise(str(tmp_path / "own.yaml"))
    assert noise == yaml.safe_load(text[1])
    labels = {f"c{i}": organ(2, i).label for i in range(6)}
    record = corrupt_labels(labels, 1.0, noise, names={"organ": 1, "core": 2})[1]
    first = {facts["steps"][0]["transform"] for facts in record["cases"].values()}
    assert first <= {"nothing", "dilate", "compose"}


def test_every_kind_is_listed_with_its_settings() -> None:
    listed: dict[str, set[str]] = {}
    for names, settings in re.findall(
        r"^\| ((?:`\w+`,? ?)+) \| ((?:`\w+`(?:,| or)? ?)*)\|", PAGE, re.MULTILINE
    ):
        for name in re.findall(r"`(\w+)`", names):
            if name in KINDS:
                listed[name] = set(re.findall(r"`(\w+)`", settings))
    assert listed == {name: {f.name for f in fields(kind)} for name, kind in KINDS.items()}  # type: ignore[arg-type]


def test_every_preset_is_in_the_table_with_its_source_and_picture() -> None:
    assert list(ROWS) == sorted(
        PRESETS, key=lambda name: (bool(PRESETS[name].source), list(PRESETS).index(name))
    )
    for name, row in ROWS.items():
        assert PRESETS[name].summary in row
        assert PRESETS[name].source in row
        assert f" {PRESETS[name].rate:.0%} " in row
        picture = ROOT / "docs" / "pictures" / "noise" / f"{name}.png"
        assert picture.stat().st_size < 60_000


@pytest.mark.slow
def test_stated_dice_are_measured(sheets) -> None:
    for name, row in ROWS.items():
        stated = re.search(r"\| ([\d.]+), \*\*([\d.]+)\*\*, ([\d.]+) \|", row)
        assert stated is not None
        measured = sheets.dice_range(name)
        np.testing.assert_allclose(measured, [float(x) for x in stated.groups()], atol=0.011, err_msg=name)
