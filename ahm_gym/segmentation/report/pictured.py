"""The worst and the best cases as pictures inside the page."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.colors import to_hex

from ahm_gym.pages.text import decimals
from ahm_gym.segmentation.case_pictures import read_case_pictures
from ahm_gym.segmentation.overlays import colour_of
from ahm_gym.segmentation.report.scores import case_dice, notes_on
from ahm_gym.segmentation.report.verdict import class_names, sentence


def cases_section(results: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """The pictures; of earlier versions the one with all cases."""
    entries = {entry["case"]: entry for entry in results["cases"]}
    names = class_names(results)
    shown = [
        {
            "kind": row["kind"],
            "case": row["case"],
            "score": f"Dice {decimals(case_dice(results).get(row['case']))}",
            "image": _image_told(row),
            "classes": ", ".join(
                f"{name} {decimals(value)}"
                for name, value in zip(names.values(), entries[row["case"]]["dice"], strict=True)
                if value is not None
            )
            if len(names) > 1
            else "",
            "notes": [*_empty(row), *map(sentence, notes_on(entries[row["case"]], results))],
            "source": picture(row["path"]),
        }
        for row in read_case_pictures(folder)
        if row["case"] in entries
    ]
    whole = next(
        (path for path in (folder / "figures" / "overlays.png", folder / "overlays.png") if path.is_file()),
        None,
    )
    if not shown and whole is None:
        return None
    number = len(names) + 1
    legend = [(name, to_hex(colour_of(int(index), number))) for index, name in names.items()]
    return {"legend": legend, "cases": shown, "whole": None if shown or whole is None else picture(whole)}


def _image_told(row: dict[str, Any]) -> str:
    """Which image of a case of several is shown, and its own Dice; of a volume the planes."""
    if row.get("planes"):
        return f"slices from top to bottom: {', '.join(row['planes'])}"
    if row["images"] == 1:
        return ""
    return f"shown: {row['image']}, 1 of {row['images']} images, Dice {decimals(row['dice'])}"


def _empty(row: dict[str, Any]) -> list[str]:
    found = []
    if not row["labelled"]:
        found.append("The label of the shown image is empty.")
    if not row["found"]:
        found.append("Nothing was found in the shown image.")
    return found


def picture(path: Path) -> Markup:
    """A PNG as the address of an image inside the page."""
    return Markup("data:image/png;base64," + base64.b64encode(path.read_bytes()).decode())
