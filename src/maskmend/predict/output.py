"""The folder of predictions: who made it, what is already there, and how each result is written.

`predict.json` in the folder names the model and the images, so that an interrupted prediction goes on where
it stopped and results of two models or of two images of one name are never mixed.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskmend.data.atomic import atomic_write, write_text
from maskmend.data.case import Case, Geometry
from maskmend.data.images import LABEL_SUFFIXES, label_suffix, suffix_of, write_image, write_label
from maskmend.data.owner import sweep
from maskmend.errors import UsageError
from maskmend.predict.restore import Restored

RECORD = "predict.json"
_RASTER = (".png", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Output:
    """Where results go.

    Args:
        targets: case id to kind ("labels", "probs", "uncertainty") to file.
        done: ids of the cases whose files are all there, made by this model from this image.
    """

    targets: Mapping[str, Mapping[str, Path]]
    done: frozenset[str]

    @classmethod
    def open(
        cls,
        out: Path,
        cases: Sequence[Case],
        save: Sequence[str],
        maker: Mapping[str, Any],
        *,
        overwrite: bool,
    ) -> Output:
        """Claim `out` for the predictions of one model.

        Args:
            out: a folder, or for a single case a file to write the label to.
            cases: what will be predicted.
            save: kinds of results.
            maker: what must be equal for results to belong together: model and settings.
            overwrite: replace what is there, whoever made it.

        Raises:
            UsageError: `out` holds images of the input, results of another model, settings or image, or files
                that no prediction made.
        """
        targets = _targets(out, cases, save)
        _refuse_input(out, cases, targets)
        sweep(*{path.parent for path in _paths(targets)})
        if suffix_of(out):
            return cls(targets, frozenset(_claim_file(targets, overwrite)))
        record = {} if overwrite else _read_record(out / RECORD)
        images = {case.id: _identity(case) for case in cases}
        if overwrite:
            for path in _paths(targets):
                path.unlink(missing_ok=True)
        elif record:
            _refuse_difference(record, maker, images, out)
        else:
            _refuse_foreign(targets)
        known = {**record.get("images", {}), **images}
        write_text(out / RECORD, json.dumps({**maker, "images": known}, indent=1) + "\n")
        done = {case for case, files in targets.items() if all(path.exists() for path in files.values())}
        return cls(targets, frozenset(done))

    def write(self, case: Case, result: Restored, values: np.ndarray, geometry: Geometry) -> None:
        """Write all results of one case, each atomically, the label last: with it the case is complete.

        Args:
            case: one of the cases the output was opened with.
            result: on the input's grid.
            values: file value of each class index, (K,).
            geometry: of the input.
        """
        files = self.targets[case.id]
        if "probs" in files and result.probs is not None:
            _write_probs(files["probs"], result.probs, geometry)
        if "uncertainty" in files and result.uncertainty is not None:
            _write_uncertainty(files["uncertainty"], result.uncertainty, geometry)
        if "labels" in files:
            write_label(files["labels"], values[result.label], geometry)

    def paths(self) -> list[Path]:
        """The label files in case order; the other results where no labels were asked for."""
        labels = [files["labels"] for files in self.targets.values() if "labels" in files]
        return [path for path in labels or _paths(self.targets) if path.exists()]


def _targets(out: Path, cases: Sequence[Case], save: Sequence[str]) -> dict[str, dict[str, Path]]:
    if suffix_of(out):
        if len(cases) != 1:
            raise UsageError(f"{len(cases)} cases cannot go into one file", out, "give a folder")
        if suffix_of(out) not in LABEL_SUFFIXES:
            remedy = f"use one of {', '.join(LABEL_SUFFIXES)}"
            raise UsageError(f"labels cannot be written as {suffix_of(out)}", out, remedy)
        stem, suffix = out.name[: -len(suffix_of(out))], suffix_of(out)
        names = {kind: out.with_name(f"{stem}_{kind}{_suffix(kind, suffix)}") for kind in save}
        return {cases[0].id: {**names, **({"labels": out} if "labels" in save else {})}}
    folders = {"labels": out, "probs": out / "probs", "uncertainty": out / "uncertainty"}
    return {
        case.id: {
            kind: folders[kind] / f"{case.id}{_suffix(kind, label_suffix(case.images[0]))}" for kind in save
        }
        for case in cases
    }


def _suffix(kind: str, label: str) -> str:
    """Probabilities need fractions and an axis of classes; uncertainty keeps to 8 bits where images do."""
    if kind == "labels":
        return label
    if kind == "probs":
        return ".npz" if label in _RASTER else ".nii.gz"
    return ".png" if label in (".png", ".bmp") else ".tif" if label in _RASTER else ".nii.gz"


def _paths(targets: Mapping[str, Mapping[str, Path]]) -> list[Path]:
    return [path for files in targets.values() for path in files.values()]


def _refuse_input(out: Path, cases: Sequence[Case], targets: Mapping[str, Mapping[str, Path]]) -> None:
    """A prediction named like its image, in the image's folder, would replace it."""
    images = {path.resolve() for case in cases for path in case.images}
    clash = next((path for path in _paths(targets) if path.resolve() in images), None)
    same = out.is_dir() and any(path.parent == out.resolve() for path in images)
    if clash or same:
        raise UsageError("the output would lie among the input images", clash or out, "choose another folder")


def _claim_file(targets: Mapping[str, Mapping[str, Path]], overwrite: bool) -> list[str]:
    there = [path for path in _paths(targets) if path.exists()]
    if there and not overwrite:
        raise UsageError("exists already", there[0], "add --overwrite to replace it")
    return []


def _refuse_foreign(targets: Mapping[str, Mapping[str, Path]]) -> None:
    there = [path for path in _paths(targets) if path.exists()]
    if there:
        fact = f"exists already and no prediction recorded it ({len(there)} such file(s))"
        raise UsageError(fact, there[0], "choose another folder, or add --overwrite to replace them")


def _refuse_difference(
    record: Mapping[str, Any], maker: Mapping[str, Any], images: Mapping[str, Any], out: Path
) -> None:
    remedy = "choose another folder, or add --overwrite to predict again"
    for key, value in maker.items():
        if record.get(key) != value:
            shown = f"{_short(record.get(key))} there, {_short(value)} now"
            raise UsageError(f"holds predictions with another {key} ({shown})", out, remedy)
    before = record.get("images", {})
    changed = [case for case, identity in images.items() if before.get(case, identity) != identity]
    if changed:
        fact = f"holds predictions of another image named {changed[0]!r} ({len(changed)} such image(s))"
        raise UsageError(fact, out, remedy)


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)


def _identity(case: Case) -> list[list[int]]:
    """Size and change time of each image file: cheap, and enough to notice another file of that name."""
    stats = [path.stat() for path in case.images]
    return [[stat.st_size, stat.st_mtime_ns] for stat in stats]


def _read_record(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UsageError("is not a record of predictions", path, "choose another folder, or add --overwrite")
    return record


def _write_probs(path: Path, probs: np.ndarray, geometry: Geometry) -> None:
    """(K, *S) float16 as float32 NIfTI with the classes on the fourth axis, or as compressed NumPy array."""
    if path.suffix == ".npz":
        atomic_write(path, lambda temporary: np.savez_compressed(temporary, probs=probs))
        return
    atomic_write(path, lambda temporary: _write_nifti(temporary, probs, geometry))


def _write_nifti(path: Path, probs: np.ndarray, geometry: Geometry) -> None:
    """One class after the other, as the file wants them: the whole is never there as float32."""
    import nibabel

    nifti: Any = nibabel
    affine = geometry.affine
    if affine is None:
        affine = np.eye(4)
        np.fill_diagonal(affine[: geometry.ndim, : geometry.ndim], geometry.spacing_mm[::-1])
    shape = (*geometry.shape[::-1], 1, 1)[:3]
    image = nifti.Nifti1Image(np.broadcast_to(np.float32(0), (*shape, len(probs))), affine)
    image.header.set_xyzt_units("mm")
    image.header["vox_offset"] = 352
    with path.open("wb") as file, gzip.GzipFile("", "wb", 1, file, mtime=0) as stream:
        stream.write(image.header.binaryblock + b"\0\0\0\0")
        for one in probs:
            stream.write(np.ascontiguousarray(one, dtype="<f4").data)


def _write_uncertainty(path: Path, uncertainty: np.ndarray, geometry: Geometry) -> None:
    """Fractions where the format has them, else 0..255 for 0..1."""
    if path.suffix == ".png":
        uncertainty = np.rint(uncertainty * 255).astype(np.uint8)
    write_image(path, uncertainty, geometry)
