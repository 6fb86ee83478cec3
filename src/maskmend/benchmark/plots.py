"""The pictures of a benchmark: Dice against noise rate, critical differences, learning curves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maskmend.benchmark.compare import Comparison, Condition
from maskmend.benchmark.grid import CLEAN
from maskmend.benchmark.ranks import cliques
from maskmend.draw import DASHES, INK, PALETTE, new_figure, plain_axes, to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_QUIET = "#c4c4c4"
_MARKS = ("o", "s", "^", "D", "v", "P")
_PANEL = (3.1, 2.5)  # inches
Styles = dict[str, dict[str, Any]]


def styles(compared: Comparison) -> Styles:
    """How each method is drawn: the baseline and the best five in colour, the others in grey."""
    names = [total.method for total in compared.totals]
    shown = [compared.baseline, *(name for name in names if name != compared.baseline)][: len(PALETTE)]
    found: Styles = {}
    for number, name in enumerate(shown):
        found[name] = {
            "color": PALETTE[number],
            "linestyle": DASHES[number % len(DASHES)],
            "marker": _MARKS[number],
            "linewidth": 1.8,
            "zorder": 3,
        }
    quiet = {"color": _QUIET, "linestyle": "-", "marker": "", "linewidth": 1.0, "zorder": 1}
    return {name: found.get(name, quiet) for name in names}


def dice_against_rate(compared: Comparison) -> bytes | None:
    """Test Dice against the share of flawed masks, one panel per data set and noise; bars are 95 % intervals."""
    panels = _by_panel(compared)
    if not panels:
        return None
    looks = styles(compared)
    data = list(dict.fromkeys(key[0] for key in panels))
    widest = max(sum(key[0] == name for key in panels) for name in data)
    figure, axes = _panels(len(data), widest)
    for row, name in enumerate(data):
        for column, key in enumerate(key for key in panels if key[0] == name):
            _rate_panel(axes[row][column], compared, panels[key], looks)
            x_name = "share of flawed masks" if row == len(data) - 1 else ""
            plain_axes(axes[row][column], x_name, "test Dice" if column == 0 else "", f"{name}: {key[1]}")
    _legend(figure, looks)
    return to_png(figure)


def _by_panel(compared: Comparison) -> dict[tuple[str, str], list[Condition]]:
    """The conditions of each data set and noise, true masks first."""
    panels: dict[tuple[str, str], list[Condition]] = defaultdict(list)
    for condition in compared.lines:
        if condition.noise != CLEAN:
            clean = Condition(condition.data, CLEAN, 0.0)
            key = (condition.data, condition.noise)
            if not panels[key] and clean in compared.lines:
                panels[key].append(clean)
            panels[key].append(condition)
    return panels


def _rate_panel(axes: Axes, compared: Comparison, conditions: Sequence[Condition], looks: Styles) -> None:
    axes.set_axis_on()
    coloured = [method for method, look in looks.items() if look["color"] != _QUIET]
    for method, look in looks.items():
        points = [
            (condition.rate, line.dice)
            for condition in conditions
            for line in compared.lines[condition]
            if line.method == method and line.dice.n
        ]
        if not points:
            continue
        # Intervals side by side rather than on one another.
        aside = 0.008 * (coloured.index(method) - (len(coloured) - 1) / 2) if method in coloured else 0.0
        x = [rate + aside for rate, _ in points]
        axes.plot(x, [dice.estimate for _, dice in points], markersize=4, **_solo(look, len(points)))
        if method in coloured:
            for at, (_, dice) in zip(x, points, strict=True):
                axes.plot([at, at], [dice.low, dice.high], color=look["color"], linewidth=1.2, zorder=2)
    rates = sorted({condition.rate for condition in conditions})
    axes.set_xticks(rates, [f"{rate:.0%}" for rate in rates])


def _solo(look: Mapping[str, Any], points: int) -> dict[str, Any]:
    """A single point of a quiet method would not show without a marker."""
    return dict(look) | ({"marker": look["marker"] or "."} if points == 1 else {})


def critical_differences(compared: Comparison) -> bytes | None:
    """Mean ranks on a line; bars join methods that the conditions do not tell apart (Demsar 2006)."""
    ranks = compared.mean_ranks
    if len(ranks) < 2 or not np.isfinite(compared.critical):
        return None
    names, bars = list(ranks), cliques(ranks, compared.critical)
    half = (len(names) + 1) // 2
    height = 0.8 + 0.26 * half + 0.11 * len(bars)
    figure = new_figure(8.4, max(1.9, height + 0.25))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    low, high = 1, len(names)
    first = 1.2 + 0.42 * len(bars)  # depth of the first name
    axes.set_xlim(low - 0.7 * (high - low), high + 0.7 * (high - low))
    axes.set_ylim(first + half - 0.3, -3.0)
    axes.plot([low, high], [0, 0], color=INK, linewidth=1.2)
    for rank in range(low, high + 1, 1 if high <= 12 else 2):
        axes.plot([rank, rank], [0, -0.25], color=INK, linewidth=1.0)
        axes.text(rank, -0.4, str(rank), ha="center", va="bottom", fontsize=8.5, color=INK)
    for number, name in enumerate(names):
        left = number < half
        depth = first + (number if left else len(names) - 1 - number)
        _stem(axes, name, ranks[name], depth, left, name == compared.baseline, (low, high))
    for number, group in enumerate(bars):
        depth = 0.5 + 0.42 * number
        pad = 0.012 * (high - low)
        ends = [ranks[group[0]] - pad, ranks[group[-1]] + pad]
        axes.plot(ends, [depth, depth], color=PALETTE[0], linewidth=3.2, solid_capstyle="butt")
    _ruler(axes, compared.critical, low, high)
    return to_png(figure)


def _stem(
    axes: Axes, name: str, rank: float, depth: float, left: bool, bold: bool, scale: tuple[int, int]
) -> None:
    """A line from the scale down to the name at its side, the better half on the left."""
    aside = 0.04 * (scale[1] - scale[0])
    edge = scale[0] - aside if left else scale[1] + aside
    axes.plot([rank, rank, edge], [0, depth, depth], color=INK, linewidth=0.9)
    words, to = (f"{name}  {rank:.2f}", "right") if left else (f"{rank:.2f}  {name}", "left")
    weight = "bold" if bold else "normal"
    axes.text(edge, depth, f" {words} ", ha=to, va="center", fontsize=9, weight=weight)


def _ruler(axes: Axes, critical: float, low: int, high: int) -> None:
    """How long a critical difference is."""
    length = min(critical, high - low)
    axes.plot([low, low + length], [-1.5, -1.5], color=PALETTE[0], linewidth=3.2, solid_capstyle="butt")
    more = " (wider than the scale)" if critical > high - low else ""
    text = f"critical difference {critical:.2f}{more}; mean rank, 1 is best"
    axes.text(low, -1.65, text, fontsize=8.5, color=INK, va="bottom")


def learning_curves(rows: Sequence[Mapping[str, Any]], compared: Comparison) -> bytes | None:
    """Test Dice and the memorised share of wrong labels along training, at the highest rate of every noise.

    A dotted line marks where the baseline's test Dice is best: what it learns later are the mistakes.
    """
    highest = {key: max(found, key=lambda c: c.rate) for key, found in _by_panel(compared).items()}
    chosen = [condition for condition in highest.values() if _curves(rows, condition)]
    if not chosen:
        return None
    looks = styles(compared)
    data = list(dict.fromkeys(condition.data for condition in chosen))
    widest = max(sum(condition.data == name for condition in chosen) for name in data)
    figure, axes = _panels(2 * len(data), widest, height=2.0)
    for condition in chosen:
        row = 2 * data.index(condition.data)
        column = [one for one in chosen if one.data == condition.data].index(condition)
        found = _curves(rows, condition)
        upper, lower = axes[row][column], axes[row + 1][column]
        upper.set_axis_on()
        lower.set_axis_on()
        for method, curve in found.items():
            look = looks[method] | {"marker": ""}
            upper.plot(curve[:, 0], curve[:, 1], **look)
            lower.plot(curve[:, 0], curve[:, 2], **look)
        if compared.baseline in found:
            curve = found[compared.baseline]
            for one in (upper, lower):
                one.axvline(curve[np.nanargmax(curve[:, 1]), 0], color=INK, linestyle=":", linewidth=0.9)
        plain_axes(upper, "", "test Dice" if column == 0 else "", f"{condition.data}: {condition.title}")
        plain_axes(lower, "step", "wrong labels\nrepeated" if column == 0 else "", "")
        upper.set_xticklabels([])
    _legend(figure, looks)
    return to_png(figure)


def _curves(rows: Sequence[Mapping[str, Any]], condition: Condition) -> dict[str, np.ndarray]:
    """Mean over seeds of (points, [step, Dice, memorised]) by method."""
    by_method: dict[str, list[np.ndarray]] = defaultdict(list)
    for row in rows:
        if Condition(row["data"], row["noise"], row["rate"]) == condition and row.get("curve"):
            by_method[row["method"]].append(np.array(row["curve"], float))
    means = {}
    for method, found in by_method.items():
        longest = max(len(one) for one in found)
        known = np.stack([one for one in found if len(one) == longest])
        if np.isfinite(known[:, :, 1]).any():
            means[method] = known.mean(0)
    return means


def _panels(rows: int, columns: int, height: float = _PANEL[1]) -> tuple[Figure, Any]:
    figure = new_figure(_PANEL[0] * columns + 0.3, height * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.set_axis_off()  # until something is drawn there
    return figure, axes


def _legend(figure: Figure, looks: Styles) -> None:
    from matplotlib.lines import Line2D

    shown = {name: look for name, look in looks.items() if look["color"] != _QUIET}
    handles = [Line2D([], [], label=name, markersize=4, **look) for name, look in shown.items()]
    if rest := len(looks) - len(shown):
        quiet = next(look for look in looks.values() if look["color"] == _QUIET)
        handles.append(Line2D([], [], label=f"{rest} other" + "s" * (rest > 1), **quiet))
    for columns in range(len(handles), 0, -1):  # names are long or short: as many columns as fit
        legend = figure.legend(
            handles=handles, loc="lower center", ncols=columns, frameon=False, fontsize=8.5, handlelength=2.8
        )
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    lines = -(-len(handles) // columns)
    bottom = (0.12 + 0.2 * lines) / figure.get_figheight()
    figure.set_layout_engine("constrained", rect=(0, bottom, 1, 1 - bottom))
