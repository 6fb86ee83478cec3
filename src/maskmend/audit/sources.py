"""Where probabilities come from: models by fold, a run's own model, or files of another program."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskmend import pseudonyms
from maskmend.audit.channels import Order, agreement, disagree, other_order
from maskmend.audit.looks import read_mask
from maskmend.audit.placing import FEWEST, better, from_ras, laid, other_way, overlaps, runs_ras
from maskmend.audit.prob_files import (
    ARRAYS,
    VOLUMES,
    load,
    miscounted,
    probabilities,
    refuse_overlaps,
    volume,
)
from maskmend.audit.store import Store
from maskmend.data.case import Case, Dataset, Geometry
from maskmend.data.geometry_check import bare, corner_error_mm
from maskmend.data.images import read_header, stem_of
from maskmend.errors import DataError, UsageError

Probs = Callable[[Case, np.ndarray], np.ndarray]
"""Gives the probabilities (K, *S) of a case on its own grid, float32, background first; it is told the mask (*S)."""

PICKLES = (".pt", ".pth", ".pkl")
MOST_ASKED = 40  # cases that are asked how arrays lie
MOST_NAMED = 10  # classes
DECIDED = 8.0  # whole masks that speak for one way, from which no more are asked


@dataclass(frozen=True)
class Stored:
    """The probabilities that the folds or a run left in a store."""

    store: Store

    def __call__(self, case: Case, label: np.ndarray) -> np.ndarray:
        """Of a case, whatever its mask (*S)."""
        return self.store.read(case.id)


class ProbsFolder:
    """A folder of probabilities made elsewhere (nnU-Net, MONAI, or any program).

    Accepted for a case `ID` with K classes: `ID.npz` or `ID.npy`, (K, *S); `ID.nii.gz` with the classes on the fourth
    axis; or one file per class, `ID_0.nii.gz` ... or `ID_NAME.nii.gz`. The background may be left out.
    MONAI's folder for each case, its ending `_trans` and the image's name in place of `ID` will do.
    Probabilities of the foreground class alone, (*S) or K = 1, are taken for two-class data. Files may also be in a
    subfolder `probs`, where `maskmend predict` puts them.

    Args:
        folder: with the files.
        dataset: its classes and cases.
        axes: how arrays lie: "zyx" slowest first, as nnU-Net and maskmend; "xyz" as MONAI and nibabel; "ras" as
            nnU-Net's NibabelIOWithReorient: slowest first, of the volume turned to run RAS; "auto" goes by the shape,
            and where both fit by `turned`. Files that have a header (NIfTI and the like) lie as that says.
        turned: whether arrays that fit both ways lie xyz. None: `check` finds out; until then each goes by its mask.
    """

    def __init__(
        self, folder: Path, dataset: Dataset, axes: str = "auto", turned: bool | None = None
    ) -> None:
        if not folder.is_dir():
            raise UsageError("is no folder", folder, "give the folder with the probabilities of the cases")
        inner = folder / "probs"
        self.folder = inner if inner.is_dir() else folder
        self.dataset, self.axes, self.turned = dataset, axes, turned
        self.files = _files(self.folder, self._known())
        self.images = {case.id: stem_of(case.images[0]) for case in dataset.cases if case.images}

    def _known(self) -> set[str]:
        names, ids = pseudonyms.active(), {case.id for case in self.dataset.cases}
        return ids | ({names.original(one) for one in ids} if names else set())

    def check(self, cases: Sequence[Case]) -> None:
        """Refuse a folder in which cases are missing, before any work is done, and see how its arrays lie.

        So is one whose channels are in another order than the classes, by what agrees with the masks.

        Raises:
            DataError: names the first cases without probabilities, or says what is wrong with those looked at.
        """
        missing = [case.id for case in cases if not self.files_of(case.id)]
        if missing:
            there = ", ".join(list(self.files)[:3]) or _other_folders(self.folder)
            shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
            fact = f"no probabilities for {len(missing)} of {len(cases)} cases: {shown}; there is {there}"
            remedy = f"name them {missing[0]}.npz, {missing[0]}.npy, {missing[0]}.nii.gz or {missing[0]}_0.nii.gz ..."
            if any(name.endswith(PICKLES) for name in self.files):
                remedy = "pickles (.pt, .pth, .pkl) are never loaded; np.save('CASE.npy', probs.numpy()) keeps numbers"
            raise DataError(fact, self.folder, remedy)
        self._look_at(cases)

    def _look_at(self, cases: Sequence[Case]) -> None:
        """How some cases' arrays lie and their channels follow is how all do: one program wrote them.

        Any mask may be wrong, so up to `MOST_ASKED` are asked; few where these agree.
        """
        turned = self.turned if self.axes == "auto" else self.axes == "xyz"
        gain, found = 0.0, None
        ways: list[list[np.ndarray]] = [[], []]  # agreement as the arrays lie, and turned round
        mirrored: list[list[dict[tuple[int, ...], float]]] = [[], []]
        order = np.random.default_rng(0).permutation(len(cases))  # wrong masks may come in a row
        asked = [cases[one] for one in order[:MOST_ASKED]]
        ras = _Ras([case for case in asked if self._may_be_ras(case)])
        for number, case in enumerate(asked, 1):
            label = read_mask(case, self.dataset)[2]
            probs, path = self._read(case, label)
            if self.axes == "ras":
                probs = self._oriented(case, probs, path, label)
            fits = _fit(probs, label)
            best = 0.0
            for way in np.flatnonzero(fits):
                ways[way].append(agreement(probs, label.T if way else label))
                if label.any():
                    seen = 1 - (probs[0].T if way else probs[0])
                    mirrored[way].append(overlaps(seen, label > 0))
                    best = max(best, mirrored[way][-1][()])
            if case in ras.cases and label.any():
                ras.add(best, from_ras(probs[:1], self._affine(case)), label)
            if turned is None and (path.suffix not in ARRAYS or fits[0] != fits[1]):
                turned = fits[1] and not fits[0]
            elif turned is None:
                gain += _gain(probs, label) if fits[0] else 0
                turned = gain > 0 if abs(gain) > DECIDED else None
            if turned is not None and number >= FEWEST and ras.enough():
                found = _order_of(ways[turned], ways[not turned] if self.axes == "auto" else [])
                if found is None:
                    break
        turned = gain > 0 if turned is None else turned
        if self.axes == "auto":
            self.turned = turned
        if found := found or _order_of(ways[turned], ways[not turned] if self.axes == "auto" else []):
            raise self._other_order(found)
        if self.axes == "auto":
            self._refuse_other_way(ras, mirrored[turned])

    def _may_be_ras(self, case: Case) -> bool:
        """Whether an array would tell that it runs RAS, since the case's own volume does not."""
        if self.axes != "auto" or self.files_of(case.id)[0].name.endswith(VOLUMES):
            return False
        grid = self._grid(case)
        return grid is not None and grid.ndim == 3 and grid.affine is not None and not runs_ras(grid.affine)

    def _refuse_other_way(self, ras: _Ras, mirrored: Sequence[dict[tuple[int, ...], float]]) -> None:
        """Refuse what agrees with nearly all masks far better in another direction."""
        if better(np.array(ras.as_it_lies), np.array(ras.so)):
            given, agreed = float(np.mean(ras.as_it_lies)), float(np.mean(ras.so))
            fact = (
                f"the arrays seem to be of volumes that were turned to run RAS, as by nnU-Net's NibabelIOWithReorient: "
                f"so they agree with the masks (mean Dice {agreed:.2f}), and not as they lie ({given:.2f})"
            )
            raise DataError(fact, self.folder, "audit.axes=ras reads them so")
        if way := other_way(mirrored):
            axes = " and ".join(map(str, way.mirrored))
            fact = (
                f"the probabilities seem to be mirrored along axis {axes} (slowest first): so they agree with the "
                f"masks (mean Dice {way.agreed:.2f}), and not as they lie ({way.given:.2f})"
            )
            remedy = (
                "mirror them back; where the masks are what is mirrored, audit.axes=zyx (or xyz) lets them be"
            )
            raise DataError(fact, self.folder, remedy)

    def _other_order(self, found: Order) -> DataError:
        names = list(self.dataset.labels)
        fact = (
            f"the channels seem to be in the order {_listed([names[one] for one in found.classes])}: so they agree "
            f"with the masks (mean Dice {found.agreed:.2f}), and not in that of the classes ({found.given:.2f})"
        )
        remedy = (
            f"save them in the order {_listed(names)}; if they are, the masks' values mean other classes: "
        )
        return DataError(fact, self.folder, f"{remedy}data.labels={{name: value, ...}} says which")

    def __call__(self, case: Case, label: np.ndarray) -> np.ndarray:
        """The probabilities of a case, as its mask (*S) of class indices lies.

        Raises:
            DataError: no file, another number of classes, another grid, or values that are no probabilities.
        """
        return self._oriented(case, *self._read(case, label), label)

    def _read(self, case: Case, label: np.ndarray) -> tuple[np.ndarray, Path]:
        """(K, *S) as they lie in the file, or as the header says that they lie by the mask; and the file."""
        found = self.files_of(case.id)
        if not found:
            raise DataError("no probabilities", case.id, f"expected in {self.folder}")
        grid = None if found[0].suffix in ARRAYS else self._grid(case)
        if len(found) > 1:
            parts = [self._array(path, 1, label, grid) for path in found]
            shapes = {part.shape for part in parts}
            if len(shapes) > 1:
                raise DataError(f"files of one case differ in shape: {sorted(shapes)}", found[0])
            probs = np.concatenate(parts)
        else:
            probs = self._array(found[0], None, label, grid)
        return self._checked(probs, label, found[0]), found[0]

    def _grid(self, case: Case) -> Geometry | None:
        """Where the mask lies; the image, where the mask's header says nothing; None where nobody knows."""
        if case.label is None or self.dataset.spacing_mm is not None:
            return None
        grid = read_header(case.label).geometry
        if grid.affine is not None and bare(grid.affine) and case.images:
            image = read_header(case.images[0], channels=len(self.dataset.channels) or None).geometry
            return image if image.shape == grid.shape else grid
        return grid

    def _affine(self, case: Case) -> np.ndarray:
        grid = self._grid(case)
        if grid is None or grid.affine is None or grid.ndim != 3:
            fact = "is no volume of which it is known how it lies, so nothing can run RAS"
            raise UsageError(fact, case.id, "audit.axes=zyx")
        return grid.affine

    def files_of(self, case: str) -> list[Path]:
        """With the probabilities of a case; none where there are none."""
        names = pseudonyms.active()
        return self._named(case) or (self._named(names.original(case)) if names else [])

    def _named(self, case: str) -> list[Path]:
        for suffix in (*ARRAYS, *VOLUMES):
            if f"{case}{suffix}" in self.files:
                return [self.files[f"{case}{suffix}"]]
        names = list(self.dataset.labels)
        for suffix in (*VOLUMES, *ARRAYS):
            by_number = self._by_number(case, suffix)
            if by_number:
                return by_number
            named = [self.files.get(f"{case}_{name}{suffix}") for name in names]
            if all(named[1:]):
                return [path for path in named if path is not None]
        return self._by_monai(case)

    def _by_monai(self, case: str) -> list[Path]:
        """Under the name of the image, with MONAI's own ending, or both."""
        stems = dict.fromkeys((case, self.images.get(case, case)))
        names = (f"{stem}{end}" for stem in stems for end in ("_trans", ""))
        found = (self.files.get(f"{name}{suffix}") for name in names for suffix in (*VOLUMES, *ARRAYS))
        return [path for path in found if path is not None][:1]

    def _by_number(self, case: str, suffix: str) -> list[Path]:
        pattern = re.compile(re.escape(case) + r"_(?:class)?0*(\d+)" + re.escape(suffix))
        found = {
            int(match[1]): path for name, path in self.files.items() if (match := pattern.fullmatch(name))
        }
        count = len(self.dataset.labels)
        wanted = range(count) if 0 in found else range(1, count)
        return [found[k] for k in wanted] if found and all(k in found for k in wanted) else []

    def _array(
        self, path: Path, channels: int | None, label: np.ndarray, grid: Geometry | None
    ) -> np.ndarray:
        """(K, *S) as the file means it, or (1, *S)."""
        labels = list(self.dataset.labels)
        if path.suffix in ARRAYS:
            array = load(path, labels, label.size)
        else:
            array, own = volume(path, channels, labels, label.size)
            array = _on_grid(array, own, grid, path) if grid else array
        return array[None] if channels == 1 and array.shape[0] != 1 else array

    def _checked(self, probs: np.ndarray, label: np.ndarray, path: Path) -> np.ndarray:
        classes = len(self.dataset.labels)
        if probs.ndim == label.ndim:
            probs = probs[None]
        if probs.ndim == label.ndim + 2 and 1 in probs.shape[1:]:  # nnU-Net gives images a depth of 1
            probs = probs.squeeze(axis=1 + probs.shape[1:].index(1))
        elif probs.ndim == label.ndim + 2 and len(probs) == 1:  # a batch of one
            probs = probs[0]
        if len(probs) == classes - 1:
            refuse_overlaps(probs, path)
            probs = np.concatenate([np.clip(1 - probs.sum(axis=0, keepdims=True), 0, 1), probs])
        if len(probs) != classes:
            raise miscounted(len(probs), probs.shape, list(self.dataset.labels), path)
        return probabilities(probs, path)

    def _oriented(self, case: Case, probs: np.ndarray, path: Path, label: np.ndarray) -> np.ndarray:
        """(K, *S) as the mask lies, perhaps a view."""
        if path.suffix in ARRAYS and self.axes == "ras":
            probs = from_ras(probs, self._affine(case))
        straight, turned = _fit(probs, label)
        if path.suffix not in ARRAYS or self.axes in ("zyx", "ras"):
            turned = False
        if not straight and not turned:
            raise self._no_fit(case, probs, path, label)
        if straight and turned and self.axes == "auto":
            turned = _gain(probs, label) > 0 if self.turned is None else self.turned
        return probs.transpose(0, *range(probs.ndim - 1, 0, -1)) if turned else probs

    def _no_fit(self, case: Case, probs: np.ndarray, path: Path, label: np.ndarray) -> DataError:
        fact = f"probabilities of shape {probs.shape[1:]}, the mask has {label.shape} (slowest axis first)"
        remedy = "resample them to the image's own grid"
        if self._may_be_ras(case) and from_ras(probs, self._affine(case)).shape[1:] == label.shape:
            remedy = (
                "if the volume was turned to run RAS, as by nnU-Net's NibabelIOWithReorient: audit.axes=ras"
            )
        elif path.suffix == ".npz" and path.with_suffix(".pkl").exists():
            remedy = (
                "nnU-Net 1 keeps them cropped: put them back into the image (crop_bbox in the .pkl beside it)"
            )
        return DataError(fact, path, remedy)


class _Ras:
    """Dice of cases' arrays with their masks as they lie, and if they were of volumes turned to run RAS."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = cases
        self.as_it_lies: list[float] = []
        self.so: list[float] = []

    def add(self, as_it_lies: float, background: np.ndarray, label: np.ndarray) -> None:
        """Of one case: (1, *S) turned back from RAS, and its mask (*S)."""
        fits = background.shape[1:] == label.shape
        self.as_it_lies.append(as_it_lies)
        self.so.append(overlaps(1 - background[0], label > 0)[()] if fits else 0.0)

    def enough(self) -> bool:
        """Whether as many were asked as are needed, or as there are."""
        return len(self.so) >= min(FEWEST, len(self.cases))


def _on_grid(array: np.ndarray, own: Geometry, grid: Geometry, path: Path) -> np.ndarray:
    found = laid(array, own, grid)
    if found is not None:
        return found
    if own.shape != grid.shape:
        return array  # refused for its shape
    error = corner_error_mm(own, grid)
    fact = f"lies {error:.3g} mm from the mask at the corners (spacing, origin or direction differ)"
    remedy = (
        "save probabilities on the image's own grid; if only the header is wrong, copy the image's into it"
    )
    raise DataError(fact, path, remedy)


def _files(folder: Path, cases: set[str]) -> dict[str, Path]:
    """By name; those in a folder of a case's own too, for MONAI gives each its own."""
    inner = [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir() and path.name.removesuffix("_0000") in cases
    ]
    return {
        path.name: path for place in (*inner, folder) for path in sorted(place.iterdir()) if path.is_file()
    }


def _other_folders(folder: Path) -> str:
    names = [path.name for path in sorted(folder.iterdir()) if path.is_dir()]
    return f"no file, but the folders {', '.join(names[:3])}" if names else "nothing"


def _fit(probs: np.ndarray, label: np.ndarray) -> tuple[bool, bool]:
    """Whether probabilities (K, *S) have the shape of a mask as they lie, and with their axes turned round."""
    return probs.shape[1:] == label.shape, probs.shape[1:] == label.shape[::-1]


def _order_of(found: Sequence[np.ndarray], other_way: Sequence[np.ndarray]) -> Order | None:
    """By the agreement of some cases; how they lie was judged by a channel, so the other way is looked at, too."""
    if len(found) < FEWEST:
        return None
    order = other_order(found)
    if order is None and len(other_way) == len(found) and disagree(found):
        order = other_order(other_way)
    return order


def _gain(probs: np.ndarray, label: np.ndarray) -> float:
    """By how much more of a mask probabilities that fit either way bear out when they are turned, in [-1, 1]."""
    drawn = label > 0
    straight, turned = (float(probs[0][mask].sum()) for mask in (drawn, drawn.T))
    return (straight - turned) / max(int(np.count_nonzero(drawn)), 1)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
