"""The pictures on the page: masks under one slider a data set, and segmentations to choose from."""

from __future__ import annotations

from html import escape

from ahm_gym.benchmark.report.leaderboard import Cell
from ahm_gym.benchmark.report.pictures import Picture, Pictures
from ahm_gym.benchmark.rows import REFERENCE, UNTRAINED, Rows


def mask_galleries(rows: Rows, pictures: dict[tuple[str, str], Pictures]) -> str:
    """For each data set the masks of every policy at the step of a slider; empty without any picture."""
    blocks = []
    for number, data in enumerate(rows.data):
        own = {p: pictures[data, p].masks for p in rows.policies if (data, p) in pictures}
        own = {policy: masks for policy, masks in own.items() if masks}
        if not own:
            continue
        steps = sorted({step for masks in own.values() for step in masks})
        figures = "".join(_mask_figure(data, policy, masks) for policy, masks in own.items())
        blocks.append(
            f'<div class="gallery" data-steps="{" ".join(map(str, steps))}"><h3>{escape(data)}</h3>'
            f'<div class="slider"><label for="step-{number}">Training step</label>'
            f'<input type="range" id="step-{number}" min="0" max="{len(steps) - 1}" value="{len(steps) - 1}">'
            f'<output for="step-{number}">{steps[-1]}</output></div>'
            f'<div class="pictures">{figures}</div></div>'
        )
    if not blocks:
        return ""
    note = (
        "The same validation images for every policy; the slider moves all policies of a data set. From left to "
        "right: image, mask (orange by the policy's scores, blue at random), reconstruction, scores."
    )
    return f'<p class="note">{note}</p>' + "\n".join(blocks)


def segmentation_galleries(rows: Rows, scores: list[Cell], pictures: dict[tuple[str, str], Pictures]) -> str:
    """For each data set the segmentations of two policies one above the other; empty without any picture."""
    blocks = []
    for number, data in enumerate(rows.data):
        own = {p: pictures[data, p].segmentations for p in rows.policies if (data, p) in pictures}
        own = {policy: found for policy, found in own.items() if found}
        if not own:
            continue
        ranked = dict.fromkeys(cell.policy for cell in scores if cell.policy in own)
        first = next((p for p in ranked if p not in (REFERENCE, UNTRAINED)), next(iter(own)))
        second = REFERENCE if REFERENCE in own else first
        labels = sorted({num for found in own.values() for num in found})
        selects = (
            _select(f"first-{number}", "Policy", list(own), first)
            + _select(f"second-{number}", "beside", list(own), second)
            + _select(f"labels-{number}", "Labels", list(map(str, labels)), str(labels[0]))
        )
        figures = "".join(
            f'<figure data-policy="{escape(policy)}" data-labels="{num}"><figcaption>{escape(policy)}</figcaption>'
            f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(policy)}, {num} labels">'
            + _image(picture, f"{data}, {policy}, {num} labels: test images with outlines, worst to best")
            + "</div></figure>"
            for policy, found in own.items()
            for num, picture in found.items()
        )
        blocks.append(
            f'<div class="chooser"><h3>{escape(data)}</h3><div class="choices">{selects}</div>{figures}</div>'
        )
    note = "Test images from the worst to the best by Dice, with outlines of labels and predictions."
    return f'<p class="note">{note}</p>' + "\n".join(blocks) if blocks else ""


def _mask_figure(data: str, policy: str, masks: dict[int, Picture]) -> str:
    last = max(masks)
    images = "".join(
        _image(
            picture,
            f"{data}, {policy}: masks at step {step}",
            f' data-step="{step}"{" hidden" * (step != last)}',
        )
        for step, picture in masks.items()
    )
    return f"<figure><figcaption>{escape(policy)}</figcaption>{images}</figure>"


def _image(picture: Picture, alt: str, more: str = "") -> str:
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img src="{picture.source}" {size} alt="{escape(alt)}"{more}>'


def _select(name: str, label: str, values: list[str], chosen: str) -> str:
    options = "".join(
        f"<option{' selected' * (value == chosen)}>{escape(value)}</option>" for value in values
    )
    return f'<span><label for="{name}">{label}</label> <select id="{name}">{options}</select></span>'
