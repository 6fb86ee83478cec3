"""Results of different code are told apart; comments and docstrings make no difference."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from maskmend.benchmark import code_state as module
from maskmend.benchmark.code_state import code_state, mixed_states


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that a test may change."""
    copy = tmp_path / "maskmend"
    shutil.copytree(module.SOURCES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(module, "SOURCES", copy)
    module._shared.cache_clear()
    yield copy
    module._shared.cache_clear()


def changed(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    module._shared.cache_clear()


def test_what_counts(sources: Path) -> None:
    shared, own = code_state("pint")
    changed(sources / "methods/pint.py", '"""', '"""Otherwise said. ')
    changed(sources / "train/loop.py", "\n\n\n", "\n\n\n# a comment\n\n\n")
    changed(sources / "cli.py", "import json", "import json, ast")
    (sources / "methods/brand_new.py").write_text("x = 1\n")
    assert code_state("pint") == [shared, own]
    changed(sources / "methods/pint.py", "0.99", "0.98")
    assert code_state("pint")[0] == shared
    assert code_state("pint")[1] != own
    assert code_state("supervised")[0] == shared
    changed(sources / "losses.py", "def ", "x = 1\n\n\ndef ")
    assert code_state("pint")[0] != shared


def test_a_method_of_ones_own_has_no_state() -> None:
    assert code_state("/somewhere/mine.py")[1] == ""


def row(method: str, *code: str) -> dict:
    return {"method": method, "code": list(code) or None}


def test_who_cannot_be_compared() -> None:
    assert mixed_states([row("a", "1", "x"), row("b", "1", "y"), row("a", "1", "x"), row("c")]) == []
    assert mixed_states([row("a", "1", "x"), row("b", "1", "y"), row("a", "1", "z")]) == ["a"]
    assert mixed_states([row("a", "1", "x"), row("b", "2", "y")]) == ["all methods"]


def test_what_only_one_method_builds_on_is_its_own(sources: Path) -> None:
    before = {name: code_state(name) for name in ("pint", "pint_posterior")}
    changed(sources / "mixture.py", "ROUNDS = 40", "ROUNDS = 41")  # used through appearance, too
    assert code_state("pint") == before["pint"]
    assert code_state("pint_posterior")[0] == before["pint_posterior"][0]
    assert code_state("pint_posterior")[1] != before["pint_posterior"][1]
