"""What is odd about a mask by itself: slips that no model is needed to see.

A mask is looked at class by class for loose pieces, holes, a ragged outline, slices that do not fit their
neighbours, and contact with the border or the blank part of the image. Whether a thing is odd often depends on
the data set (lesions come in several pieces, an organ may leave the field of view): `against_data_set` lowers the
severity of what many masks of the set share.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from maskmend.audit import outline, pieces, slices
from maskmend.audit.record import StructureFinding
from maskmend.errors import UsageError

ENOUGH_CASES = 10
"""Cases from which a data set says what is usual."""

SHARED = (0.25, 0.6)
"""Share of the masks with a finding up to which it counts in full, and from which it hardly counts."""

HARDLY = 0.1
"""Severity below which only what most masks share can come."""

ALWAYS_ODD = (
    "gap between slices",
    "specks",
    "odd slice",
    "missing class",
    "implausible volume",
    "uneven outline",
)
"""Checks that no anatomy explains, and those that compare with the data set already."""

PRESENT_SHARE = 0.75
"""Share of the masks with a class from which its absence is worth a word."""

OUTLIER_Z = 4.5
LEAST_SPREAD = 0.1  # of the log volume: 10 %; masks of a phantom or of one device may hardly vary
LEAST_ROUGH_SPREAD = 0.006


def structure_findings(
    label: np.ndarray,
    spacing_mm: Sequence[float],
    classes: Mapping[str, int],
    image: np.ndarray | None = None,
) -> list[StructureFinding]:
    """Look at one mask.

    Args:
        label: (*S) integers, 2-D or 3-D, file values; 0 is background. Values without a class (not annotated) are
            neither background nor foreground: what they part may be one, and an outline along them is not one that
            somebody drew.
        spacing_mm: voxel size in the order of the axes; 1.0 where unknown.
        classes: name to value; a background of value 0 may be among them.
        image: (*S) or (C, *S), for masks outside the body; None: that is not looked at.

    Returns:
        Findings, the most severe first. A sound mask as a rule has none.

    Raises:
        UsageError: label, spacing and image do not belong together.
    """
    _check_shapes(label, spacing_mm, image)
    foreground = np.isin(label, [value for value in classes.values() if value])
    unknown = (label != 0) & ~foreground
    if not foreground.any():
        return [StructureFinding("empty mask", "", "nothing is drawn", 0.6)]
    found: list[StructureFinding] = []
    for name, value in classes.items():
        mask = label == value
        if value == 0 or not mask.any():
            continue
        found += pieces.loose_pieces(mask, foreground, unknown, name)
        found += pieces.holes(mask, label, name)
        found += pieces.at_border(mask, name)
        found += outline.rough_outline(mask, spacing_mm, unknown, name)
        if label.ndim == 3:
            found += slices.slice_faults(mask, unknown, name)
    if label.ndim == 3:
        found += slices.blunt_ends(foreground, spacing_mm, unknown)
    if image is not None:
        found += pieces.outside_body(foreground, image)
    return _sorted(found)


class StructureCheck:
    """Structure findings of a whole data set, mask by mask: only figures are kept.

    Args:
        classes: name to value; a background of value 0 may be among them.

    Example:
        >>> check = StructureCheck({"background": 0, "organ": 1})
        >>> for number in range(12):
        ...     label = np.zeros((20, 20), int)
        ...     label[5:15, 5:15] = 1
        ...     label[2, 2] = number == 3
        ...     check.add(f"case{number}", label, (1.0, 1.0))
        >>> {case: [one.check for one in found] for case, found in check.findings().items() if found}
        {'case3': ['specks']}
    """

    def __init__(self, classes: Mapping[str, int]) -> None:
        self.classes = {name: value for name, value in classes.items() if value}
        self._found: dict[str, list[StructureFinding]] = {}
        self._volumes: dict[str, dict[str, float]] = {}
        self._roughness: dict[str, dict[str, float]] = {}

    def add(
        self, case: str, label: np.ndarray, spacing_mm: Sequence[float], image: np.ndarray | None = None
    ) -> None:
        """Look at one mask; arguments as for `structure_findings`."""
        voxel = float(np.prod(spacing_mm))
        self._found[case] = structure_findings(label, spacing_mm, self.classes, image)
        self._volumes[case] = {
            name: voxel * np.count_nonzero(label == value) for name, value in self.classes.items()
        }
        self._roughness[case] = outline.outline_roughness(label, spacing_mm, self.classes)

    def findings(self) -> dict[str, list[StructureFinding]]:
        """All findings by case, those that compare with the data set included, the most severe first."""
        joined = dict(self._found)
        for more in (volume_outliers(self._volumes), roughness_outliers(self._roughness)):
            joined |= {case: joined[case] + found for case, found in more.items()}
        return against_data_set(joined)


def volume_outliers(
    volumes: Mapping[str, Mapping[str, float]],
) -> dict[str, list[StructureFinding]]:
    """Volumes that are implausible for the data set: far from the median of log volume, or absent.

    Args:
        volumes: class name to volume (mm3, in 2-D mm2; any unit, only ratios count) by case; 0 or left out where
            the mask has none of it.

    Returns:
        Findings by case, cases without one left out. Fewer than `ENOUGH_CASES` cases with a class say nothing.
    """
    found: dict[str, list[StructureFinding]] = {}
    for name in dict.fromkeys(key for case in volumes.values() for key in case):
        sizes = {case: volumes[case].get(name, 0.0) for case in volumes}
        drawn = {case: math.log(size) for case, size in sizes.items() if size > 0}
        if len(drawn) < ENOUGH_CASES:
            continue
        middle, far = _outliers(drawn, LEAST_SPREAD)
        for case, z in far.items():
            text = f"volume {sizes[case]:,.4g}, {math.exp(drawn[case] - middle):.2g} times the usual (z = {z:.1f})"
            found.setdefault(case, []).append(_outlier("implausible volume", name, text, z))
        for case, finding in _absent(name, sizes, volumes).items():
            found.setdefault(case, []).append(finding)
    return found


def _absent(
    name: str, sizes: Mapping[str, float], volumes: Mapping[str, Mapping[str, float]]
) -> dict[str, StructureFinding]:
    """Cases without a class that most have; an empty mask is a finding of its own."""
    share = sum(size > 0 for size in sizes.values()) / len(sizes)
    if share < PRESENT_SHARE:
        return {}
    text = f"the class is absent; {100 * share:.0f} % of the masks have it"
    severity = 0.4 + 0.4 * (share - PRESENT_SHARE) / (1 - PRESENT_SHARE)
    found = StructureFinding("missing class", name, text, severity)
    return {case: found for case, size in sizes.items() if size <= 0 and any(volumes[case].values())}


def roughness_outliers(
    roughness: Mapping[str, Mapping[str, float]],
) -> dict[str, list[StructureFinding]]:
    """Outlines that are rougher than is usual in the data set, though not rough by themselves.

    Args:
        roughness: what `outline.outline_roughness` says of each case.

    Returns:
        Findings by case, cases without one left out.
    """
    found: dict[str, list[StructureFinding]] = {}
    for name in dict.fromkeys(key for case in roughness.values() for key in case):
        rough = {case: math.log(values[name]) for case, values in roughness.items() if name in values}
        if len(rough) < ENOUGH_CASES:
            continue
        middle, far = _outliers(rough, LEAST_ROUGH_SPREAD)
        for case, z in far.items():
            value = math.exp(rough[case])
            if z > 0 and value < outline.ROUGH:  # above it, the mask alone says so
                text = (
                    f"outline {100 * (value - 1):.1f} % longer than its smoothed course, "
                    f"usual are {100 * (math.exp(middle) - 1):.1f} % (z = {z:.1f})"
                )
                found.setdefault(case, []).append(_outlier("uneven outline", name, text, z))
    return found


def against_data_set(
    findings: Mapping[str, Sequence[StructureFinding]],
) -> dict[str, list[StructureFinding]]:
    """Lower the severity of what many masks share: it is the nature of the data, not a slip in one mask.

    Args:
        findings: of every case looked at, also of those without any.

    Returns:
        The same findings; where more than a quarter of the masks have the like, the sentence says so and the
        severity is lower, in the end by a factor of ten. Gaps between slices and specks are never usual.
    """
    if len(findings) < ENOUGH_CASES:
        return {case: _sorted(found) for case, found in findings.items()}
    counts = Counter(key for found in findings.values() for key in {(one.check, one.name) for one in found})
    shares = {key: count / len(findings) for key, count in counts.items()}
    return {case: _sorted(_weighed(one, shares) for one in found) for case, found in findings.items()}


def usual(finding: StructureFinding) -> bool:
    """Whether most masks of the data set have the like, as `against_data_set` has found."""
    return finding.severity < HARDLY


def _sorted(findings: Iterable[StructureFinding]) -> list[StructureFinding]:
    return sorted(findings, key=lambda finding: -finding.severity)


def _weighed(finding: StructureFinding, shares: Mapping[tuple[str, str], float]) -> StructureFinding:
    share = shares[finding.check, finding.name]
    if share <= SHARED[0] or finding.check in ALWAYS_ODD:
        return finding
    factor = max(0.1, (SHARED[1] - share) / (SHARED[1] - SHARED[0]))
    text = f"{finding.text}; so in {100 * share:.0f} % of the masks"
    return replace(finding, severity=finding.severity * factor, text=text)


def _outliers(values: Mapping[str, float], least: float) -> tuple[float, dict[str, float]]:
    """The median, and the robust z of each value beyond `OUTLIER_Z` (median and MAD; `least` standard deviation)."""
    numbers = np.array(list(values.values()))
    middle = float(np.median(numbers))
    spread = max(1.4826 * float(np.median(np.abs(numbers - middle))), least)
    scores = {case: (value - middle) / spread for case, value in values.items()}
    return middle, {case: z for case, z in scores.items() if abs(z) > OUTLIER_Z}


def _outlier(check: str, name: str, text: str, z: float) -> StructureFinding:
    return StructureFinding(check, name, text, min(0.9, 0.3 + 0.1 * (abs(z) - OUTLIER_Z)))


def _check_shapes(label: np.ndarray, spacing_mm: Sequence[float], image: np.ndarray | None) -> None:
    shapes = [label.shape] + ([] if image is None else [image.shape[-label.ndim :]])
    if label.ndim not in (2, 3) or len(spacing_mm) != label.ndim or len(set(shapes)) > 1:
        raise UsageError(
            f"shapes {shapes} with {len(spacing_mm)} spacings do not belong together", "structure"
        )
