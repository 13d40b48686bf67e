"""What was understood of a folder: its scans, their labels, and what was left out. No pixels are read for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ahm_gym.data.sample import Split
from ahm_gym.data.wording import counted, verb


@dataclass(frozen=True)
class Scan:
    """One image or volume, with its labels."""

    id: str
    """Unique in the layout: the name of the file, after its folders where names repeat."""
    images: tuple[Path, ...]
    """One file; several are channels in the order of `Layout.modalities`, or the slices of a series."""
    place: str
    """The file without its suffix, relative to the root, with `/` between the parts; without the name of a modality."""
    case: str
    """The name without the number of a channel."""
    labels: tuple[Path, ...] = ()
    """Several are merged: a pixel has the highest class that one of them gives it."""
    label_classes: tuple[int, ...] = ()
    """The class of the foreground of each label; empty if the values of the labels are classes."""
    split: Split | None = None
    """The split that the folders state."""
    folds: tuple[Split, ...] = ()
    """The split in each fold, if the data names folds."""
    patient: str | None = None
    """The patient, if a description tells it."""
    series: bool = False
    """The files are the slices of one DICOM series, in order."""

    @property
    def modal(self) -> bool:
        """Whether the files are modalities, which become channels."""
        return len(self.images) > 1 and not self.series


@dataclass(frozen=True)
class Layout:
    """The scans of a folder, and all that was not taken for one."""

    root: Path
    """The folder as it was given; links are not resolved."""
    scans: tuple[Scan, ...]
    modalities: tuple[str, ...] = ()
    """The names of the stacked channels; empty if every scan is one file."""
    classes: dict[int, str] = field(default_factory=dict)
    """The names of the classes, if a `dataset.json` gives them, or each has a file of labels."""
    ignore: tuple[int, ...] = ()
    """The value of label pixels that are ignored, if a `dataset.json` gives one."""
    table: Path | None = None
    """The `split.csv` that overrides every other split."""
    left_out: dict[Path, str] = field(default_factory=dict)
    """Files and folders that are not used, each with the reason."""
    notes: tuple[str, ...] = ()
    """Sentences on what was decided, without a full stop."""
    doubts: tuple[str, ...] = ()
    """Sentences on what may be wrong, each with the way to settle it, without a full stop."""
    faults: tuple[str, ...] = ()
    """What is wrong with the labels. The first is the error if labels are needed."""
    unread_labels: str = ""
    """A sentence on labels of a kind that cannot be read; empty if there are none."""
    channels_named: bool = False
    """The names of single images end in the number of a channel, as nnU-Net's do."""

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.root.name

    @property
    def labels(self) -> dict[str, tuple[Path, ...]]:
        """The labels of every labelled scan, by its id."""
        return {scan.id: scan.labels for scan in self.scans if scan.labels}

    def sentences(self) -> Iterator[str]:
        """What a person should know before the layout is used."""
        yield from self.notes
        files = [label for scan in self.scans for label in scan.labels]
        if files:
            parents = {label.parent for label in files}
            place = os.path.commonpath(parents)
            files, have = counted(len(self.scans), "file"), verb(len(self.scans), "has", "have")
            yield f"{len(self.labels)} of {files} {have} a label, from {place}"
        if self.modalities:
            yield (
                f"{len(self.modalities)} modalities are the channels of each scan, in this order: "
                f"{', '.join(self.modalities)}"
            )
        yield from self._left_out()
        if self.unread_labels:
            yield self.unread_labels
        yield from self.doubts

    def warnings(self) -> Iterator[str]:
        """What was not used, and what may be wrong, without a full stop."""
        yield from self._left_out()
        if self.unread_labels:
            yield self.unread_labels
        yield from self.doubts
        yield from self.faults

    def _left_out(self) -> Iterator[str]:
        reasons: dict[str, list[Path]] = {}
        for path, reason in self.left_out.items():
            reasons.setdefault(reason, []).append(path)
        for reason, paths in reasons.items():
            others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            first = os.path.relpath(paths[0], self.root)
            yield f"{first}{others} {'are' if others else 'is'} left out: {reason}"
