"""Faults that no single file shows: what label values mean, missing classes, leaks, mirrored cases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from maskmend.data.case import Dataset
from maskmend.data.findings import CaseFacts, Finding, Severity, short_name
from maskmend.data.geometry_check import suspected_flips
from maskmend.data.label_values import infer_classes, judge_undeclared, judge_values

_MIN_COPIES = 3  # fewer equal masks may be chance on small objects
_COPIED = 0.2  # share of equal masks that two hands never reach


def judge_labels(dataset: Dataset, facts: Sequence[CaseFacts]) -> tuple[Dataset, list[Finding]]:
    """Rows 17 to 20 over all labels and raters, and the class names where they were not declared."""
    names = _file_names(dataset)
    findings: list[Finding] = []
    sound: list[Mapping[int, int]] = []
    for one in facts:
        for name, counts in one.counts.items():
            if finding := judge_values(counts, dataset.labels, dataset.ignore):
                findings.append(replace(finding, case=one.id, file=names[one.id, name]))
            else:
                sound.append(counts)
    if dataset.labels:
        return dataset, findings
    if unclear := judge_undeclared(sound, dataset.ignore):
        return dataset, [*findings, unclear]
    return replace(dataset, labels=infer_classes(sound, dataset.ignore)), findings


def _file_names(dataset: Dataset) -> dict[tuple[str, str], str | None]:
    """(case id, rater, "" for the given label) to the label file's short name."""
    given = {(case.id, ""): short_name(case.label) for case in dataset.cases}
    return given | {
        (case.id, name): short_name(path) for case in dataset.cases for name, path in case.raters.items()
    }


def judge_cases(dataset: Dataset, facts: Sequence[CaseFacts]) -> list[Finding]:
    """Rows 22 and 24: labels that teach nothing."""
    names = _file_names(dataset)
    findings = []
    for one in facts:
        for rater, counts in one.counts.items():
            name = names[one.id, rater]
            known = {value: count for value, count in counts.items() if value != dataset.ignore}
            if not known or one.ignored >= 1:
                text, remedy = (
                    "every voxel is marked to be ignored",
                    "the case adds nothing to training or scores",
                )
                findings.append(Finding(one.id, "warning", 24, text, remedy, name))
            elif set(known) == {0}:
                text, remedy = "empty label: no foreground", "right if the structure is absent, else draw it"
                findings.append(Finding(one.id, "warning", 22, text, remedy, name))
    return findings


def judge_classes(dataset: Dataset, facts: Sequence[CaseFacts], allowed: bool) -> list[Finding]:
    """Row 23: a declared class that no training label shows can never be learned."""
    training = [one.counts[""] for one in facts if one.split != "test" and "" in one.counts]
    if not training:
        return []
    seen = set().union(*training)
    missing = [f"{name} ({value})" for name, value in dataset.labels.items() if value not in seen]
    if not missing:
        return []
    text = f"no training label holds {', '.join(missing)} ({len(training)} labels)"
    severity: Severity = "warning" if allowed else "error"
    remedy = "correct data.labels, or accept it: data.allow_missing_classes=true"
    return [Finding(None, severity, 23, text, remedy)]


def leaks(dataset: Dataset, facts: Sequence[CaseFacts]) -> list[Finding]:
    """Row 25: an image or a patient on both sides of the split makes every score a lie."""
    same_image: dict[str, list[str]] = defaultdict(list)
    for one in facts:
        if one.digest:
            same_image[one.digest].append(one.id)
    patients: dict[str, list[str]] = defaultdict(list)
    for case in dataset.cases:
        if case.group:
            patients[case.group].append(case.id)
    split = {case.id: case.split for case in dataset.cases}
    findings = []
    for ids in same_image.values():
        if len({split[i] for i in ids}) > 1:
            findings.append(_leak(f"leak: the same image in train and test: {', '.join(ids)}", ids))
        elif len(ids) > 1:
            text = f"the same image under {len(ids)} names: {', '.join(ids)}"
            remedy = "keep one, or give them one group so that no split separates them"
            findings.append(Finding(ids[0], "warning", 25, text, remedy))
    for group, ids in patients.items():
        if len({split[i] for i in ids}) > 1:
            findings.append(_leak(f"leak: group {group!r} in train and test: {', '.join(ids)}", ids))
    return findings


def _leak(text: str, ids: Sequence[str]) -> Finding:
    return Finding(ids[0], "error", 25, text, "move all of them to one side of the split")


def flips(dataset: Dataset, facts: Sequence[CaseFacts]) -> list[Finding]:
    """Row 15, by dimension, since a data set may hold slices and volumes."""
    by_ndim: dict[int, dict[str, Mapping[int, np.ndarray]]] = defaultdict(dict)
    for one in facts:
        if one.position:
            by_ndim[next(iter(one.position.values())).ndim][one.id] = one.position
    names = _file_names(dataset)
    findings = []
    for maps in by_ndim.values():
        for case, (straight, turned) in suspected_flips(maps).items():
            text = (
                f"left-right flip suspected: position fits the others {straight:.2f}, mirrored {turned:.2f}"
            )
            remedy = "look at it first: is the label or the image mirrored?"
            findings.append(Finding(case, "warning", 15, text, remedy, names[case, ""]))
    return findings


def copied_raters(facts: Sequence[CaseFacts]) -> list[Finding]:
    """Raters whose labels equal the given ones far more often than chance: they are no second opinion."""
    shared: dict[str, list[bool]] = defaultdict(list)
    for one in facts:
        if not any(value > 0 for value in one.counts.get("", ())):
            continue  # two empty labels agree without copying
        for rater, digest in one.label_digests.items():
            if rater:
                shared[rater].append(digest == one.label_digests[""])
    findings = []
    for rater, equal in shared.items():
        if sum(equal) >= max(_MIN_COPIES, _COPIED * len(equal)):
            text = f"the rater {rater!r} equals the given label in {sum(equal)} of {len(equal)} cases"
            remedy = "do not count this rater as an independent second opinion"
            findings.append(Finding(None, "warning", 0, text, remedy))
    return findings
