"""Charts as SVG within a page: they follow the page's colours, light or dark, and say in words what they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 40


@dataclass(frozen=True)
class Chart:
    """An SVG element and the sentence that stands for it.

    Args:
        svg: markup, every text in it escaped.
        alt: what it shows.
        caption: below it.
    """

    svg: str
    alt: str
    caption: str


def histogram_chart(bins: Sequence[tuple[float, float, int]], x_name: str, alt: str, caption: str) -> Chart:
    """Bars of (from, to, count)."""
    if not bins:
        return Chart("", alt, caption)
    low, high, most = bins[0][0], bins[-1][1], max(count for *_, count in bins)
    parts = _axes((low, high), (0, most), x_name, "cases")
    for start, end, count in bins:
        x0, x1 = (_x(value, low, high) for value in (start, end))
        y = _y(count, 0, most)
        tip = f"<title>{start:.2f} to {end:.2f}: {count}</title>"
        parts.append(
            f'<rect class="bar" x="{x0 + 1:.1f}" y="{y:.1f}" width="{max(x1 - x0 - 2, 1):.1f}" '
            f'height="{_y(0, 0, most) - y:.1f}">{tip}</rect>'
        )
    return Chart(_svg(parts, alt), alt, caption)


def budget_chart(curve: Sequence[float], alt: str, caption: str) -> Chart:
    """The share of wrong voxels found against cases looked at, with the line of looking in any order."""
    n = len(curve) - 1
    parts = _axes((0, n), (0, 100), "cases looked at, worst first", "% of wrong voxels")
    step = max(1, n // 200)
    places = sorted({*range(0, n + 1, step), n})
    points = " ".join(f"{_x(i, 0, n):.1f},{_y(100 * curve[i], 0, 100):.1f}" for i in places)
    parts.append(
        f'<line class="chance" x1="{_x(0, 0, n)}" y1="{_y(0, 0, 100)}" x2="{_x(n, 0, n)}" y2="{_y(100, 0, 100)}"/>'
    )
    parts.append(f'<polyline class="curve" points="{points}"/>')
    x, y = _x(0.62 * n, 0, n), _y(50, 0, 100)
    parts.append(f'<text class="note" x="{x:.0f}" y="{y:.0f}">in any order</text>')
    return Chart(_svg(parts, alt), alt, caption)


def _svg(parts: Sequence[str], alt: str) -> str:
    body = "".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(alt, quote=True)}">{body}</svg>'
    )


def _axes(x: tuple[float, float], y: tuple[float, float], x_name: str, y_name: str) -> list[str]:
    parts = []
    for value in _ticks(*y):
        at = _y(value, *y)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{at:.1f}" x2="{WIDTH - _RIGHT}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    for value in _ticks(*x):
        at = _x(value, *x)
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{value:g}</text>'
        )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="name" x="{middle:.0f}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_name)}</text>'
    )
    turn = f"translate(11 {(_TOP + HEIGHT - _BOTTOM) / 2:.0f}) rotate(-90)"
    parts.append(f'<text class="name" transform="{turn}" text-anchor="middle">{escape(y_name)}</text>')
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers within a range."""
    from matplotlib.ticker import MaxNLocator

    if high <= low:
        return [low]
    values = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(value) for value in values if low - 1e-9 <= value <= high + 1e-9]


def _x(value: float, low: float, high: float) -> float:
    return _LEFT + (value - low) / max(high - low, 1e-9) * (WIDTH - _LEFT - _RIGHT)


def _y(value: float, low: float, high: float) -> float:
    return HEIGHT - _BOTTOM - (value - low) / max(high - low, 1e-9) * (HEIGHT - _TOP - _BOTTOM)
