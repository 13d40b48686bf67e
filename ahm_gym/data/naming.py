"""Unique names of scans, and where their files lie."""

from __future__ import annotations

from collections import Counter

from ahm_gym.data.layout import Scan
from ahm_gym.data.listing import role_of_folder, split_of
from ahm_gym.data.modalities import Draft, modality_of, without_channel


def name_scans(drafts: list[Draft], *, channels_named: bool) -> list[Scan]:
    """The scans with unique ids.

    Args:
        drafts: the scans with their labels and splits.
        channels_named: single images are named as nnU-Net's channels.
    """
    scans = []
    for draft, name in zip(drafts, _unique(drafts), strict=True):
        by_case = len(draft.files) == 1 and len(draft.names) > 1 and bool(draft.labels)
        scans.append(
            Scan(
                name,
                tuple(file.path for file in draft.files),
                _place_of(draft, channels_named),
                without_channel(name) if by_case and draft.labels[0].stem != draft.stem else name,
                tuple(label.path for label in draft.labels),
                tuple(draft.classes),
                split=draft.split,
                series=draft.series,
            )
        )
    return scans


def _place_of(draft: Draft, channels_named: bool) -> str:
    stem = without_channel(draft.stem) if channels_named else draft.stem
    if draft.series and len(draft.files) > 1 and draft.parts:
        return "/".join((*draft.parts[:-1], stem))  # the name of a series is that of its folder
    if len(draft.files) > 1 and draft.parts and stem == draft.parts[-1]:
        if (found := modality_of(draft.files[0])) and not found[0][
            1
        ]:  # the files are called by their modality alone
            return "/".join(draft.parts)
    return "/".join((*draft.parts, stem))


def _unique(drafts: list[Draft]) -> list[str]:
    """The stems; those that repeat follow the names of their folders, without those of images and labels first."""

    def joined(draft: Draft, every: bool) -> str:
        parts = [part for part in draft.parts if every or role_of_folder(part) is None or split_of((part,))]
        own = (draft.series and len(draft.files) > 1) or (draft.parts and draft.stem == draft.parts[-1])
        return "_".join([*(parts[:-1] if own else parts), draft.stem])

    names = [draft.stem for draft in drafts]
    for every in (False, True):
        counts = Counter(names)
        names = [
            joined(draft, every) if counts[name] > 1 else name
            for name, draft in zip(names, drafts, strict=True)
        ]
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return unique
