"""Small sound data sets, written with other libraries than ours, and the test of what a fault leads to."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from forks import NOT_ALLOWED, Fork
from PIL import Image

from maskmend.cli import main
from maskmend.config import DataConfig
from maskmend.data.check import check
from maskmend.data.findings import CheckResult, Finding
from maskmend.data.phantom import make_phantom
from maskmend.errors import UserError


def _ellipse(shape: tuple[int, ...], place: float) -> np.ndarray:
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    centre = [0.2 * place, *[-0.3] * (len(shape) - 1)]
    return sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) < 0.25


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Five grey 40 x 32 PNG images with labels 0 and 1 in images/ and labels/."""
    root = tmp_path / "flat set"  # a space in every path
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for number in range(5):
        rng = np.random.default_rng(number)
        mask = _ellipse((32, 40), number / 5)
        image = (rng.integers(0, 60, mask.shape) + 90 * mask).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"c{number}.png")
        Image.fromarray(mask.astype(np.uint8)).save(root / "labels" / f"c{number}.png")
    return root


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Five NIfTI volumes of (x, y, z) = 14 x 12 x 10 voxels of 1 x 1.5 x 2 mm with labels 0 and 1."""
    root = tmp_path / "volumes"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for number in range(5):
        rng = np.random.default_rng(number)
        mask = _ellipse((14, 12, 10), number / 5)
        affine = np.diag([1, 1.5, 2, 1.0])
        affine[:3, 3] = (-20, 5, 7)
        name = f"v{number}.nii.gz"
        image = nibabel.Nifti1Image((rng.normal(size=mask.shape) + 5 * mask).astype(np.float32), affine)
        nibabel.save(image, root / "images" / name)
        nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), affine), root / "labels" / name)
    return root


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder with its content."""

    def take(root: Path) -> dict[str, bytes]:
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    return take


Expect = Callable[..., tuple[CheckResult, Finding]]


@pytest.fixture
def expect(snapshot, capsys, tmp_path) -> Expect:
    """Check a data set by Python and by the command line, and hold both to one row of the list of faults.

    The data set must stay byte for byte what it was. `settings` are the command line's key=value words.
    """

    def run(root, row, *phrases, severity="error", code=3, case=None, settings=()):
        before = snapshot(root)
        keys = {key.removeprefix("data."): value for key, value in (word.split("=", 1) for word in settings)}
        result = check(root, data=DataConfig(**{key: _value(text) for key, text in keys.items()}))
        found = [f for f in result.findings if f.row == row and f.severity == severity]
        assert found, [f.line() for f in result.findings]
        finding = found[0]
        said = f"{finding.line()} {finding.remedy}"
        for phrase in phrases:
            assert phrase in said
        assert case is None or finding.case == case
        if severity == "error":
            assert {f.row for f in result.errors} == {row}, "one fault, one kind of error"
            with pytest.raises(UserError) as caught:
                result.raise_errors()
            assert caught.value.exit_code == code
            assert finding.text in str(caught.value)
        else:
            assert result.exit_code == 0
            result.raise_errors()
        capsys.readouterr()
        assert main(["check", str(root), "--json", *settings]) == (code if severity == "error" else 0)
        answer = json.loads(capsys.readouterr().out)
        assert row in [one["row"] for one in answer["findings"]]
        assert snapshot(root) == before
        return result, finding

    return run


def _value(text: str) -> object:
    import yaml

    return yaml.safe_load(text)


SMALL = (
    "device=cpu", "method.name=supervised", "network.options={base: 4, limit: 8}", "train.steps=12", "train.batch=2",
    "train.patch=[32, 32]", "train.threads=1", "train.picture_every=1000", "train.checkpoint_every=4",
)  # fmt: skip


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training cases of 32 x 32: the 12 steps of `train_words` are one epoch."""
    return make_phantom(tmp_path_factory.mktemp("phantoms"), train=24, test=0, shape=(32, 32))


@pytest.fixture(scope="session")
def train_words(phantoms: Path) -> Callable[..., list[str]]:
    """The command line of a training of two seconds."""
    return lambda out, *more: ["train", str(phantoms), "-o", str(out), *SMALL, *more]


@pytest.fixture(scope="session")
def straight(train_words: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a training that nothing disturbed."""
    out = tmp_path_factory.mktemp("straight") / "run"
    assert main(train_words(out)) == 0
    return out


def _files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.fixture
def same_as_straight(straight: Path) -> Callable[[Path], None]:
    """Weights and figures are those of the undisturbed run, to the last bit, and nothing else was left."""

    def compare(out: Path) -> None:
        for name in ("model.safetensors", "metrics.jsonl"):
            assert (out / name).read_bytes() == (straight / name).read_bytes(), name
        assert _files(out) == _files(straight)

    return compare


@pytest.fixture
def fork(tmp_path: Path) -> Iterator[Callable[..., Fork]]:
    """Start calls in forked children; killed at the end of the test."""
    if not hasattr(os, "fork"):
        pytest.skip("children are forked")
    begun: list[Fork] = []

    def start(function: Callable[[], object]) -> Fork:
        begun.append(Fork(function, tmp_path / f"fork-{len(begun)}.log"))
        return begun[-1]

    yield start
    for one in begun:
        one.kill()
        one.wait()


@pytest.fixture
def forked(fork: Callable[..., Fork]) -> Callable[..., tuple[int, str]]:
    """Run a call in a forked child: exit code and all it printed; skips where the system forbids what it needs."""

    def run(function: Callable[[], object]) -> tuple[int, str]:
        child = fork(function)
        code = child.wait()
        if code == NOT_ALLOWED:
            pytest.skip("not allowed here: " + child.said().splitlines()[-1])
        assert code != 78, child.said()
        return code, child.said()

    return run
