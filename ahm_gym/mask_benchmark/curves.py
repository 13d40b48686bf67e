"""Learning curves as inline SVG: the score against the updates of the agent, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from ahm_gym.benchmark.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    frame_y,
    marker,
    shortened,
    spread,
    style_of,
    tick_x,
)
from ahm_gym.mask_benchmark.rows import MaskRow
from ahm_gym.mask_benchmark.statistics import by_task, mean_of
from ahm_gym.pages import svg
from ahm_gym.pages.svg import Scale, padded
from ahm_gym.pages.text import decimals

GAP: int = 13
"""Distance of two names at the end of curves, in pixels."""
RIGHT: int = 96
MAX_BANDS: int = 6
"""Largest number of curves in a chart with a band for their interval: more cover each other."""


def learning_curves(rows: Sequence[MaskRow], reward: str, policies: Sequence[str]) -> dict[str, Markup]:
    """One chart for each data set and percentage, by name."""
    found = {name: by_task(rows, reward, name) for name in policies}
    tasks = sorted({task for tasks in found.values() for task in tasks})
    charts = {}
    for data, percent in tasks:
        own = {
            name: list(tasks[data, percent].values())
            for name, tasks in found.items()
            if (data, percent) in tasks
        }
        title = f"{data}, autoencoder at {percent} % of its pretraining"
        charts[title] = _chart(title, own, policies)
    return charts


def _chart(title: str, rows: dict[str, list[MaskRow]], policies: Sequence[str]) -> Markup:
    height = max(HEIGHT, TOP + BOTTOM + GAP * len(rows))
    updates = sorted({update for found in rows.values() for row in found for update in row.updates})
    x = Scale(updates[0], max(updates[-1], updates[0] + 1), LEFT, WIDTH - RIGHT)
    values = [value for found in rows.values() for row in found for value in row.curve]
    y = padded([0.0, 1.0, *values], height - BOTTOM, TOP)
    parts = frame_y(y, WIDTH - RIGHT)
    for value, name in ((0.0, "random masks"), (1.0, "oracle")):
        parts.append(svg.line(LEFT, y(value), WIDTH - RIGHT, y(value), "zero"))
        parts.append(svg.text(LEFT + 4, y(value) - 4, name, "tick"))
    parts += [tick_x(value, x, height - BOTTOM, f"{value:g}") for value in x.ticks(5)]
    parts.append(svg.text((LEFT + WIDTH - RIGHT) / 2, height - 6, "updates of the agent", "axis middle"))
    ends = {name: y(float(np.mean([row.curve[-1] for row in found]))) for name, found in rows.items()}
    places = spread(ends, GAP, TOP, height - BOTTOM)
    best = sorted(rows, key=lambda name: ends[name])[:MAX_BANDS]  # the top of a chart is its smallest y
    for name, found in rows.items():
        leader = svg.line(x.end + 7, ends[name], x.end + 12, places[name], "leader")
        label = svg.text(x.end + 15, places[name] + 4, shortened(name), "name")
        curve = _curve(name, found, policies, x, y, banded=name in best)
        parts.append(svg.group(_about(name, found), [*curve, leader, label]))
    return svg.chart(WIDTH, height, f"{title}: score against the updates of the agent", parts)


def _curve(
    name: str, rows: Sequence[MaskRow], policies: Sequence[str], x: Scale, y: Scale, *, banded: bool
) -> list[Markup]:
    """The mean over seeds, a band for its 95 % interval if it is `banded`, and a marker at the end."""
    style = style_of(name, policies)
    scored = rows[0].updates
    curves: Float[np.ndarray, "S T"] = np.array([row.curve for row in rows if row.updates == scored])
    points = [mean_of(list(values)) for values in curves.T]
    line = "L".join(f"{x(update)} {y(point.mean)}" for update, point in zip(scored, points, strict=True))
    parts = [
        svg.path(f"curve {style}", f"M{line}"),
        marker(name, policies, x(scored[-1]), y(points[-1].mean)),
    ]
    if banded and any(point.interval and point.interval[0] < point.interval[1] for point in points):
        bounds = [
            (x(update), *_inside(point.interval or (point.mean, point.mean), y))
            for update, point in zip(scored, points, strict=True)
        ]
        upper = "L".join(f"{place} {high}" for place, _, high in bounds)
        lower = "L".join(f"{place} {low}" for place, low, _ in reversed(bounds))
        parts.insert(0, svg.path(f"between {style}", f"M{upper}L{lower}Z"))
    return parts


def _inside(interval: tuple[float, float], y: Scale) -> tuple[float, float]:
    """The places of both bounds, cut at the edges of the chart."""
    low, high = (min(max(bound, y.low), y.high) for bound in interval)
    return y(low), y(high)


def _about(name: str, rows: Sequence[MaskRow]) -> str:
    shown = ", ".join(decimals(row.score, 2) for row in rows)
    return f"{name}: {shown} at the end, one number for each seed"
