"""docs/benchmark.md: its example runs, its recipes make the data that the preset asks for."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmend.benchmark import grid, settings
from maskmend.benchmark.cases import prepare_cases
from maskmend.cli import main
from maskmend.data.images import read_label
from maskmend.noise.presets import PRESETS, make_noise

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/benchmark.md").read_text(encoding="utf-8")
EXAMPLE, CHEST, ATRIUM = re.findall(r"<!-- runnable -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_runs(tmp_path, monkeypatch, capsys) -> None:
    """With the method of CONTRIBUTING.md as the method of one's own."""
    code = re.search(r"   ```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
    (tmp_path / "mine.py").write_text(textwrap.dedent(code.rstrip(" ")))
    (tmp_path / "mine.yaml").write_text(EXAMPLE)
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", "mine.yaml", "-o", "out", "--workers", "0", "--json", "seeds=1"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["done"], answer["failed"]) == (5, 0)
    assert {one["method"] for one in answer["methods"]} == {"supervised", "pint", "late pint", "mine"}


def test_every_key_is_told() -> None:
    told = set(re.findall(r"^\| `(?:data\.NAME\.|noise\.NAME\.)?(\w+)`", PAGE, re.MULTILINE))
    told |= set(re.findall(r"`\.(\w+)`", PAGE))
    for section in (settings.Benchmark, settings.Data, settings.Noise):
        assert set(section.model_fields) - {"data", "noise"} <= told


def test_every_file_is_told(tmp_path, tiny, trials_of, result_of) -> None:
    from maskmend.benchmark.report import write_all

    found = trials_of(methods=["supervised", "pint", "sgl"], rates=[0.2, 0.5])
    plan = settings.validate(tiny())
    results = {t.key: result_of(t, 0.8) for t in found.trials}
    write_all(plan, found, results, tmp_path, {"seconds": 1.0, "runs": 1, "workers": 1})
    for path in tmp_path.iterdir():
        if path.suffix not in (".png", ".parquet"):
            assert f"`{path.name}`" in PAGE


def ellipse(shape: tuple[int, ...], centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    return (
        sum(((x - c * n) / (r * n)) ** 2 for x, c, r, n in zip(axes, centre, radii, shape, strict=True)) < 1
    )


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Downloads in the shape of JSRT, SCR and the atrial challenge, converted as the page says."""
    sitk = pytest.importorskip("SimpleITK")
    place = tmp_path_factory.mktemp("downloads")
    parts = {
        "left lung": ((0.5, 0.7), (0.3, 0.13)), "right lung": ((0.5, 0.3), (0.3, 0.13)),
        "heart": ((0.6, 0.55), (0.15, 0.12)), "left clavicle": ((0.25, 0.7), (0.03, 0.12)),
        "right clavicle": ((0.25, 0.3), (0.03, 0.12)),
    }  # fmt: skip
    for number in range(1, 5):
        name = f"JPCLN{number:03d}"
        film = np.full((2048, 2048), 4095 - 500 * number, ">u2")
        film[1000:] = 0
        (place / "JSRT").mkdir(exist_ok=True)
        film.tofile(place / "JSRT" / f"{name}.IMG")
        for part, (centre, radii) in parts.items():
            path = place / "scratch" / f"fold{2 - number % 2}" / "masks" / part / f"{name}.gif"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 * ellipse((1024, 1024), centre, radii).astype(np.uint8)).save(path)
    for number in range(4):
        folder = place / "Training Set" / f"SCAN{number}"
        folder.mkdir(parents=True)
        atrium = ellipse((88, 150, 160), (0.3 + 0.1 * number, 0.4, 0.6), (0.2, 0.1, 0.12))
        volumes = {
            "lgemri": np.where(atrium, 200, 50).astype(np.uint8),
            "laendo": 255 * atrium.astype(np.uint8),
        }
        for kind, array in volumes.items():
            volume = sitk.GetImageFromArray(array)
            volume.SetSpacing((0.625, 0.625, 1.25))
            volume.SetOrigin((10.0, -20.0, 30.0))
            sitk.WriteImage(volume, str(folder / f"{kind}.nrrd"), useCompression=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for recipe in (CHEST, ATRIUM):
            exec(compile(recipe, "recipe", "exec"), {})
    return place


def test_chest(converted: Path) -> None:
    for organ, area in (("lung", 2 * np.pi * 0.3 * 0.13), ("clavicle", 2 * np.pi * 0.03 * 0.12)):
        folder = converted / "data" / f"jsrt-{organ}"
        images, labels = (sorted((folder / kind).iterdir()) for kind in ("images", "labels"))
        assert [path.name for path in images] == [path.name for path in labels]
        assert len(images) == 4
        label = np.asarray(Image.open(labels[0]))
        assert label.shape == (256, 256)
        assert set(np.unique(label)) == {0, 1}
        assert label.mean() == pytest.approx(area, rel=0.02)
        image = np.asarray(Image.open(images[1]))
        assert (image[50, 50], image[200, 50]) == (
            round(255 * 1000 / 4095),
            255,
        )  # less film density, more bone


def test_atrium(converted: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    folder = converted / "data" / "left-atrium"
    for path in sorted((folder / "labels").iterdir()):
        whole = sitk.ReadImage(str(converted / "Training Set" / path.name[:5] / "laendo.nrrd"))
        crop = sitk.ReadImage(str(path))
        image = sitk.ReadImage(str(folder / "images" / path.name))
        assert image.GetSize() == crop.GetSize()
        assert all(n >= least for n, least in zip(crop.GetSize(), (112, 112, 80), strict=True))
        facts = []
        for mask in (sitk.Cast(whole > 0, sitk.sitkUInt8), crop):
            shape = sitk.LabelShapeStatisticsImageFilter()
            shape.Execute(mask)
            facts.append((shape.GetNumberOfPixels(1), shape.GetCentroid(1)))
        assert facts[0][0] == facts[1][0]  # nothing is cut off
        np.testing.assert_allclose(facts[0][1], facts[1][1], atol=0.01)  # and nothing moved


def test_the_preset_takes_them(converted: Path, tmp_path) -> None:
    names = ("jsrt-lung", "jsrt-heart", "jsrt-clavicle", "left-atrium")
    few = [f"data.{name}.{part}={n}" for name in names for part, n in (("train", 3), ("test", 1))]
    found = grid.build(settings.load("literature", [*few, "seeds=1"]), converted / "data")
    assert len(found.trials) == 265  # as its comment says
    assert {line.partition(":")[0] for line in found.skipped} == {
        f"mtcl on {name}, {noise}" for name in names[:3] for noise in ("small", "large")
    }
    wanted = {("jsrt-lung", "large", 0.7), ("jsrt-clavicle", "small", 0.3), ("left-atrium", "box", 1.0)}
    for trial in found.trials:
        if trial.method == "supervised" and (trial.data, trial.noise, trial.rate) in wanted:
            given = prepare_cases(trial, tmp_path / trial.key)
            wrong = [name for name, flawed in given.flawed.items() if flawed]
            assert len(wrong) == {"jsrt-lung": 2, "jsrt-clavicle": 1, "left-atrium": 3}[trial.data]
            for case in given.dataset.cases:
                assert set(np.unique(read_label(case.label)[0])) <= {0, 1}


@pytest.mark.parametrize("organ", ["lung", "heart", "clavicle"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_its_flaws_are_those_of_the_noise_presets(organ: str, size: str) -> None:
    """Which are for all three organs in one mask; a pixel of the converted images is 1 mm."""
    plan = settings.load("literature")
    own = settings.merged(plan.noise[size], plan.data[f"jsrt-{organ}"].noise[size])
    thirds = PRESETS[f"chest-xray-{size}"].noise.inner.options
    assert make_noise(own.kind).options == tuple(third.classes[organ] for third in thirds)


def test_the_preset_says_what_is_missing(tmp_path, capsys) -> None:
    assert main(["benchmark", "literature", "-o", str(tmp_path / "out"), "--data", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "jsrt-lung, jsrt-heart, jsrt-clavicle, left-atrium are not there" in said
    assert "docs/benchmark.md" in said
    assert not (tmp_path / "out").exists()


def test_a_gpu_that_is_not_there_is_told_once(tmp_path, tiny, capsys, monkeypatch) -> None:
    import torch
    import yaml

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tiny()))
    words = ["benchmark", str(tmp_path / "mine.yaml"), "-o", str(tmp_path / "out"), "settings.device=cuda"]
    assert main(words) == 2
    assert capsys.readouterr().err.count("no CUDA device is visible") == 1
    assert not (tmp_path / "out" / "runs").exists()


def test_the_half_size_bench_has_the_flaws_of_the_published_protocol() -> None:
    half = settings.load(ROOT / "bench/chest_xray.yaml")
    whole = settings.load("literature")
    assert {name: noise.kind for name, noise in half.noise.items()} == {
        name: whole.noise[name].kind for name in half.noise
    }
    for name, data in half.data.items():
        published = whole.data[name]
        assert (data.noise, data.train, data.test) == (published.noise, published.train, published.test)
