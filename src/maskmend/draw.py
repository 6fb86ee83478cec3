"""The one place that makes pictures: contours, noise maps, curves and intervals, as PNG bytes.

Everything is drawn on a white page with colours that colour-blind readers can tell apart (Okabe and Ito), and
no meaning rests on colour alone. No window system and no global state of matplotlib is touched.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GIVEN, TRUTH, ESTIMATE = "#FF9E1B", "#3FC1FF", "#7CFF6B"  # on a grey image
DASHES = ("-", "--", "-.", ":")
INK = "#222222"
_DOTS = 110  # per inch


@dataclass(frozen=True)
class Panel:
    """One picture: an image, outlines on it and a heat map over it.

    Args:
        image: (H, W), (1, H, W) grey or (3, H, W) colour; scaled for display by itself.
        contours: (label (H, W) integers, colour, line style); the outline of every class is drawn.
        heat: (H, W) in [0, 1], transparent at 0.
        title: a line above.
        aspect: height of a pixel divided by its width.
    """

    image: np.ndarray
    contours: Sequence[tuple[np.ndarray, str, str]] = field(default=())
    heat: np.ndarray | None = None
    title: str = ""
    aspect: float = 1.0


def panel(
    image: np.ndarray,
    contours: Sequence[tuple[np.ndarray, str, str]] = (),
    heat: np.ndarray | None = None,
    title: str = "",
    *,
    spacing_mm: Sequence[float] | None = None,
    place: int | None = None,
) -> Panel:
    """A panel of a 2-D image, or of one slice of a volume.

    Args:
        image: (*S) or (C, *S); three channels are colour, of other numbers the first is shown.
        contours: (label (*S), colour, style).
        heat: (*S) in [0, 1].
        title: a line above.
        spacing_mm: voxel size in the order of *S, so that pixels get their true shape.
        place: the slice of a volume; None: where the heat map, else the labelled foreground, is largest.
    """
    maps = [label for label, *_ in contours]
    ndim = maps[0].ndim if maps else heat.ndim if heat is not None else image.ndim
    image = image if image.ndim > ndim else image[None]
    if ndim == 3:
        if place is None:
            place = slice_of_interest(heat if heat is not None else sum(label > 0 for label in maps))  # type: ignore[arg-type]
        image = image[:, place]
        contours = [(label[place], colour, style) for label, colour, style in contours]
        heat = None if heat is None else heat[place]
    aspect = 1.0 if spacing_mm is None else spacing_mm[-2] / spacing_mm[-1]
    return Panel(image if len(image) == 3 else image[0], tuple(contours), heat, title, aspect)


def slice_of_interest(weight: np.ndarray) -> int:
    """The first-axis index of a volume (D, H, W) where `weight` sums to most; the middle when it is empty."""
    if np.ndim(weight) != 3:
        return 0
    sums = np.asarray(weight, float).reshape(len(weight), -1).sum(1)
    return int(sums.argmax()) if sums.any() else len(sums) // 2


def grid(
    rows: Sequence[Sequence[Panel]],
    *,
    names: Sequence[str] = (),
    legend: Sequence[tuple[str, str, str]] = (),
    heat_name: str = "",
    width: float = 2.1,
) -> bytes:
    """Panels in rows.

    Args:
        rows: equally many panels in every row.
        names: a name at the left of each row.
        legend: (text, colour, line style) of the outlines, shown once below.
        heat_name: what the heat maps show; with it a colour scale is drawn once.
        width: of one panel, in inches.

    Returns:
        PNG.
    """
    across = max(len(row) for row in rows)
    tallest = max(p.aspect * p.image.shape[-2] / p.image.shape[-1] for row in rows for p in row)
    below = 0.45 if legend or heat_name else 0.05
    titled_rows = sum(any(p.title for p in row) for row in rows)
    height = width * tallest + (0.28 if titled_rows > 1 else 0.08)
    figure = new_figure(width * across + 0.1, height * len(rows) + below + 0.2)
    bottom = below / figure.get_figheight()
    axes = figure.subplots(len(rows), across, squeeze=False)
    figure.subplots_adjust(
        0.01, bottom + 0.005, 0.99, 1 - 0.25 / figure.get_figheight(), 0.04, 0.14 if titled_rows > 1 else 0.04
    )
    for i, row in enumerate(rows):
        for j in range(across):
            axes[i, j].set_axis_off()
            if j < len(row):
                _draw_panel(axes[i, j], row[j])
        if i < len(names):
            _name_row(axes[i, 0], names[i])
    _draw_keys(figure, legend, heat_name)
    return to_png(figure)


def sheet(cases: Sequence[tuple[str, np.ndarray, np.ndarray]], *, columns: int = 6) -> bytes:
    """An overview of many cases as PNG: each (title, image (C, H, W), label (H, W)), outlines by class."""
    panels = [panel(image, _by_class(label), title=_short(title)) for title, image, label in cases]
    across = min(columns, len(panels))
    return grid([panels[i : i + across] for i in range(0, len(panels), across)], width=1.9)


def noise_rows(cases: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]) -> bytes:
    """One row per case as PNG: image, given label, pseudo label, estimated noise.

    Args:
        cases: (name, image (*S), given label (*S), pseudo label (*S), noise map (*S) in [0, 1]).
    """
    rows, titles = [], ("image", "given label", "pseudo label", "estimated noise")
    for number, (_, image, label, pseudo, noise) in enumerate(cases):
        place = slice_of_interest(noise)
        shown: list[dict[str, Any]] = [
            {},
            {"contours": [(label, GIVEN, "-")]},
            {"contours": [(pseudo, ESTIMATE, "-")]},
            {"contours": [(label, GIVEN, ":")], "heat": noise},
        ]
        rows.append([
            panel(image, **given, title=title if number == 0 else "", place=place)
            for given, title in zip(shown, titles, strict=True)
        ])  # fmt: skip
    legend = [("given label", GIVEN, "-"), ("pseudo label", ESTIMATE, "-")]
    names = [_short(case[0]) for case in cases]
    return grid(rows, names=names, legend=legend, heat_name="probability that the label is wrong")


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_name: str,
    y_name: str,
    title: str = "",
    size: tuple[float, float] = (6.4, 3.2),
) -> bytes:
    """Lines over a common axis as PNG: name to (x, y); told apart by colour and by dash."""
    figure = new_figure(*size)
    axes = figure.add_subplot()
    for number, (name, (x, y)) in enumerate(series.items()):
        style = {"color": PALETTE[number % len(PALETTE)], "linestyle": DASHES[number % len(DASHES)]}
        axes.plot(x, y, linewidth=1.8, label=name, **style)  # type: ignore[arg-type]
    plain_axes(axes, x_name, y_name, title)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8.5, handlelength=2.6)
    figure.tight_layout()
    return to_png(figure)


def intervals(
    rows: Sequence[tuple[str, float, float, float]], *, x_name: str, size: tuple[float, float] | None = None
) -> bytes:
    """Values with their intervals as PNG: (name, value, low, high) from top to bottom.

    Points rather than bars: a Dice axis need not start at 0, and the length of a cut bar misleads.
    """
    figure = new_figure(*(size or (6.4, 0.7 + 0.42 * len(rows))))
    axes = figure.add_subplot()
    for number, (_, value, low, high) in enumerate(rows):
        colour = PALETTE[number % len(PALETTE)]
        axes.plot([low, high], [number] * 2, color=colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot([value], [number], "o", color=colour, markersize=7)
        style = {"textcoords": "offset points", "ha": "center", "fontsize": 8.5}
        axes.annotate(f"{value:.3f}", (value, number), (0, 7), **style)  # type: ignore[arg-type]
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.7)
    plain_axes(axes, x_name, "", "")
    axes.grid(axis="y", visible=False)
    figure.tight_layout()
    return to_png(figure)


def _name_row(axes: Axes, name: str) -> None:
    box = {"facecolor": "#000000a0", "edgecolor": "none", "pad": 1.5}
    axes.text(0.02, 0.98, name, transform=axes.transAxes, va="top", fontsize=7.5, color="white", bbox=box)


def _draw_panel(axes: Axes, shown: Panel) -> None:
    axes.imshow(_displayed(shown.image), interpolation="nearest", aspect=shown.aspect)
    if shown.heat is not None:
        axes.imshow(heat_colours(shown.heat), interpolation="nearest", aspect=shown.aspect)
    for label, colour, style in shown.contours:
        for value in np.unique(label[label > 0]):
            axes.contour(label == value, [0.5], colors=colour, linestyles=style, linewidths=1.4)
    if shown.title:
        axes.set_title(shown.title, fontsize=9, color=INK, pad=3)


def _displayed(image: np.ndarray) -> np.ndarray:
    """(H, W) or (3, H, W) of any range to RGB (H, W, 3) in [0, 1], cut at the 0.5th and 99.5th percentile."""
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
    scaled = np.clip((np.nan_to_num(image) - low) / max(high - low, 1e-9), 0, 1)
    return np.stack([scaled] * 3, -1) if image.ndim == 2 else np.moveaxis(scaled, 0, -1)


def _heat_map() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("noise", ["#7a0177", "#e7298a", "#ff7f50", "#ffe14d"])


def heat_colours(heat: np.ndarray) -> np.ndarray:
    """RGBA (H, W, 4): light and opaque where the map is high, transparent where it is 0."""
    clipped = np.clip(np.nan_to_num(heat), 0, 1)
    colours: np.ndarray = _heat_map()(clipped)
    colours[..., 3] = 0.95 * clipped**0.85
    return colours


def _by_class(label: np.ndarray) -> list[tuple[np.ndarray, str, str]]:
    bright = (GIVEN, TRUTH, ESTIMATE, "#FF7AC8", "#FFE14D", "#FF5A4D")
    values = [int(value) for value in np.unique(label) if value > 0]
    colours = [bright[i % len(bright)] for i in range(len(values))]
    return [((label == value).astype(np.uint8), c, "-") for value, c in zip(values, colours, strict=True)]


def _draw_keys(figure: Figure, legend: Sequence[tuple[str, str, str]], heat_name: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.lines import Line2D

    height = figure.get_figheight()
    if heat_name:
        scale = figure.add_axes((0.62, 0.26 / height, 0.3, 0.08 / height))
        bar = figure.colorbar(ScalarMappable(cmap=_heat_map()), cax=scale, orientation="horizontal")
        bar.outline.set_visible(False)
        bar.set_ticks([0, 1])
        bar.ax.tick_params(labelsize=7, length=0, pad=1)
        bar.set_label(heat_name, fontsize=7.5, labelpad=-7, color=INK)
    if legend:
        styles: list[dict[str, Any]] = [{"color": colour, "linestyle": style} for _, colour, style in legend]
        lines = [Line2D([], [], linewidth=2, **style) for style in styles]
        box = (0.01, 0.02 / height)
        names = [text for text, *_ in legend]
        figure.legend(  # on dark ground, for the outlines are chosen for grey images
            lines, names, loc="lower left", bbox_to_anchor=box, ncols=len(legend), fontsize=8, frameon=True,
            facecolor="#444444", edgecolor="none", labelcolor="white", handlelength=2.2,
        )  # fmt: skip


def plain_axes(axes: Axes, x_name: str, y_name: str, title: str) -> None:
    """Axes with names, a quiet grid and no box, in the style of every figure."""
    axes.set_xlabel(x_name, fontsize=9, color=INK)
    axes.set_ylabel(y_name, fontsize=9, color=INK)
    axes.tick_params(labelsize=8.5, colors=INK, length=3)
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if title:
        axes.set_title(title, fontsize=10, color=INK, loc="left")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches that needs no window system."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white", dpi=_DOTS)
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Figure) -> bytes:
    """PNG without the date and version that would make equal pictures differ."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _short(name: str, limit: int = 24) -> str:
    return name if len(name) <= limit else f"{name[: limit // 2 - 1]}…{name[-(limit // 2) :]}"
