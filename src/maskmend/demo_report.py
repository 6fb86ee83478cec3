"""The figures of a demonstration and the page that shows them, whatever came out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskmend import draw
from maskmend.evaluate.statistics import bootstrap_interval, paired_test
from maskmend.report import Picture, Section, Table, metric_curves, write_report

if TYPE_CHECKING:
    from maskmend.demo import Arm, JudgedCase, SeedResult

SHOWN = 5  # worst-labelled cases
SMALL = 0.002  # a difference in Dice below this is no win, however sure it is
NEAR_MM = 5.0  # voxels further from both masks are easy and would flatter the noise map


def figures_of(results: Sequence[SeedResult], arms: Sequence[Arm], setup: dict[str, Any]) -> dict[str, Any]:
    """Everything the report states, ready for JSON.

    Args:
        results: one per seed.
        arms: what was trained.
        setup: copied to the answer.
    """
    scores = {arm.key: _units(results, arm.key) for arm in arms}
    figures: dict[str, Any] = {**setup, "unit": "seed" if len(results) > 1 else "test case", "arms": {}}
    for arm in arms:
        interval = bootstrap_interval(scores[arm.key])
        classes = np.nanmean([np.nanmean(result.dice[arm.key], axis=0) for result in results], axis=0)
        figures["arms"][arm.key] = {
            "title": arm.title,
            "dice": interval.estimate,
            "low": interval.low,
            "high": interval.high,
            "by_class": classes.tolist(),
            "by_seed": [float(np.nanmean(result.dice[arm.key])) for result in results],
        }
    test = paired_test(scores["robust"], scores["plain"])
    figures["gain"] = {"dice": test.difference, "low": test.low, "high": test.high, "p": test.p}
    figures["recovered"] = _recovered(figures["arms"])
    figures["labels"] = _label_figures([case for result in results for case in result.judged])
    figures["verdict"] = verdict(figures)
    return figures


def verdict(figures: dict[str, Any]) -> str:
    """One honest sentence: who won, by how much, and how sure that is."""
    gain, arms = figures["gain"], figures["arms"]
    robust, plain = (f"{arms[key]['title']} ({arms[key]['dice']:.3f})" for key in ("robust", "plain"))
    n = len(figures["seeds"])
    over = (
        f"over {n} seeds" if n > 1 else "over the test cases of one seed, which says nothing of other seeds"
    )
    interval = f"95 % interval {_signed(gain['low'])} to {_signed(gain['high'])} {over}"
    if not (gain["low"] > 0 or gain["high"] < 0) or abs(gain["dice"]) < SMALL:
        text = f"No clear winner: {robust} and {plain} differ by {_signed(gain['dice'])} Dice ({interval})."
    elif gain["dice"] > 0:
        text = f"{robust} beat {plain} by {gain['dice']:.3f} Dice ({interval})."
    else:
        text = f"{robust} lost to {plain} by {-gain['dice']:.3f} Dice ({interval})."
    if figures["recovered"] is not None:
        share = f"{100 * figures['recovered']:.0f} %"
        text += f" That is {share} of the gap between flawed and true masks."
    elif "ceiling" in arms:
        text += " The flaws cost plain training nothing to speak of, so there was nothing to win."
    return text


def _signed(value: float) -> str:
    """+0.012, -0.003, but never -0.000."""
    return f"{round(value, 3) + 0.0:+.3f}"


def write_demo_report(
    path: Path, results: Sequence[SeedResult], arms: Sequence[Arm], figures: dict[str, Any]
) -> Path:
    """Write the page.

    Args:
        path: the HTML file.
        results: one per seed; pictures and curves are those of the first.
        arms: what was trained.
        figures: see `figures_of`.
    """
    sections = [
        _result_section(figures),
        _labels_section(results[0].judged, figures["labels"]),
        _curves_section(results[0], arms),
        Section("What was done", _method_text(figures)),
        Section("How to go on with your own data", code=NEXT_STEPS),
    ]
    return write_report(path, "Learning from flawed masks", [figures["verdict"]], sections)


NEXT_STEPS = """\
# two folders with equal file names (NIfTI, PNG, NRRD, ...): mydata/images and mydata/labels
maskmend check mydata                                 # what is wrong with the files, and how to mend it
maskmend train mydata -o run                          # Ctrl-C is safe: --resume continues
maskmend predict run new_images -o predictions
maskmend evaluate predictions true_labels             # if you have some
maskmend demo -o demo5 --seeds 5                      # this page with intervals over seeds"""


def _units(results: Sequence[SeedResult], key: str) -> np.ndarray:
    """What intervals are taken over: seeds if there are several, else test cases. Mean over classes."""
    if len(results) > 1:
        return np.array([np.nanmean(result.dice[key]) for result in results])
    means: np.ndarray = np.nanmean(results[0].dice[key], axis=1)
    return means


def _recovered(arms: dict[str, Any]) -> float | None:
    """Share of the gap to the true masks that was closed; None where the gap is below 0.005 Dice."""
    if "ceiling" not in arms:
        return None
    gap = arms["ceiling"]["dice"] - arms["plain"]["dice"]
    return (arms["robust"]["dice"] - arms["plain"]["dice"]) / gap if gap >= 0.005 else None


def _label_figures(cases: Sequence[JudgedCase]) -> dict[str, Any]:
    """How well the noise map finds wrong voxels near the masks, and flawed cases among all."""
    wrong, noise = [], []
    for case in cases:
        near = _near(case)
        wrong.append((case.given != case.truth)[near])
        noise.append(case.noise[near])
    flawed = np.array([bool((case.given != case.truth).any()) for case in cases])
    return {
        "voxel_auroc": auroc(np.concatenate(noise), np.concatenate(wrong)),
        "case_auroc": auroc(np.array([case.score for case in cases]), flawed),
        "flawed_cases": int(flawed.sum()),
        "cases": len(cases),
        "given_dice": float(np.mean([_foreground_dice(case.given, case.truth) for case in cases])),
    }


def _near(case: JudgedCase) -> np.ndarray:
    from maskmend.noise.morphology import distance_mm

    return distance_mm((case.given > 0) | (case.truth > 0), case.spacing_mm) <= NEAR_MM


def _foreground_dice(first: np.ndarray, second: np.ndarray) -> float:
    both = ((first > 0) & (first == second)).sum()
    return float(2 * both / max((first > 0).sum() + (second > 0).sum(), 1))


def auroc(score: np.ndarray, positive: np.ndarray) -> float | None:
    """Chance that a positive scores above a negative, ties counting half; None when either is missing."""
    from scipy.stats import rankdata

    n_positive = int(positive.sum())
    n_negative = positive.size - n_positive
    if not n_positive or not n_negative:
        return None
    above = float(rankdata(score)[positive].sum()) - n_positive * (n_positive + 1) / 2
    return above / (n_positive * n_negative)


def _result_section(figures: dict[str, Any]) -> Section:
    arms = figures["arms"].values()
    rows = [
        (
            arm["title"],
            f"{arm['dice']:.3f}",
            f"{arm['low']:.3f} to {arm['high']:.3f}",
            *(f"{value:.3f}" for value in arm["by_class"]),
        )
        for arm in arms
    ]
    unit = "seeds" if figures["unit"] == "seed" else "test cases"
    note = f"Dice against the true test masks, higher is better; interval: bootstrap over {unit}."
    columns = ("training", "mean Dice", "95 % interval", "organ", "core")
    table = Table(columns, rows, numeric=(1, 2, 3, 4), note=note)
    points = [(arm["title"], arm["dice"], arm["low"], arm["high"]) for arm in arms]
    picture = draw.intervals(points, x_name="mean Dice on true test masks, 95 % interval")
    caption = "The same figures. The last line is the best that this network and these steps could give."
    shown = caption if "ceiling" in figures["arms"] else "The same figures."
    return Section("Result", table=table, pictures=[Picture(picture, shown, "mean Dice of each training")])


def _labels_section(cases: Sequence[JudgedCase], figures: dict[str, Any]) -> Section:
    worst = sorted(cases, key=lambda case: -case.score)[:SHOWN]
    found = _percent(figures["voxel_auroc"]), _percent(figures["case_auroc"])
    text = [
        f"{figures['flawed_cases']} of {figures['cases']} training masks were flawed on purpose (mean Dice "
        f"of all given masks with the truth: {figures['given_dice']:.3f}). From the given masks alone the "
        "model estimates for every voxel how likely its label is wrong.",
        f"A wrong voxel scores above a right one in {found[0]} of pairs (AUROC; only voxels within "
        f"{NEAR_MM:g} mm of a mask count), a flawed mask above a sound one in {found[1]}. Chance is 50 %.",
    ]
    caption = "The training cases that the model finds worst labelled."
    picture = Picture(_worst_picture(worst), caption, caption)
    return Section("Labels that look wrong", text, pictures=[picture])


def _percent(share: float | None) -> str:
    return "no" if share is None else f"{100 * share:.0f} %"


def _worst_picture(cases: Sequence[JudgedCase]) -> bytes:
    rows = []
    titles = ("image", "given mask", "estimated noise", "truly wrong", "true mask")
    for number, case in enumerate(cases):
        wrong = (case.given != case.truth).astype(float)
        place = draw.slice_of_interest(case.noise)
        shown: list[dict[str, Any]] = [
            {},
            {"contours": [(case.given, draw.GIVEN, "-")]},
            {"heat": case.noise},
            {"heat": wrong},
            {"contours": [(case.truth, draw.TRUTH, "-")]},
        ]
        rows.append(
            [
                draw.panel(
                    case.image,
                    **given,
                    title=title if not number else "",
                    place=place,
                    spacing_mm=case.spacing_mm,
                )
                for given, title in zip(shown, titles, strict=True)
            ]
        )
    legend = [("given mask", draw.GIVEN, "-"), ("true mask", draw.TRUTH, "-")]
    names = [case.id for case in cases]
    return draw.grid(
        rows, names=names, legend=legend, heat_name="probability that the label is wrong", width=1.75
    )


def _curves_section(result: SeedResult, arms: Sequence[Arm]) -> Section:
    series = metric_curves({arm.title: result.lines[arm.key] for arm in arms}, "loss")
    if not any(len(steps) > 1 for steps, _ in series.values()):
        return Section("Learning curves", ["Too few steps to draw."])
    picture = draw.curves(series, x_name="step", y_name="training loss")
    caption = (
        "Training loss of the first seed. Each training has a loss of its own against masks of its own, so "
        "the heights cannot be compared: a low loss on flawed masks means that the flaws were learnt."
    )
    return Section("Learning curves", pictures=[Picture(picture, caption, "training loss by step")])


def _method_text(figures: dict[str, Any]) -> list[str]:
    noise, (train, test) = figures["noise"], figures["cases"]
    low, high = noise["radius_mm"]
    seeds = ", ".join(map(str, figures["seeds"]))
    kind = "images" if figures["ndim"] == 2 else "volumes"
    return [
        f"Synthetic {kind} with known truth: {train} to train on and {test} to test on, drawn anew for every "
        f"seed ({seeds}). In {100 * noise['rate']:.0f} % of the training masks every structure was enlarged "
        f"by {low:g} to {high:g} mm: always the same mistake, which is harder than mixed ones because it "
        "does not average out. The test masks are true.",
        f"All trainings use the same network, batches, augmentation and {figures['steps']} steps, and are "
        f"judged by their last averaged weights: no true mask is used to choose anything. It took "
        f"{figures['seconds']:.0f} s.",
    ]
