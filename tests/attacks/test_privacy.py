"""Names planted everywhere: none may come out in a report, a log or a result.

Headers, always. Folders: in reports and messages never, and with `--phi-safe` nowhere. Case ids: with `--phi-safe`
nowhere but in the file of names.
"""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from maskmend.audit.export import write_exports
from maskmend.benchmark.cases import open_dataset
from maskmend.cli import main
from maskmend.data.dataset import find_cases
from maskmend.errors import UsageError
from maskmend.pseudonyms import Pseudonyms, pseudonyms

HEADER, FOLDER, CASE, GROUP = "HEADERCANARY", "FOLDERCANARY", "CASECANARY", "PATIENTCANARY"
SMALL = (
    "device=cpu", "method.name=supervised", "train.steps=10", "train.batch=2", "train.threads=1",
    "train.checkpoint_every=5", "network.options={base: 4, limit: 8}",
)  # fmt: skip


def _flat_image(path: Path, pixels: np.ndarray) -> None:
    text = PngInfo()
    for key in ("Title", "Author", "Comment", "Description"):
        text.add_text(key, HEADER, zip=key == "Comment")
        text.add_itxt(key, HEADER)
    exif = Image.Exif()
    exif[270] = exif[315] = HEADER  # ImageDescription, Artist
    Image.fromarray(pixels).save(path, pnginfo=text, exif=exif)


def _volume(path: Path, voxels: np.ndarray) -> None:
    image = nibabel.Nifti1Image(voxels, np.diag([1, 1.5, 2, 1.0]))
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[field] = HEADER[: image.header[field].dtype.itemsize]
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", HEADER.encode()))
    nibabel.save(image, path)


@pytest.fixture(params=["png", "nii.gz"])
def planted(request, tmp_path):
    """Twelve cases with names in headers, ids, groups and the folders above; two raters."""
    root = tmp_path / f"{FOLDER} Anna" / "cohort"
    shape = (32, 32) if request.param == "png" else (16, 16, 8)
    for number in range(12):
        rng = np.random.default_rng(number)
        mask = np.zeros(shape, np.uint8)
        mask[tuple(slice(2, n - 4 - number % 3) for n in shape)] = 1
        image = (90 * mask + rng.integers(0, 60, shape)).astype(np.uint8)
        write = _flat_image if request.param == "png" else _volume
        for part, pixels in (
            ("images", image),
            ("labels", mask),
            ("labels_one", mask),
            ("labels_two", np.roll(mask, 1, 0)),
        ):
            (root / part).mkdir(parents=True, exist_ok=True)
            write(root / part / f"{CASE} {number:02d}.{request.param}", pixels)
    groups = {f"{CASE} {number:02d}": f"{GROUP}{number // 2}" for number in range(12)}
    sites = dict.fromkeys(groups, f"{GROUP} clinic")
    (root / "maskmend.json").write_text(json.dumps({"groups": groups, "sites": sites}))
    return root


def _bytes(root: Path) -> dict[str, bytes]:
    """Name and content of every file, with what is compressed in it."""
    found = {}
    for path in sorted(root.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        if path.name.endswith(".gz"):
            content += gzip.decompress(content)
        if path.suffix == ".parquet":
            from pyarrow import parquet

            content += repr(parquet.read_table(path).to_pylist()).encode()
        if content.startswith(b"\x89PNG"):
            for part in re.finditer(rb"(zTXt|iTXt|IDAT)", content):
                try:
                    content += zlib.decompressobj().decompress(content[part.end() :])
                except zlib.error:
                    continue
        found[str(path.relative_to(root))] = str(path.relative_to(root)).encode() + b"\0" + content
    return found


def _holding(root: Path, *words: str) -> dict[str, list[str]]:
    return {
        name: [word for word in words if word.encode() in content or word.encode("utf-16-le") in content]
        for name, content in _bytes(root).items()
        if any(word.encode() in content or word.encode("utf-16-le") in content for word in words)
    }


@pytest.fixture
def outside(tmp_path_factory, monkeypatch):
    """Results go to a folder that has nothing to do with the data's."""
    folder = tmp_path_factory.mktemp("results")
    monkeypatch.chdir(folder)
    return folder


def _commands(root: Path) -> list[list[str]]:
    audit = ["audit", str(root), "-o", "audit", *SMALL, "audit.folds=2"]
    return [
        ["check", str(root), "--json"],
        ["check", str(root), "--sheet", "sheet.png"],
        ["train", str(root), "-o", "run", *SMALL],
        ["predict", "run", str(root / "images"), "-o", "predicted", "--save", "labels,probs,uncertainty"],
        ["evaluate", "predicted", str(root), "-o", "scores.json"],
        ["raters", str(root), "-o", "raters", "--consensus", "majority"],
        audit,
        ["audit", str(root), "-o", "again", "--like", "audit"],
    ]


def _all(root: Path, capfd: pytest.CaptureFixture[str], *more: str) -> str:
    """Run every command; what they printed."""
    printed = ""
    for words in _commands(root):
        code = main([*words, *more])
        told = capfd.readouterr()
        printed += told.out + told.err
        assert code == 0, told.err
    return printed


def test_headers_and_folders_stay_where_they_are(planted, outside, capfd):
    assert _holding(planted, HEADER), "the canary is planted"
    printed = _all(planted, capfd)
    assert HEADER not in printed
    assert _holding(outside, HEADER) == {}
    telling = _holding(outside, FOLDER)
    # These say where the data lie because a later command or a viewer needs it; SECURITY.md lists them.
    answers = ("state.json", "audit.json", "audit.csv", "report.html")
    needed = {"run/run.json", *(f"{audit}/{name}" for audit in ("audit", "again") for name in answers)}
    assert set(telling) <= needed | {f"audit/folds/{number}/run.json" for number in range(2)}


def _dicom(path: Path, pixels: np.ndarray) -> None:
    import io

    from fuzz_seeds import dicom
    from pydicom import dcmread

    one = dcmread(io.BytesIO(dicom()[0]))
    for name in (
        "PatientName",
        "PatientID",
        "InstitutionName",
        "StudyDescription",
        "SeriesDescription",
        "ImageComments",
    ):
        setattr(one, name, HEADER)
    one.add_new((0x0009, 0x0010), "LO", HEADER)
    one.save_as(path)


def _nrrd(path: Path, pixels: np.ndarray) -> None:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(pixels)
    for key in ("patient", "comment", "Modality"):
        image.SetMetaData(key, HEADER)
    sitk.WriteImage(image, str(path))


def _tiff(path: Path, pixels: np.ndarray) -> None:
    import tifffile

    tifffile.imwrite(
        path, pixels, photometric="minisblack", description=HEADER, software=HEADER, metadata=None
    )


def _jpeg(path: Path, pixels: np.ndarray) -> None:
    exif = Image.Exif()
    exif[270] = exif[315] = HEADER
    Image.fromarray(pixels).save(path, exif=exif, comment=HEADER.encode())


@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        (".dcm", _dicom),
        (".nrrd", _nrrd),
        (".mha", _nrrd),
        (".tif", _tiff),
        (".jpg", _jpeg),
        (".png", _flat_image),
    ],
)
def test_headers_of_every_flat_format(run_folder, outside, tmp_path, capfd, suffix, write):
    """A prediction bears the image's grid and nothing else of its header."""
    source = tmp_path / f"one{suffix}"
    write(source, np.arange(120, dtype=np.uint8).reshape(12, 10))
    assert HEADER.encode() in source.read_bytes()
    for words in (
        ["predict", str(run_folder), str(source), "-o", "out", "--save", "labels,probs,uncertainty"],
        [
            "predict",
            str(run_folder),
            str(source),
            "-o",
            f"label{suffix if suffix not in ('.dcm', '.jpg') else '.png'}",
        ],
    ):
        assert main(words) == 0, capfd.readouterr().err
    assert len(_bytes(outside)) >= 4
    assert _holding(outside, HEADER) == {}
    told = capfd.readouterr()
    assert HEADER not in told.out + told.err


def test_phi_safe_hides_ids_patients_and_places(planted, outside, capfd, tmp_path):
    names = tmp_path / "kept apart" / "names.json"
    printed = _all(planted, capfd, "--phi-safe", str(names))
    for word in (HEADER, FOLDER, CASE, GROUP):
        assert word not in printed, [line for line in printed.splitlines() if word in line][:5]
    assert _holding(outside, HEADER, FOLDER, CASE, GROUP) == {}
    held = json.loads(names.read_text())
    assert os.name == "nt" or stat.S_IMODE(names.stat().st_mode) == 0o600
    cases = {original for name, original in held["names"].items() if name.startswith("case-")}
    assert {f"{CASE} {number:02d}" for number in range(12)} <= cases
    scored = json.loads((outside / "scores.json").read_text())
    assert {held["names"][row["case"]] for row in scored["rows"]} == {f"{CASE} {n:02d}" for n in range(12)}
    predicted = [path.name.split(".")[0] for path in (outside / "predicted").iterdir() if path.is_file()]
    assert {held["names"][name] for name in predicted if name != "predict"} == {
        f"{CASE} {n:02d}" for n in range(12)
    }


@pytest.mark.parametrize("planted", ["png"], indirect=True)
def test_a_name_typed_as_one_word(planted, outside, capfd, tmp_path):
    """Of a folder beside the results: it may be any word of a text, and is hidden wherever it is a place."""
    shutil.move(planted, FOLDER)
    printed = _all(Path(FOLDER), capfd, "--phi-safe", str(tmp_path / "names.json"))
    shutil.rmtree(FOLDER)
    Path(FOLDER).mkdir()
    assert main(["check", FOLDER, "--phi-safe", str(tmp_path / "names.json")]) == 2
    assert main(["evaluate", "predicted", f"{FOLDER}/none", "--phi-safe", str(tmp_path / "names.json")]) == 2
    Path(FOLDER).rmdir()
    printed += "".join(capfd.readouterr())
    assert "DATA: holds no data set" in printed or "DATA: is empty" in printed
    for word in (HEADER, FOLDER, CASE, GROUP):
        assert word not in printed, [line for line in printed.splitlines() if word in line][:5]
    assert _holding(outside, HEADER, FOLDER, CASE, GROUP) == {}


@pytest.mark.parametrize("planted", ["png"], indirect=True)
@pytest.mark.parametrize("typed", ["data", "train", "heart"])
def test_an_ordinary_word_as_folder_spoils_nothing(planted, outside, capfd, tmp_path, typed):
    """It is also a setting, a verb, a class: what is written works, and messages can be read."""
    side = json.loads((planted / "maskmend.json").read_text())
    (planted / "maskmend.json").write_text(json.dumps(side | {"labels": {"background": 0, "heart": 1}}))
    shutil.move(planted, typed)
    more = ["--phi-safe", str(tmp_path / "names.json")]
    assert main(["train", typed, "-o", "run", *SMALL, *more]) == 0, capfd.readouterr().err
    assert "data:\n" in Path("run/config.yaml").read_text()
    assert main(["predict", "run", f"{typed}/images", "-o", "predicted", *more]) == 0
    assert main(["audit", typed, "-o", "audit", "--run", "run", *more]) == 0
    told = capfd.readouterr()
    page = Path("audit/report.html").read_text()
    script = re.findall("<script>(.*?)</script>", page, re.S)
    assert base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode() in page
    assert "img-src 'self' file: data:" in page
    assert json.loads(Path("audit/audit.json").read_text())["facts"]["classes"] == {
        "background": 0,
        "heart": 1,
    }
    assert main(["check", typed, "data.labels={organ: 7}", "--json", *more]) == 3
    finding = json.loads(capfd.readouterr().out)["findings"][0]
    assert finding["remedy"] == "declare them: data.labels={background: 0, organ: 7, class_1: 1}"
    assert finding["file"].startswith("DATA/labels/case-")
    assert main(["evaluate", "predicted", "nowhere", *more]) == 2
    assert "the reference does not exist" in capfd.readouterr().err
    assert CASE not in told.err + told.out
    assert _holding(outside / "audit", CASE) == {}


def test_a_word_is_hidden_where_it_is_a_place(tmp_path):
    with pseudonyms(tmp_path / "names.json") as names:
        for place in ("anna", "data", "Li", "Smith Anna", "study/jones"):
            names.know_place(Path(place))
        text = "anna: drawn by hanna, not Li, in anna/images, data/case_1 of the data set, Smith Anna, study/jones"
        file = names.of("file", "case_1")
        wanted = f"DATA: drawn by hanna, not DATA, in DATA/images, DATA/{file} of the data set, DATA, DATA"
        assert names.clean(text) == wanted
        written = names.clean_paths("data: anna\nlabels: anna/labels, Smith Anna")
        assert written == "data: anna\nlabels: DATA/labels, DATA"


@pytest.mark.parametrize("planted", ["png"], indirect=True)
def test_screen_under_phi_safe(planted, outside, capfd, tmp_path):
    for number in range(12, 20):  # it wants twenty
        for part in ("images", "labels", "labels_one", "labels_two"):
            known = planted / part / f"{CASE} {number - 12:02d}.png"
            shutil.copyfile(known, planted / part / f"{CASE} {number:02d}.png")
    words = ["screen", str(planted), "--phi-safe", str(tmp_path / "names.json")]
    assert main([*words, "-o", "screen.csv"]) == 0, capfd.readouterr().err
    assert main([*words, "--json"]) == 0
    told = "".join(capfd.readouterr())
    assert "case-" in told
    for word in (HEADER, FOLDER, CASE, GROUP):
        assert word not in told, [line for line in told.splitlines() if word in line][:5]
    assert _holding(outside, HEADER, FOLDER, CASE, GROUP) == {}


ODD = ("{}, Anna {:02d}", "M\u00fcller {} & Sohn {:02d}", "it's {} <i>{:02d}", '"{}" {:02d}', "{}{:02d}")
"""File names whose ends cannot be seen in a text."""


def _listed(root: Path, away: Path) -> Path:
    """Twenty cases as a manifest: images elsewhere, in a folder with a name; the manifest; probabilities in `probs`."""
    lines = []
    for number in range(20):
        rng, mask = np.random.default_rng(number), np.zeros((32, 30), np.uint8)
        mask[4 : 22 - number % 3, 5 : 20 + number % 2] = 1
        name = ODD[number % len(ODD)].format(CASE, number)
        for path, pixels in (
            (away / f"{GROUP} sp\u00e4t, scans" / f"{name}.png", 90 * mask + rng.integers(0, 60, mask.shape)),
            (root / f"{GROUP} masks" / f"{name} m.png", mask),
            (root / "other" / f"{name} r.png", np.roll(mask, 1, 0)),
            (root / "ignored" / f"{name} i.png", 0 * mask),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
            lines.append(str(path))
        (root / "probs").mkdir(exist_ok=True)
        sure = 0.1 + 0.8 * mask
        np.savez(root / "probs" / f"{CASE} {number:02d}.npz", probabilities=np.stack([1 - sure, sure]))
    with (root / f"{GROUP} list.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "label", "rater_one", "ignore", "rater_two"])
        writer.writerows([f"{CASE} {n:02d}", *lines[4 * n : 4 * n + 4], lines[4 * n + 1]] for n in range(20))
    return root / f"{GROUP} list.csv"


def _folders(root: Path) -> Path:
    """The same as two folders, whose file names are the ids."""
    for number, path in enumerate(sorted((root / f"{GROUP} masks").iterdir())):
        for part, rolled in (("images", 0), ("labels", 0), ("labels_one", 1), ("labels_two", 2)):
            (root / "set" / part).mkdir(parents=True, exist_ok=True)
            pixels = np.roll(np.array(Image.open(path)), rolled, 0)
            shown = pixels * 90 + np.random.default_rng(number).integers(0, 60, pixels.shape)
            name = path.name.replace(" m.png", ".png")
            Image.fromarray((shown if part == "images" else pixels).astype(np.uint8)).save(
                root / "set" / part / name
            )
        number_at = re.search(r"(\d\d) m", path.name)
        assert number_at
        (root / "set" / "probs").mkdir(exist_ok=True)
        own = root / "probs" / f"{CASE} {number_at[1]}.npz"
        shutil.copyfile(own, root / "set" / "probs" / path.name.replace(" m.png", ".npz"))
    return root / "set"


@pytest.mark.parametrize("layout", ["csv", "folders"])
def test_names_of_any_characters_and_files_elsewhere(outside, capfd, tmp_path, layout):
    """What needs the paths later finds them all the same: `--like`, and the same command again."""
    source = _listed(tmp_path / f"{FOLDER} Anna", tmp_path / f"{FOLDER} elsewhere")
    probs = source.parent / "probs"
    if layout == "folders":
        source = _folders(source.parent)
        probs = source / "probs"
    more = ["--phi-safe", str(tmp_path / "names.json")]
    judged = ["audit", str(source), "--probs", str(probs), "device=cpu", *more]
    told = ""
    for words in (
        [*judged, "-o", "audit"],
        [*judged, "-o", "audit", "--json"],
        [*judged, "-o", "again", "--like", "audit"],
        ["screen", str(source), "-o", "screen.csv", *more],
        ["screen", str(source), "--json", *more],
        ["check", str(source), "--json", *more],
        ["raters", str(source), "-o", "raters", "--json", *more],
    ):
        assert main(words) == 0, capfd.readouterr().err
        said = capfd.readouterr()
        told += said.out + said.err
    assert "already finished" in told
    assert len(re.findall("case-[0-9a-f]{12}", (outside / "screen.csv").read_text())) >= 20
    hidden = (FOLDER, CASE, GROUP, "Anna", "ller", "Sohn", "scans")
    for word in hidden:
        assert word not in told, [line for line in told.splitlines() if word in line][:5]
    assert _holding(outside, *hidden) == {}
    assert json.loads((outside / "audit" / "audit.json").read_text())["records"][0]["label"].startswith(
        "DATA/"
    )
    first = next(path for path in probs.iterdir() if path.is_file())
    first.write_bytes(first.read_bytes() + b"more")
    assert main([*judged, "-o", "audit"]) == 2, "the files are the same no more"


def test_a_listed_file_that_is_missing(outside, capfd, tmp_path):
    root = tmp_path / f"{FOLDER} Anna"
    root.mkdir()
    (root / "list.csv").write_text(f'id,image,label\n1,"{GROUP} scans/{CASE}, A.png",x.png\n')
    assert main(["check", str(root / "list.csv"), "--phi-safe", str(tmp_path / "names.json")]) == 3
    told = "".join(capfd.readouterr())
    assert "does not exist" in told
    for word in (FOLDER, GROUP, CASE, "scans", ", A"):
        assert word not in told


def test_work_lists_are_refused(outside, capfd, tmp_path):
    """Before any work is done; they name the real files."""
    source = _listed(tmp_path / "data", tmp_path / "elsewhere")
    words = ["audit", str(source), "--probs", str(source.parent / "probs"), "-o", "audit", "--export", "3"]
    assert main([*words, "--phi-safe", str(tmp_path / "names.json")]) == 2
    assert "leave out --export" in capfd.readouterr().err
    assert not (outside / "audit").exists()
    with pseudonyms(tmp_path / "names.json"), pytest.raises(UsageError, match="name the real files"):
        write_exports(outside / "audit", find_cases(source), [])
    assert not (outside / "audit").exists()


def test_many_files_are_hidden_quickly(tmp_path):
    with pseudonyms(tmp_path / "names.json") as names:
        names.know_place(tmp_path)
        files = [tmp_path / "scans" / f"{CASE}, Anna {number}.png" for number in range(10_000)]
        names.know(path.stem for path in files)
        began = time.process_time()
        names.know_files(files)
        shown = names.clean_paths("\n".join(f'"{path}",1' for path in files))
        assert time.process_time() - began < 5
    assert CASE not in shown
    assert len(set(shown.splitlines())) == 10_000


def _benchmark(root: Path) -> list[str]:
    """The planted data set beside a copy of it with unreadable images, whose runs fail; the command."""
    broken = root.with_name("broken")
    shutil.copytree(root, broken)
    for path in (broken / "images").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    one = {"train": 8, "test": 4}
    plan = {
        "data": {"cohort": {"path": "cohort", **one}, "broken": {"path": "broken", **one}},
        "noise": {"wide": {"kind": "dilate", "radius_mm": [1, 2]}},
        "methods": ["supervised"],
        "seeds": 1,
        "curve_points": 1,
        "settings": {
            "train": {"steps": 3, "batch": 2},
            "network": {"options": {"base": 4, "limit": 8}},
            "device": "cpu",
        },
    }
    Path("plan.yaml").write_text(yaml.safe_dump(plan))
    return ["benchmark", "plan.yaml", "-o", "benchmark", "--data", str(root.parent)]


def _results(folder: Path) -> list[dict[str, Any]]:
    lines = gzip.decompress((folder / "results.jsonl.gz").read_bytes()).decode().splitlines()
    return [json.loads(line) for line in lines]


def test_a_benchmark_tells_neither_headers_nor_folders(planted, outside, capfd):
    """Tables are published, so not even the traceback of a run that failed says where the data lay."""
    assert main([*_benchmark(planted), "--workers", "0", "--json"]) == 0, capfd.readouterr().err
    told = "".join(capfd.readouterr())
    assert {one["status"] for one in _results(outside / "benchmark")} == {"done", "failed"}
    assert "tracebacks" in (outside / "benchmark" / "report.html").read_text(), "of the runs that failed"
    for word in (HEADER, FOLDER):
        assert word not in told
    assert _holding(outside, HEADER, FOLDER) == {}


def test_a_benchmark_under_phi_safe(planted, outside, capfd, tmp_path, request):
    """In a worker process too, which finds the cases anew."""
    names = tmp_path / "kept apart" / "names.json"
    words = [*_benchmark(planted), "--workers", "0" if "nii" in request.node.name else "1"]
    open_dataset(str(planted.resolve()))  # what this process knows by its name must not be given out
    assert main([*words, "--phi-safe", str(names)]) == 0, capfd.readouterr().err
    told = "".join(capfd.readouterr())
    results = _results(outside / "benchmark")
    assert {one["status"] for one in results} == {"done", "failed"}
    for word in (HEADER, FOLDER, CASE, GROUP):
        assert word not in told, [line for line in told.splitlines() if word in line][:5]
    assert _holding(outside, HEADER, FOLDER, CASE, GROUP) == {}
    held = json.loads(names.read_text())["names"]
    scored = [case for one in results if one["status"] == "done" for case in one["dice_by_case"]]
    assert len(scored) == 8  # four test cases, on true and on flawed masks
    assert {held[case] for case in scored} <= {f"{CASE} {number:02d}" for number in range(12)}
    assert main([*words[:-1], "0", "--phi-safe", str(names)]) == 0
    assert "2 done before" in capfd.readouterr().err, "the same names are the same runs"


def test_phi_safe_errors(planted, outside, capfd, tmp_path):
    """Refusals are texts too: of a damaged file, of a missing label, of a list that does not fit."""
    names = str(tmp_path / "names.json")
    first, second = sorted((planted / "images").iterdir())[:2]
    first.write_bytes(b"")
    assert main(["check", str(planted), "--phi-safe", names]) == 3
    assert main(["train", str(planted), "-o", "run", "--phi-safe", names]) == 3
    (planted / "labels" / second.name).unlink()
    assert main(["train", str(planted), "-o", "run", "--phi-safe", names]) == 3
    side = json.loads((planted / "maskmend.json").read_text())
    (planted / "maskmend.json").write_text(json.dumps(side | {"trusted": [f"{CASE} 99"]}))
    assert main(["check", str(planted), "--json", "--phi-safe", names]) == 2
    assert main(["check", str(planted / "nowhere"), "--phi-safe", names]) == 2
    (planted / "table.csv").write_text(f"id,image,label\n{CASE} x,{CASE} gone.png,\n")
    assert main(["check", str(planted / "table.csv"), "--phi-safe", names]) == 3
    printed = "".join(capfd.readouterr())
    for word in (FOLDER, CASE, GROUP):
        assert word not in printed, [line for line in printed.splitlines() if word in line][:5]
    assert "case-" in printed
    assert "empty file" in printed


def test_names_are_stable_and_keyed(tmp_path):
    one, other = Pseudonyms(tmp_path / "one.json"), Pseudonyms(tmp_path / "other.json")
    assert one.of("case", "Anna") == Pseudonyms(tmp_path / "one.json").of("case", "Anna")
    assert one.of("case", "Anna") != other.of("case", "Anna"), "without the key a hash tells nothing"
    assert one.of("case", "Anna") != one.of("patient", "Anna")
    assert one.original(one.of("case", "Anna")) == "Anna"
    assert one.of("case", one.of("case", "Anna")) == one.of("case", "Anna")
    assert len({one.of("case", str(n)) for n in range(20_000)}) == 20_000


def test_names_do_not_lie_among_results(tmp_path, planted, capfd):
    out = tmp_path / "out"
    assert main(["train", str(planted), "-o", str(out), "--phi-safe", str(out / "names.json")]) == 2
    assert main(["check", str(planted), "--fix", str(out), "--phi-safe", str(tmp_path / "names.json")]) == 2
    assert not out.exists()


def test_figures_are_not_spoilt_by_short_ids(tmp_path):
    with pseudonyms(tmp_path / "names.json") as names:
        names.know(["1", "b", "12"])
        assert names.clean("1 errors in 12 cases; b").startswith("1 errors in 12 cases")
        assert "case-" in names.clean("labels/1.nii.gz: ends early")
        assert names.clean("labels/12_0001.png").endswith("_0001.png")


EVIL = "<img src=x onerror=alert(1)>"


def test_html_in_names_is_escaped_on_every_page(tmp_path, outside, capfd):
    root = tmp_path / "set"
    shown = [
        EVIL,
        "</script><script>alert(1)</script>"[:9].replace("/", "") + "script>",
        "{{7*7}}",
        "'\"&amp;<b>",
    ]
    for number in range(12):
        rng = np.random.default_rng(number)
        mask = np.zeros((32, 32), np.uint8)
        mask[4 : 24 - number % 3, 5:20] = 1
        name = f"{shown[number % 4]}{number}".replace("/", "")
        for part, pixels in (
            ("images", (90 * mask + rng.integers(0, 60, mask.shape)).astype(np.uint8)), ("labels", mask),
            ("labels_<i>one", mask), ("labels_two", np.roll(mask, 2, 0)),
        ):  # fmt: skip
            (root / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / part / f"{name}.png")
    for words in (
        ["train", str(root), "-o", "run", *SMALL],
        ["raters", str(root), "-o", "raters"],
        ["audit", str(root), "-o", "audit", *SMALL, "audit.folds=2"],
    ):
        assert main(words) == 0, capfd.readouterr().err
    pages = sorted(outside.rglob("*.html"))
    assert len(pages) >= 3
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "<img src=x" not in text, page
        assert "<script>alert" not in text, page
        assert "<b>" not in re.sub(r"<b>(?=\w)", "", text) or "'\"&amp;<b>" not in text, page
        assert "<i>one" not in text, page
    audit = (outside / "audit" / "report.html").read_text(encoding="utf-8")
    assert "onerror=alert(1)" in audit, "the name itself is there, harmless"


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q"]))
