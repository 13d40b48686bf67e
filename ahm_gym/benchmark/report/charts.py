"""Charts as inline SVG. Colours come from the style sheet of the page, so charts follow its light or dark scheme.

They are not drawn by matplotlib, whose SVG has fixed colours and no titles and is six times as large. `Markup`
escapes every text that is formatted into it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from ahm_gym.benchmark.report.leaderboard import Cell
from ahm_gym.benchmark.rows import REFERENCE, UNTRAINED
from ahm_gym.benchmark.statistics import Comparison
from ahm_gym.pages import svg
from ahm_gym.pages.svg import Scale, padded, places_of
from ahm_gym.pages.text import Number, decimals, duration, signed

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 14, 40
ROW = 22
NUM_COLOURS = 7


def style_of(policy: str, policies: Sequence[str]) -> str:
    """The CSS class with the colour of a policy; the reference and the untrained encoder are grey."""
    if policy in (REFERENCE, UNTRAINED):
        return f"is-{policy}"
    others = [name for name in policies if name not in (REFERENCE, UNTRAINED)]
    return f"c{others.index(policy) % NUM_COLOURS}"


def marker(policy: str, policies: Sequence[str], x: Number, y: Number) -> Markup:
    """The marker of a policy, about nine pixels wide; shapes help if colours are hard to distinguish."""
    style = style_of(policy, policies)
    if policy == REFERENCE:
        shape = f"M{x - 5} {y}L{x} {y - 5}L{x + 5} {y}L{x} {y + 5}Z"
    elif policy == UNTRAINED:
        shape = f"M{x - 4} {y - 4}L{x + 4} {y + 4}M{x - 4} {y + 4}L{x + 4} {y - 4}"
    else:
        index = [name for name in policies if name not in (REFERENCE, UNTRAINED)].index(policy)
        shape = (
            f"M{x - 4.5} {y}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0",
            f"M{x - 4} {y - 4}h8v8h-8Z",
            f"M{x - 5} {y + 4}h10L{x} {y - 5}Z",
            f"M{x - 5} {y - 4}h10L{x} {y + 5}Z",
        )[index % 4]
    return svg.path(f"mark {style}", shape)


def forest(data: str, cells: Sequence[Cell]) -> Markup:
    """Differences to the reference in the score with their intervals, the best on top; empty if none is known.

    The untrained encoder is often far worse. It does not widen the scale; an arrow marks it at the edge instead.
    """
    rows = [(cell.policy, m, m.comparison) for cell in cells if (m := cell.main)]
    known = sorted(((p, m, one) for p, m, one in rows if one), key=lambda row: -row[2].difference)
    if not known:
        return Markup()
    width, left, right = 420, 80, 152
    bounds = [0.0]
    for policy, _, one in known:
        if policy != UNTRAINED or len(known) == 1:
            bounds += [one.difference, *(one.interval or ())]
    x = padded(bounds, left, width - right)
    bottom = 12 + ROW * len(known)
    ticks = x.ticks(3)
    axis = f"← worse · difference in {score_name(cells)} · better →"
    parts = [
        svg.line(x(0), 4, x(0), bottom, "zero"),
        *(
            tick_x(value, x, bottom, signed(value, places_of(ticks)) if value else REFERENCE)
            for value in ticks
        ),
        svg.text((left + width - right) / 2, bottom + 34, axis, "axis middle"),
    ]
    for i, (policy, measure, one) in enumerate(known):
        parts.append(_forest_row(policy, measure.verdict, one, x, 14 + ROW * i + 4))
    title = f"{data}: differences to {REFERENCE} in {score_name(cells)} with 95 % intervals"
    return svg.chart(width, bottom + 42, title, parts)


def score_name(cells: Sequence[Cell]) -> str:
    """The name of the score in a chart of cells of one kind."""
    return "average precision" if cells[0].task.score == "ap" else "Dice"


def _forest_row(policy: str, verdict: str, one: Comparison, x: Scale, y: Number) -> Markup:
    low, high = one.interval or (one.difference, one.difference)
    numbers = signed(one.difference)
    if one.interval:
        numbers += f" [{signed(low)}, {signed(high)}]"
    tone = verdict.split(" ")[0] if " than " in verdict else "none"
    inside = [min(max(value, x.low), x.high) for value in (low, high, one.difference)]
    parts = [
        svg.text(x.start - 8, y + 4, shortened(policy), "name end"),
        svg.line(x(inside[0]), y, x(inside[1]), y, "whisker"),
        *(_cut(x(edge), y, side) for edge, side in ((x.low, -1), (x.high, 1)) if low < edge < high),
    ]
    if one.difference == inside[2]:
        circle = Markup('<circle class="dot" cx="{}" cy="{}" r="4.5"/>')
        parts.append(circle.format(x(one.difference), y))
    else:
        side = -1 if one.difference < x.low else 1
        tip = x(inside[2])
        parts.append(svg.path("dot", f"M{tip - 9 * side} {y - 5}v10L{tip} {y}Z"))
    parts.append(svg.text(x.end + 10, y + 4, numbers, "number"))
    alone = " alone" * (not one.generalises)
    return svg.group(f"{policy}: {numbers}, {verdict}", parts, f"row {tone}{alone}")


def _cut(x: Number, y: Number, side: int) -> Markup:
    """An arrow head at the edge, for an interval that extends beyond it."""
    return svg.path("whisker cut", f"M{x - 6 * side} {y - 4}L{x} {y}L{x - 6 * side} {y + 4}")


def by_labels(data: str, cells: Sequence[Cell], policies: Sequence[str]) -> Markup:
    """Mean score against the number of labels, one line per policy; empty with only one number of labels."""
    points = {
        policy: sorted((c.num_labels, c.main.mean) for c in cells if c.policy == policy and c.main)
        for policy in policies
        if any(cell.policy == policy for cell in cells)
    }
    counts = sorted({labels for line in points.values() for labels, _ in line})
    if len(counts) < 2:
        return Markup()
    right = 96
    x = padded([math.log(count) for count in counts], LEFT, WIDTH - right)
    y = padded([dice for line in points.values() for _, dice in line], HEIGHT - BOTTOM, TOP)
    parts = frame_y(y, WIDTH - right)
    parts += [tick_x(math.log(count), x, HEIGHT - BOTTOM, str(count)) for count in counts]
    parts.append(svg.text((LEFT + WIDTH - right) / 2, HEIGHT - 6, "labelled training images", "axis middle"))
    ends = {policy: y(line[-1][1]) for policy, line in points.items()}
    places = spread(ends, 13, TOP, HEIGHT - BOTTOM)
    for policy, line in points.items():
        path = "L".join(f"{x(math.log(labels))} {y(dice)}" for labels, dice in line)
        style = style_of(policy, policies)
        last = x(math.log(line[-1][0]))
        about = f"{policy}: {', '.join(f'{decimals(v)} with {n}' for n, v in line)}"
        marks = [marker(policy, policies, x(math.log(n)), y(v)) for n, v in line]
        leader = svg.line(last + 7, ends[policy], WIDTH - right + 12, places[policy], "leader")
        name = svg.text(WIDTH - right + 15, places[policy] + 4, shortened(policy), "name")
        parts.append(svg.group(about, [svg.path(f"curve {style}", f"M{path}"), *marks, leader, name]))
    return svg.chart(
        WIDTH, HEIGHT, f"{data}: {score_name(cells)} against the number of labelled images", parts
    )


def by_seconds(
    data: str, cells: Sequence[Cell], seconds: Mapping[str, Number], policies: Sequence[str]
) -> Markup:
    """Mean score against the seconds of pretraining; bars are ± one standard deviation over seeds."""
    found = {c.policy: c.main for c in cells if c.main and c.policy in seconds}
    if len(found) < 2:
        return Markup()
    right = 20
    x = padded([seconds[policy] for policy in found], LEFT, WIDTH - right)
    tops = [m.mean + sign * (m.deviation or 0) for m in found.values() for sign in (-1, 1)]
    y = padded(tops, HEIGHT - BOTTOM, TOP)
    parts = frame_y(y, WIDTH - right)
    parts += [tick_x(v, x, HEIGHT - BOTTOM, f"{v:g}") for v in x.ticks(5) if v >= 0]
    parts.append(svg.text((LEFT + WIDTH - right) / 2, HEIGHT - 6, "seconds of pretraining", "axis middle"))
    for policy, measure in found.items():
        spent, dice = x(seconds[policy]), y(measure.mean)
        spread_by = measure.deviation or 0
        style = style_of(policy, policies)
        about = f"{policy}: {score_name(cells)} {decimals(measure.mean)} after {duration(seconds[policy])}"
        bar = svg.line(spent, y(measure.mean - spread_by), spent, y(measure.mean + spread_by), f"bar {style}")
        parts.append(svg.group(about, [bar, marker(policy, policies, spent, dice)]))
    return svg.chart(WIDTH, HEIGHT, f"{data}: {score_name(cells)} against the seconds of pretraining", parts)


def spread(places: Mapping[str, Number], gap: Number, top: Number, bottom: Number) -> dict[str, Number]:
    """Moves the places as little as possible so that they are `gap` apart, within top and bottom if they fit."""
    order = sorted(places, key=lambda name: places[name])
    # With i gaps subtracted, places must only be in order: neighbours that are not share the mean of both.
    groups: list[list[Number]] = []
    for i, name in enumerate(order):
        groups.append([places[name] - i * gap])
        while len(groups) > 1 and _mean(groups[-2]) > _mean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    last = max(top, bottom - (len(order) - 1) * gap)
    starts = [min(max(_mean(group), top), last) for group in groups for _ in group]
    return {
        name: round(start + i * gap, 1) for i, (name, start) in enumerate(zip(order, starts, strict=True))
    }


def _mean(values: Sequence[Number]) -> float:
    return sum(values) / len(values)


def frame_y(y: Scale, end: Number) -> list[Markup]:
    """The lines and numbers of a vertical axis, across the chart to `end`."""
    ticks = y.ticks(4)
    places = places_of(ticks)
    return [
        svg.line(LEFT, y(value), end, y(value), "grid")
        + svg.text(LEFT - 7, y(value) + 4, decimals(value, places), "tick end")
        for value in ticks
    ]


def shortened(name: str) -> str:
    """The name, cut to the room next to a chart; the title has the full name.

    Settings of one agent differ in what follows the colon, so the end of such a name stays.
    """
    if len(name) <= 12:
        return name
    learner = name.partition(":")[0]
    return f"{learner[:4]}\u2026{name[-7:]}" if "=" in name else f"{name[:11]}\u2026"


def tick_x(value: Number, x: Scale, bottom: Number, label: str) -> Markup:
    """A mark and its label on a horizontal axis at `bottom`."""
    return svg.line(x(value), bottom, x(value), bottom + 4, "tick-mark") + svg.text(
        x(value), bottom + 17, label, "tick middle"
    )
