"""The demonstration from end to end with a few steps: files, figures, refusals, and the same answer twice."""

from __future__ import annotations

import json
import shlex
import sys

import pytest

from maskmend.cli import main
from maskmend.demo import demo
from maskmend.errors import Interrupted, UsageError
from maskmend.train.lock import locked

demo_module = sys.modules["maskmend.demo"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, demo(out, steps=5, cases=(6, 2), ceiling=False)


def test_files_and_figures(tiny) -> None:
    out, figures = tiny
    assert json.loads((out / "demo.json").read_text()) == figures
    page = (out / "report.html").read_text()
    assert figures["verdict"] in page.replace("&#39;", "'")
    assert page.count("data:image/png") == 2
    assert "Too few steps" in page
    assert set(figures["arms"]) == {"plain", "robust"}
    assert figures["labels"]["cases"] == 6
    assert figures["labels"]["flawed_cases"] == 4
    assert 0 <= figures["labels"]["voxel_auroc"] <= 1
    record = json.loads((out / "seed_0" / "flawed" / "noise.json").read_text())
    assert len(record["cases"]) == 4


def test_pages_do_not_tell_where_they_were_made(tiny) -> None:
    """They are mailed and published."""
    out, _ = tiny
    pages = sorted(out.rglob("*.html"))
    assert pages
    for page in pages:
        assert str(out.parent) not in page.read_text(), page.relative_to(out)


def test_refuses_foreign_and_finished_folders(tiny, tmp_path) -> None:
    out, _ = tiny
    with pytest.raises(UsageError, match="already"):
        demo(out)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="no demonstration"):
        demo(tmp_path, overwrite=True)
    assert (tmp_path / "mine.txt").exists()
    with pytest.raises(UsageError, match="2 or 3"):
        demo(tmp_path / "new", ndim=4)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted("stopped", None, "train ... --resume")])
def test_stopped_and_begun_anew_by_the_command_told(stop, tmp_path, monkeypatch, capsys) -> None:
    out, calls = tmp_path / "my demo", []

    def run(folder, *how):
        calls.append(how)
        (folder / "seed_0").mkdir()  # nothing of the stopped call is in its way
        if len(calls) == 1:
            raise stop
        (folder / "demo.json").write_text('{"report": "page"}')
        return {"report": "page"}

    monkeypatch.setattr(demo_module, "_run", run)
    assert main(["demo", "-o", str(out), "--steps", "2", "--ndim", "3"]) == 130
    said = capsys.readouterr().err
    assert "--resume" not in said
    command = shlex.split(next(line for line in said.splitlines() if "maskmend demo" in line))
    words = command[command.index("demo") :]
    assert main(words) == 0
    assert calls[0] == calls[1]
    assert main(words) == 2  # finished now
    assert "holds a demonstration already" in capsys.readouterr().err


def test_a_demonstration_under_way_is_left_alone(tmp_path) -> None:
    out = tmp_path / "out"
    (out / "seed_0").mkdir(parents=True)
    (out / "demo.json").write_text('{"status": "running"}')
    with locked(out), pytest.raises(UsageError, match="in use by process"):
        demo(out, overwrite=True)
    assert (out / "seed_0").is_dir()


@pytest.mark.slow
def test_same_answer_twice(tiny, tmp_path) -> None:
    _, first = tiny
    again = demo(tmp_path / "again", steps=5, cases=(6, 2), ceiling=False)
    for key in ("arms", "gain", "labels", "verdict"):
        assert again[key] == first[key]


@pytest.mark.slow
def test_volumes_and_seeds(tmp_path) -> None:
    figures = demo(tmp_path / "out", ndim=3, seeds=2, steps=2, cases=(4, 2))
    assert figures["unit"] == "seed"
    assert len(figures["arms"]["ceiling"]["by_seed"]) == 2
