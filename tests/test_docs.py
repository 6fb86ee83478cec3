"""Reference pages say what the code says, links lead somewhere, and nothing needed is left out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from maskmend import config, methods

ROOT = Path(__file__).parents[1]


def test_reference_pages_and_links() -> None:
    answer = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "build.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr


def test_every_key_and_method_has_its_place() -> None:
    page = (ROOT / "docs/reference/config.md").read_text(encoding="utf-8")
    assert [key for key, _ in config.fields() if f"`{key}`" not in page] == []
    listed = (ROOT / "docs/reference/methods.md").read_text(encoding="utf-8")
    assert [name for name in methods.names() if f"## {name}\n" not in listed] == []


def test_citation_names_the_paper() -> None:
    facts = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert facts["references"][0]["authors"][0]["family-names"] == "Shi"
    assert facts["license"] == "Apache-2.0"


def test_constraints_pin_versions_that_anyone_can_install() -> None:
    lines = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if not x.startswith("#")]
    assert lines
    for line in lines:
        assert "==" in line
        assert "+" not in line
        assert "/" not in line
        assert "@" not in line
