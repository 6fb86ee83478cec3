"""`predict` end to end with networks whose answer is known, on files that other programs wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import entropy
from torch import Tensor

from maskmend.config import Config
from maskmend.data.fingerprint import ChannelFacts, Fingerprint, Intensity
from maskmend.data.plan import ChannelPlan, Plan
from maskmend.errors import DataError, Interrupted, UsageError
from maskmend.methods.base import Method
from maskmend.predict.run import predict

CUT = 100.0


class Threshold(Method):
    """Class 1 where the first channel exceeds `CUT`; counts calls."""

    calls = 0

    def predict(self, image: Tensor) -> Tensor:
        type(self).calls += 1
        p = torch.sigmoid(0.2 * (image[:, :1] - CUT))
        return torch.cat([1 - p, p], 1)


@dataclass
class Analytic:
    """Stands in for a run."""

    folder: Path
    plan: Plan
    config: Config = field(default_factory=Config)
    fingerprint: Fingerprint | None = None
    make: Callable[[], Method] = Threshold

    def method(self) -> Method:
        return self.make()


def analytic(folder: Path, ndim: int, *, channels: int = 1, **plan: Any) -> Analytic:
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    settings: dict[str, Any] = {
        "ndim": ndim,
        "spacing_mm": (1.0,) * ndim,
        "channels": tuple(ChannelPlan(name=f"c{i}", scheme="none") for i in range(channels)),
        "classes": {"background": 0, "organ": 7},
        "patch": (16,) * ndim,
        "batch": 2,
        "depth": 2,
        "flips": (False,) * ndim,
    }
    return Analytic(folder, Plan(**{**settings, **plan}))


def write_png(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def pictures(folder: Path, count: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 200, (11 + 13 * i, 37 - 5 * i), dtype=np.uint8) for i in range(count)]
    for i, array in enumerate(arrays):
        write_png(folder / f"p{i}.png", array)
    return arrays


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    Threshold.calls = 0


def test_folder_of_pngs(tmp_path: Path) -> None:
    arrays = pictures(tmp_path / "in")
    paths = predict(analytic(tmp_path / "run", 2), tmp_path / "in", tmp_path / "out")
    assert [p.name for p in paths] == ["p0.png", "p1.png", "p2.png"]
    for path, array in zip(paths, arrays, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), np.where(array > CUT, 7, 0))


def test_oblique_anisotropic_volume_comes_back_on_its_own_grid(tmp_path: Path) -> None:
    x, y, z = np.mgrid[:31, :23, :9]
    ball = ((x - 15) * 0.8) ** 2 + ((y - 11) * 0.9) ** 2 + ((z - 4) * 3.0) ** 2
    volume = (200 - ball).astype(np.float32)  # smooth, so the cut hardly moves by interpolation
    turn = nibabel.eulerangles.euler2mat(0.3, -0.2, 0.5)
    affine = nibabel.affines.from_matvec(turn @ np.diag([0.8, 0.9, 3.0]), [-20, 5, 33])
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "in" / "oblique.nii.gz")
    run = analytic(tmp_path / "run", 3, spacing_mm=(2.0, 1.0, 1.0), spacing_tolerance=0.0)
    (path,) = predict(run, tmp_path / "in", tmp_path / "out", save=["labels", "probs", "uncertainty"])
    label = nibabel.load(path)
    np.testing.assert_allclose(label.affine, affine, atol=1e-5)
    got, expected = np.asarray(label.dataobj), volume > CUT
    assert set(np.unique(got)) == {0, 7}
    inside = (got == 7) & expected
    assert 2 * inside.sum() / ((got == 7).sum() + expected.sum()) > 0.95
    probs = nibabel.load(tmp_path / "out" / "probs" / "oblique.nii.gz")
    assert probs.shape == (31, 23, 9, 2)
    np.testing.assert_allclose(probs.affine, affine, atol=1e-5)
    np.testing.assert_allclose(np.asarray(probs.dataobj).sum(-1), 1, atol=2e-3)
    np.testing.assert_array_equal(np.asarray(probs.dataobj).argmax(-1) * 7, got)
    unsure = nibabel.load(tmp_path / "out" / "uncertainty" / "oblique.nii.gz")
    np.testing.assert_allclose(
        np.asarray(unsure.dataobj), entropy(np.asarray(probs.dataobj), base=2, axis=-1), atol=5e-3
    )


def test_cropped_border_is_background(tmp_path: Path) -> None:
    image = np.zeros((40, 50), np.uint8)
    image[10:25, 20:41] = 150
    write_png(tmp_path / "in" / "a.png", image)
    (path,) = predict(analytic(tmp_path / "run", 2, crop=True), tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), np.where(image > 0, 7, 0))


def test_single_file_into_folder_and_into_file(tmp_path: Path) -> None:
    array = pictures(tmp_path / "in", 1)[0]
    run = analytic(tmp_path / "run", 2)
    source = tmp_path / "in" / "p0.png"
    assert predict(run, source, tmp_path / "out") == [tmp_path / "out" / "p0.png"]
    assert predict(run, source, tmp_path / "answer.png", save=["labels", "uncertainty"]) == [
        tmp_path / "answer.png"
    ]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "answer.png")) > 0, array > CUT)
    assert np.asarray(Image.open(tmp_path / "answer_uncertainty.png")).shape == array.shape
    with pytest.raises(UsageError, match="exists already"):
        predict(run, source, tmp_path / "answer.png")


def test_jpeg_gives_png_and_probabilities_as_numpy(tmp_path: Path) -> None:
    array = np.full((20, 30), 180, np.uint8)
    array[:, :10] = 20
    (tmp_path / "in").mkdir()
    Image.fromarray(array).save(tmp_path / "in" / "a.jpg", quality=100)
    (path,) = predict(
        analytic(tmp_path / "run", 2), tmp_path / "in", tmp_path / "out", save=["labels", "probs"]
    )
    assert path.name == "a.png"
    probs = np.load(tmp_path / "out" / "probs" / "a.npz")["probs"]
    assert probs.shape == (2, 20, 30)
    np.testing.assert_array_equal(probs.argmax(0), array > CUT)


def test_channels_in_files_of_their_own(tmp_path: Path) -> None:
    arrays = pictures(tmp_path / "in", 1)
    (tmp_path / "in" / "p0.png").rename(tmp_path / "in" / "a_0000.png")
    write_png(tmp_path / "in" / "a_0001.png", np.zeros_like(arrays[0]))
    run = analytic(tmp_path / "run", 2, channels=2)
    for source in (tmp_path / "in", tmp_path / "in" / "a_0000.png"):
        (path,) = predict(run, source, tmp_path / "out")
        assert path.name == "a.png"
        np.testing.assert_array_equal(np.asarray(Image.open(path)) > 0, arrays[0] > CUT)
    (tmp_path / "in" / "a_0001.png").unlink()
    with pytest.raises(DataError, match=r"a_0001\.png is missing"):
        predict(run, tmp_path / "in" / "a_0000.png", tmp_path / "out2")
    with pytest.raises(UsageError, match=r"1 channel\(s\), the run was trained on 2"):
        predict(run, tmp_path / "in", tmp_path / "out2")


@pytest.mark.parametrize("layout", ["images", "imagesTs", "imagesTs alone"])
def test_data_sets(tmp_path: Path, layout: str) -> None:
    data, suffix = tmp_path / "data", "" if layout == "images" else "_0000"
    folder = data / layout.split()[0]
    for name in ("a", "b"):
        write_png(folder / f"{name}{suffix}.png", np.full((9, 9), 150, np.uint8))
    if layout == "imagesTs":
        write_png(data / "imagesTr" / "t_0000.png", np.zeros((9, 9), np.uint8))
        write_png(data / "labelsTr" / "t.png", np.zeros((9, 9), np.uint8))
        content = {
            "channel_names": {"0": "US"},
            "labels": {"background": 0, "organ": 1},
            "file_ending": ".png",
        }
        (data / "dataset.json").write_text(json.dumps({**content, "numTraining": 1}))
    source = folder if "alone" in layout else data
    paths = predict(analytic(tmp_path / "run", 2), source, tmp_path / "out")
    assert [p.name for p in paths] == ["a.png", "b.png"]


def test_model_and_data_disagree(tmp_path: Path) -> None:
    pictures(tmp_path / "in")
    with pytest.raises(UsageError, match=r"2-D, the run was trained on 3-D.*\(and 2 more\)"):
        predict(analytic(tmp_path / "run3", 3), tmp_path / "in", tmp_path / "out")
    with pytest.raises(UsageError, match=r"1 channel.*trained on 3"):
        predict(analytic(tmp_path / "run2", 2, channels=3), tmp_path / "in", tmp_path / "out")
    assert Threshold.calls == 0
    assert not (tmp_path / "out").exists()


def test_goes_on_where_it_stopped(tmp_path: Path) -> None:
    pictures(tmp_path / "in")
    run = analytic(tmp_path / "run", 2)
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if done == 2 and len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="stopped after 2 of 3"):
        predict(run, tmp_path / "in", tmp_path / "out", batch=1, progress=stop)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.png")}
    assert len(before) == 2
    assert len(predict(run, tmp_path / "in", tmp_path / "out", progress=stop)) == 3
    assert seen == [1, 2, 1]
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    calls = Threshold.calls
    predict(run, tmp_path / "in", tmp_path / "out")
    assert Threshold.calls == calls


def test_results_of_two_models_or_images_are_not_mixed(tmp_path: Path) -> None:
    pictures(tmp_path / "in")
    run = analytic(tmp_path / "run", 2)
    predict(run, tmp_path / "in", tmp_path / "out")
    with pytest.raises(UsageError, match="another overlap"):
        predict(run, tmp_path / "in", tmp_path / "out", overlap=0.25)
    (tmp_path / "run" / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(UsageError, match="another model"):
        predict(run, tmp_path / "in", tmp_path / "out")
    predict(run, tmp_path / "in", tmp_path / "out", overwrite=True)
    image = write_png(tmp_path / "in" / "p0.png", np.full((5, 6), 190, np.uint8))
    with pytest.raises(UsageError, match="another image named 'p0'"):
        predict(run, tmp_path / "in", tmp_path / "out")
    predict(run, image, tmp_path / "out", overwrite=True)
    assert (np.asarray(Image.open(tmp_path / "out" / "p0.png")) == 7).all()


def test_images_and_foreign_files_are_never_replaced(tmp_path: Path) -> None:
    pictures(tmp_path / "in")
    run = analytic(tmp_path / "run", 2)
    before = (tmp_path / "in" / "p0.png").read_bytes()
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="among the input images"):
            predict(run, tmp_path / "in", tmp_path / "in", overwrite=overwrite)
        with pytest.raises(UsageError, match="among the input images"):
            predict(run, tmp_path / "in" / "p0.png", tmp_path / "in" / "p0.png", overwrite=overwrite)
    assert (tmp_path / "in" / "p0.png").read_bytes() == before
    write_png(tmp_path / "out" / "p1.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(UsageError, match="no prediction recorded it"):
        predict(run, tmp_path / "in", tmp_path / "out")


def test_a_broken_file_does_not_stop_the_others(tmp_path: Path) -> None:
    pictures(tmp_path / "in")
    broken = tmp_path / "in" / "p1.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    run = analytic(tmp_path / "run", 2)
    with pytest.raises(DataError, match=r"1 of 3 cases were not predicted(.|\n)*p1"):
        predict(run, tmp_path / "in", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["p0.png", "p2.png"]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        predict(analytic(tmp_path / "run", 2), tmp_path / "nowhere", tmp_path / "out")


def test_wrong_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"predict\.overlap"):
        predict(analytic(tmp_path / "run", 2), tmp_path, tmp_path / "out", overlap=1.5)


def _fingerprint() -> Fingerprint:
    seen = Intensity(minimum=-1000, p00_5=-990, median=0, p99_5=900, maximum=1500, mean=0, std=300)
    return Fingerprint(ndim=2, cases=(), channels=(ChannelFacts(name="CT", all=seen, foreground=None),))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0, 1), "in training in -1000 to 1500"),
        ((5000, 9000), "5000"),
        ((-1000, 4000), "in training in -1000 to 1500"),
        ((-1000, 1000), None),
        ((3, 3), "every voxel"),
    ],
)
def test_far_intensities_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: tuple[int, int], text: str | None
) -> None:
    volume = np.tile(np.linspace(*values, 40, dtype=np.float32), (30, 1))
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
    run = analytic(tmp_path / "run", 2)
    run.fingerprint = _fingerprint()
    predict(run, tmp_path / "a.nii.gz", tmp_path / "out")
    told = capsys.readouterr()
    assert told.out == ""
    assert ("warning: a: channel c0" in told.err) == (text is not None)
    assert (text or "") in told.err


def test_nan_is_told_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume = np.tile(np.linspace(0, 200, 50, dtype=np.float32), (50, 1))
    volume[0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
    predict(analytic(tmp_path / "run", 2), tmp_path / "a.nii.gz", tmp_path / "out")
    assert "1 NaN" in capsys.readouterr().err
    volume[:3] = np.nan
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "b.nii.gz")
    with pytest.raises(DataError, match=r"6\.0% of the voxels"):
        predict(analytic(tmp_path / "run", 2), tmp_path / "b.nii.gz", tmp_path / "out")


def test_record_holds_no_paths(tmp_path: Path) -> None:
    pictures(tmp_path / "in")
    predict(analytic(tmp_path / "run", 2), tmp_path / "in", tmp_path / "out")
    text = (tmp_path / "out" / "predict.json").read_text()
    assert str(tmp_path) not in text
    assert sorted(json.loads(text)["images"]) == ["p0", "p1", "p2"]
