"""Inputs that once crashed, hung or ended in a traceback, made anew: each is refused by its name."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from maskmend import config
from maskmend.data.dataset import find_cases
from maskmend.data.images import read_header, read_image
from maskmend.data.sidefile import load_json
from maskmend.errors import DataError, UsageError, UserError

META = """ObjectType = Image
NDims = 3
BinaryData = True
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 0 0 0
ElementSpacing = 1 1 1
DimSize = 4 5 6
ElementType = MET_UCHAR
ElementDataFile = LOCAL
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("NDims = 3", "NDims = 99999999999999999999"),  # SimpleITK 2.5 dies of SIGSEGV
        ("NDims = 3", "NDims = 10"),
        ("DimSize = 4 5 6", "DimSize = 4 5"),
        ("DimSize = 4 5 6", "DimSize = 4 -5 6"),
        ("Offset = 0 0 0", "Offset = 0 LOCAL 0"),
        ("TransformMatrix = 1 0", "TransformMatrix = 1"),
        ("ElementType", "ElementNumberOfChannels = 2147483647\nElementType"),
        ("ElementType", f"Comment = {'x' * 5000}\nElementType"),
    ],
)
def test_metaimage_header_with_wrong_counts(tmp_path, old, new):
    path = tmp_path / "volume.mha"
    path.write_bytes(META.encode() + bytes(120))
    assert read_image(path)[0].shape == (1, 6, 5, 4), "sound before it is spoilt"
    path.write_bytes(META.replace(old, new).encode() + bytes(120))
    with pytest.raises(DataError, match=r"volume\.mha"):
        read_header(path)


def _slice(**changes: object) -> bytes:
    from fuzz_seeds import dicom
    from pydicom import dcmread

    one = dcmread(io.BytesIO(dicom()[0]))
    for name, value in changes.items():
        setattr(one, name, value)
    stream = io.BytesIO()
    one.save_as(stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    "changes",
    [{"Rows": None}, {"SliceThickness": None, "PixelSpacing": None}, {"PixelSpacing": [1]}, {"Columns": [3, 4]},
     {"ImageOrientationPatient": [1, 0]}, {"BitsAllocated": 7}, {"SamplesPerPixel": None}],
    ids=str,
)  # fmt: skip
def test_dicom_with_odd_elements(tmp_path, changes):
    pytest.importorskip("pydicom")
    path = tmp_path / "slice.dcm"
    path.write_bytes(_slice())
    assert read_image(path)[0].shape == (1, 12, 10)
    path.write_bytes(_slice(**changes))
    with pytest.raises(DataError, match=r"slice\.dcm"):
        read_image(path)


def test_dicom_element_that_claims_gigabytes_allocates_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    data = _slice()
    at = data.rindex(b"\xe0\x7f\x10\x00OW\0\0") + 8  # the length of the pixel data
    path = tmp_path / "slice.dcm"
    path.write_bytes(data[:at] + (2**32 - 2).to_bytes(4, "little") + data[at + 4 :])
    held = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**29, held[1]))
    try:
        assert read_image(path)[0].shape == (1, 12, 10), "all pixels are there, whatever the length says"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, held)


def test_dicom_of_compressed_elements_is_refused(tmp_path):
    """A deflated file may unpack to any size before the first element is seen."""
    data = _slice()
    at = data.index(b"1.2.840.10008.1.2.1\0")
    head = data[:at] + b"1.2.840.10008.1.2.1.99" + data[at + 20 :]
    start = data.index(b"\x08\x00\x16\x00")  # where the group lengths' reach ends
    size = int.from_bytes(head[140:144], "little") + 2
    head = head[:140] + size.to_bytes(4, "little") + head[144:]
    head = head[: at - 2] + (22).to_bytes(2, "little") + head[at : start + 2]
    packer = zlib.compressobj(9, wbits=-15)
    path = tmp_path / "slice.dcm"
    path.write_bytes(head + packer.compress(bytes(2**26)) + packer.flush())
    with pytest.raises(DataError, match="deflated"):
        read_header(path)


@pytest.mark.parametrize(
    "text",
    [
        "train: {steps: " + "9" * 5000 + "}",
        "train: " + "[" * 3000,
        "train: &x {steps: *x}",
        "method: {name: &l {a: *l}}",
        "~: 1",
        "? [a, b]\n: 1",
        '"\\uD800": 1',
        "train: !!timestamp 2001-99-99",
        "train: !!python/object/apply:os.system [exit]",
    ],
)
def test_yaml_that_no_configuration_is(tmp_path, text):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"settings\.yaml"):
        config.load(path)


def test_yaml_of_a_billion_laughs(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    path = tmp_path / "settings.yaml"
    path.write_text("\n".join([*lines, "method: {name: pint, extra: *a9}"]))
    with pytest.raises(UsageError, match="references"):
        config.load(path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[1]", '{"a": "\\ud800"}', '{"a": ' + "9" * 5000 + "}", "\xff", "{"]
)
def test_json_that_is_none(tmp_path, text):
    path = tmp_path / "dataset.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"dataset\.json"):
        load_json(path)


@pytest.fixture
def pair(tmp_path):
    """One image with its label, in the Decathlon's folders."""
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.eye(9, dtype=np.uint8)).save(tmp_path / folder / "a.png")
    return tmp_path


@pytest.mark.parametrize(
    "labels", ["x", [1], {"a": "²"}, {"a": "--1"}, {"a": 2**31}, {"a": 1.5}, {"a": {"b": 1}}], ids=str
)
def test_labels_of_the_wrong_kind(pair, labels):
    facts = {"labels": labels, "training": [{"image": "imagesTr/a.png", "label": "labelsTr/a.png"}]}
    (pair / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"dataset\.json"):
        find_cases(pair)


@pytest.mark.parametrize("key", ["training", "test"])
@pytest.mark.parametrize("listed", [5, "images", {"a": 1}], ids=str)
def test_lists_of_the_wrong_kind(pair, key, listed):
    facts = {
        "labels": {"a": 1},
        "training": [{"image": "imagesTr/a.png", "label": "labelsTr/a.png"}],
        key: listed,
    }
    (pair / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(UserError):
        find_cases(pair, layout="msd")


@pytest.mark.parametrize("name", ["a" * 300 + ".png", "a\0b.png", "é" * 200], ids=["long", "NUL", "bytes"])
def test_names_that_no_file_system_takes(pair, name):
    (pair / "table.csv").write_text(f"image,label\n{name},labelsTr/a.png\n")
    with pytest.raises(DataError, match="does not exist"):
        find_cases(pair / "table.csv")
    facts = {"labels": {"a": 1}, "training": [{"image": name, "label": name}]}
    (pair / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match="missing"):
        find_cases(pair)


def test_a_cell_beyond_the_limit_of_csv(pair):
    (pair / "table.csv").write_text(f'image,label\n"{"x" * 140_000}",labelsTr/a.png\n')
    with pytest.raises(UsageError, match=r"table\.csv"):
        find_cases(pair / "table.csv")


def test_png_of_a_few_bytes_that_claims_a_strip_of_16_million(tmp_path):
    """Pillow decoded what was not there for more than a minute."""
    from fuzz_mutations import _png, _png_parts

    stream = io.BytesIO()
    Image.fromarray(np.eye(10, dtype=np.uint8)).save(stream, "PNG")
    parts = _png_parts(stream.getvalue())
    parts[0] = (b"IHDR", (10).to_bytes(4, "big") + (2**24).to_bytes(4, "big") + parts[0][1][8:])
    path = tmp_path / "strip.png"
    path.write_bytes(_png(parts))
    with pytest.raises(DataError, match=r"strip\.png: ends early"):
        read_image(path)


def test_jpeg_of_a_few_bytes_that_claims_millions_of_pixels(tmp_path):
    """Pillow asked for 400 MB before it saw that there was nothing in the file."""
    path, stream = tmp_path / "wide.jpg", io.BytesIO()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(stream, "JPEG", quality=1)
    data = bytearray(stream.getvalue())
    at = data.index(b"\xff\xc0") + 5  # the frame: height, width
    data[at : at + 4] = (4108).to_bytes(2, "big") + (32778).to_bytes(2, "big")
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"wide\.jpg: ends early"):
        read_image(path)


@pytest.mark.parametrize("progressive", [False, True])
def test_no_jpeg_is_too_small_for_its_pixels(tmp_path, progressive):
    """The smallest that an encoder makes of an empty picture."""
    path = tmp_path / "plain.jpg"
    picture = Image.fromarray(np.full((4000, 3000, 3), 128, np.uint8))
    picture.save(path, quality=1, subsampling=2, optimize=True, progressive=progressive)
    assert read_image(path)[0].shape == (3, 4000, 3000)


def test_a_second_version_of_nifti_that_ends_within_its_header(tmp_path):
    path = tmp_path / "short.nii"
    nibabel.save(nibabel.Nifti2Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), path)
    path.write_bytes(path.read_bytes()[:511])
    with pytest.raises(DataError, match=r"short\.nii: ends early: 511 bytes"):
        read_header(path)


@pytest.mark.parametrize("image", [1e308, {"a": 1}, [], True, None], ids=str)
def test_an_image_that_is_no_name(pair, image):
    facts = {"labels": {"a": 1}, "training": [{"image": image, "label": "labelsTr/a.png"}]}
    (pair / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"dataset\.json|training|labelsTr"):
        find_cases(pair)


def test_a_cell_that_names_a_folder_of_something_else(pair):
    (pair / "table.csv").write_text("image,label\n.,labelsTr/a.png\n")
    with pytest.raises(DataError, match=r"table\.csv line 2: the folder \. holds no DICOM file"):
        find_cases(pair / "table.csv")


def _claiming(path: Path, rows: int, without: tuple[str, ...] = ()) -> Path:
    """A TIFF of 12 rows in one strip whose header claims `rows`, and has lost some tags: they have other numbers."""
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(path, np.eye(12, 10, dtype=np.uint8), photometric="minisblack", rowsperstrip=12)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        places = {name: file.pages[0].tags[name].offset for name in ("ImageLength", *without)}
    length = places.pop("ImageLength")
    data[length + 8 : length + 12] = rows.to_bytes(4, "little")
    for place in places.values():
        data[place : place + 2] = (60000).to_bytes(2, "little")
    path.write_bytes(data)
    return path


def test_tiff_of_one_strip_that_claims_a_million(tmp_path):
    """tifffile filled in what was not there, strip by strip, for half a minute."""
    path = _claiming(tmp_path / "long.tif", rows=2**24)
    for read in (read_header, read_image):
        with pytest.raises(DataError, match=r"long\.tif: ends early: it holds 1 of [\d,]+ strips"):
            read(path)


@pytest.mark.parametrize(
    "how", [{}, {"tile": (16, 16)}, {"rowsperstrip": 5}, {"planarconfig": "separate"}], ids=str
)
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_sound_tiffs_hold_all_their_parts(tmp_path, how, compression):
    tifffile = pytest.importorskip("tifffile")
    pixels = np.random.default_rng(0).integers(0, 255, (3, 33, 27), np.uint8)
    path = tmp_path / "sound.tif"
    colours = pixels if "planarconfig" in how else np.moveaxis(pixels, 0, -1)
    tifffile.imwrite(path, colours, photometric="rgb", compression=compression, **how)
    np.testing.assert_array_equal(read_image(path)[0], pixels)


def test_tiff_that_is_shorter_than_its_pixels(tmp_path):
    """Without the sizes of its strips, tifffile made up 160 MiB of pixels from a file of 400 bytes."""
    path = _claiming(tmp_path / "flat.tif", rows=2**24, without=("StripByteCounts", "RowsPerStrip"))
    for read in (read_header, read_image):
        with pytest.raises(DataError, match=r"flat\.tif: ends early: [\d,]+ bytes cannot hold 10 x 16777216"):
            read(path)


@pytest.mark.parametrize("big", [False, True], ids=["classic", "BigTIFF"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_whose_pages_point_in_a_circle(tmp_path, big, order):
    """tifffile followed two pages that pointed at each other for ever."""
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "round.tif"
    volume = np.random.default_rng(0).integers(0, 255, (3, 12, 10), np.uint8)
    tifffile.imwrite(path, volume, photometric="minisblack", bigtiff=big, byteorder=order, metadata=None)
    np.testing.assert_array_equal(read_image(path)[0][0], volume)
    with tifffile.TiffFile(path) as file:
        assert len(file.pages) == 3
        first, second = file.pages[0].offset, file.pages[1].offset
    data, wide = bytearray(path.read_bytes()), 8 if big else 4
    word = "little" if order == "<" else "big"
    counted, tag = (8, 20) if big else (2, 12)
    end = second + counted + tag * int.from_bytes(data[second : second + counted], word)
    data[end : end + wide] = first.to_bytes(wide, word)
    path.write_bytes(data)
    for read in (read_header, read_image):
        with pytest.raises(DataError, match=r"round\.tif: has pages that point in a circle"):
            read(path)


def test_tiff_without_pixels(tmp_path):
    """A page that claims pixels and holds none came through as an array of no channels."""
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "flat.tif"
    tifffile.imwrite(path, np.eye(9, dtype=np.uint8), photometric="minisblack")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags["BitsPerSample"]
    data[tag.offset + 8 : tag.offset + 10] = (0).to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"flat\.tif"):
        read_image(path)


def test_a_damaged_run_folder(tmp_path):
    from fuzz_targets import make_run

    from maskmend.train.run_folder import Run

    run = make_run(tmp_path / "run")
    Run.open(run).method()
    for name, content in (
        ("run.json", "[]"), ("run.json", "{"), ("run.json", "\xff"), ("plan.json", "{}"), ("plan.json", "\xff"),
        ("fingerprint.json", "[" * 5000),
    ):  # fmt: skip
        sound = (run / name).read_bytes()
        (run / name).write_bytes(content.encode("latin-1"))
        with pytest.raises(UsageError, match=name.replace(".", r"\.")):
            _ = Run.open(run).fingerprint
        (run / name).write_bytes(sound)
    plan = json.loads((run / "plan.json").read_text())
    plan["channels"] *= 2
    (run / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(UsageError, match="does not fit"):
        Run.open(run).method()


def test_a_voxel_size_of_a_thousand_kilometres(tmp_path):
    """A file of 200 bytes asked for 74 GiB: not to read it, but to bring it to the run's grid."""
    from fuzz_targets import PLAN

    from maskmend.data.case import Geometry
    from maskmend.data.plan import Plan
    from maskmend.data.preprocess import prepare

    plan = Plan.model_validate_json(json.dumps(PLAN))
    image = np.ones((1, 10, 12), np.float32)
    with pytest.raises(DataError, match=r"case_1: its voxels of 1e\+09 x 1 mm would become 120,000,000,000"):
        prepare(image, None, Geometry((10, 12), (1e9, 1.0)), plan, where="case_1")
