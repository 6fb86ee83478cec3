"""Spoil inputs: bits, lengths and chunks of any file, and the fields of the formats that are known.

Everything is drawn from one generator, so a number names an input for good.
"""

from __future__ import annotations

import gzip
import json
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

Rng = np.random.Generator
Mutation = Callable[[Rng, bytes], bytes]

_WHOLE = (
    0,
    1,
    2,
    3,
    7,
    8,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    65536,
    100_000,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
_REAL = (0.0, -0.0, 1e-45, 1e-9, -1.0, 1e9, 1e30, -1e38, float("inf"), float("-inf"), float("nan"))
_WORDS = (
    "", " ", "0", "-1", "1e9", "1e400", "nan", "inf", "99999999999999999999", "100000", "../../../etc/passwd",
    "/etc/passwd", "a\0b", "\x1b[31m", "<script>alert(1)</script>", "{{7*7}}", "%s%n", "é" * 40, "\ud800", "x" * 5000,
    "CON", "a" * 300 + ".png", "\r\n", "[red]", "true", "~", ".", "..",
)  # fmt: skip


def pick(rng: Rng, choices: Any) -> Any:
    """One of a sequence, as it is."""
    return choices[int(rng.integers(len(choices)))]


# ---- any bytes ------------------------------------------------------------------------------------


def flip_bits(rng: Rng, data: bytes) -> bytes:
    """1 to 16 bits, nearly half of the time within the first 512 bytes."""
    out = bytearray(data)
    reach = min(len(out), 512) if rng.random() < 0.4 else len(out)
    for _ in range(int(rng.integers(1, 17))):
        if reach:
            out[int(rng.integers(reach))] ^= 1 << int(rng.integers(8))
    return bytes(out)


def truncate(rng: Rng, data: bytes) -> bytes:
    """Cut anywhere."""
    return data[: int(rng.integers(len(data) + 1))]


def number(rng: Rng, data: bytes) -> bytes:
    """An extreme number of 1 to 8 bytes anywhere, of either byte order."""
    out = bytearray(data)
    order = pick(rng, "<>")
    if rng.random() < 0.7:
        kind, value = pick(rng, "BHIQ"), pick(rng, _WHOLE)
        packed = struct.pack(f"{order}{kind}", value % 2 ** (8 * struct.calcsize(kind)))
    else:
        kind = pick(rng, "fd")
        packed = struct.pack(f"{order}{kind}", pick(rng, _REAL))
    if len(out) > len(packed):
        at = int(rng.integers(min(len(out), 512) if rng.random() < 0.5 else len(out)))
        out[at : at + len(packed)] = packed
    return bytes(out)


def shuffle(rng: Rng, data: bytes) -> bytes:
    """Duplicate, drop, swap or move a piece."""
    if len(data) < 8:
        return data + b"x"
    a, b, c = sorted(int(v) for v in rng.integers(0, len(data), 3))
    return pick(
        rng,
        (
            data[:b] + data[a:],
            data[:a] + data[b:],
            data[:a] + data[b:c] + data[a:b] + data[c:],
            data[:a] + bytes(rng.integers(0, 256, 16, dtype=np.uint8)) + data[a:],
            data + data,
            data[a:],
        ),
    )


ANY: tuple[Mutation, ...] = (flip_bits, truncate, number, shuffle)


def spoil_bytes(rng: Rng, data: bytes) -> bytes:
    """One to three of the mutations above."""
    for _ in range(int(rng.integers(1, 4))):
        data = pick(rng, ANY)(rng, data)
    return data


# ---- NIfTI ----------------------------------------------------------------------------------------


def _extreme(rng: Rng, kind: np.dtype) -> Any:
    if kind.kind == "f":
        return pick(rng, _REAL)
    if kind.kind in "iu":
        low, high = np.iinfo(kind).min, np.iinfo(kind).max
        return int(np.clip(pick(rng, (*_WHOLE, -1, low, high)), low, high))
    return bytes(rng.integers(0, 256, kind.itemsize, dtype=np.uint8))


def nifti_fields(rng: Rng, data: bytes) -> bytes:
    """Extremes in one to four header fields; sizes, types, offsets and affines most often."""
    import nibabel

    kind = nibabel.Nifti2Header if data[4:7] == b"n+2" else nibabel.Nifti1Header
    layout = kind.template_dtype
    if len(data) < layout.itemsize:
        return spoil_bytes(rng, data)
    header = np.frombuffer(data[: layout.itemsize], layout).copy()
    if header["sizeof_hdr"][0] not in (348, 540):  # written on the other kind of machine
        header = header.view(layout.newbyteorder())
    favoured = (
        "dim", "dim", "pixdim", "datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter", "srow_x", "srow_y",
        "srow_z", "qform_code", "sform_code", "quatern_b", "quatern_c", "qoffset_x", "magic", "sizeof_hdr",
    )  # fmt: skip
    for _ in range(int(rng.integers(1, 5))):
        name = pick(rng, favoured) if rng.random() < 0.85 else pick(rng, layout.names)
        field = header[name]
        if field.dtype.kind == "S" or field.ndim == 1:
            field[0] = _extreme(rng, field.dtype)
        else:
            field[0, int(rng.integers(field.shape[1]))] = _extreme(rng, field.dtype)
    return header.tobytes() + data[layout.itemsize :]


def inside_gzip(mutation: Mutation) -> Mutation:
    """The mutation on what is compressed, with a checksum that is right again."""

    def mutate(rng: Rng, data: bytes) -> bytes:
        return gzip.compress(mutation(rng, gzip.decompress(data)), 1, mtime=0)

    return mutate


def gzip_members(rng: Rng, data: bytes) -> bytes:
    """Several members, padding or foreign bytes behind the first."""
    more = (
        gzip.compress(bytes(int(rng.integers(1, 2**22))), 9, mtime=0),
        bytes(64),
        b"tail",
        data,
        data[:20],
    )
    return data + pick(rng, more)


# ---- PNG ------------------------------------------------------------------------------------------


def _png_parts(data: bytes) -> list[tuple[bytes, bytes]]:
    parts, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        parts.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return parts


def _png(parts: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        for kind, part in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


def png_parts(rng: Rng, data: bytes) -> bytes:
    """Parts with extremes, foreign, doubled, missing or out of order; every checksum is right."""
    parts = _png_parts(data)
    if not parts:
        return spoil_bytes(rng, data)
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.integers(len(parts)))
        kind, body = parts[at]
        action = int(rng.integers(6))
        if action == 0 and parts[0][0] == b"IHDR" and len(parts[0][1]) >= 13:
            head = bytearray(parts[0][1])
            field = int(rng.integers(7))
            if field < 2:
                head[4 * field : 4 * field + 4] = struct.pack(">I", pick(rng, _WHOLE))
            else:
                head[6 + field] = (
                    int(rng.integers(0, 256))
                    if rng.random() < 0.5
                    else int(pick(rng, (0, 1, 2, 3, 4, 6, 8, 16)))
                )
            parts[0] = (b"IHDR", bytes(head))
        elif action == 1:
            parts[at] = (kind, spoil_bytes(rng, body))
        elif action == 2:
            parts.insert(at, parts[int(rng.integers(len(parts)))])
        elif action == 3:
            del parts[at]
        elif action == 4:
            parts.insert(at, _foreign(rng))
        else:
            order = rng.permutation(len(parts))
            parts = [parts[int(i)] for i in order]
        if not parts:
            break
    return _png(parts)


def _foreign(rng: Rng) -> tuple[bytes, bytes]:
    bomb = zlib.compress(bytes(2**23), 9)
    return pick(
        rng,
        (
            (b"zTXt", b"Comment\0\0" + bomb),
            (b"iCCP", b"p\0\0" + bomb),
            (b"iTXt", b"k\0\1\0\0\0" + bomb),
            (b"tEXt", b"Title\0" + b"x" * 70_000),
            (b"eXIf", b"MM\0*\0\0\0\x08" + bytes(rng.integers(0, 256, 40, dtype=np.uint8))),
            (b"PLTE", bytes(rng.integers(0, 256, int(rng.integers(0, 800)), dtype=np.uint8))),
            (b"tRNS", bytes(int(rng.integers(0, 300)))),
            (b"acTL", struct.pack(">II", 2**31, 0)),
            (b"fcTL", bytes(26)),
            (b"fdAT", bytes(8)),
            (b"gAMA", b""),
            (b"pHYs", b"\xff" * 9),
            (b"cHRM", bytes(3)),
            (b"IDAT", bomb),
        ),
    )


# ---- TIFF -----------------------------------------------------------------------------------------


def tiff_tags(rng: Rng, data: bytes) -> bytes:
    """Type, count or value of tags of the first directory, the number of tags, or where the next one lies."""
    order = ">" if data[:2] == b"MM" else "<"
    if len(data) < 16 or data[2:4] not in (b"*\0", b"\0*"):
        return number(rng, data)
    start = struct.unpack(f"{order}I", data[4:8])[0]
    out = bytearray(data)
    if start + 2 > len(out):
        return spoil_bytes(rng, data)
    count = struct.unpack(f"{order}H", out[start : start + 2])[0]
    for _ in range(int(rng.integers(1, 4))):
        entry = start + 2 + 12 * int(rng.integers(max(1, count)))
        action = int(rng.integers(6))
        if entry + 12 > len(out):
            break
        if action == 0:
            out[entry + 2 : entry + 4] = struct.pack(f"{order}H", int(rng.integers(0, 20)))
        elif action == 1:
            out[entry + 4 : entry + 8] = struct.pack(f"{order}I", pick(rng, _WHOLE))
        elif action in (2, 3):
            out[entry + 8 : entry + 12] = struct.pack(f"{order}I", pick(rng, _WHOLE))
        elif action == 4:
            out[start : start + 2] = struct.pack(f"{order}H", pick(rng, (0, 1, 255, 4096, 65535)))
        else:
            link = start + 2 + 12 * count
            if link + 4 <= len(out):
                out[link : link + 4] = struct.pack(
                    f"{order}I", pick(rng, (start, 0, 4, 8, len(out) - 2, 2**31))
                )
    return bytes(out)


# ---- NRRD, MetaImage ------------------------------------------------------------------------------


def text_header(rng: Rng, data: bytes) -> bytes:
    """Values of a text header to extremes; lines dropped, doubled or shuffled. The voxels stay behind it."""
    if b"NRRD" in data[:8]:
        head, gap, body = data.partition(b"\n\n")
        colon = b":"
    else:
        found = re.search(rb"ElementDataFile[^\n]*\n", data)
        at = found.end() if found else len(data)
        head, gap, body, colon = data[:at].rstrip(b"\n"), b"\n", data[at:], b"="
    lines = head.split(b"\n")
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(lines)))
        action = int(rng.integers(6))
        if action <= 2:
            key, mark, value = lines[at].partition(colon)
            words = value.split() or [b""]
            words[int(rng.integers(len(words)))] = _word(rng)
            if action == 2:
                words.append(_word(rng))
            lines[at] = key + mark + b" " + b" ".join(words)
        elif action == 3 and len(lines) > 1:
            del lines[at]
        elif action == 4:
            lines.insert(at, lines[int(rng.integers(len(lines)))])
        else:
            lines = [lines[0], *[lines[1 + int(i)] for i in rng.permutation(len(lines) - 1)]]
    return b"\n".join(lines) + gap + body


def _word(rng: Rng) -> bytes:
    pool = (
        *_WORDS, "gzip", "raw", "zlib", "bz2", "ascii", "hex", "LOCAL", "LIST", "other.raw", "double", "block",
        "MET_DOUBLE",
        "(1,0,0)", "(nan,0,0)", "none", "3", "16", "big", "True", "False",
    )  # fmt: skip
    return pick(rng, pool).encode("utf-8", "surrogatepass")


# ---- DICOM ----------------------------------------------------------------------------------------

_DICOM = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
    "NumberOfFrames", "PixelSpacing", "SliceThickness", "ImagePositionPatient", "ImageOrientationPatient",
    "RescaleSlope", "RescaleIntercept", "PhotometricInterpretation", "SeriesInstanceUID", "PlanarConfiguration",
)  # fmt: skip


def dicom_values(rng: Rng, data: bytes) -> bytes:
    """Values of the elements that describe the pixels, written as text of any kind or as extremes."""
    import io
    import warnings

    import pydicom
    from pydicom.dataelem import DataElement

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pydicom.config.disable_value_validation():
            one = pydicom.dcmread(io.BytesIO(data), force=True)
            for _ in range(int(rng.integers(1, 4))):
                name = pick(rng, _DICOM)
                if rng.random() < 0.2 and name in one:
                    del one[name]
                    continue
                vr = pydicom.datadict.dictionary_VR(name)
                if vr == "US":
                    value: Any = int(pick(rng, _WHOLE)) % 65536
                    value = [value] * int(pick(rng, (0, 2, 3))) if rng.random() < 0.15 else value
                else:
                    many = int(pick(rng, (1, 1, 2, 3, 6)))
                    words = (*_WORDS[:9], "1", "2.5", "-0.0", "1e38", "abc")
                    value = [str(pick(rng, words)).replace("\\", "")[:64] for _ in range(many)]
                try:
                    one[name] = DataElement(pydicom.datadict.tag_for_keyword(name), vr, value)
                    stream = io.BytesIO()
                    one.save_as(stream)
                    data = stream.getvalue()
                except Exception:  # the writer refuses some values: the others stay
                    one = pydicom.dcmread(io.BytesIO(data), force=True)
    return data


# ---- JSON, YAML, CSV ------------------------------------------------------------------------------


def _odd(rng: Rng) -> Any:
    deep: Any = 1
    for _ in range(int(pick(rng, (3, 60)))):
        deep = [deep]
    pool = (
        None, True, False, 0, -1, 1, 2**31, 2**63, 10**40, 1.5, 1e308, float("nan"), float("inf"), [], {}, [None], [[]],
        {"": {}}, {"a": 1}, [1, "a", None], deep, ["a"] * 500, [0, 0], [-1.0, float("nan")], {"background": 1, "x": 1},
        *_WORDS,
    )  # fmt: skip
    return pool[int(rng.integers(len(pool)))]


def spoil_tree(rng: Rng, tree: Any) -> Any:
    """One value, key or entry somewhere in a tree of dictionaries and lists replaced, dropped or added."""
    if rng.random() < 0.25 or not isinstance(tree, dict | list) or not tree:
        return _odd(rng)
    if isinstance(tree, list):
        at = int(rng.integers(len(tree)))
        if rng.random() < 0.2:
            return [*tree, _odd(rng)]
        return [*tree[:at], spoil_tree(rng, tree[at]), *tree[at + 1 :]]
    key = pick(rng, list(tree))
    action = rng.random()
    if action < 0.1:
        return {k: v for k, v in tree.items() if k != key}
    if action < 0.2:
        return tree | {str(pick(rng, _WORDS)): _odd(rng)}
    if action < 0.3:
        return {str(pick(rng, _WORDS)) if k == key else k: v for k, v in tree.items()}
    return tree | {key: spoil_tree(rng, tree[key])}


def json_tree(rng: Rng, data: bytes) -> bytes:
    """A valid JSON text of the wrong content, sometimes with a key given twice or a nesting too deep."""
    tree = json.loads(data)
    for _ in range(int(rng.integers(1, 4))):
        tree = spoil_tree(rng, tree)
    text = json.dumps(tree)
    if rng.random() < 0.05:
        text = "[" * 100_000
    if rng.random() < 0.05:
        text = text.replace("{", '{"labels": 3, "labels": ', 1)
    return text.encode("utf-8", "surrogatepass")


_YAML = (
    b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    b"d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n"
    b"g: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n",
    b"train: !!python/object/apply:os.system ['true']\n",
    b"train: !!python/name:os.system\n",
    b"train: &x {steps: *x}\n",
    b"data: {labels: &l {a: *l}}\n",
    b"train: {<<: [1]}\n",
    b"? [a, b]\n: 1\n",
    b"? {a: b}\n: 1\n",
    b"train: {steps: " + b"9" * 5000 + b"}\n",
    b"train: " + b"[" * 5000 + b"\n",
    b"train: " + b"{a: " * 400 + b"\n",
    b"a: b: c\n",
    b"\xff\xfet\0r\0a\0i\0n\0",
    b"--- 1\n--- 2\n",
    b"train: !!binary xyz\n",
    b"train: !!set {a}\n",
    b"train: !!int abc\n",
    b"train: {steps: !!float x}\n",
    b"train: !!timestamp 2001-99-99\n",
    b"%YAML 9.9\n---\na: 1\n",
    b"\t- a\n",
    b"'",
    b"~: 1\n",
    b"1: 2\n",
    b"true: {}\n",
)


def yaml_tree(rng: Rng, data: bytes) -> bytes:
    """A YAML text of the wrong content, or one that is known to be hard on parsers."""
    import yaml

    if rng.random() < 0.25:
        return pick(rng, _YAML)
    tree = yaml.safe_load(data)
    for _ in range(int(rng.integers(1, 4))):
        tree = spoil_tree(rng, tree)
    if rng.random() < 0.5:
        return json.dumps(tree).encode("utf-8", "surrogatepass")
    return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")


def csv_cells(rng: Rng, data: bytes) -> bytes:
    """Cells of a table to extremes; columns and rows dropped, doubled or moved; quotes left open."""
    mark = b";" if b";" in data.split(b"\n", 1)[0] else b","
    rows = [line.split(mark) for line in data.split(b"\n")]
    for _ in range(int(rng.integers(1, 5))):
        row = pick(rng, rows)
        at = int(rng.integers(len(row)))
        action = int(rng.integers(7))
        if action <= 2:
            pool = (*_WORDS, '"', '"a\nb"', "x" * 140_000, "imagesTr", "labelsTr/a.png", ".", "a/../../b")
            row[at] = str(pick(rng, pool)).encode("utf-8", "surrogatepass")
        elif action == 3:
            del row[at]
            row.append(b"")
        elif action == 4:
            row.insert(at, pick(rng, pick(rng, rows)))
        elif action == 5:
            rows.append(list(pick(rng, rows)))
        else:
            rows = [rows[int(i)] for i in rng.permutation(len(rows))]
    return b"\n".join(mark.join(row) for row in rows)


# ---- by kind --------------------------------------------------------------------------------------

KNOWING: dict[str, tuple[Mutation, ...]] = {
    ".nii": (nifti_fields,),
    ".nii.gz": (inside_gzip(nifti_fields), inside_gzip(spoil_bytes), gzip_members),
    ".nrrd": (text_header,),
    ".mha": (text_header,),
    ".png": (png_parts,),
    ".tif": (tiff_tags,),
    ".dcm": (dicom_values,),
    "dataset.json": (json_tree,),
    "maskmend.json": (json_tree,),
    "config.yaml": (yaml_tree,),
    "noise.yaml": (yaml_tree,),
    "manifest.csv": (csv_cells,),
    "run.json": (json_tree,),
    "plan.json": (json_tree,),
    "fingerprint.json": (json_tree,),
    "predict.json": (json_tree,),
}


def spoil(rng: Rng, kind: str, data: bytes) -> bytes:
    """A flawed input of one kind: by its fields two times out of three where they are known."""
    known = KNOWING.get(kind, ())
    if known and rng.random() < 0.67:
        out = pick(rng, known)(rng, data)
        return spoil_bytes(rng, out) if rng.random() < 0.15 else out
    return spoil_bytes(rng, data)
