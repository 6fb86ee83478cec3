"""What a check found: findings one by one, what the data set holds, the one error that stops a training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from maskmend import pseudonyms
from maskmend.data.case import Dataset
from maskmend.errors import DataError, ResourceError, UsageError, UserError, shown

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

Severity = Literal["error", "warning"]
Fix = Literal["resample", "replace_nonfinite"]
SHOWN = 10  # lines of one kind before "and n more": enough to see the pattern, short enough to read


@dataclass(frozen=True)
class Finding:
    """One fact about the data set that training should not meet unannounced.

    Args:
        case: the case's id, None when the finding is about the whole data set.
        severity: "error" stops a training, "warning" is counted and goes on.
        row: the number of the fault in the project's list of faults, 0 for one that is not listed.
        text: the fact with its figures, without the case's id.
        remedy: what to do next.
        file: the file at fault, as a name below the data set.
        fix: what `fix` does about it in a copy, None when only a person can decide.
        exit_code: 2, 3 or 4 as in `maskmend.errors`.
    """

    case: str | None
    severity: Severity
    row: int
    text: str
    remedy: str | None = None
    file: str | None = None
    fix: Fix | None = None
    exit_code: int = 3

    def __post_init__(self) -> None:
        for name in ("text", "remedy", "file"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, shown(value))

    def line(self) -> str:
        """The finding in one line: case, file, fact."""
        where = ": ".join(part for part in (self.case, self.file) if part)
        return f"{where}: {self.text}" if where else self.text


@dataclass(frozen=True)
class Intensity:
    """One channel of one image: extremes, percentiles and moments of its finite voxels, in file units."""

    minimum: float
    low: float  # 0.5th percentile
    mean: float
    std: float
    high: float  # 99.5th percentile
    maximum: float


@dataclass(frozen=True)
class CaseFacts:
    """What one pass over a case's files leaves behind: numbers, never pixels.

    Args:
        id: the case.
        split: "train" or "test".
        shape: spatial shape of the image, None when it could not be read.
        spacing_mm: voxel size in the order of `shape`.
        digest: a hash of the decoded pixels, None for unread or constant images.
        intensity: one entry per channel.
        counts: file value to voxel count for the given label ("") and each rater's (by name).
        label_digests: a hash of the decoded label by the same names.
        in_mm: the spacing is known, not a default of 1.
        ignored: share of the voxels that the case's ignore mask excludes.
        position: coarse map of where each of the label's values lies, for the flip test.
        findings: what is wrong with this case alone.
    """

    id: str
    split: str
    shape: tuple[int, ...] | None = None
    spacing_mm: tuple[float, ...] | None = None
    digest: str | None = None
    intensity: tuple[Intensity, ...] = ()
    counts: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    label_digests: Mapping[str, str] = field(default_factory=dict)
    in_mm: bool = False
    ignored: float = 0.0
    position: Mapping[int, np.ndarray] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class CheckResult:
    """The outcome of `check`: findings, the data set as understood, and the facts behind the fingerprint.

    Args:
        dataset: the data set, with class names filled in where they could be inferred; None if not found.
        findings: errors first, in the order of the list of faults.
        facts: one entry per case that was looked at.
    """

    dataset: Dataset | None
    findings: tuple[Finding, ...]
    facts: tuple[CaseFacts, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What stops a training."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What is counted and goes on."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    @property
    def exit_code(self) -> int:
        """0 when nothing stops a training, else the gravest finding's exit code."""
        return max((finding.exit_code for finding in self.errors), default=0)

    def raise_errors(self) -> None:
        """Raise one error for all that stops a training: up to ten lines and the gravest exit code.

        Raises:
            UserError: DataError, ResourceError or UsageError by the exit code.
        """
        errors = self.errors
        if not errors:
            return
        kind: type[UserError] = {2: UsageError, 4: ResourceError}.get(self.exit_code, DataError)
        where = self.dataset.root if self.dataset else None
        if len(errors) == 1:
            raise kind(errors[0].line(), where, errors[0].remedy)
        cases = len({finding.case for finding in errors if finding.case})
        lines = [f"  {finding.line()}" for finding in _varied(errors, SHOWN)]
        lines += [f"  and {len(errors) - SHOWN} more"] if len(errors) > SHOWN else []
        head = f"{len(errors)} errors" + (f" in {cases} cases" if cases else "")
        remedies = dict.fromkeys(finding.remedy for finding in errors if finding.remedy)
        advice = [*list(remedies)[:3], "`maskmend check` lists them all"]
        raise kind("\n".join([head, *lines]), where, "\n  ".join(advice))

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the data set holds, JSON-ready: sizes, spacings, intensities, class volumes, empty masks."""
        from maskmend.data.summary import summarise

        return summarise(self.dataset, self.facts)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        dataset = self.dataset
        return {
            "root": str(dataset.root) if dataset else None,
            "layout": dataset.layout if dataset else None,
            "labels": dict(dataset.labels) if dataset else {},
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "exit_code": self.exit_code,
            "findings": [asdict(finding) for finding in self.findings],
            "fingerprint": self.fingerprint,
        }

    def table(self) -> Group:
        """The findings, the remedies and the fingerprint, to print with rich."""
        from rich.console import Group
        from rich.text import Text

        from maskmend.data.summary import summary_table

        verdict = f"{len(self.errors)} errors, {len(self.warnings)} warnings"
        parts: list[Any] = [_findings_table(self.findings)] if self.findings else []
        parts += [summary_table(self.fingerprint)] if self.facts else []
        return Group(*parts, Text(verdict))

    def sheet(self, path: Path, *, cases: int = 12) -> Path | None:
        """Draw a picture sheet of evenly spaced cases with their contours; None when no case can be drawn.

        Args:
            path: the PNG to write.
            cases: how many cases to draw.
        """
        from maskmend.data.summary import draw_sheet

        return draw_sheet(self, path, cases)


def ordered(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Errors first, then by row and case: the order in which one mends them."""

    def rank(one: Finding) -> tuple[bool, int, str, str]:
        return one.severity != "error", one.row or 99, one.case or "", one.file or ""

    return tuple(sorted(findings, key=rank))


def short_name(file: Path | None) -> str | None:
    """Folder and file name: enough to find it, without the machine's paths; without names while these are hidden."""
    if file and pseudonyms.active():
        return pseudonyms.clean_paths(str(file.absolute()))
    return f"{file.parent.name}/{file.name}" if file else None


def _varied(findings: Sequence[Finding], limit: int) -> list[Finding]:
    """At most `limit` findings that show every kind before they repeat one."""
    kinds: dict[int, list[Finding]] = defaultdict(list)
    for finding in findings:
        kinds[finding.row].append(finding)
    ranked = sorted((place, row) for row, members in kinds.items() for place in range(len(members)))
    return [kinds[row][place] for place, row in ranked[:limit]]


def _findings_table(findings: Sequence[Finding]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=False, expand=False)
    for heading in ("", "case", "what", "remedy"):
        table.add_column(heading, overflow="fold")  # a name that is cut off finds no file
    for _, members in _by_row(findings):
        for finding in members[:SHOWN]:
            mark = Text("error", "red") if finding.severity == "error" else Text("warning", "yellow")
            text = f"{finding.file}: {finding.text}" if finding.file else finding.text
            # Text, not markup: a case may be called "[red]"
            table.add_row(mark, Text(finding.case or "data set"), Text(text), Text(finding.remedy or ""))
        if len(members) > SHOWN:
            table.add_row("", "", f"... and {len(members) - SHOWN} more of this kind", "")
        table.add_section()
    return table


def _by_row(findings: Sequence[Finding]) -> Iterator[tuple[tuple[str, int], list[Finding]]]:
    groups: dict[tuple[str, int], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.severity, finding.row].append(finding)
    yield from groups.items()
