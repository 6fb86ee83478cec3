"""What several raters of one data set say of each other: agreement, bias, reliability, and where they must talk.

From Python:

    from maskmend.audit.raters import rater_agreement, write_consensus
    report = rater_agreement(find_cases("lidc", need_images=False, need_labels=False))
    report.to_json(); report.to_table(); report.sections(); write_consensus(report.dataset, "consensus", "staple")

`maskmend raters` does the same; an audit judges the given labels alone, and names that command where there are raters.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskmend.audit.agreement import CaseAgreement, compare_raters
from maskmend.audit.consensus import rater_weights, write_consensus
from maskmend.audit.opening import refuse_many_classes
from maskmend.audit.rater_figures import (
    Dispute,
    PairTotals,
    RaterFigures,
    dispute_of,
    figures_of,
    interval,
    mean_of,
    pair_totals,
    rater_figures,
)
from maskmend.data.case import Case, Dataset, Geometry
from maskmend.data.geometry_check import apart_mm
from maskmend.data.preprocess import IGNORED
from maskmend.data.raters import chosen_raters
from maskmend.errors import DataError, UsageError
from maskmend.evaluate.statistics import Interval

if TYPE_CHECKING:
    from rich.console import Group

    from maskmend.report import Section

__all__ = ["RaterReport", "rater_agreement", "read_masks", "write_consensus"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RaterReport:
    """The raters of a data set.

    Args:
        dataset: with its classes named.
        unit: "mm", or "px" where a file knows no spacing.
        raters: figures of each, by name.
        pairs: of each two.
        disputes: all cases, those with the closest votes first.
        dice, fleiss, distance: means over cases, of all pairs and classes.
        given: the given labels against the vote of all raters; None where there are none.
        agreements: case by case, in the order of the data set.
    """

    dataset: Dataset
    unit: str
    raters: tuple[RaterFigures, ...]
    pairs: tuple[PairTotals, ...]
    disputes: tuple[Dispute, ...]
    dice: Interval
    fleiss: Interval
    distance: Interval
    given: RaterFigures | None
    agreements: tuple[CaseAgreement, ...]

    @property
    def weights(self) -> dict[str, float]:
        """Weights for a weighted consensus, from the Dice with the vote of the others."""
        return rater_weights({one.name: one.dice_vote.estimate for one in self.raters})

    @property
    def warnings(self) -> list[str]:
        """Sentences on what makes the figures worthless, if anything does."""
        return different_values(self.agreements)

    def to_json(self) -> dict[str, Any]:
        """Nested plain values, without the figures of each pair in each case."""
        return {
            "unit": self.unit,
            "warnings": self.warnings,
            "cases": len(self.agreements),
            "dice": asdict(self.dice),
            "fleiss_kappa": asdict(self.fleiss),
            "distance": asdict(self.distance),
            "raters": [asdict(one) for one in self.raters],
            "given": asdict(self.given) if self.given else None,
            "pairs": [asdict(one) for one in self.pairs],
            "disputes": [asdict(one) for one in self.disputes],
        }

    def to_table(self) -> Group:
        """Tables for a terminal."""
        from maskmend.audit.rater_page import terminal_tables

        return terminal_tables(self)

    def sections(self) -> list[Section]:
        """Sections for an HTML page."""
        from maskmend.audit.rater_page import page_sections

        return page_sections(self)


def rater_agreement(
    dataset: Dataset,
    progress: Progress | None = None,
    *,
    raters: Sequence[str] | None = None,
    spacing_mm: Mapping[str, Sequence[float]] | None = None,
) -> RaterReport:
    """Compare the raters of a data set. Images are not needed and not read.

    Args:
        dataset: as found; cases with fewer than two raters are passed over.
        progress: called with (cases done, all).
        raters: names or patterns such as `rater*`; None: all.
        spacing_mm: voxel size by case id, for files that know none (PNG); then distances are in mm.

    Raises:
        UsageError: fewer than two raters, no case that two of them drew, or too many classes.
        DataError: masks of one case lie on different grids, or hold values that are no class.
    """
    known = sorted({name for case in dataset.cases for name in case.raters})
    names = chosen_raters(known, raters or ["*"], dataset.root)
    shared = [case for case in dataset.cases if sum(name in names for name in case.raters) > 1]
    if not shared:
        raise UsageError(
            "no case was drawn by two of the raters",
            dataset.root,
            "check the file names in the raters' folders",
        )
    dataset = with_classes(dataset, shared, names)
    refuse_many_classes(dataset)
    agreements, units = [], set()
    for number, case in enumerate(shared, 1):
        agreement, in_mm = _compare(case, names, dataset, spacing_mm or {})
        agreements.append(agreement)
        units.add(in_mm)
        if progress is not None:
            progress(number, len(shared))
    return _report(dataset, agreements, names, "mm" if units == {True} else "px")


def with_classes(dataset: Dataset, cases: Iterable[Case], names: Sequence[str]) -> Dataset:
    """The data set with its classes named, from the raters' masks when nobody declared them.

    Raises:
        DataError: values that cannot be taken for classes without asking, such as 0 and 255.
    """
    from maskmend.data.images import read_label
    from maskmend.data.label_values import count_values, infer_classes, judge_undeclared, judge_values

    if dataset.labels:
        return dataset
    counts = []
    for case in cases:
        for name in names:
            if path := case.raters.get(name):
                counts.append(count_values(read_label(path, spacing_mm=dataset.spacing_mm)[0]))
                if finding := judge_values(counts[-1], {}, dataset.ignore):
                    raise DataError(finding.text, path, finding.remedy)
    if finding := judge_undeclared(counts, dataset.ignore):
        raise DataError(finding.text, dataset.root, finding.remedy)
    return replace(dataset, labels=infer_classes(counts, dataset.ignore))


def read_masks(
    case: Case, names: Sequence[str], dataset: Dataset, *, given: bool = False
) -> tuple[dict[str, np.ndarray], Geometry]:
    """The masks of a case's raters as class indices, `IGNORED` where not annotated.

    Args:
        case: what to read.
        names: raters, in this order; those who did not draw the case are left out.
        dataset: with its classes named.
        given: add the given label under "" where it is no rater's.

    Raises:
        DataError: the masks lie on different grids, or a value is no class.
    """
    from maskmend.data.images import read_label

    paths = {name: case.raters[name] for name in names if name in case.raters}
    if given and case.label is not None and case.label not in case.raters.values():
        paths[""] = case.label
    masks: dict[str, np.ndarray] = {}
    geometry: Geometry | None = None
    for name, path in paths.items():
        label, grid = read_label(path, spacing_mm=dataset.spacing_mm)
        if geometry is not None and label.shape != geometry.shape:
            fact = (
                f"has shape {label.shape}, the mask {paths[next(iter(masks))]} of {case.id} {geometry.shape}"
            )
            raise DataError(fact, path, "export one of them again on the image's grid")
        geometry = geometry or grid
        if dataset.spacing_mm is None and (error := apart_mm(geometry, grid)):
            fact = (
                f"lies {error:.3g} mm from another mask of the case at the corners (spacing, origin or direction "
                "differ)"
            )
            raise DataError(fact, path, _one_grid(case, names, next(iter(paths.values()))))
        masks[name] = _indices(label, dataset, path)
    assert geometry is not None
    return masks, geometry


def _one_grid(case: Case, names: Sequence[str], first: Path) -> str:
    """What brings the masks of a case onto one grid."""
    if case.images:
        # where there is no labels/, check asks for the raters; named all, none of their cases is left out
        raters = "" if case.label else " " + shlex.quote(f"data.raters=[{','.join(names)}]")
        fix = f"maskmend check DATASET --fix OUT{raters}"
        return f"`{fix}` resamples masks onto the grid of their image, in a copy: compare those"
    return f"resample it onto the grid of {first}; if its header is wrong, copy that file's into it"


def _indices(label: np.ndarray, dataset: Dataset, path: Path) -> np.ndarray:
    found = np.full(label.shape, IGNORED, np.uint8)
    for index, value in enumerate(dataset.labels.values()):
        found[label == value] = index
    strange = np.unique(
        label[(found == IGNORED) & (label != (-1 if dataset.ignore is None else dataset.ignore))]
    )
    if len(strange):
        listed = ", ".join(map(str, strange[:8]))
        raise DataError(
            f"values that are no class: {listed}", path, "declare them: data.labels=, or data.ignore="
        )
    return found


def _compare(
    case: Case, names: Sequence[str], dataset: Dataset, spacings: Mapping[str, Sequence[float]]
) -> tuple[CaseAgreement, bool]:
    """One case, and whether its distances are in mm."""
    masks, geometry = read_masks(case, names, dataset, given=True)
    label = masks.pop("", None)
    spacing = tuple(spacings.get(case.id, geometry.spacing_mm))
    in_mm = case.id in spacings or geometry.affine is not None or dataset.spacing_mm is not None
    return compare_raters(case.id, masks, spacing, list(dataset.labels), label), in_mm


def different_values(agreements: Sequence[CaseAgreement]) -> list[str]:
    """A sentence on two raters of whom each draws classes that the other never does, such as 1 and 2 against 3 and 7.

    A class that only one of two has is as a rule a rare one; with different classes on both sides the same object may
    go by different values, and agreement is told of nothing.
    """
    drawn: dict[tuple[str, str], tuple[set[str], set[str]]] = {}
    for one in agreements:
        has = {name: {label for label, n in each.voxels.items() if n} for name, each in one.each.items()}
        for pair in itertools.combinations(sorted(has), 2):
            found = drawn.setdefault(pair, (set(), set()))
            for whole, here in zip(found, (has[pair[0]], has[pair[1]]), strict=True):
                whole |= here
    odd = [(pair, a - b, b - a) for pair, (a, b) in drawn.items() if a - b and b - a]
    if not odd:
        return []
    (first, second), alone, other = max(odd, key=lambda one: len(one[1]) + len(one[2]))
    more = f" ({len(odd) - 1} further pairs likewise)" if len(odd) > 1 else ""
    return [
        f"Raters use different values: {first} alone draws {_listed(alone)}, {second} alone {_listed(other)}{more}. "
        "If they mean the same classes, save the masks with the same values, declared by data.labels=: as they are, "
        "these classes agree nowhere."
    ]


def _listed(classes: set[str]) -> str:
    return ", ".join(sorted(classes)[:8]) + (", ..." if len(classes) > 8 else "")


def _report(
    dataset: Dataset, agreements: Sequence[CaseAgreement], names: Sequence[str], unit: str
) -> RaterReport:
    groups = [dataset[one.case].group or f"\0{one.case}" for one in agreements]
    pairs = (
        [mean_of(one, "dice") for one in agreements],
        [mean_of(one, "distance_mm") for one in agreements],
    )
    given = [(one.given, group) for one, group in zip(agreements, groups, strict=True) if one.given]
    return RaterReport(
        dataset,
        unit,
        tuple(
            rater_figures(name, agreements, groups)
            for name in names
            if any(name in a.each for a in agreements)
        ),
        tuple(pair_totals(agreements, groups)),
        tuple(sorted((dispute_of(one) for one in agreements), key=lambda one: (-one.priority, one.case))),
        interval(pairs[0], groups),
        interval([one.fleiss for one in agreements], groups),
        interval(pairs[1], groups),
        figures_of("given labels", [one for one, _ in given], [group for _, group in given], [])
        if given
        else None,
        tuple(agreements),
    )
