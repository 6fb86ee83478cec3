"""From the opinion of a case to its record and its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from maskmend.audit import kinds
from maskmend.audit.components import components
from maskmend.audit.estimate import Auditor, Opinion, mean_dice, priority
from maskmend.audit.hearing import Heard, hear
from maskmend.audit.look import Look
from maskmend.audit.looks import LooksOf
from maskmend.audit.mixups import Trace, flipped
from maskmend.audit.outlines import ImageWitness
from maskmend.audit.record import CaseRecord, ClassRecord, Kind
from maskmend.audit.selfcheck import SelfCheck
from maskmend.audit.shape import outline, surface
from maskmend.audit.structure import structure_findings, usual
from maskmend.boxes import bounding_box
from maskmend.data.case import Case, Dataset, Geometry
from maskmend.data.images import label_suffix, read_case, suffix_of, write_image, write_label

NOISE, SUGGESTED = "noise", "suggested"
NO_CLASS = -1  # for a voxel that nobody annotated, whether its value or a mask of its own says so
PART_COLUMNS = (
    "case", "class", "drawn", "voxels", "centre", "quality", "quality_low", "quality_high", "wrong_share", "kind",
)  # fmt: skip
LOST = "the model is lost on this image, so little can be said of its mask"


@dataclass(frozen=True)
class Judged:
    """A record with what the data-set level needs of the case."""

    record: CaseRecord
    joint: np.ndarray
    offsets_mm: np.ndarray


@dataclass(frozen=True)
class Done(Judged):
    """A judged case, with its files written.

    Args:
        trace: for the comparison with all others.
        flipped: how sure it is that the mask is mirrored.
        volumes_mm3: of each class as given, voxels to be ignored left out.
    """

    trace: Trace
    flipped: float
    volumes_mm3: dict[str, float]


@dataclass(frozen=True)
class CaseWork:
    """Judges a case and writes its files; travels to other processes.

    Args:
        looks: opens cases.
        auditor, check, witness: what was learnt from all cases.
        out: the audit folder.
        max_voxels: larger images are refused, as `data.max_voxels`.
        learnt_from: voxels by file value of each mask that the judging run was trained on, by case; of trusted ones
            it is not minded.
    """

    looks: LooksOf
    auditor: Auditor
    check: SelfCheck
    witness: ImageWitness
    out: Path
    max_voxels: int
    learnt_from: Mapping[str, Mapping[int, int]] = field(default_factory=dict)

    def __call__(self, case: Case) -> Done:
        """All that is to be said of a case by itself."""
        dataset = self.looks.dataset
        look, values, valid, geometry = self.looks.with_mask(case)
        image = read_case(case, dataset, max_voxels=self.max_voxels)[0]
        heard = hear(self.auditor.judge(look), image, self.witness)
        usual_mm = usual_offsets(self.auditor.population.usual.offsets)
        judged = judge_case(case, heard, values, geometry, dataset, self.check, self.out, usual_mm)
        classes, voxel = dict(dataset.labels), float(np.prod(look.spacing_mm))
        drawn = values if valid is None else np.where(valid, values.astype(np.int32), NO_CLASS)
        found = structure_findings(drawn, look.spacing_mm, classes, image)
        record = replace(judged.record, structure=tuple(found), in_sample=self._seen(case, values))
        return Done(
            record,
            judged.joint,
            judged.offsets_mm,
            Trace.of(heard.opinion, record.kind, image),
            flipped(heard.opinion, record.quality, heard.mirrored),
            {name: float((drawn == value).sum() * voxel) for name, value in list(classes.items())[1:]},
        )

    def _seen(self, case: Case, values: np.ndarray) -> bool:
        """Whether the run has learnt this mask (*S) of file values, and so excuses its errors."""
        if case.trusted or case.id not in self.learnt_from:
            return False
        found, counts = np.unique(values, return_counts=True)
        return dict(zip(found.tolist(), counts.tolist(), strict=True)) == self.learnt_from[case.id]


def judge_case(
    case: Case,
    heard: Heard,
    values: np.ndarray,
    geometry: Geometry,
    dataset: Dataset,
    check: SelfCheck,
    out: Path,
    usual_mm: np.ndarray,
) -> Judged:
    """Write a case's noise map and suggestion, and say in a record what is thought of it.

    Args:
        case: the case.
        heard: the opinion of it, and the proposed mask.
        values: the mask as file values (*S).
        geometry: of the mask.
        dataset: names classes and values.
        check: gives the interval of the quality.
        out: the audit folder.
        usual_mm: (K - 1,) signed offset of each class's outline from the model's in sound cases.
    """
    names, opinion, suggested = list(dataset.labels), heard.opinion, heard.suggested
    joint = opinion.confused
    offsets = (class_offsets(opinion) - usual_mm) * _true_length(opinion.look)
    files: dict[str, Any] = _write(case, opinion, suggested, values, geometry, dataset, out)
    dice = opinion.dice(suggested)
    quality = mean_dice(dice)
    low, high = check.interval(quality)
    kind, sure = kinds.case_kind(opinion, suggested)
    classes = tuple(
        _class_record(opinion, suggested, dice, offsets, check, k, name, own_kind)
        for k, (name, (own_kind, _)) in enumerate(
            zip(names[1:], kinds.class_kinds(opinion, suggested), strict=True), 1
        )
    )
    record = CaseRecord(
        case=case.id,
        priority=_rounded(priority(opinion.flawed, quality, opinion.backing)),
        quality=_rounded(quality),
        quality_low=_rounded(low),
        quality_high=_rounded(high),
        flawed=_rounded(opinion.flawed),
        wrong_voxels=round(float(opinion.noise.sum()), 1),
        wrong_share=_rounded(opinion.wrong_share(suggested)),
        kind=kind,
        kind_probability=_rounded(sure),
        worst=kinds.worst_place(opinion),
        rater=_rater(case),
        site=case.site or "",
        group=case.group or "",
        image=str(case.images[0]) if case.images else None,
        label=str(case.label),
        spacing_mm=opinion.look.spacing_mm,
        shape=opinion.look.shape,
        components=components(opinion, suggested, classes, check.part_interval),
        classes=classes,
        remark="; ".join(filter(None, (LOST if opinion.lost > 0.5 else "", heard.remark))),
        **files,
    )
    return Judged(record, joint, offsets)


def class_offsets(opinion: Opinion) -> np.ndarray:
    """(K - 1,) signed offset in mm of each class's outline from the model's; NaN where neither has it."""
    signed = opinion.evidence.signed
    rows = signed if len(signed) == 1 else signed[1:]
    return np.asarray(rows[:, 0])


def _true_length(look: Look) -> np.ndarray:
    """(K - 1,) by how much the outlines by which offsets were measured are too long, given and seen together.

    Quick measures do for comparing cases; what is told in millimetres is set right.
    """
    found = np.ones(look.classes - 1)
    for k in range(1, look.classes):
        masks = [look.label == k, look.decided == k]
        near = bounding_box(masks[0] | masks[1], 1)
        true = sum(surface(mask[near], look.spacing_mm) for mask in masks)
        if true > 0:
            found[k - 1] = sum(outline(mask[near], look.spacing_mm) for mask in masks) / true
    return found


def mixed_up(record: CaseRecord, kind: Kind, sure: float) -> CaseRecord:
    """The record of a mask that turned out to be mirrored or of another case."""
    flawed = max(record.flawed, sure)
    return replace(
        record,
        kind=kind,
        kind_probability=_rounded(sure),
        flawed=_rounded(flawed),
        priority=_rounded(max(record.priority, priority(flawed, record.quality))),
    )


def _class_record(
    opinion: Opinion,
    suggested: np.ndarray,
    dice: np.ndarray,
    offsets: np.ndarray,
    check: SelfCheck,
    index: int,
    name: str,
    kind: Kind,
) -> ClassRecord:
    given = int((opinion.look.label == index).sum())
    estimated, offset = float(dice[index - 1]), float(offsets[index - 1])
    low, high = check.class_interval(index, estimated)
    return ClassRecord(
        name=name,
        given_voxels=given,
        suggested_voxels=int((suggested == index).sum()),
        estimated_dice=_rounded(estimated) if np.isfinite(estimated) else None,
        wrong_share=_rounded(opinion.class_wrong_share(index)),
        offset_mm=_rounded(offset) if np.isfinite(offset) else None,
        kind=kind,
        dice_low=_rounded(low) if np.isfinite(estimated) else None,
        dice_high=_rounded(high) if np.isfinite(estimated) else None,
    )


def _write(
    case: Case,
    opinion: Opinion,
    suggested: np.ndarray,
    values: np.ndarray,
    geometry: Geometry,
    dataset: Dataset,
    out: Path,
) -> dict[str, str]:
    """Noise map as 0 ... 255, and the suggestion where it differs from the mask; paths relative to `out`."""
    assert case.label is not None
    suffix = suffix_of(case.label) or label_suffix(case.images[0])
    files = {"noise_map": f"{NOISE}/{case.id}{suffix}"}
    noise = opinion.look.whole(np.rint(opinion.noise * 255).astype(np.uint8))
    write_image(out / files["noise_map"], noise, geometry)
    classes = np.array(list(dataset.labels.values()), values.dtype)
    changed = (suggested != opinion.look.label) & np.isin(values[opinion.look.box], classes)
    target = out / SUGGESTED / f"{case.id}{suffix}"
    if not changed.any():
        target.unlink(missing_ok=True)  # of an earlier, interrupted audit
        return files
    better = values.copy()
    part = better[opinion.look.box]
    part[changed] = classes[suggested[changed]]
    write_label(target, better, geometry)
    return files | {"suggested": f"{SUGGESTED}/{case.id}{suffix}"}


def _rater(case: Case) -> str:
    """Who drew the given label: as the data set says, or the rater whose file it is; "" where nobody knows."""
    return case.rater or next((name for name, path in case.raters.items() if path == case.label), "")


def _rounded(value: float) -> float:
    return round(float(value), 4)


def usual_offsets(middle: np.ndarray) -> np.ndarray:
    """(K - 1,) the offsets of sound cases from the offsets (G,) of all groups."""
    return middle if len(middle) == 1 else middle[1:]


def table_rows(records: Sequence[CaseRecord]) -> list[dict[str, Any]]:
    """One flat row per case for audit.csv."""
    rows = []
    for record in records:
        row: dict[str, Any] = {
            key: getattr(record, key)
            for key in (
                "case", "priority", "flawed", "quality", "quality_low", "quality_high", "wrong_voxels", "wrong_share",
                "kind", "kind_probability", "in_sample", "rater", "site", "group",
            )
        }  # fmt: skip
        row["worst"] = " ".join(map(str, record.worst or ()))
        odd = (finding.check for finding in record.structure if not usual(finding))
        row["structure"] = "; ".join(dict.fromkeys(odd))
        for one in record.classes:
            row[f"dice {one.name}"] = one.estimated_dice
            row[f"dice_low {one.name}"], row[f"dice_high {one.name}"] = one.dice_low, one.dice_high
            row[f"offset_mm {one.name}"] = one.offset_mm
            row[f"kind {one.name}"] = one.kind
        row["label"], row["suggested"] = record.label, record.suggested or ""
        rows.append(row)
    return rows


def part_rows(records: Sequence[CaseRecord]) -> list[dict[str, Any]]:
    """One row per connected part of a class for parts.csv, those with the lowest estimated Dice first."""
    found = sorted(
        ((record.case, one) for record in records for one in record.components),
        key=lambda pair: pair[1].quality,
    )
    return [
        dict(zip(PART_COLUMNS, (
            case, one.name, "yes" if one.present else "no", one.voxels, " ".join(map(str, one.centre)),
            one.quality, one.quality_low, one.quality_high, one.wrong_share, one.kind,
        ), strict=True))
        for case, one in found
    ]  # fmt: skip
