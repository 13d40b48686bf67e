"""What a segmentation comes to, in one sentence, and what to bear in mind, for readers who read no more than that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ahm_gym.pages.text import MINUS, decimals, plural
from ahm_gym.segmentation.comparison import NONE, Comparison, Difference
from ahm_gym.segmentation.config import FEW_PATIENTS

WIDE: float = 0.2
"""Intervals of the Dice that are wider than this are called wide."""
MANY_EMPTY: float = 0.5
"""Share of the drawn labels without foreground from which that is told."""
NOTHING: float = 0.0005
"""A mean Dice below this is printed as 0.000: the class was never found."""
SPLITS: dict[str, str] = {
    "test": "the test split", "val": "the validation split", "train": "the training split",
    "all": "all labelled images",
}  # fmt: skip


def headline(results: dict[str, Any], comparison: Comparison | None = None) -> str:
    """The one sentence: on whom, the Dice and how sure it is, what is wrong with it, and the comparison.

    Args:
        results: the content of `results.json`.
        comparison: with another segmenter, if there is one.
    """
    if results["dice"] is None:
        return f"No label of {place_of(results)} shows any class, so the segmenter has no score."
    lost = never_found(results)
    if lost and len(lost) == sum(row["dice"] is not None for row in results["per_class"].values()):
        said = (
            f"{subjects(results)} the segmenter finds nothing that is right: its Dice is 0.00 for every class"
        )
        parts = [said]
    else:
        parts = [
            f"{subjects(results)} the segmenter reaches a Dice of {results['dice']:.2f} ({certainty(results)})"
        ]
        if lost:
            parts.append(f"it never finds {joined(lost)}")
    if worth := against_fixed_map(results):
        parts.append(worth)
    if comparison is not None and "dice" in comparison.scores:
        parts.append(compared(comparison.name, comparison.scores["dice"]))
    return "; ".join(parts) + "."


def place_of(results: dict[str, Any]) -> str:
    """The split that was scored, in words, with the name of other data than the run's."""
    data = results.get("data")
    split: str = results["split"]
    where = SPLITS.get(split, split)
    return f"{where} of {data}" if isinstance(data, str) else where


def subjects(results: dict[str, Any]) -> str:
    """On whom the segmenter was scored: the beginning of the sentence."""
    number = results["num_patients"]
    who = f"{number} cases" if patients_are_guessed(results) else plural(number, "patient")
    if number == 1:
        who = "one case" if patients_are_guessed(results) else "one patient"
    each = ", each counted as a patient" if patients_are_guessed(results) and number > 1 else ""
    untested = results["split"] == "val" and results.get("config", {}).get("split", "") is None
    why = ", because no test image has a label" if untested else ""
    return f"On {who} of {place_of(results)}{each}{why}{',' if each or why else ''}"


def patients_are_guessed(results: dict[str, Any]) -> bool:
    """Whether nothing told which images belong to one patient."""
    found = found_in_data(results)
    return found.get("rule") == "every image on its own" and found.get("certainty") == "guess"


def found_in_data(results: dict[str, Any]) -> dict[str, Any]:
    """What was found about the patients and files of the scored data; empty for earlier versions."""
    found = results.get("found", results.get("data"))
    return found if isinstance(found, dict) else {}


def certainty(results: dict[str, Any]) -> str:
    """The interval of the Dice, and what is wrong with it."""
    interval, number = results.get("intervals", {}).get("dice"), results["num_patients"]
    if interval is None:
        return "no interval, because one patient allows none" if number == 1 else "no interval"
    low, high = interval
    said = f"95 % interval {low:.2f} to {high:.2f}"
    wide, few = high - low > WIDE, number < FEW_PATIENTS
    if wide and few:
        return f"{said}: wide, and still too narrow, as {number} patients are few"
    if few:
        return f"{said}, too narrow, as {number} patients are few"
    return f"{said}, which is wide" if wide else said


def never_found(results: dict[str, Any]) -> list[str]:
    """The names of the classes that the labels show and the segmenter never found."""
    names = class_names(results)
    return [
        names[index]
        for index, row in results["per_class"].items()
        if row["dice"] is not None and row["dice"] < NOTHING
    ]


def against_fixed_map(results: dict[str, Any]) -> str | None:
    """A clause if the segmenter is no better than one map for all images, or not clearly so."""
    fixed = results.get("fixed_map_dice")
    if not fixed or results["dice"] is None:
        return None
    interval = results.get("intervals", {}).get("dice")
    if results["dice"] <= fixed:
        return (
            f"that is no better than the mean of the training labels, which ignores the image ({fixed:.2f})"
        )
    if interval is None or interval[0] <= fixed:
        return f"that is not clearly better than the mean of the training labels, which ignores the image ({fixed:.2f})"
    return None


def compared(name: str, difference: Difference) -> str:
    """The clause on another segmenter, `none` for the same network without pretraining."""
    this, other = ("pretraining", "none") if name == NONE else ("it", name)
    size = abs(difference.mean)
    if size < NOTHING:
        said = f"{this} and {other} differ by less than 0.001"
    else:
        said = f"{this} is {'ahead of' if difference.mean > 0 else 'behind'} {other} by {size:.3f}"
    if difference.interval is None:
        return f"{said}, which on one patient proves nothing"
    sign = -1 if difference.mean < 0 else 1
    low, high = sorted(sign * bound for bound in difference.interval)
    said += f" [{decimals(low)}, {decimals(high)}]".replace(f"{MINUS}0.000", "0.000")
    if difference.may_be_chance:
        return f"{said}, which may be chance"
    few = f", though {difference.num_patients} patients are few" * (difference.num_patients < FEW_PATIENTS)
    return f"{said}, more than chance among patients explains{few}"


def cares(results: dict[str, Any], comparison: Comparison | None = None) -> list[str]:
    """What to bear in mind, in sentences; the arguments are those of `headline`."""
    return [
        sentence(one)
        for found in (_about_training(results, comparison), _about_scores(results), _about_data(results))
        for one in found
    ] + [sentence(doubt) for doubt in (comparison.doubts if comparison is not None else ())]


def _about_training(results: dict[str, Any], comparison: Comparison | None) -> Iterator[str]:
    draw, config = results.get("draw"), results.get("config", {})
    changes = "the scores and the difference" if comparison is not None else "the scores"
    if draw is not None:
        drawn = config.get("labels") is not None or config.get("labelled_patients") is not None
        what = (
            f"one draw of {plural(len(draw['images']), 'labelled image')} and one seed"
            if drawn
            else "one seed"
        )
        yield (
            f"this is {what}: others change {changes}, and the intervals do not cover that; repeat it with other seeds"
        )
        if draw["absent_classes"]:
            yield f"no drawn label contains {joined(named(results, draw['absent_classes']))}, so it cannot be learned"
        if draw["empty_share"] >= MANY_EMPTY:
            yield f"{draw['empty_share']:.0%} of the labelled images show no structure"
    best = results.get("best")
    if best is not None and best["step"] == config.get("steps"):
        yield "the score on validation images was still highest at the last update: a longer training may do better"
    if results["split"] == "val" and config.get("select") == "best":
        yield "the segmenter was chosen on the images that it is scored on: its scores are too high"


def _about_scores(results: dict[str, Any]) -> Iterator[str]:
    if results.get("absent_classes"):
        absent = joined(named(results, results["absent_classes"]))
        yield f"no label of {place_of(results)} contains {absent}: it has no score and is left out of the mean"
    if unlabelled := results.get("unlabelled"):
        have = "image has" if unlabelled == 1 else "images have"
        yield f"{unlabelled} {have} no label in {place_of(results)} and {'is' if unlabelled == 1 else 'are'} not scored"
    if results["split"] in ("train", "all") and results.get("config", {}).get("run"):
        yield "if the segmenter was trained on some of these images, its scores are too high"


def _about_data(results: dict[str, Any]) -> Iterator[str]:
    found = found_in_data(results)
    yield from found.get("doubts", ())
    yield from found.get("files", ())


def named(results: dict[str, Any], indices: list[int]) -> list[str]:
    """The names of some classes."""
    names = class_names(results)
    return [names.get(str(index), f"class {index}") for index in indices]


def class_names(results: dict[str, Any]) -> dict[str, str]:
    """The name of every foreground class, by its index as text."""
    known = results.get("class_names", {})
    return {index: known.get(index, f"class {index}") for index in results["per_class"]}


def joined(words: list[str]) -> str:
    """The words as an enumeration."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def sentence(words: str) -> str:
    """The words with a capital letter and a full stop."""
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "!", "?")) else ".")
