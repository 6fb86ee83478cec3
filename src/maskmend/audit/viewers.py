"""Commands that open a case in ITK-SNAP, 3D Slicer and napari, ready to paste."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskmend import pseudonyms
from maskmend.audit.files import CaseFiles
from maskmend.audit.record import CaseRecord
from maskmend.data.case import Geometry
from maskmend.data.formats import suffix_of
from maskmend.data.geometry_check import apart_mm
from maskmend.errors import UserError

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")
"""What ITK-SNAP opens; it is no viewer of PNG or TIFF."""


@dataclass(frozen=True)
class OpenCommand:
    """One line for a terminal.

    Args:
        tool: "ITK-SNAP", "3D Slicer" or "napari".
        command: the line, quoted for the shell of this system.
        words: the same as separate words, for `subprocess.run`.
    """

    tool: str
    command: str
    words: tuple[str, ...]


def open_commands(record: CaseRecord, files: CaseFiles, *, windows: bool | None = None) -> list[OpenCommand]:
    """Commands that show a case's image, given mask, suggested mask and noise map.

    In 3D Slicer and napari the given mask is an outline, the suggested one a fill. napari, and of volumes 3D Slicer, go
    to the worst place; ITK-SNAP has no option for it. Where the voxel size of the files is overridden by another, only
    napari's readers know it.

    Args:
        record: of the case.
        files: of the case.
        windows: quote for Windows' command line rather than a POSIX shell; None: for this system.
    """
    if not files.images or pseudonyms.active():  # a command that works names the files
        return []
    windows = os.name == "nt" if windows is None else windows
    found = [("napari", _python(sys.executable or "python", "-c", _napari(record, files), windows))]
    if not _overridden(files):
        found.insert(0, ("3D Slicer", _python("Slicer", "--python-code", _slicer(record, files), windows)))
        if all(suffix_of(path) in VOLUME_SUFFIXES for path in files.all):
            found.insert(0, ("ITK-SNAP", _itk_snap(files)))
    return [OpenCommand(tool, _quoted(words, windows), tuple(words)) for tool, words in found]


def _quoted(words: list[str], windows: bool) -> str:
    return subprocess.list2cmdline(words) if windows else shlex.join(words)


def _python(program: str, option: str, lines: list[str], windows: bool) -> list[str]:
    """A program that runs some Python, whose strings are in the quotes that the shell does not use around it."""
    code = "; ".join(lines)
    return [program, option, code.replace('"', "'") if windows else code]


def _text(value: object) -> str:
    """A Python string literal; no quote, nor what shells expand between quotes, stands in it as it is."""

    def written(sign: str) -> str:
        if sign in "'\"%$`":
            return f"\\x{ord(sign):02x}"
        return sign if sign.isprintable() and sign != "\\" else sign.encode("unicode_escape").decode()

    return '"' + "".join(map(written, str(value))) + '"'


def _itk_snap(files: CaseFiles) -> list[str]:
    """Of the layers ITK-SNAP shows the last one in large and the others as small pictures: the image comes last."""
    maps = [path for path in (files.noise_map, files.suggested) if path]
    layers = [*maps, *reversed(files.images)]
    if len(files.images) == 1 and (files.channels or 1) > 1:
        # It takes the fourth axis for time, and no other layer may have more times than the main image.
        layers = [*files.images, *reversed(maps)]
    words = ["itksnap", "-g", str(layers[0])]
    words += ["-s", str(files.given)] if files.given else []
    return words + (["-o", *map(str, layers[1:])] if layers[1:] else [])


def _slicer(record: CaseRecord, files: CaseFiles) -> list[str]:
    flat = len(record.shape) == 2
    # Numbered pictures would be taken for slices of one volume; of images the one that is loaded last is shown.
    single = ', {"singleFile": True}' if flat else ""
    lines = [f"slicer.util.loadVolume({_text(path)}{single})" for path in reversed(files.images)]
    if files.noise_map:
        top = _noise_top(files.noise_map)
        hidden = '{"name": "noise", "show": False' + (', "singleFile": True}' if flat else "}")
        lines += [
            f"noise = slicer.util.loadVolume({_text(files.noise_map)}, {hidden})",
            "look = noise.GetDisplayNode()",
            'look.SetAndObserveColorNodeID("vtkMRMLColorTableNodeRed")',
            "look.AutoWindowLevelOff()",
            f"look.SetWindowLevelMinMax(0, {top})",
            f"look.SetThreshold({0.05 * top:g}, {top})",  # where nothing is wrong the image is not darkened
            "look.ApplyThresholdOn()",
            "slicer.util.setSliceViewerLayers(foreground=noise, foregroundOpacity=0.4)",
        ]
    for name, path in (("given", files.given), ("suggested", files.suggested)):
        if path:
            lines += _segmentation(name, path, flat)
    point = None if flat else place_mm(record, files)
    if point:
        lines.append(
            f"slicer.modules.markups.logic().JumpSlicesToLocation({', '.join(map(str, point))}, True)"
        )
    return lines


def _segmentation(name: str, path: Path, flat: bool) -> list[str]:
    """The given mask as an outline, the suggested one as a fill, so that one sees which is which."""
    if flat:  # Slicer reads no segmentation from a picture, and of label volumes it shows the last alone
        lines = [
            f'drawn = slicer.util.loadLabelVolume({_text(path)}, {{"show": False, "singleFile": True}})',
            f'{name} = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "{name}")',
            f"{name}.CreateDefaultDisplayNodes()",
            f"{name}.SetReferenceImageGeometryParameterFromVolumeNode(drawn)",
            f"slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(drawn, {name})",
            "slicer.mrmlScene.RemoveNode(drawn)",
        ]
    else:
        lines = [f'{name} = slicer.util.loadSegmentation({_text(path)}, {{"name": "{name}"}})']
    hidden = "Fill" if name == "given" else "Outline"
    return [*lines, f"{name}.GetDisplayNode().SetVisibility2D{hidden}(False)"]


def place_mm(record: CaseRecord, files: CaseFiles) -> tuple[float, ...] | None:
    """The worst place in RAS millimetres, rounded to 0.1; None without a place or a known space."""
    if record.worst is None or not files.images or len(record.worst) != 3:
        return None
    grid = _grid(files, files.spacing_mm)
    if grid is None or grid.affine is None:
        return None
    point = grid.affine @ np.array([*record.worst[::-1], 1.0])
    return tuple(round(float(value), 1) for value in point[:3])


def _grid(files: CaseFiles, spacing_mm: tuple[float, ...] | None) -> Geometry | None:
    """Where the voxels of the image lie; None if its file does not say."""
    from maskmend.data.images import read_header

    try:
        several = len(files.images) > 1
        channels = None if several else files.channels
        return read_header(files.images[0], channels=channels, spacing_mm=spacing_mm).geometry
    except (UserError, OSError):
        return None


def _noise_top(path: Path) -> int:
    """What stands for 1 in a noise map's file: against it a map is shown, so that a sound mask's looks empty."""
    from maskmend.data.images import read_header

    try:
        return 255 if np.dtype(read_header(path).dtype).kind in "iu" else 1
    except (UserError, OSError):
        return 255


def _overridden(files: CaseFiles) -> bool:
    """Whether the files say something else of space than the data set, so that other programs show them apart."""
    if files.spacing_mm is None:
        return False
    own, true = _grid(files, None), _grid(files, files.spacing_mm)
    if own is None or true is None:
        return true is not None
    return apart_mm(own, true) > 0


def _napari(record: CaseRecord, files: CaseFiles) -> list[str]:
    scale = f", scale={tuple(record.spacing_mm)!r}" if record.spacing_mm else ""
    images = ", ".join(map(_text, files.images))
    space = f", spacing_mm={files.spacing_mm!r}" if files.spacing_mm else ""
    how = (f", channels={files.channels}" if files.channels else "") + space
    lines = [
        "import napari",
        "from maskmend.data.images import read_image, read_label",
        "v = napari.Viewer()",
        f'v.add_image(read_image([{images}]{how})[0], channel_axis=0, name="image"{scale})',
    ]
    if files.noise_map:
        heat = f'v.add_image(read_image({_text(files.noise_map)})[0][0], name="noise", colormap="magma"'
        seen = f'contrast_limits=(0, {_noise_top(files.noise_map)}), blending="additive", opacity=0.4'
        lines.append(f"{heat}, {seen}{scale})")
    if record.worst is not None:
        size = max(2, max(record.shape) // 40)
        look = f'symbol="cross", size={size}, face_color="yellow"'
        lines.append(f'v.add_points([{tuple(record.worst)!r}], name="worst place", {look}{scale})')
    for name, path, look in (("suggested", files.suggested, ", opacity=0.3"), ("given", files.given, "")):
        if path:
            outline = ".contour = 1" if name == "given" else ""
            lines.append(
                f'v.add_labels(read_label({_text(path)}{space})[0], name="{name}"{look}{scale}){outline}'
            )
    if record.worst is not None:
        lines.append(f"v.dims.current_step = {tuple(record.worst)!r}")
    return [*lines, "napari.run()"]


def voxel_text(place: tuple[int, ...], *, first: int = 0) -> str:
    """An array index as viewers show it: x, y, z; counted from `first`, in ITK-SNAP 1."""
    return ", ".join(f"{axis} {index + first}" for axis, index in zip("xyz", reversed(place), strict=False))


def shown_path(path: Path, out: Path) -> str:
    """A path relative to the audit folder where it lies inside, else absolute; with forward slashes."""
    try:
        return path.relative_to(out.absolute()).as_posix()
    except ValueError:
        return str(path)
