"""An audit goes on, or answers again, only with the probabilities that it began with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.audit.test_like import QUICK
from tests.test_fanout import discs

from maskmend.audit import run as verb
from maskmend.audit.job import STATE, claim, make_job
from maskmend.audit.run import audit
from maskmend.config import Config
from maskmend.errors import DataError, Interrupted, UsageError
from maskmend.pseudonyms import pseudonyms
from maskmend.train.run import train

OTHERS = "another set of probabilities"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return discs(tmp_path / "data", count=12)


def plain(answer: Any) -> Any:
    return json.loads(json.dumps(answer))


def overwrite(source: Path) -> None:
    for path in (source / "probs").iterdir():
        with np.load(path) as given:
            np.savez_compressed(path, probabilities=given["probabilities"] ** 2)


def test_changed_probabilities_are_noticed(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: dict[str, Any] = {"probs": source / "probs"}
    first = audit(source, tmp_path / "out", **told)
    again = audit(source, tmp_path / "like", like=tmp_path / "out", **told)
    assert audit(source, tmp_path / "out", **told)["records"] == plain(first["records"])
    assert audit(source, tmp_path / "like", like=tmp_path / "out", **told)["records"] == plain(
        again["records"]
    )
    assert capsys.readouterr().err.count("already finished") == 2
    (source / "probs").rename(source / "away")
    assert audit(source, tmp_path / "out", **told)["records"] == plain(first["records"]), (
        "what is gone has not changed"
    )
    (source / "away").rename(source / "probs")
    overwrite(source)
    with pytest.raises(UsageError, match=OTHERS):
        audit(source, tmp_path / "out", **told)
    with pytest.raises(UsageError, match=OTHERS):
        audit(source, tmp_path / "like", like=tmp_path / "out", **told)


def test_so_are_they_by_an_interrupted_audit(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verb, "_judged", stopped)
    with pytest.raises(Interrupted, match="stopped"):
        audit(source, tmp_path / "out", probs=source / "probs")
    overwrite(source)
    with pytest.raises(UsageError, match=OTHERS):
        audit(source, tmp_path / "out", probs=source / "probs")


def test_what_was_refused_may_be_mended_in_place(source: Path, tmp_path: Path) -> None:
    path = source / "probs" / "03.npz"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(DataError, match="no probabilities for 1 of 12"):
        audit(source, tmp_path / "out", probs=source / "probs")
    path.write_bytes(content)
    assert audit(source, tmp_path / "out", probs=source / "probs")["facts"]["cases"] == 12


def test_a_run_that_was_trained_anew_is_noticed(source: Path, tmp_path: Path) -> None:
    run_folder = train(source, tmp_path / "run", QUICK).folder
    (tmp_path / "out").mkdir()
    job = make_job(source, tmp_path / "out", Config(), run_folder, None, None)
    claim(job, False)
    claim(job, False)
    model = run_folder / "model.safetensors"
    model.write_bytes(model.read_bytes() + b"more")
    with pytest.raises(UsageError, match="another model"):
        claim(job, False)


def test_under_pseudonyms_too(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where paths stand in the state as they are shown."""
    with pseudonyms(tmp_path / "names.json"):
        audit(source, tmp_path / "out", probs=source / "probs")
        audit(source, tmp_path / "out", probs=source / "probs")
        assert "already finished" in capsys.readouterr().err
        assert str(source) not in (tmp_path / "out" / STATE).read_text()
        overwrite(source)
        with pytest.raises(UsageError, match=OTHERS):
            audit(source, tmp_path / "out", probs=source / "probs")
