"""What `maskmend corrupt` does with its words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskmend.errors import UsageError
from maskmend.noise.dataset import RECORD, Progress, corrupt_dataset
from maskmend.noise.description import read_noise
from maskmend.noise.presets import PRESETS, preset


def list_presets() -> list[dict[str, Any]]:
    """Name, summary, source, our own part, default rate and settings of every preset."""
    return [
        {
            "name": name,
            "summary": one.summary,
            "source": one.source or "ours",
            "ours": one.ours,
            "rate": one.rate,
            "noise": one.noise.describe(),
        }
        for name, one in PRESETS.items()
    ]


def run_corrupt(
    dataset: Path,
    out: Path,
    noise: str,
    rate: float | None,
    *,
    target_dice: str | None,
    classes: str | None,
    overwrite: bool,
    progress: Progress,
    **how: Any,
) -> dict[str, Any]:
    """Write the flawed copy; what a reader wants to know of `noise.json`, without the cases.

    Args:
        dataset, out, overwrite, progress: see `corrupt_dataset`.
        noise: a preset or a file.
        rate: None: the preset's own.
        target_dice: "0.8" or "liver=0.9,tumour=0.7".
        classes: names or values, comma-separated.
        **how: each, seed, layered.
    """
    kind = read_noise(noise)
    share = rate if rate is not None else preset(kind).rate if isinstance(kind, str) else 0.5
    names = None if classes is None else [name.strip() for name in classes.split(",")]
    target = None if target_dice is None else parse_target(target_dice)
    if how["each"] and target is None:
        raise UsageError(
            "says how a target Dice is reached, and there is none", "--each", "add --target-dice"
        )
    folder = corrupt_dataset(
        dataset, out, rate=share, kind=kind, target_dice=target, classes=names, overwrite=overwrite,
        progress=progress, **how,
    )  # fmt: skip
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return {"output": str(out), **{key: value for key, value in record.items() if key != "cases"}}


def parse_target(text: str) -> float | dict[str, float]:
    """A number, or numbers by class.

    Example:
        >>> parse_target("0.8"), parse_target("liver=0.9, tumour=0.7")
        (0.8, {'liver': 0.9, 'tumour': 0.7})
    """
    try:
        if "=" not in text:
            return float(text)
        pairs = [part.partition("=") for part in text.split(",")]
        return {name.strip(): float(value) for name, _, value in pairs}
    except ValueError:
        raise UsageError(
            f"{text!r} holds no number in (0, 1]", "--target-dice", "e.g. 0.8, or liver=0.9,tumour=0.7"
        ) from None


def describe(summary: Mapping[str, Any]) -> str:
    """Two lines for a reader."""
    facts = summary["summary"]
    dice = ", ".join(f"{name} {score:.3f}" for name, score in facts["dice"].items()) or "they are empty"
    dice = f"; their Dice with the truth: {dice}" if facts["flawed_cases"] else ""
    images = ", ".join(f"{count} {way}" for way, count in facts["images"].items())
    return (
        f"{facts['flawed_cases']} of {facts['training_cases']} training masks flawed{dice}\n"
        f"images: {images}; what was done: {Path(summary['output']) / RECORD}"
    )
