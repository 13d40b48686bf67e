"""The `dataset.json` of nnU-Net or the Medical Segmentation Decathlon: names of channels and classes, and lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic

from ahm_gym.data.listing import Found
from ahm_gym.data.wording import counted, verb
from ahm_gym.errors import InputError
from ahm_gym.runs.schema import checked, read_json

WAY_OUT: str = (
    "expected the dataset.json of nnU-Net or of the Medical Segmentation Decathlon; correct it, or rename it to have "
    "it ignored"
)
IGNORE: str = "ignore"
"""The name of nnU-Net for pixels that are neither trained nor scored."""


class Pair(pydantic.BaseModel):
    """A training image and its label, relative to the file that lists them."""

    image: str
    label: str = ""


class ForeignDescription(pydantic.BaseModel):
    """The part of a `dataset.json` that is used; other keys are ignored."""

    channel_names: dict[str, str] = {}
    modality: dict[str, str] = {}
    labels: dict[str, Any] = {}
    """nnU-Net: the value of each name; the Decathlon: the name of each value."""
    file_ending: str = ""
    training: list[Pair] = []
    test: list[str | Pair] = []

    @classmethod
    def read(cls, path: Path) -> ForeignDescription:
        """Reads a file; one that has nothing of all this describes nothing.

        Raises:
            InputError: if it is damaged, or a value has another form than nnU-Net or the Decathlon give it.
        """
        return checked(cls, read_json(path, WAY_OUT), path, WAY_OUT)

    def channels(self) -> tuple[str, ...]:
        """The names of the channels, in order."""
        named = self.channel_names or self.modality
        return tuple(named[key] for key in sorted(named, key=lambda key: (len(key), key)))

    def classes(self) -> dict[int, str]:
        """The names of the classes; regions of several classes have none."""
        return {value: name for value, name in self._values().items() if name != IGNORE}

    def ignored(self) -> tuple[int, ...]:
        """The value of pixels that are ignored, which nnU-Net names so; empty if there is none."""
        found = (value for value, name in self._values().items() if name == IGNORE)
        return tuple(value for value in found if 0 <= value < 1 << 16)

    def _values(self) -> dict[int, str]:
        """The name of each value."""
        found = {}
        for key, value in self.labels.items():
            if key.isdecimal():
                found[int(key)] = str(value)
            elif isinstance(value, int) or (isinstance(value, str) and value.isdecimal()):
                found[int(value)] = key
        return dict(sorted(found.items()))

    def doubt(self, path: Path, files: list[Found]) -> str | None:
        """A sentence on listed training images that are missing.

        Raises:
            InputError: if all are.
        """
        there = {"/".join((*file.parts, file.path.name)) for file in files}
        cases = {name.replace("_0000.", ".", 1) for name in there}  # nnU-Net lists images without the channel
        listed = [pair.image.removeprefix("./") for pair in self.training]
        missing = [name for name in listed if name not in there and name not in cases]
        if listed and len(missing) == len(listed):
            raise InputError(
                f"{path} lists {counted(len(listed), 'training image')} such as {missing[0]}, and none is there: "
                f"expected them in {path.parent}; unpack or move them there, or rename {path.name} to have it ignored."
            )
        if missing:
            return (
                f"{path.name} lists {counted(len(listed), 'training image')}, of which {len(missing)} "
                f"{verb(len(missing), 'is', 'are')} missing, such as "
                f"{missing[0]}; copy them again to use them"
            )
        return None

    def tests(self) -> set[str]:
        """The test images, which have no labels, relative to the file that lists them."""
        return {(entry if isinstance(entry, str) else entry.image).removeprefix("./") for entry in self.test}
