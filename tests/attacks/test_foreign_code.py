"""Settings that name code: a run from elsewhere must not execute what its `config.yaml` asks for."""

from __future__ import annotations

import sys

import pytest

from maskmend.cli import main
from maskmend.errors import UsageError
from maskmend.train.run_folder import Run

EVIL = """from pathlib import Path
Path({mark!r}).touch()
from maskmend.methods.supervised import Supervised
class Evil(Supervised):
    pass
"""


@pytest.fixture
def evil_run(run_folder, tmp_path):
    """A run whose method is a file that leaves a mark when it is imported."""
    mark = tmp_path / "executed"
    (run_folder / "evil.py").write_text(EVIL.format(mark=str(mark)))
    config = run_folder / "config.yaml"
    config.write_text(config.read_text().replace("name: supervised", f"name: {run_folder / 'evil.py'}"))
    assert "evil.py" in config.read_text()
    return run_folder, mark


def test_method_file_of_a_foreign_run(evil_run, data, tmp_path, capsys):
    run, mark = evil_run
    out = tmp_path / "out"
    for words in (["predict", run, data, "-o", out], ["audit", data, "--run", run, "-o", tmp_path / "audit"]):
        assert main([str(word) for word in words]) == 2
        told = capsys.readouterr().err
        assert "evil.py" in told
        assert "--trust-code" in told
        assert not mark.exists()
    assert not list(out.glob("*.png"))
    with pytest.raises(UsageError, match="not maskmend's"):
        Run.open(run).method()
    assert not mark.exists()


def test_trusted_code_is_executed(evil_run, data, tmp_path):
    run, mark = evil_run
    assert main(["predict", str(run), str(data), "-o", str(tmp_path / "out"), "--trust-code"]) == 0
    assert mark.exists()
    assert len(list((tmp_path / "out").glob("*.png"))) == 12


@pytest.mark.parametrize("name", ["evil_package:network", "os:system", "pathlib:Path"])
def test_network_of_a_foreign_run(run_folder, tmp_path, monkeypatch, name):
    mark = tmp_path / "executed"
    (tmp_path / "evil_package.py").write_text(EVIL.format(mark=str(mark)) + "network = Evil\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = run_folder / "config.yaml"
    config.write_text(config.read_text().replace("network:\n  name: unet", f"network:\n  name: {name}"))
    assert name in config.read_text()
    with pytest.raises(UsageError, match="--trust-code"):
        Run.open(run_folder).method()
    assert not mark.exists()


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {mark}']",
        "!!python/object/new:os.system ['touch {mark}']",
        "!!python/module:evil",
    ],
)
def test_yaml_that_builds_objects(run_folder, tmp_path, data, text):
    mark = tmp_path / "executed"
    path = tmp_path / "settings.yaml"
    path.write_text("train: " + text.format(mark=mark))
    assert main(["train", str(data), "-o", str(tmp_path / "out"), "--config", str(path)]) == 2
    path.write_text("noise: " + text.format(mark=mark))
    assert main(["corrupt", str(data), "-o", str(tmp_path / "out"), "--noise", str(path)]) == 2
    assert main(["check", str(data), f"data.labels={text.format(mark=mark)}"]) == 2
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q"]))
