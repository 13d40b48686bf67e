"""The charts of the report of a sweep, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from markupsafe import Markup

from ahm_gym.pages import svg
from ahm_gym.pages.svg import Scale, padded
from ahm_gym.pages.text import decimals, percent

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 40
ROW = 24
MAX_TICKS: int = 8
"""Largest number of choices whose names stand below a chart; the tooltips of the points have them all."""
DOT = Markup('<circle class="mark" cx="{}" cy="{}" r="3.5"/>')
Point: TypeAlias = tuple[float | int | str, float, str]
"""Place on the horizontal axis, score, and the words of the tooltip."""


def history(scores: dict[int, float], objective: str) -> Markup:
    """The score of every trial by its number, with the best so far as a line."""
    x = Scale(0, max(*scores, 1), LEFT + 8, WIDTH - RIGHT)
    y = padded(list(scores.values()), HEIGHT - BOTTOM, TOP)
    parts = svg.grid(y, LEFT, WIDTH - RIGHT)
    best = -math.inf
    corners: list[str] = []
    for trial, score in sorted(scores.items()):
        if score > best:
            corners += [f"{x(trial)} {y(max(best, y.low))}"] * bool(corners) + [f"{x(trial)} {y(score)}"]
            best = score
    corners.append(f"{x(max(scores))} {y(best)}")
    parts.append(svg.group(f"best: {decimals(best)}", [svg.path("curve c1", "M" + "L".join(corners))]))
    parts += [
        svg.group(f"trial {trial}: {decimals(score, 4)}", [DOT.format(x(trial), y(score))], "series c0")
        for trial, score in scores.items()
    ]
    for tick in x.ticks(5):
        if tick == int(tick):
            parts.append(svg.text(x(tick), HEIGHT - BOTTOM + 16, f"{tick:.0f}", "tick middle"))
    parts.append(svg.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "trial", "axis middle"))
    return svg.chart(WIDTH, HEIGHT, f"{objective} of every trial; the best is {decimals(best)}", parts)


def importance(shares: dict[str, float]) -> Markup:
    """The share of every setting as a bar, the largest first."""
    start, height = 190, ROW * len(shares) + 8
    x = Scale(0, max(*shares.values(), 0.01), start, WIDTH - 60)
    bar = Markup('<rect class="mark" x="{}" y="{}" width="{}" height="12"/>')
    parts = []
    for place, (name, share) in enumerate(sorted(shares.items(), key=lambda item: -item[1])):
        y = 8 + ROW * place
        drawn = [
            svg.text(start - 8, y + 10, _cut(name, 26), "name end"),
            bar.format(start, y, round(x(share) - start, 1)),
            svg.text(x(share) + 6, y + 10, percent(share), "number"),
        ]
        parts.append(svg.group(f"{name}: {percent(share)}", drawn, "series c0"))
    return svg.chart(WIDTH, height, "How much each setting matters", parts)


def slices(name: str, points: Sequence[Point], *, log: bool = False, choices: Sequence[str] = ()) -> Markup:
    """The scores of the trials against one setting.

    Args:
        name: the setting.
        points: one for each trial; a text in place of a number is a choice.
        log: whether the axis shows factors.
        choices: the choices in their order; empty for numbers.
    """
    y = padded([score for _, score, _ in points], HEIGHT - BOTTOM, TOP)
    parts = svg.grid(y, LEFT, WIDTH - RIGHT)
    if choices:
        x = Scale(-0.5, len(choices) - 0.5, LEFT, WIDTH - RIGHT)
        places: dict[float | int | str, float] = {choice: x(at) for at, choice in enumerate(choices)}
        ticks = [(places[choice], _cut(choice, 54 // len(choices))) for choice in choices[:MAX_TICKS]]
    else:
        x, numbers = _axis([float(place) for place, *_ in points], log=log)
        places = {place: x(math.log10(float(place)) if log else float(place)) for place, *_ in points}
        ticks = [(x(math.log10(value) if log else value), f"{value:.3g}") for value in numbers]
    for at, words in ticks:
        parts.append(svg.text(at, HEIGHT - BOTTOM + 16, words, "tick middle"))
    parts += [
        svg.group(told, [DOT.format(places[place], y(score))], "series c0") for place, score, told in points
    ]
    parts.append(svg.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, _cut(name, 48), "axis middle"))
    return svg.chart(WIDTH, HEIGHT, f"Scores against {name}", parts)


def _axis(values: Sequence[float], *, log: bool) -> tuple[Scale, list[float]]:
    """The horizontal scale of numbers, of their logarithms if `log`, and its ticks as numbers."""
    if not log:
        x = padded(values, LEFT, WIDTH - RIGHT)
        return x, x.ticks(5)
    x = padded([math.log10(value) for value in values], LEFT, WIDTH - RIGHT)
    powers = range(math.floor(x.low), math.ceil(x.high) + 1)
    found = [
        factor * 10.0**power
        for power in powers
        for factor in ((1,) if x.high - x.low > 2 else (1, 2, 5))
        if x.low <= math.log10(factor * 10.0**power) <= x.high
    ]
    return x, found


def _cut(words: str, length: int) -> str:
    return words if len(words) <= length else f"{words[: length - 1]}\u2026"
