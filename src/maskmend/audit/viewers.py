"""Commands that open a case in ITK-SNAP, 3D Slicer and napari, ready to paste."""

from __future__ import annotations

import os
import shlex
import subprocess
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

    Of volumes 3D Slicer and napari go to the worst place; ITK-SNAP has no option for it. Where the voxel size of the
    files is overridden by another, only napari's readers know it.

    Args:
        record: of the case.
        files: of the case.
        windows: quote for Windows' command line rather than a POSIX shell; None: for this system.
    """
    if not files.images or pseudonyms.active():  # a command that works names the files
        return []
    found = [_napari(record, files)]
    if not _overridden(files):
        found.insert(0, _slicer(record, files))
        if all(suffix_of(path) in VOLUME_SUFFIXES for path in files.all):
            found.insert(0, _itk_snap(files))
    windows = os.name == "nt" if windows is None else windows
    return [OpenCommand(tool, _quoted(words, windows), tuple(words)) for tool, words in found]


def _quoted(words: list[str], windows: bool) -> str:
    return subprocess.list2cmdline(words) if windows else shlex.join(words)


def _itk_snap(files: CaseFiles) -> tuple[str, list[str]]:
    words = ["itksnap", "-g", str(files.images[0])]
    words += ["-s", str(files.given)] if files.given else []
    more = [*files.images[1:], *(path for path in (files.suggested, files.noise_map) if path)]
    return "ITK-SNAP", words + (["-o", *map(str, more)] if more else [])


def _slicer(record: CaseRecord, files: CaseFiles) -> tuple[str, list[str]]:
    flat = len(record.shape) == 2
    single = ", {'singleFile': True}" if flat else ""
    load = "loadLabelVolume" if flat else "loadSegmentation"
    lines = [f"slicer.util.loadVolume({str(path)!r}{single})" for path in files.images]
    if files.noise_map:
        hidden = "{'show': False, 'singleFile': True}" if flat else "{'show': False}"
        lines += [
            f"noise = slicer.util.loadVolume({str(files.noise_map)!r}, {hidden})",
            "noise.GetDisplayNode().SetAndObserveColorNodeID('vtkMRMLColorTableNodeRed')",
            "slicer.util.setSliceViewerLayers(foreground=noise, foregroundOpacity=0.4)",
        ]
    lines += [f"slicer.util.{load}({str(path)!r}{single})" for path in (files.given, files.suggested) if path]
    point = None if flat else place_mm(record, files)
    if point:
        lines.append(
            f"slicer.modules.markups.logic().JumpSlicesToLocation({', '.join(map(str, point))}, True)"
        )
    return "3D Slicer", ["Slicer", "--python-code", "; ".join(lines)]


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


def _overridden(files: CaseFiles) -> bool:
    """Whether the files say something else of space than the data set, so that other programs show them apart."""
    if files.spacing_mm is None:
        return False
    own, true = _grid(files, None), _grid(files, files.spacing_mm)
    if own is None or true is None:
        return true is not None
    return apart_mm(own, true) > 0


def _napari(record: CaseRecord, files: CaseFiles) -> tuple[str, list[str]]:
    scale = f", scale={tuple(record.spacing_mm)!r}" if record.spacing_mm else ""
    images = [str(path) for path in files.images]
    space = f", spacing_mm={files.spacing_mm!r}" if files.spacing_mm else ""
    how = (f", channels={files.channels}" if files.channels else "") + space
    lines = [
        "import napari",
        "from maskmend.data.images import read_image, read_label",
        "v = napari.Viewer()",
        f"v.add_image(read_image({images!r}{how})[0], channel_axis=0{scale})",
    ]
    if files.noise_map:
        heat = f"v.add_image(read_image({str(files.noise_map)!r})[0][0], name='noise', colormap='magma'"
        lines.append(f"{heat}, blending='additive', opacity=0.6{scale})")
    for name, path in (("given", files.given), ("suggested", files.suggested)):
        if path:
            lines.append(
                f"v.add_labels(read_label({str(path)!r}{space})[0], name='{name}'{scale}).contour = 1"
            )
    if record.worst is not None:
        lines.append(f"v.dims.current_step = {tuple(record.worst)!r}")
    lines.append("napari.run()")
    return "napari", ["python", "-c", "; ".join(lines)]


def voxel_text(place: tuple[int, ...]) -> str:
    """An array index as viewers show it: x, y, z."""
    return ", ".join(f"{axis} {index}" for axis, index in zip("xyz", reversed(place), strict=False))


def shown_path(path: Path, out: Path) -> str:
    """A path relative to the audit folder where it lies inside, else absolute; with forward slashes."""
    try:
        return path.relative_to(out.absolute()).as_posix()
    except ValueError:
        return str(path)
