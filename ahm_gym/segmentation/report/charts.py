"""The charts of the report of a segmenter, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from ahm_gym.pages import svg
from ahm_gym.pages.svg import Scale, padded, places_of
from ahm_gym.pages.text import decimals, signed
from ahm_gym.segmentation.comparison import Pair
from ahm_gym.segmentation.intervals import Interval

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 14, 40
Point = tuple[float, float]


def case_chart(scores: dict[str, float], mean: float, interval: Interval | None) -> Markup:
    """The Dice of every case, the lowest first, with the mean and its interval."""
    y = Scale(0, 1, HEIGHT - BOTTOM, TOP)
    x = Scale(0, max(len(scores) - 1, 1), LEFT + 10, WIDTH - RIGHT)
    parts = svg.grid(y, LEFT, WIDTH - RIGHT)
    if interval is not None:
        low, high = interval
        band = Markup('<rect class="band" x="{}" y="{}" width="{}" height="{}"/>')
        parts.append(band.format(LEFT, y(high), WIDTH - RIGHT - LEFT, round(max(y(low) - y(high), 1), 1)))
    parts.append(svg.line(LEFT, y(mean), WIDTH - RIGHT, y(mean), "zero"))
    size = 3.5 if len(scores) <= 60 else 2
    dot = Markup('<circle class="mark" cx="{}" cy="{}" r="{}"/>')
    for place, (case, score) in enumerate(sorted(scores.items(), key=lambda item: item[1])):
        parts.append(
            svg.group(f"{case}: {decimals(score)}", [dot.format(x(place), y(score), size)], "series c0")
        )
    axis = f"{len(scores)} cases, from the worst to the best"
    parts.append(svg.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, axis, "axis middle"))
    return svg.chart(WIDTH, HEIGHT, f"Dice of every case; the mean is {decimals(mean)}", parts)


def pair_chart(pairs: Sequence[Pair], this: str, other: str) -> Markup:
    """The Dice of every patient by the other segmenter (left) and by this one (right), joined by a line."""
    left, right = 110, WIDTH - 110
    y = padded([value for pair in pairs for value in (pair.this, pair.other)], HEIGHT - BOTTOM, TOP)
    ticks = y.ticks(4)
    parts = [
        svg.line(LEFT, y(value), WIDTH - RIGHT, y(value), "grid")
        + svg.text(LEFT - 7, y(value) + 4, decimals(value, places_of(ticks)), "tick end")
        for value in ticks
    ]
    dot = Markup('<circle class="mark" cx="{}" cy="{}" r="3"/>')
    for pair in pairs:
        gain = pair.this - pair.other
        tone = "better" if gain > 0 else "worse" if gain < 0 else "none"
        told = f"{pair.patient}: {decimals(pair.other)} to {decimals(pair.this)} ({signed(gain)})"
        ends = [dot.format(left, y(pair.other)), dot.format(right, y(pair.this))]
        parts.append(
            svg.group(
                told, [svg.line(left, y(pair.other), right, y(pair.this), "pair"), *ends], f"row {tone}"
            )
        )
    parts += [
        svg.text(left, HEIGHT - 14, shortened(other), "axis middle"),
        svg.text(right, HEIGHT - 14, shortened(this), "axis middle"),
    ]
    return svg.chart(WIDTH, HEIGHT, f"Dice of every patient: {other} and {this}", parts)


def curve_chart(
    name: str, curves: dict[str, list[Point]], marked: int | None = None, axis: str = "update"
) -> Markup:
    """Values over the updates, a line for each run; empty without two points.

    Args:
        name: what is shown.
        curves: points of each run, this one first.
        marked: update with a dashed line, that of the chosen segmenter.
        axis: name of the horizontal axis.
    """
    points = [point for curve in curves.values() for point in curve]
    if len({step for step, _ in points}) < 2:
        return Markup()
    x = Scale(0, max(step for step, _ in points), LEFT, WIDTH - RIGHT)
    y = padded([value for _, value in points], HEIGHT - BOTTOM, TOP)
    parts = svg.grid(y, LEFT, WIDTH - RIGHT)
    for value in x.ticks(4):
        parts.append(svg.text(x(value), HEIGHT - BOTTOM + 16, f"{value:,.0f}", "tick middle"))
    if marked is not None:
        parts.append(svg.line(x(marked), TOP, x(marked), HEIGHT - BOTTOM, "zero chosen"))
    for number, (run, curve) in enumerate(curves.items()):
        if curve:
            shape = "M" + "L".join(f"{x(step)} {y(value)}" for step, value in curve)
            last = f"{run}: {decimals(curve[-1][1])} at update {curve[-1][0]}"
            parts.append(svg.group(last, [svg.path(f"curve c{number}", shape)]))
    parts.append(svg.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, axis, "axis middle"))
    return svg.chart(WIDTH, HEIGHT, f"{name} over the updates", parts)


def points_of(rows: Sequence[dict[str, Any]], name: str) -> list[Point]:
    """The update and the value of each row that has a metric."""
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def shortened(name: str) -> str:
    """The name, cut to the room under a chart; the text beside it has the full name."""
    return name if len(name) <= 24 else f"{name[:23]}\u2026"
