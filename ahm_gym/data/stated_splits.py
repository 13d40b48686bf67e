"""The splits that the folders of images state, and the table that overrides them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ahm_gym.data.listing import SPLIT_TABLE, Tree, split_of
from ahm_gym.data.modalities import Draft
from ahm_gym.data.sample import SPLITS
from ahm_gym.data.wording import verb


@dataclass
class Stated:
    """The scans that are used, and what was said of the others."""

    kept: list[Draft] = field(default_factory=list)
    left_out: dict[Path, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def use_stated(drafts: Sequence[Draft], *, has_table: bool) -> Stated:
    """Keeps the splits that folders state, and leaves out test images without labels.

    Args:
        drafts: the scans with their labels.
        has_table: whether there is a table of splits, which overrides folders.
    """
    stated = _without_hidden(drafts)
    kept = stated.kept
    found = {draft.split for draft in kept}
    if has_table:
        if found - {None}:
            stated.notes.append(f"{SPLIT_TABLE} states the split, and the names of folders do not count")
    elif found - {None} <= {"train"} or "train" not in found or None in found:
        if None in found and len(found - {None}) > 1:
            stated.doubts.append(
                "some images lie outside of its folders for train, val and test, so that these do not decide the "
                "split; move them, or add a split.csv (name,split)"
            )
        for draft in kept:
            draft.split = None
    else:
        counts = ", ".join(f"{sum(d.split == split for d in kept)} {split}" for split in SPLITS)
        stated.notes.append(f"its folders state the split: {counts} {verb(len(kept), 'scan', 'scans')}")
        if "test" not in found:
            stated.doubts.append(
                "its folders name no test images, without which nothing is scored; add a folder test, or a "
                "split.csv (name,split)"
            )
    return stated


def _without_hidden(drafts: Sequence[Draft]) -> Stated:
    """The scans with the splits of their folders, without images for testing that have no labels."""
    stated = Stated()
    splits = [split_of(draft.parts) for draft in drafts]
    labelled = {split for split, draft in zip(splits, drafts, strict=True) if draft.labels}
    for split, draft in zip(splits, drafts, strict=True):
        nnunet = any(part.lower() == "imagests" for part in draft.parts) and "train" in splits
        hidden = split in ("val", "test") and split not in labelled and ("train" in labelled or nnunet)
        if hidden:
            reason = f"the {split} images have no labels; give their folder itself to use them"
            stated.left_out |= {file.path: reason for file in draft.files}
        else:
            draft.split = split_of(draft.parts)
            stated.kept.append(draft)
    return stated


def has_table(tree: Tree, parents: Sequence[Path]) -> bool:
    """Whether there is a table of splits, wherever it lies."""
    inside = any(file.path.name == SPLIT_TABLE for file in tree.others)
    return inside or any((parent / SPLIT_TABLE).is_file() for parent in parents)


def find_table(root: Path, tree: Tree, parents: Sequence[Path], drafts: Sequence[Draft]) -> Path | None:
    """The table of splits nearest to the images: in their common folder, above it, or beside the root."""
    there = {file.path for file in tree.others if file.path.name == SPLIT_TABLE}
    common = Path(os.path.commonpath([file.path.parent for draft in drafts for file in draft.files]))
    inside = [folder for folder in (common, *common.parents) if folder.is_relative_to(root)]
    for folder in inside:
        if folder / SPLIT_TABLE in there:
            return folder / SPLIT_TABLE
    return next((path for parent in parents if (path := parent / SPLIT_TABLE).is_file()), None)
