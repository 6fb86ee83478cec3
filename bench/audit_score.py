"""Score the audit beside its rivals on the same probabilities; used by bench/audit.py."""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CROWD_FLAWED = 0.8  # Dice to the truth below which a mask of the crowd counts as flawed
KIND_OF = {
    "dilate": "over-drawn", "erode": "under-drawn", "move": "shifted", "drop": "missing object",
    "invent": "invented object", "swap": "swapped class", "cut slices": "wrong slice range",
    "flip": "left-right flip", "wrong file": "wrong file", "markov-grow": "over-drawn", "markov-shrink": "under-drawn",
    "elastic": "mixed", "edge-circles": "mixed", "polygon": "mixed",
}  # fmt: skip
"""What the audit should call each injected error."""


def score(given: Any, probs: Mapping[str, np.ndarray], crowd: bool) -> list[dict[str, Any]]:
    """One row per ranking: the audit's and the rivals'."""
    truth, label = indices(given)
    classes = len(given.dataset.labels)
    ids = sorted(label)
    dice, flawed = flaws(label, truth, ids, classes, crowd)
    subtle = np.array([bool(given.facts.get(i, {}).get("subtle")) for i in ids])
    wrong = np.concatenate([(label[i] != truth[i]).ravel() for i in ids])
    rows = []
    for name, (cases, voxels, more) in rankings(given, probs, label, truth).items():
        if (
            crowd and "quality" in more
        ):  # no mask of a crowd is without error: what is asked for is a low Dice
            cases = -more["quality"]
        row: dict[str, Any] = {"ranking": name, "auroc": auroc(cases, flawed), "ap": precision(cases, flawed)}
        if subtle.any():
            some = subtle | ~flawed
            row |= {
                "subtle_auroc": auroc(cases[some], flawed[some]),
                "subtle_ap": precision(cases[some], flawed[some]),
            }
        row |= {"dice_correlation": float(np.corrcoef(more.pop("quality", -cases), dice)[0, 1])}
        row |= {
            "dice_rank": spearman(-cases, dice),
            "found_early": early(more.pop("priority", cases), label, truth, ids),
        }
        if voxels is not None:
            row |= {"voxel_ap": precision(voxels, wrong)}
            row |= {"expected_wrong": float(voxels.sum()), "true_wrong": int(wrong.sum())}
        if "flawed" in more:
            row["brier"] = float(np.mean((more.pop("flawed") - flawed) ** 2))
        suggested = more.pop("suggested", None)
        if suggested:
            mended = np.array([mean_dice(suggested[i], truth[i], classes) for i in ids])
            row |= {"given_dice": float(dice[flawed].mean()), "mended_dice": float(mended[flawed].mean())}
            row |= {
                "given_dice_sound": float(dice[~flawed].mean()),
                "mended_dice_sound": float(mended[~flawed].mean()),
            }
        row |= _kinds(more.pop("kinds", None), given.facts, ids) | more
        rows.append(
            {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
        )
    return rows


def flaws(
    label: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
    ids: Sequence[str],
    classes: int,
    crowd: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) mean Dice of each mask to the truth, and (N,) bool which count as flawed."""
    dice = np.array([mean_dice(label[i], truth[i], classes) for i in ids])
    return dice, dice < CROWD_FLAWED if crowd else np.array(
        [not np.array_equal(label[i], truth[i]) for i in ids]
    )


def rankings(
    given: Any,
    probs: Mapping[str, np.ndarray],
    label: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
) -> dict[str, tuple[np.ndarray, np.ndarray | None, dict[str, Any]]]:
    """For each ranking: a score per case (high is bad), a map of all voxels or None, and further figures."""
    ids = sorted(label)
    own = {i: np.take_along_axis(probs[i], label[i][None].astype(int), 0)[0] for i in ids}
    doubt = np.concatenate([1 - own[i].ravel() for i in ids])
    began = time.process_time()
    cleanlab = cleanlab_quality(probs, label, ids)
    seconds = {"cpu_seconds": round(time.process_time() - began, 2)}
    from maskmend.audit.estimate import priority
    from maskmend.audit.population import sigmoid

    own_row = maskmend(given, probs, label, truth)
    more = dict(own_row[2])
    odds, witness, quality = (more.pop(key) for key in ("odds", "witness", "quality_alone"))
    alone = sigmoid(odds)
    return {
        "maskmend": (own_row[0], own_row[1], more),
        "maskmend, probabilities alone": (
            alone,
            None,
            {"priority": priority(alone, quality), "quality": quality, "flawed": alone},
        ),
        "maskmend, images alone": (witness, None, {}),
        "cleanlab": (-cleanlab, doubt, seconds),
        "cleanlab issues": _issues(probs, label, ids),
        "mean loss": (np.array([-np.log(own[i] + 1e-3).mean() for i in ids]), None, {}),
        "1 - soft Dice": (np.array([soft_dice_loss(probs[i], label[i]) for i in ids]), None, {}),
        "entropy": (np.array([-(probs[i] * np.log(probs[i] + 1e-6)).sum(0).mean() for i in ids]), None, {}),
    }


def cleanlab_quality(
    probs: Mapping[str, np.ndarray], label: Mapping[str, np.ndarray], ids: Sequence[str]
) -> np.ndarray:
    """(N,) cleanlab's label quality scores with its defaults; low is bad."""
    from cleanlab.segmentation.rank import get_label_quality_scores

    plane = {i: (label[i].reshape(1, -1, label[i].shape[-1]).astype(int), _plane(probs[i])) for i in ids}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.array([get_label_quality_scores(*plane[i], verbose=False)[0][0] for i in ids])


def _issues(
    probs: Mapping[str, np.ndarray], label: Mapping[str, np.ndarray], ids: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """cleanlab's label issues, its limits learnt from all voxels of all cases: their share of each case, and where."""
    from cleanlab.segmentation.filter import find_label_issues

    strip = np.concatenate([probs[i].reshape(len(probs[i]), -1) for i in ids], axis=1)[None, :, None]
    flat = np.concatenate([label[i].ravel() for i in ids]).astype(int)[None, None]
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = find_label_issues(flat, strip, n_jobs=1, verbose=False).ravel()
    seconds = round(time.process_time() - began, 2)
    parts = np.split(found, np.cumsum([label[i].size for i in ids])[:-1])
    return np.array([part.mean() for part in parts]), found.astype(float), {"cpu_seconds": seconds}


def maskmend(
    given: Any,
    probs: Mapping[str, np.ndarray],
    label: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    from maskmend.audit.estimate import fit, priority
    from maskmend.audit.estimate import mean_dice as mean_known
    from maskmend.audit.hearing import hear
    from maskmend.audit.kinds import case_kind
    from maskmend.audit.look import look_at
    from maskmend.audit.mixups import Trace, elsewhere, flipped
    from maskmend.audit.outlines import look_at_outlines
    from maskmend.audit.selfcheck import SelfCheck
    from maskmend.audit.suggest import suggest
    from maskmend.data.images import read_header, read_image

    ids = sorted(label)
    spacing = {
        c.id: given.dataset.spacing_mm or read_header(c.label).geometry.spacing_mm
        for c in given.dataset.cases
    }

    def looks(names: Sequence[str]) -> Any:
        return (look_at(name, probs[name], label[name], spacing[name]) for name in names)

    began = time.process_time()
    auditor = fit(looks, ids)
    fitted = time.process_time() - began
    outlines = look_at_outlines(given.dataset.cases, given.dataset, progress=lambda: None)
    witness = outlines.witness().weighed(auditor.flawed_outlines())
    images = {case.id: case.images for case in given.dataset.cases}
    keys = ("share", "flawed", "quality", "noise", "kinds", "odds", "quality_alone")
    found: dict[str, list[Any]] = {key: [] for key in keys}
    check, held = SelfCheck.of(auditor, looks, ids, backing=witness.backing), Held(truth) if truth else None
    suggested, traces, flips = {}, [], {}
    for look in looks(ids):
        alone = auditor.judge(look)
        found["odds"].append(alone.odds)
        found["quality_alone"].append(mean_known(alone.dice(suggest(alone))))
        case = hear(alone, read_image(images[look.case])[0], witness)
        opinion, better = case.opinion, case.suggested
        found["flawed"].append(opinion.flawed)
        found["quality"].append(mean_known(opinion.dice(better)))
        found["share"].append(priority(opinion.flawed, found["quality"][-1], opinion.backing))
        found["noise"].append(opinion.look.whole(opinion.noise).ravel())
        found["kinds"].append(case_kind(opinion, better)[0])
        if held:
            held.add(opinion, better, check)
        whole = label[look.case].copy()
        whole[opinion.look.box] = better
        suggested[look.case] = whole
        traces.append(Trace.of(opinion, found["kinds"][-1]))
        flips[look.case] = flipped(opinion, found["quality"][-1], case.mirrored)
    seconds = time.process_time() - began
    kinds = dict(zip(ids, found["kinds"], strict=True))
    others = {case: sure for case, (_, sure) in elsewhere(traces).items()}
    kinds |= dict.fromkeys(others, "wrong file")
    kinds |= {
        case: "left-right flip" for case, sure in flips.items() if sure > 0 and sure >= others.get(case, 0)
    }
    exam = check.facts()
    return np.array(found["flawed"]), np.concatenate(found["noise"]), {
        "priority": np.array(found["share"]), "odds": np.array(found["odds"]),
        "witness": np.array([witness(i) for i in ids]), "quality_alone": np.array(found["quality_alone"]),
        "quality": np.array(found["quality"]), "flawed": np.array(found["flawed"]), "kinds": kinds,
        "suggested": suggested, "rate": auditor.population.rate, "images_bear_out": witness.backing,
        "cpu_seconds": round(seconds, 2), "fit_seconds": round(fitted, 2),
        "check_auroc": exam.get("auroc"), "check_kinds": exam.get("kind_accuracy"),
    } | (held.rates() if held else {})  # fmt: skip


@dataclass
class Held:
    """How often the 90 % intervals of estimated Dice hold the true one: of cases, classes and connected parts.

    Args:
        truth: class indices by case.
    """

    truth: Mapping[str, np.ndarray]
    found: dict[str, list[tuple[float, float, float, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, opinion: Any, suggested: np.ndarray, check: Any) -> None:
        """Look at one case."""
        from maskmend.audit.components import parts, sole
        from maskmend.audit.estimate import mask_dice
        from maskmend.audit.estimate import mean_dice as mean_known

        look = opinion.look
        truth, given = self.truth[look.case][look.box], look.label
        estimated, true = opinion.dice(suggested), mask_dice(given, truth, look.classes)
        self._add("interval", mean_known(estimated), mean_known(true), check.interval(mean_known(estimated)))
        for k in range(1, look.classes):
            a, b = float(estimated[k - 1]), float(true[k - 1])
            if np.isfinite(a) and np.isfinite(b):
                self._add("class_interval", a, b, check.class_interval(k, a))
            every = list(parts(given, suggested, k, look.spacing_mm))
            for part in [] if sole(every) else every:
                a = part.dice(opinion, suggested)
                b = float(mask_dice(part.within(given), part.within(truth), look.classes)[k - 1])
                self._add(
                    "part_interval", a, b if np.isfinite(b) else 1.0, check.part_interval(k, a, part.apart)
                )

    def _add(self, what: str, estimated: float, true: float, ends: tuple[float, float]) -> None:
        self.found[what].append((estimated, true, *ends))

    def rates(self) -> dict[str, float]:
        """Share that holds and mean width of each kind; of parts how well estimated and true Dice go together."""
        more = {}
        for what, rows in self.found.items():
            estimated, true, low, high = np.array(rows).T
            more[f"{what}_holds"] = float(np.mean((low - 5e-4 <= true) & (true <= high + 5e-4)))
            more[f"{what}_width"] = float(np.mean(high - low))
            more[f"{what}_n"] = len(rows)
            if what == "part_interval":
                more["part_correlation"] = float(np.corrcoef(estimated, true)[0, 1])
        return more


def _kinds(
    kinds: Mapping[str, str] | None, facts: Mapping[str, Mapping[str, Any]], ids: Sequence[str]
) -> dict[str, Any]:
    """Share of the flawed masks whose kind is named rightly, of those that the audit calls flawed."""
    if kinds is None:
        return {}
    wanted = {i: KIND_OF.get(facts[i]["kind"]) for i in ids if i in facts}
    named = [i for i, kind in wanted.items() if kind and kinds[i] != "sound"]
    if not named:
        return {}
    table: dict[str, dict[str, int]] = {}
    for i in named:
        row = table.setdefault(str(wanted[i]), {})
        row[kinds[i]] = row.get(kinds[i], 0) + 1
    return {"kind_accuracy": float(np.mean([kinds[i] == wanted[i] for i in named])), "kind_table": table}


def early(
    scores: np.ndarray, label: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], ids: Sequence[str]
) -> float:
    """Mean share of all wrong voxels (per drawn voxel) found while the cases are looked at, worst first."""
    wrong = np.array(
        [(label[i] != truth[i]).sum() / max(((label[i] > 0) | (truth[i] > 0)).sum(), 1) for i in ids]
    )
    return float((np.cumsum(wrong[np.argsort(-scores, kind="stable")]) / wrong.sum()).mean())


def auroc(scores: np.ndarray, flawed: np.ndarray) -> float:
    """The chance that a flawed case scores above a sound one."""
    from scipy.stats import rankdata

    bad = int(flawed.sum())
    return float((rankdata(scores)[flawed].sum() - bad * (bad + 1) / 2) / (bad * (len(flawed) - bad)))


def precision(scores: np.ndarray, wrong: np.ndarray) -> float:
    """Average precision; of equal scores the expected one."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(wrong, scores))


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation."""
    from scipy.stats import spearmanr

    return float(spearmanr(one, other).statistic)


def mean_dice(first: np.ndarray, second: np.ndarray, classes: int) -> float:
    """Mean Dice over the foreground classes that occur in either."""
    found = []
    for k in range(1, classes):
        a, b = first == k, second == k
        if total := int(a.sum() + b.sum()):
            found.append(2 * int((a & b).sum()) / total)
    return float(np.mean(found)) if found else 1.0


def soft_dice_loss(probs: np.ndarray, label: np.ndarray) -> float:
    found = []
    for k in range(1, len(probs)):
        drawn = label == k
        found.append(1 - (2 * (drawn * probs[k]).sum() + 1e-3) / (drawn.sum() + probs[k].sum() + 1e-3))
    return float(np.mean(found))


def _plane(probs: np.ndarray) -> np.ndarray:
    """(1, K, H, W): cleanlab knows images only; a volume is its slices one below the other."""
    return probs.reshape(1, len(probs), -1, probs.shape[-1])


def indices(given: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    values = list(given.dataset.labels.values())
    table = np.zeros(max(values) + 1, np.uint8)
    for index, value in enumerate(values):
        table[value] = index
    return {k: table[v] for k, v in given.truth.items()}, {k: table[v] for k, v in given.given.items()}
