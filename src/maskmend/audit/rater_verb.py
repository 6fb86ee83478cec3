"""The verb `raters`: compare the raters of a folder, write the page, the figures and the consensus."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskmend.audit.consensus import RULES, consensus_facts, write_consensus
from maskmend.audit.rater_page import write_page
from maskmend.audit.raters import RaterReport, rater_agreement
from maskmend.config import DataConfig
from maskmend.data.atomic import atomic_folder
from maskmend.data.dataset import find_cases
from maskmend.errors import UsageError, unknown
from maskmend.plain import plain
from maskmend.progress import message

CONSENSUS = "consensus"
_OURS = ("raters.html", "raters.json", CONSENSUS)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Answer:
    """What the verb did.

    Args:
        report: of the raters.
        page: `raters.html`.
        facts: ready for JSON.
    """

    report: RaterReport
    page: Path
    facts: dict[str, Any]


def compare(
    source: Path | str,
    out: Path | str,
    data: DataConfig | None = None,
    *,
    consensus: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Answer:
    """Compare the raters of a data set and write `raters.html` and `raters.json`.

    Args:
        source: the data set's folder or manifest; images and `labels/` may be missing.
        out: where results go.
        data: what the files mean; `data.raters` chooses raters.
        consensus: also write `consensus/` by this rule: "majority", "staple" or "weighted".
        overwrite: replace what `out` holds.
        progress: called with (cases done, all).

    Raises:
        UsageError: `out` holds something, an unknown rule, or fewer than two raters.
    """
    out, data = Path(out), data or DataConfig()
    if consensus is not None and consensus not in RULES:
        raise unknown("rule of consensus", consensus, RULES, "--consensus")
    held = [name for name in _OURS if (out / name).exists()]
    if held and not overwrite:
        raise UsageError(f"holds {held[0]}", out, "--overwrite replaces it, or give another folder")
    shutil.rmtree(out / CONSENSUS, ignore_errors=True)  # masks of other raters or rules may lie there
    keys = ("layout", "labels", "ignore", "channels", "spacing_mm")
    options = {key: getattr(data, key) for key in keys if getattr(data, key) is not None}
    dataset = find_cases(source, need_labels=False, need_images=False, **options)
    report = rater_agreement(dataset, progress, raters=data.raters)
    for warning in report.warnings:
        message(f"warning: {warning}")
    facts = report.to_json()
    # Beside its place until the end: what a stopped call leaves must not keep the same call from beginning anew.
    masks = nullcontext() if consensus is None else atomic_folder(out / CONSENSUS, lambda: None)
    with masks as folder:
        if consensus is not None and folder is not None:
            facts["consensus"] = {"folder": str(out / CONSENSUS)} | _written(report, folder, consensus)
        page, _ = write_page(report, out)
    return Answer(report, page, plain(facts | {"report": str(page)}))


def _written(report: RaterReport, out: Path, rule: str) -> dict[str, Any]:
    weights = report.weights if rule == "weighted" else None
    names = [one.name for one in report.raters]
    files = write_consensus(report.dataset, out, rule, raters=names, weights=weights)
    return {"masks": len(files)} | consensus_facts(rule, weights)
