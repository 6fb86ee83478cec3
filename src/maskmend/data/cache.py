"""Prepared cases on disk: keyed by file contents, written atomically, memory-mapped when large."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from maskmend.data import owner
from maskmend.data.atomic import explained
from maskmend.data.case import Case
from maskmend.data.digests import fed
from maskmend.data.images import read_image, read_label
from maskmend.data.plan import Plan
from maskmend.data.preprocess import Inverse, Prepared, label_and_valid, prepare
from maskmend.data.raters import Raters, fused
from maskmend.errors import ResourceError

FORMAT = 1  # raise it when prepared arrays change for the same plan; old entries are then simply not found
IN_RAM_BYTES = (
    1 << 30
)  # below this all arrays are held in memory: opening a map costs more than a small sample
MOST_OPEN = 4000  # cases mapped at a time, of up to 4 files each: Linux allows a process 65,530 maps
VOXELS_PER_CLASS = 1000  # remembered positions per class and case, for foreground over-sampling
_SIBLINGS = {".mhd", ".nhdr", ".hdr", ".img"}  # formats whose pixels lie in a second file of the same stem


@dataclass(frozen=True)
class _Entry:
    """One case of an open cache; `arrays` is filled when the case is held in memory."""

    case: Case
    key: str
    inverse: Inverse
    places: list[np.ndarray]  # positions (N, ndim) int32 of each foreground class that occurs
    arrays: Prepared | None = None
    rows: tuple[int, ...] = ()  # which of the run's raters drew the case


class Cache:
    """Prepared training cases by number. `cache[i]` is a `Prepared`; do not write into its arrays.

    Use `Cache.open`. An entry is found again as long as the files' contents and the preprocessing part of
    the plan are the same; patch and batch size do not matter. Several processes may open one folder at the
    same time: each writes into a folder of its own and renames it, and the later one uses the winner's.
    """

    def __init__(
        self, entries: Sequence[_Entry], plan: Plan, folder: Path | None, raters: tuple[str, ...] = ()
    ) -> None:
        self._entries, self.plan, self.folder, self.raters = list(entries), plan, folder, raters
        self._opened: dict[int, Prepared] = {}

    @classmethod
    def open(
        cls,
        cases: Sequence[Case],
        plan: Plan,
        folder: Path | None,
        *,
        labels: Callable[[Case], Path | None] | None = None,
        raters: Raters | None = None,
        progress: Callable[[Sequence[Case]], Iterable[Case]] | None = None,
        max_voxels: int | None = None,
        in_ram_bytes: int = IN_RAM_BYTES,
    ) -> Cache:
        """Prepare what is missing and open the rest.

        Args:
            cases: their order gives the case numbers.
            plan: how to prepare them.
            folder: where prepared cases lie; None keeps everything in memory.
            labels: which label file of a case to use; the given label by default, None for no label.
            raters: keep the masks of these raters and make the label of them, once; a trusted case keeps its own.
            progress: wraps the cases to show how far along they are, e.g. `progress.track`.
            max_voxels: refuse files that claim more.
            in_ram_bytes: a data set whose prepared arrays are smaller is held in memory.

        Raises:
            DataError: a file is at fault or does not fit the plan.
            ResourceError: the disk is full.
        """
        if folder is not None:
            folder = Path(folder).resolve()
            _make(folder)
        limits: dict[str, Any] = {} if max_voxels is None else {"max_voxels": max_voxels}
        entries = []
        for case in progress(cases) if progress else cases:
            label = labels(case) if labels else _own_label(case, raters)
            entries.append(_entry(case, label, plan, folder, limits, raters))
        cache = cls(entries, plan, folder, raters.names if raters else ())
        if folder is not None and cache.nbytes <= in_ram_bytes:
            cache._entries = [replace(e, arrays=_load(folder / e.key, e.inverse, None)) for e in entries]
        return cache

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, number: int) -> Prepared:
        held = self._entries[number].arrays or self._opened.get(number)
        if held is None:
            assert self.folder is not None  # entries without a folder hold their arrays
            entry = self._entries[number]
            if len(self._opened) >= MOST_OPEN:
                self._opened.pop(next(iter(self._opened)))  # the one opened first
            held = self._opened[number] = _load(self.folder / entry.key, entry.inverse, "r")
        return held

    def __getstate__(self) -> dict[str, Any]:  # a pickled memory map would carry its whole content
        return self.__dict__ | {"_opened": {}}

    @property
    def cases(self) -> tuple[Case, ...]:
        """The cases by number."""
        return tuple(entry.case for entry in self._entries)

    @property
    def ids(self) -> tuple[str, ...]:
        """Case ids by number."""
        return tuple(entry.case.id for entry in self._entries)

    @property
    def key(self) -> str:
        """Stands for the content of all cases and the preprocessing; goes into the run's record."""
        return _digest(*(f"{entry.case.id} {entry.key}".encode() for entry in self._entries))

    @property
    def nbytes(self) -> int:
        """Size of all prepared arrays if none has a `valid` map, in bytes."""
        per_voxel = 4 * self.plan.in_channels + 1
        return sum((per_voxel + len(e.rows)) * math.prod(e.inverse.prepared) for e in self._entries)

    def case(self, number: int) -> Case:
        """The case behind a number."""
        return self._entries[number].case

    def rows(self, number: int) -> tuple[int, ...]:
        """Which of `raters` drew a case, in the order of its `Prepared.raters`."""
        return self._entries[number].rows

    def shape(self, number: int) -> tuple[int, ...]:
        """Spatial shape of a prepared case, without opening it."""
        return self._entries[number].inverse.prepared

    def foreground(self, number: int) -> list[np.ndarray]:
        """For each foreground class that occurs in a case, up to 1000 of its positions, (N, ndim) int32."""
        return self._entries[number].places

    def windows(self, patch: Sequence[int]) -> int:
        """How many patches side by side cover all cases."""
        shapes = (entry.inverse.prepared for entry in self._entries)
        return sum(math.prod(-(-n // p) for n, p in zip(shape, patch, strict=True)) for shape in shapes)


def content_key(case: Case, label: Path | None, plan: Plan, raters: Raters | None = None) -> str:
    """Hash of everything that a prepared case depends on: file contents, and how the plan treats them."""
    relevant = plan.model_dump(
        mode="json",
        include={"ndim", "spacing_mm", "input_spacing_mm", "spacing_tolerance", "channels", "crop", "ignore"},
    )
    how = json.dumps([FORMAT, relevant, plan.values], sort_keys=True)
    parts = [how.encode()]
    for role, paths in (("image", case.images), ("label", [label]), ("ignore", [case.ignore])):
        for path in paths:
            parts.append(f"{role} {path.suffix if path else None}".encode())
            parts += [_file_digest(file) for file in _files(path)]
    if raters is not None:
        parts.append(f"raters {raters.key}".encode())
        for name, path in _drawn(case, raters):
            parts.append(f"rater {name} {path.suffix}".encode())
            parts += [_file_digest(file) for file in _files(path)]
    return _digest(*parts)


def _drawn(case: Case, raters: Raters | None) -> list[tuple[str, Path]]:
    """The masks of one case that count, in the order of the run's raters."""
    return [(name, case.raters[name]) for name in raters.names if name in case.raters] if raters else []


def _own_label(case: Case, raters: Raters | None) -> Path | None:
    """The label that is learnt as it is: the given one, but of several raters' cases only a trusted one."""
    if raters is None:
        return case.label
    own = case.trusted and case.label not in case.raters.values()
    return case.label if own else None


def _files(path: Path | None) -> list[Path]:
    if path is None:
        return []
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    if path.suffix.lower() in _SIBLINGS:
        return sorted(path.parent.glob(f"{path.stem}.*"))
    return [path]


def _file_digest(path: Path) -> bytes:
    return fed(hashlib.blake2b(digest_size=20), path).digest()


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _entry(
    case: Case,
    label: Path | None,
    plan: Plan,
    folder: Path | None,
    limits: dict[str, Any],
    raters: Raters | None,
) -> _Entry:
    key = content_key(case, label, plan, raters)
    rows = tuple(raters.names.index(name) for name, _ in _drawn(case, raters)) if raters else ()
    if folder is not None and (found := _find(folder / key)):
        inverse, voxels = found
        return _Entry(case, key, inverse, _positions(voxels), rows=rows)
    prepared = _prepare(case, label, plan, limits, raters)
    voxels = _sample_voxels(prepared, plan)
    if folder is None:
        return _Entry(case, key, prepared.inverse, _positions(voxels), prepared, rows)
    _store(folder, key, prepared, voxels)
    return _Entry(case, key, prepared.inverse, _positions(voxels), rows=rows)


def _prepare(
    case: Case, label: Path | None, plan: Plan, limits: dict[str, Any], raters: Raters | None
) -> Prepared:
    image, geometry = read_image(case.images, channels=plan.in_channels, **limits)
    classes = None if label is None else read_label(label, **limits)[0]
    mask = None if case.ignore is None else read_label(case.ignore, **limits)[0]
    masks = [read_label(path, **limits)[0] for _, path in _drawn(case, raters)]
    prepared = prepare(image, classes, geometry, plan, ignore_mask=mask, raters=masks, where=case.id)
    if raters is None or prepared.label is not None or prepared.raters is None:
        return prepared
    label_map, valid = label_and_valid(fused(prepared.raters, plan.num_classes, raters.fuse))
    return replace(prepared, label=label_map, valid=valid)


def _sample_voxels(prepared: Prepared, plan: Plan) -> np.ndarray:
    """Positions of foreground voxels, (N, 1 + ndim) int32 with the class in front, a fair draw per class."""
    rng = np.random.Generator(np.random.PCG64(0))
    rows = [np.zeros((0, 1 + plan.ndim), np.int32)]
    for number in range(1, plan.num_classes if prepared.label is not None else 0):
        found = np.flatnonzero(prepared.label == number)
        if len(found) > VOXELS_PER_CLASS:
            found = np.sort(rng.choice(found, VOXELS_PER_CLASS, replace=False, shuffle=False))
        where = np.stack(np.unravel_index(found, prepared.inverse.prepared), axis=1)
        rows.append(np.insert(where, 0, number, axis=1).astype(np.int32))
    return np.concatenate(rows)


def _positions(voxels: np.ndarray) -> list[np.ndarray]:
    return [voxels[voxels[:, 0] == number, 1:] for number in np.unique(voxels[:, 0])]


def _find(entry: Path) -> tuple[Inverse, np.ndarray] | None:
    """What a complete entry says about itself; a damaged one is put away and counts as missing."""
    if not entry.is_dir():
        return None
    try:
        facts = json.loads((entry / "facts.json").read_text(encoding="utf-8"))
        box = tuple((start, stop) for start, stop in facts["box"])
        inverse = Inverse(tuple(facts["shape"]), box, tuple(facts["prepared"]))
        held = _load(entry, inverse, "r")  # memory-mapping a file that was cut short fails
        if (0 if held.raters is None else len(held.raters)) != facts.get("raters", 0):
            raise ValueError(f"{entry} lacks masks of raters")
        return inverse, np.load(entry / "voxels.npy", allow_pickle=False)
    except (OSError, ValueError, KeyError, EOFError):
        away = entry.with_name(owner.temporary_name("damaged"))
        try:
            os.rename(entry, away)
        except OSError:  # another process was faster
            return None
        shutil.rmtree(away, ignore_errors=True)
        return None


def _load(entry: Path, inverse: Inverse, mode: Any) -> Prepared:
    arrays: dict[str, Any] = {}
    for name in ("image", "label", "valid", "raters"):
        path = entry / f"{name}.npy"
        arrays[name] = np.load(path, mmap_mode=mode, allow_pickle=False) if path.exists() else None
        if arrays[name] is not None and arrays[name].shape[-len(inverse.prepared) :] != inverse.prepared:
            raise ValueError(f"{path} does not fit its entry")
    if arrays["image"] is None:
        raise ValueError(f"{entry} holds no image")
    return Prepared(arrays["image"], arrays["label"], arrays["valid"], inverse, arrays["raters"])


def _store(folder: Path, key: str, prepared: Prepared, voxels: np.ndarray) -> None:
    temporary = folder / owner.temporary_name(key)
    probe = temporary / "image.npy"
    try:
        with explained(folder / key, probe=probe, remedy="make room, or set data.cache= to a larger disk"):
            temporary.mkdir()
            for name in ("image", "label", "valid", "raters"):
                if (array := getattr(prepared, name)) is not None:
                    np.save(temporary / f"{name}.npy", array)
            np.save(temporary / "voxels.npy", voxels)
            facts = asdict(prepared.inverse)
            if prepared.raters is not None:
                facts["raters"] = len(prepared.raters)
            (temporary / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
            try:
                os.rename(temporary, folder / key)
            except OSError:
                if not (folder / key).is_dir():  # otherwise another process made the same entry first
                    raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make(folder: Path) -> None:
    """Create the folder and clear what killed processes left in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"cannot be created: {error.strerror}", folder, "set data.cache=") from error
    owner.sweep(folder)
