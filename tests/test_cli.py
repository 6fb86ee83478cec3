"""The command line: verbs, messages, exit codes, and what stays out of memory until a verb is chosen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import maskmend.cli as cli
from maskmend.errors import DataError, ResourceError, UsageError

HEAVY = (
    "torch",
    "monai",
    "numpy",
    "scipy",
    "skimage",
    "nibabel",
    "matplotlib",
    "SimpleITK",
    "PIL",
    "lightning_fabric",
)
VERBS = ("demo", "check", "train", "predict", "evaluate", "benchmark", "methods", "doctor")


def loaded_after(code: str) -> set[str]:
    """Heavy packages in memory after `code` ran in a process of its own."""
    script = (
        f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('\\n' + ' '.join(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(answer.stdout.splitlines()[-1].split()) & set(HEAVY)


@pytest.mark.parametrize(
    "code",
    [
        "import maskmend",
        "import maskmend; maskmend.UserError; maskmend.load_config; dir(maskmend)",
        "from maskmend.cli import main; main(['--help'])",
        "from maskmend.cli import main; main(['train', '--help'])",
        "from maskmend.cli import main; main(['--version'])",
        "from maskmend.cli import main; main(['train', 'x', '-o', 'y', 'train.stepps=3'])",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert loaded_after(code) == set()


def test_the_probe_sees_heavy_imports() -> None:
    assert "numpy" in loaded_after("import maskmend; maskmend.Case")


def test_a_command_does_not_look_for_cycles_before_it_ends() -> None:
    """With torch in memory that takes half a second; what is registered first runs last."""
    script = (
        "import atexit, gc\n"
        "atexit.register(lambda: print(gc.get_freeze_count()))\n"
        "from maskmend.cli import main\n"
        "main(['--version'])\n"
        "assert gc.get_freeze_count() == 0"  # not before: what a caller of `main` leaves is his to collect
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(answer.stdout.splitlines()[-1]) > 1000


def test_an_audit_does_not_wait_for_what_it_does_not_use() -> None:
    script = "import sys\nimport maskmend.audit.run\nprint(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"scipy.signal", "scipy.stats", "monai"} & set(answer.stdout.split())


def test_every_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    top = capsys.readouterr().out
    for verb in VERBS:
        assert f"\n  {verb} " in top
        assert cli.main([verb, "--help"]) == 0
        text = capsys.readouterr().out
        assert "Usage: maskmend" in text
        assert "--json" in text


def test_without_a_verb_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "train" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "Did you mean 'train'"),
        (["train", "data", "-o", "out", "--resum"], "--resum"),
        (["train", "data"], "--output"),
        (["train", "data", "-o", "out", "train.stepps=3"], "did you mean 'train.steps'"),
        (["train", "data", "-o", "out", "train.steps=0"], "a whole number > 0"),
        (["train", "data", "-o", "out", "--config", "none.yaml"], "none.yaml"),
        (
            ["predict", "run", "images", "-o", "out", "train.steps=3"],
            "train.steps: has no effect on this verb",
        ),
        (["predict", "run", "images", "-o", "out", "--save", "masks"], "labels, probs, uncertainty"),
        (["check", "nowhere"], "nowhere"),
        (["methods", "pintt"], "did you mean 'pint'"),
        (["demo", "--ndim", "4"], "--ndim"),
    ],
)
def test_wrong_use(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (UsageError("odd", "here", "do this"), 2, "here: odd\n  do this"),
        (DataError("torn", "file.png"), 3, "data error: file.png: torn"),
        (ResourceError("too large"), 4, "too large"),
        (MemoryError(), 4, "not enough memory"),
        (OSError(28, "No space left on device", "out/x"), 4, "out/x"),
        (PermissionError(13, "Permission denied", "out/y"), 2, "out/y"),
        (KeyboardInterrupt(), 130, "stopped\n  the same command begins anew"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_exit_codes(
    raised: BaseException,
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise raised

    monkeypatch.setattr("maskmend.doctor.examine", fail)
    assert cli.main(["doctor"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert ("Traceback" in err) == (code == 1)
    assert ("bug in maskmend" in err) == (code == 1)


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m maskmend doctor --json | true"
    answer = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stderr) == (0, "")


def test_train_hands_over_the_resolved_configuration(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}

    def fake(dataset: Path, out: Path, config: Any, **options: Any) -> Any:
        seen.update(dataset=dataset, out=out, config=config, **options)
        return SimpleNamespace(folder=out, labels={"background": 0}, facts={"loss": float("nan")})

    monkeypatch.setattr("maskmend.train.run.train", fake)
    monkeypatch.setattr("maskmend.report.run_report", lambda folder: folder / "report.html")
    file = tmp_path / "c.yaml"
    file.write_text("train: {steps: 7, seed: 3}\n")
    out = tmp_path / "run"
    words = [
        "train",
        "data",
        "train.steps=9",
        "-o",
        str(out),
        "method.ema=0.5",
        "--config",
        str(file),
        "--overwrite",
    ]
    assert cli.main([*words, "--json"]) == 0
    stdout, stderr = capsys.readouterr()
    config = seen["config"]
    assert (config.train.steps, config.train.seed, config.method.settings) == (9, 3, {"ema": 0.5})
    assert (seen["resume"], seen["overwrite"], seen["out"]) == (False, True, out)
    assert stderr.count("steps: 9") == 1
    assert json.loads(stdout) == {"run": str(out), "labels": {"background": 0}, "loss": None}


def test_resume_starts_from_the_stored_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def fake(dataset: Path, out: Path, config: Any, **options: Any) -> Any:
        seen.update(config=config, **options)
        return SimpleNamespace(folder=out)

    monkeypatch.setattr("maskmend.train.run.train", fake)
    monkeypatch.setattr("maskmend.report.run_report", lambda folder: folder / "report.html")
    (tmp_path / "config.yaml").write_text("train: {steps: 7, seed: 3}\n")
    assert cli.main(["train", "data", "-o", str(tmp_path), "--resume", "train.steps=20"]) == 0
    assert (seen["config"].train.steps, seen["config"].train.seed, seen["resume"]) == (20, 3, True)


def test_methods_lists_and_explains(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert {"pint", "supervised"} <= {line.split()[0] for line in listed}
    assert cli.main(["methods", "pint"]) == 0
    assert "method.ema=0.99" in capsys.readouterr().out
    assert cli.main(["methods", "pint", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["settings"]["ema"] == {"type": "float", "default": 0.99}


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    import torch

    assert facts["versions"]["torch"] == torch.__version__
    assert facts["devices"][0] == "cpu"
    assert 0 < facts["memory_gib"]["available"] <= facts["memory_gib"]["total"]
    assert cli.main(["doctor"]) == 0
    assert torch.__version__ in capsys.readouterr().out


def test_public_names() -> None:
    import maskmend

    assert set(maskmend.__all__) <= set(dir(maskmend))
    for name in maskmend.__all__:
        assert getattr(maskmend, name) is not None
    for verb in (maskmend.train, maskmend.predict, maskmend.evaluate, maskmend.check, maskmend.demo):
        assert callable(verb)
    with pytest.raises(AttributeError, match="nothing"):
        _ = maskmend.nothing


def test_a_verb_is_callable_whatever_was_imported_before() -> None:
    code = (
        "import maskmend.train.run, inspect; print('resume' in inspect.signature(maskmend.train).parameters)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "True"
