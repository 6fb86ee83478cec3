"""Work lists and open commands: what shells, MONAI, CVAT and Label Studio would read, read back by other means."""

from __future__ import annotations

import ast
import csv
import io
import json
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import unquote

import nibabel
import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from PIL import Image, ImageDraw
from tests.audit.conftest import decathlon, without_affine

from maskmend.audit.cvat import _voc_colour
from maskmend.audit.export import write_exports
from maskmend.audit.files import CaseFiles, by_id, case_files
from maskmend.audit.record import CaseRecord, StructureFinding
from maskmend.audit.viewers import open_commands, place_mm
from maskmend.data.case import Case, Dataset, Geometry
from maskmend.data.images import write_image, write_label

AWKWARD = "a b'c\"d$(echo x)`y`;ü%&"
LABELS = {"background": 0, "big <&> organ": 1, "core": 5}


NAPARI = """
import json
class Layer: pass
class Viewer:
    def __init__(self):
        self.dims, self.seen, Viewer.last = Layer(), [], self
    def add(self, kind, what, more):
        layer = Layer()
        self.seen.append([kind, what, more, layer])
        return layer
    def add_image(self, array, **more):
        return self.add("image", list(array.shape), more)
    def add_points(self, places, **more):
        return self.add("points", places, more)
    def add_labels(self, array, **more):
        return self.add("labels", int(array.max()), more)
def run():
    seen = [[*one[:2], one[2] | vars(one[3])] for one in Viewer.last.seen]
    print(json.dumps([seen, Viewer.last.dims.current_step]))
"""
"""A stand-in that tells what it was given."""


def record(case: str, priority: float = 0.5, shape: tuple[int, ...] = (24, 30), **more: object) -> CaseRecord:
    worst = tuple(n // 3 + i for i, n in enumerate(shape))
    return CaseRecord(
        case, priority, 0.8, 0.7, 0.9, 0.6, 40.0, 0.2, "over-drawn", 0.75, worst,
        shape=shape, spacing_mm=(1.0,) * len(shape), **more,  # type: ignore[arg-type]
    )  # fmt: skip


def flat_case(root: Path, name: str, seed: int = 0) -> Case:
    """An image and a mask of an ellipse, a square, a far speck of three pixels, and a hole."""
    rng, geometry = np.random.default_rng(seed), Geometry((24, 30), (1.0, 1.0))
    mask = np.zeros((24, 30), np.uint8)
    y, x = np.mgrid[:24, :30]
    mask[((y - 10) / 7) ** 2 + ((x - 9) / 6) ** 2 < 1] = 1
    mask[8:14, 18:26] = 5
    mask[20, 2:5] = 1
    mask[10, 9] = 0
    write_image(root / "images" / f"{name}.png", rng.integers(0, 255, (1, 24, 30)).astype(np.uint8), geometry)
    write_label(root / "labels" / f"{name}.png", mask, geometry)
    return Case(name, (root / "images" / f"{name}.png",), root / "labels" / f"{name}.png")


def flat_set(root: Path, count: int = 3) -> Dataset:
    return Dataset(root, "folders", tuple(flat_case(root, f"p {i} ü", i) for i in range(count)), LABELS)


def mask_of(case: Case) -> np.ndarray:
    assert case.label is not None
    return np.asarray(Image.open(case.label))


# ---- commands ---------------------------------------------------------------------------------------------------


def volume_files(root: Path) -> CaseFiles:
    folder = root / AWKWARD
    geometry = Geometry(
        (6, 7, 8), (2.0, 1.0, 1.0), np.array([[-1.0, 0, 0, 90], [0, 1, 0, -60], [0, 0, 2, 5], [0, 0, 0, 1]])
    )
    paths = [folder / f"{name}.nii.gz" for name in ("image", "given", "suggested", "noise")]
    write_image(paths[0], np.zeros((1, 6, 7, 8), np.float32), geometry)
    write_image(paths[3], np.zeros((1, 6, 7, 8), np.float32), geometry)
    for path in paths[1:3]:
        write_label(path, np.zeros((6, 7, 8), np.uint8), geometry)
    return CaseFiles((paths[0],), *paths[1:])


def test_commands_survive_a_posix_shell(tmp_path):
    """bash itself says which words arrive."""
    files = volume_files(tmp_path)
    commands = open_commands(record("c", shape=(6, 7, 8)), files, windows=False)
    assert [one.tool for one in commands] == ["ITK-SNAP", "3D Slicer", "napari"]
    for one in commands:
        script = f"printf '%s\\0' {one.command}"
        arrived = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout.decode()
        assert tuple(arrived.split("\0")[:-1]) == one.words
    assert commands[0].words == (
        "itksnap", "-g", str(files.noise_map), "-s", str(files.given), "-o", str(files.suggested), str(files.images[0]),
    )  # fmt: skip


def test_itk_snap_opens_on_the_image(tmp_path):
    """It shows the layer in large that is loaded last; only a main image may hold its channels in a fourth axis."""
    files = volume_files(tmp_path)
    image, *_, noise = map(str, files.all)

    def words(**more: Any) -> tuple[str, ...]:
        return open_commands(record("c", shape=(6, 7, 8)), replace(files, **more), windows=False)[0].words

    assert words()[-1] == image
    assert words(images=(files.images[0], files.all[1]))[-1] == image  # the first channel
    assert words(noise_map=None, suggested=None) == ("itksnap", "-g", image, "-s", str(files.given))
    assert words(channels=1)[-1] == image
    assert words(channels=2)[:3] == ("itksnap", "-g", image)
    assert words(channels=2)[-1] == noise


def test_the_python_in_the_commands_names_the_files(tmp_path):
    files = volume_files(tmp_path)
    told = record("c", shape=(6, 7, 8))
    code = {one.tool: one.words[-1] for one in open_commands(told, files)}
    for tool in ("3D Slicer", "napari"):
        compile(code[tool], tool, "exec")
    calls: list[tuple[str, object]] = []

    class Anything:
        def __init__(self, name: str) -> None:
            self.__dict__["name"] = name

        def __getattr__(self, key: str) -> Anything:
            return Anything(f"{self.name}.{key}")

        def __call__(self, *args: object, **kwargs: object) -> Anything:
            calls.append((self.name, args))
            return self

    exec(code["3D Slicer"], {"slicer": Anything("slicer")})
    assert ("slicer.util.loadVolume", (str(files.images[0]),)) in calls
    assert ("slicer.util.loadSegmentation", (str(files.suggested), {"name": "suggested"})) in calls
    jump = next(args for name, args in calls if name.endswith("JumpSlicesToLocation"))
    affine = nibabel.load(files.images[0]).affine
    expected = nibabel.affines.apply_affine(affine, [told.worst[2], told.worst[1], told.worst[0]])  # type: ignore[index]
    assert jump[:3] == pytest.approx(tuple(expected))  # type: ignore[index]


def opened_by_napari(root: Path, told: CaseRecord, files: CaseFiles) -> tuple[list[list[Any]], list[int]]:
    """What the window was given, and where it stands: the printed line runs, up to the window."""
    (root / "napari.py").write_text(NAPARI)
    command = next(one for one in open_commands(told, files) if one.tool == "napari")
    assert (
        command.words[0] == sys.executable
    )  # the Python that has the package, be its environment active or not
    answer = subprocess.run(command.words, capture_output=True, check=True, cwd=root, text=True)
    seen, step = json.loads(answer.stdout)
    return seen, step


def test_napari_commands_load_what_they_say(tmp_path):
    """The line runs with the real readers and a stand-in for the window."""
    case = flat_case(tmp_path, AWKWARD.replace('"', ""))
    files = CaseFiles(case.images, case.label, case.label, case.images[0])
    seen, step = opened_by_napari(tmp_path, record("c"), files)
    assert [one[:2] for one in seen] == [
        ["image", [1, 24, 30]],
        ["image", [24, 30]],
        ["points", [[8, 11]]],
        ["labels", 5],
        ["labels", 5],
    ]
    assert [one[2]["name"] for one in seen] == ["image", "noise", "worst place", "suggested", "given"]
    assert step == [8, 11]


def test_in_napari_one_sees_which_mask_is_which(tmp_path):
    """Both in the same colours and as outlines, nobody could tell them apart."""
    case = flat_case(tmp_path, "p")
    seen, _ = opened_by_napari(tmp_path, record("p"), CaseFiles(case.images, case.label, case.label))
    suggested, given = (more for kind, _, more in seen if kind == "labels")
    assert given["contour"] == 1
    assert "contour" not in suggested
    assert 0 < suggested["opacity"] < 0.5  # the image shows through


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.float32, 1)])
def test_the_noise_map_of_a_sound_mask_looks_empty(tmp_path, dtype, top):
    """Shown against what stands for 1: viewers stretch what they get, and a doubt of 0.02 would blaze."""
    files, told = volume_files(tmp_path), record("c", shape=(6, 7, 8))
    noise = np.zeros((1, 6, 7, 8), dtype)
    noise[0, 2, 3, 4] = np.array(0.02 * top).astype(dtype)
    assert files.noise_map is not None
    write_image(files.noise_map, noise, Geometry((6, 7, 8), (2.0, 1.0, 1.0)))
    seen, _ = opened_by_napari(tmp_path, told, files)
    assert seen[1][2]["contrast_limits"] == [0, top]
    slicer, _ = opened_by_slicer(told, files)
    look = slicer.util.loadVolume.results["noise"].GetDisplayNode()
    look.SetWindowLevelMinMax.assert_called_once_with(0, top)
    look.SetThreshold.assert_called_once_with(pytest.approx(0.05 * top), top)


def test_commands_for_files_of_four_axes(tmp_path):
    found = decathlon(tmp_path)
    told = record("p", shape=(8, 10, 12))
    files = case_files(told, tmp_path / "audit", found, by_id(found))
    seen, step = opened_by_napari(tmp_path, told, files)
    assert [one[:2] for one in seen] == [
        ["image", [2, 8, 10, 12]],
        ["points", [list(told.worst or ())]],
        ["labels", 1],
    ]
    assert step == list(told.worst or ())
    z, y, x = told.worst or ()
    assert place_mm(told, files) == (x * 1.0, y * 1.5, z * 2.0)


def test_where_the_spacing_is_overridden_only_napari_knows_it(tmp_path):
    files = replace(volume_files(tmp_path), spacing_mm=(2.0, 1.0, 1.0))
    told = record("c", shape=(6, 7, 8))
    assert [one.tool for one in open_commands(told, files)] == [
        "ITK-SNAP",
        "3D Slicer",
        "napari",
    ]  # as in the files
    other = replace(files, spacing_mm=(5.0, 1.0, 1.0))
    assert [one.tool for one in open_commands(told, other)] == ["napari"]
    for path in files.all[:3]:
        without_affine(path)
    assert [one.tool for one in open_commands(told, files)] == ["napari"]
    assert opened_by_napari(tmp_path, told, files)[0][0][:2] == ["image", [1, 6, 7, 8]]


def opened_by_slicer(told: CaseRecord, files: CaseFiles) -> tuple[mock.MagicMock, list[tuple[str, str]]]:
    """The printed script on a stand-in: it, and what was loaded how, in turn. What a load returned is in `results`."""
    code = next(one.words[-1] for one in open_commands(told, files) if one.tool == "3D Slicer")
    slicer, loaded = mock.MagicMock(), []
    for kind in ("loadVolume", "loadLabelVolume", "loadSegmentation"):
        load = getattr(slicer.util, kind)

        def answer(path, properties=None, kind=kind, load=load):
            loaded.append((kind, path))
            node = mock.MagicMock(path=path, properties=properties)
            load.results[(properties or {}).get("name", path)] = node
            return node

        load.results, load.side_effect = {}, answer
    exec(code, {"slicer": slicer})
    return slicer, loaded


def test_slicer_lays_the_noise_map_over_the_image(tmp_path):
    files = volume_files(tmp_path)
    slicer, _ = opened_by_slicer(record("c", shape=(6, 7, 8)), files)
    (call,) = slicer.util.setSliceViewerLayers.call_args_list
    assert call.kwargs["foreground"].path == str(files.noise_map)
    assert call.kwargs["foreground"].properties["show"] is False  # it must not take the image's place
    assert 0 < call.kwargs["foregroundOpacity"] < 1
    masks = slicer.util.loadSegmentation.results
    masks["given"].GetDisplayNode().SetVisibility2DFill.assert_called_once_with(False)
    masks["suggested"].GetDisplayNode().SetVisibility2DOutline.assert_called_once_with(False)


def test_slicer_shows_the_first_channel(tmp_path):
    """What it loads last it shows."""
    files = volume_files(tmp_path)
    several = replace(files, images=(files.images[0], files.all[1]), noise_map=None)
    _, loaded = opened_by_slicer(record("c", shape=(6, 7, 8)), several)
    assert [path for kind, path in loaded if kind == "loadVolume"][-1] == str(files.images[0])


def test_slicer_shows_both_masks_of_a_picture(tmp_path):
    """It reads no segmentation from a PNG, and of label volumes the one loaded last hides the other."""
    case = flat_case(tmp_path, "p")
    assert case.label is not None
    mended = tmp_path / "mended.png"
    mended.write_bytes(case.label.read_bytes())
    slicer, loaded = opened_by_slicer(record("p"), CaseFiles(case.images, case.label, mended))
    assert loaded[1:] == [("loadLabelVolume", str(case.label)), ("loadLabelVolume", str(mended))]
    names = [call.args[1] for call in slicer.mrmlScene.AddNewNodeByClass.call_args_list]
    imported = slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode.call_args_list
    removed = [call.args[0].path for call in slicer.mrmlScene.RemoveNode.call_args_list]
    assert names == ["given", "suggested"]
    assert [call.args[0].path for call in imported] == removed == [str(case.label), str(mended)]
    for node in slicer.util.loadLabelVolume.results.values():
        assert node.properties["singleFile"] is True  # or p1.png, p2.png, ... became one volume


def test_windows_quoting_is_that_of_its_own_parser(tmp_path):
    command = open_commands(record("c", shape=(6, 7, 8)), volume_files(tmp_path), windows=True)[0]
    assert command.command == subprocess.list2cmdline(command.words)
    assert f'"{tmp_path}' in command.command


@pytest.mark.parametrize("windows", [False, True])
def test_python_in_a_command_holds_nothing_that_a_shell_expands(tmp_path, windows):
    """cmd.exe ends a quoted word at any double quote and fills in %NAME% within; PowerShell fills in $name."""
    name = "a'b\"c %PATH% $HOME `x` & | > ^ \\ \n ü (1)"
    files = replace(volume_files(tmp_path), images=(tmp_path / name,))
    for one in open_commands(record("c", shape=(6, 7, 8)), files, windows=windows):
        if one.tool == "ITK-SNAP":
            continue
        code = one.words[-1]
        assert not set(code) & set("%$`\n" + ('"' if windows else "'"))
        texts = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
        assert str(tmp_path / name) in texts


def test_pictures_are_not_for_itk_snap(tmp_path):
    case = flat_case(tmp_path, "p")
    files = CaseFiles(case.images, case.label)
    assert [one.tool for one in open_commands(record("p"), files)] == ["3D Slicer", "napari"]
    assert "loadLabelVolume" in open_commands(record("p"), files)[0].command
    assert open_commands(record("p"), CaseFiles((), case.label)) == []
    assert place_mm(record("p", shape=(6, 7, 8)), CaseFiles((tmp_path / "gone.nii.gz",))) is None


def test_the_record_wins_over_the_data_set(tmp_path):
    found = flat_set(tmp_path, 1)
    told = record("p 0 ü", label="mine/p.png", suggested="suggested/p.png")
    files = case_files(told, tmp_path / "audit", found, by_id(found))
    assert files.images == found.cases[0].images
    assert files.given == tmp_path / "audit" / "mine" / "p.png"
    assert files.suggested == tmp_path / "audit" / "suggested" / "p.png"


# ---- lists --------------------------------------------------------------------------------------------------------


def test_the_work_list_is_worst_first_and_harmless(tmp_path):
    found = flat_set(tmp_path)
    ids = [case.id for case in found.cases]
    finding = StructureFinding("holes", "", "1 hole", 0.5)
    records = [
        record(ids[0], 0.1),
        record(ids[1], 0.9, structure=(finding,), rater="=cmd|' /C calc'!A0"),
        record(ids[2], 0.4),
    ]
    write_exports(tmp_path / "out", found, records)
    rows = list(csv.DictReader((tmp_path / "out" / "export" / "worklist.csv").open(encoding="utf-8")))
    assert [row["case"] for row in rows] == [ids[1], ids[2], ids[0]]
    assert rows[0]["findings"] == "holes: 1 hole"
    assert rows[0]["worst_x_y_z"] == "11 8"
    assert rows[0]["rater"].startswith("'=")
    assert shlex.split(rows[0]["slicer"])[0] == "Slicer"
    limited = write_exports(tmp_path / "few", found, records, limit=1)
    assert len((limited[0]).read_text().splitlines()) == 2


def test_monai_reads_its_list(tmp_path):
    found = flat_set(tmp_path)
    write_exports(tmp_path / "out", found, [record(case.id) for case in found.cases])
    entries = load_decathlon_datalist(tmp_path / "out" / "export" / "monai_datalist.json", True, "training")
    assert [Path(entry["image"]).is_file() for entry in entries] == [True] * 3
    assert [entry["label"] for entry in entries] == [str(case.label) for case in found.cases]


def test_cvat_gets_masks_back_from_their_colours(tmp_path):
    found = flat_set(tmp_path)
    write_exports(tmp_path / "out", found, [record(case.id, i / 10) for i, case in enumerate(found.cases)])
    folder = tmp_path / "out" / "export" / "cvat"
    order = [found.cases[i] for i in (2, 1, 0)]
    assert (folder / "files.txt").read_text("utf-8").splitlines() == [str(case.images[0]) for case in order]
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text("utf-8").splitlines()]
    assert lines[1] == {"type": "images"}
    assert [(line["name"], line["extension"], line["width"], line["height"]) for line in lines[2:]] == [
        (case.id, ".png", 30, 24) for case in order
    ]
    with zipfile.ZipFile(folder / "annotations.zip") as archive:
        table = [
            line.split(":")
            for line in archive.read("labelmap.txt").decode().splitlines()
            if not line.startswith("#")
        ]
        colours = {name: tuple(map(int, colour.split(","))) for name, colour, *_ in table}
        assert set(colours) == {"background", "big <&> organ", "core"}
        assert archive.read("ImageSets/Segmentation/default.txt").decode().split("\n")[:-1] == [
            case.id for case in order
        ]
        for case in order:
            mask = mask_of(case)
            classes = np.asarray(Image.open(io.BytesIO(archive.read(f"SegmentationClass/{case.id}.png"))))
            for name, value in LABELS.items():
                np.testing.assert_array_equal((classes == colours[name]).all(-1), mask == value)
            objects = np.asarray(Image.open(io.BytesIO(archive.read(f"SegmentationObject/{case.id}.png"))))
            assert {tuple(c) for c in objects.reshape(-1, 3)} == {
                (0, 0, 0),
                (128, 0, 0),
                (0, 128, 0),
                (128, 128, 0),
            }
            assert (objects.any(-1) == (mask > 0)).all()
    labels = json.loads((folder / "labels.json").read_text("utf-8"))
    assert [tuple(bytes.fromhex(one["color"][1:])) for one in labels] == [
        colours[one["name"]] for one in labels
    ]


def test_object_colours_are_those_of_pascal_voc():
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 7: (128, 128, 128),
             8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}  # fmt: skip
    assert {index: _voc_colour(index) for index in known} == known


def test_label_studio_polygons_rasterise_to_the_mask(tmp_path):
    found = flat_set(tmp_path)
    write_exports(tmp_path / "out", found, [record(case.id, rater=AWKWARD) for case in found.cases])
    folder = tmp_path / "out" / "export" / "label_studio"
    tasks = json.loads((folder / "tasks.json").read_text("utf-8"))
    assert len(tasks) == 3
    config = ElementTree.parse(folder / "config.xml")
    assert [one.get("value") for one in config.iter("Label")] == ["big <&> organ", "core"]
    assert config.find("Image").get("value") == "$image"  # type: ignore[union-attr]
    for task, case in zip(tasks, found.cases, strict=True):
        served = unquote(task["data"]["image"].removeprefix("/data/local-files/?d="))
        assert (tmp_path.resolve() / served).is_file() or (tmp_path.resolve().parent / served).is_file()
        (prediction,) = task["predictions"]
        canvas = {name: Image.new("1", (300, 240)) for name in LABELS}
        for one in prediction["result"]:
            (name,) = one["value"]["polygonlabels"]
            points = [
                (x * 3 - 0.5, y * 2.4 - 0.5) for x, y in one["value"]["points"]
            ]  # ten pixels for each one
            ImageDraw.Draw(canvas[name]).polygon(points, fill=1)
        mask = mask_of(case).copy()
        mask[10, 9] = 1  # polygons have no holes
        for name in ("big <&> organ", "core"):
            drawn = np.asarray(canvas[name]).reshape(24, 10, 30, 10).mean((1, 3)) > 0.5
            wanted = mask == LABELS[name]
            assert (drawn != wanted).sum() <= 0.05 * wanted.sum()
    rows = list(csv.DictReader((folder / "tasks.csv").open(encoding="utf-8")))
    assert [row["image"] for row in rows] == [task["data"]["image"] for task in tasks]


def test_suggested_masks_go_out_where_there_are_some(tmp_path):
    found = flat_set(tmp_path, 1)
    (case,) = found.cases
    better = np.zeros((24, 30), np.uint8)
    better[2:9, 3:9] = 5
    write_label(tmp_path / "out" / "suggested" / "p.png", better, Geometry((24, 30), (1.0, 1.0)))
    write_exports(tmp_path / "out", found, [record(case.id, suggested="suggested/p.png")])
    with zipfile.ZipFile(tmp_path / "out" / "export" / "cvat" / "annotations.zip") as archive:
        classes = np.asarray(Image.open(io.BytesIO(archive.read(f"SegmentationClass/{case.id}.png"))))
    np.testing.assert_array_equal(classes.any(-1), better > 0)


def test_volumes_have_a_list_with_commands_and_none_for_picture_tools(tmp_path):
    files = volume_files(tmp_path)
    case = Case("v", files.images, files.given)
    found = Dataset(tmp_path, "folders", (case,), LABELS)
    write_exports(tmp_path / "out", found, [record("v", shape=(6, 7, 8))])
    folder = tmp_path / "out" / "export"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.txt",
        "monai_datalist.json",
        "worklist.csv",
    ]
    (row,) = csv.DictReader((folder / "worklist.csv").open(encoding="utf-8"))
    assert shlex.split(row["itk_snap"])[:2] == ["itksnap", "-g"]
    assert "do not show volumes" in (folder / "README.txt").read_text("utf-8")


def test_images_of_one_name_are_not_for_cvat(tmp_path):
    a, b = flat_case(tmp_path / "a", "p"), flat_case(tmp_path / "b", "p")
    found = Dataset(tmp_path, "csv", (a, Case("q", b.images, b.label)), LABELS)
    write_exports(tmp_path / "out", found, [record("p"), record("q")])
    folder = tmp_path / "out" / "export"
    assert not (folder / "cvat").exists()
    assert "share one" in (folder / "README.txt").read_text("utf-8")
    assert len(json.loads((folder / "label_studio" / "tasks.json").read_text("utf-8"))) == 2
