"""The report of a segmenter: `report.html`, one page that needs nothing else, for readers who read only this."""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ahm_gym.errors import InputError
from ahm_gym.runs.folder import RunFolder
from ahm_gym.runs.places import expanded
from ahm_gym.runs.provenance import commit, hardware, versions
from ahm_gym.runs.schema import read_object
from ahm_gym.runs.storage import write_atomically
from ahm_gym.segmentation.comparison import NONE, Comparison, compare_results, read_results

SCRATCH: str = "from-scratch"
"""Folder in a run folder: the run of the same network from scratch."""
PAGE: str = "report.html"
PROVENANCE: str = "provenance.json"


def write_report(folder: Path, compare: str | Path | None = None) -> Path:
    """Writes `report.html` from the files of a finished run or an evaluation, and returns its path.

    Args:
        folder: folder of a fine-tuning run, or of an evaluation.
        compare: `none` for the run from scratch in the folder, or another run or evaluation. None: what the run itself
            names, if it does.

    Raises:
        InputError: if the folder holds no scores, or the comparison cannot be made.
    """
    # Imported here: the command line asks for this package before it knows whether a report is wanted.
    from ahm_gym.pages.page import render
    from ahm_gym.segmentation.report.compared import tone
    from ahm_gym.segmentation.report.sections import lead_of, sections_of, title_of

    if not (folder / "results.json").is_file():
        raise InputError(
            f"{folder} has no results.json yet: give the folder of a finished run or an evaluation."
        )
    results = read_results(folder)
    comparison = find_comparison(folder, results, compare)
    made = read_object(folder / PROVENANCE) if (folder / PROVENANCE).is_file() else {}
    logged = [metrics_of(folder)]
    if comparison is not None and (other := place_of_other(folder, results, compare)).is_dir():
        logged.append(metrics_of(other))
    page = folder / PAGE
    sections = sections_of(results, comparison, folder, made, logged)
    write_atomically(
        page,
        render(
            "ahm_gym.segmentation.report", title_of(results, folder), lead_of(results), sections, tone=tone
        ),
    )
    return page


def find_comparison(folder: Path, results: dict[str, Any], compare: str | Path | None) -> Comparison | None:
    """The comparison of the report; see `write_report`."""
    asked = compare or results.get("config", {}).get("compare")
    if asked is None:
        return None
    place = place_of_other(folder, results, compare)
    name = NONE if str(asked) == NONE else (place.parent.name if place.is_file() else place.resolve().name)
    if name == NONE and not (place / "results.json").is_file():
        raise InputError(
            f"{folder} has no finished run from scratch: run finetune with `compare=none`, or leave it out."
        )
    return compare_results(results, read_results(place), name, str(asked))


def place_of_other(folder: Path, results: dict[str, Any], compare: str | Path | None) -> Path:
    """The folder or the file of the results to compare with."""
    asked = str(compare or results.get("config", {}).get("compare"))
    return folder / SCRATCH if asked == NONE else expanded(asked)


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The logged rows of a run; none of an evaluation."""
    if not (folder / "config.json").is_file():
        return []
    return RunFolder(folder, {}).metrics()


def write_provenance(
    folder: Path, command: str | None, device: torch.device, seconds: float | None = None
) -> None:
    """Writes what made the results: the command, the code, the machine and the time.

    Args:
        folder: folder of a run or an evaluation.
        command: the command line; None if there was none.
        device: where the network was.
        seconds: how long it took; None if that is not known.
    """
    content = {
        "command": command,
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(device),
        "finished": datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="seconds"),
        "seconds": None if seconds is None else round(seconds, 1),
    }
    write_atomically(folder / PROVENANCE, json.dumps(content, indent=2) + "\n")
