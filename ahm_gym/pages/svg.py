"""Parts of charts as inline SVG: scales, lines and texts.

Colours come from the style sheet of the page, so charts follow its light or dark scheme. `Markup` escapes every text
that is formatted into it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ahm_gym.pages.text import Number, decimals


@dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high` linearly to pixels from `start` to `end`."""

    low: Number
    high: Number
    start: Number
    end: Number

    def __call__(self, value: Number) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, num: int) -> list[float]:
        """About `num` round values within the scale."""
        raw = (self.high - self.low) / num
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def padded(values: Sequence[Number], start: Number, end: Number) -> Scale:
    """A scale with some room around the values."""
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.08 * abs(high) or 0.01
    return Scale(low - room, high + room, start, end)


def places_of(ticks: Sequence[Number]) -> int:
    """The number of decimals at which neighbouring ticks differ, at least two."""
    return max(2, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9)) if len(ticks) > 1 else 3


def grid(y: Scale, left: Number, right: Number) -> list[Markup]:
    """Horizontal lines from `left` to `right` at the ticks of a vertical scale, with their numbers at the left."""
    ticks = y.ticks(4)
    return [
        line(left, y(value), right, y(value), "grid")
        + text(left - 7, y(value) + 4, decimals(value, places_of(ticks)), "tick end")
        for value in ticks
    ]


def line(x1: Number, y1: Number, x2: Number, y2: Number, style: str) -> Markup:
    """A line from one point to another; `style` is its CSS class."""
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(style, x1, y1, x2, y2)


def path(style: str, shape: str) -> Markup:
    """A path with the commands in `shape`."""
    return Markup('<path class="{}" d="{}"/>').format(style, shape)


def text(x: Number, y: Number, words: str, style: str) -> Markup:
    """Words that start, end or are centred at a point, as `style` says."""
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(style, x, y, words)


def group(title: str, parts: Sequence[Markup], style: str = "series") -> Markup:
    """Parts with a title that a browser shows as a tooltip."""
    return Markup('<g class="{}"><title>{}</title>{}</g>').format(style, title, Markup().join(parts))


def chart(width: Number, height: Number, title: str, parts: Sequence[Markup]) -> Markup:
    """The whole chart, with a title for those who cannot see it."""
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>{}</svg>'
    ).format(width, height, title, title, Markup().join(parts))
