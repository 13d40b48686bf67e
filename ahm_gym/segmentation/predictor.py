"""Fine-tuned runs as functions from images to classes and probabilities: one run, or several as an ensemble."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from torch import Tensor

from ahm_gym.data.formats import Pixels
from ahm_gym.data.processing import PLAIN, Processing, differences, scale, to_spacing
from ahm_gym.data.scaling import channels_last, shrink, stored_side
from ahm_gym.device.choice import pick_device
from ahm_gym.errors import InputError, unknown_name
from ahm_gym.runs.folder import RunFolder
from ahm_gym.segmentation.config import SELECTIONS
from ahm_gym.segmentation.parts import resized_in_parts
from ahm_gym.segmentation.segmenter import Segmenter, load_segmenter, window_logits
from ahm_gym.segmentation.validation import segmenter_folder

MAX_SLICES: int = 16
"""Largest number of slices of a volume that are segmented at once."""
MAX_VALUES: int = 2**26
"""Largest number of probabilities of slices that are segmented at once."""


@dataclass(frozen=True)
class Predictor:
    """A trained segmenter with all that it needs to know of its run."""

    segmenter: Segmenter
    mean: tuple[float, ...]
    """Mean of each channel of the run's training images."""
    std: tuple[float, ...]
    native_resolution: bool
    processing: Processing = PLAIN
    """How the run scaled, resampled and sliced its images."""

    @classmethod
    def of_run(cls, run: Path, device: str = "auto", select: str | None = None) -> Predictor:
        """The last or the best segmenter of a fine-tuning run; with None the one that the run was scored by.

        Raises:
            InputError: if the folder holds no such run, or none with such a segmenter yet.
        """
        config = RunFolder.open(run, "finetune").config
        if select is not None and select not in SELECTIONS:
            raise unknown_name("selection", select, SELECTIONS)
        folder = segmenter_folder(run, select or config.get("select", "last"))
        segmenter = load_segmenter(folder).to(pick_device(device)).eval()
        statistics = tuple(config["mean"]), tuple(config["std"])
        processing = Processing.model_validate(config.get("processing", {}))
        return cls(segmenter, *statistics, bool(config["native_resolution"]), processing)

    def fitted(self, image: Float[Tensor, "C *S"]) -> Float[Tensor, "C *S2"]:
        """An image in [0, 1] as training saw it before it was normalised: no larger than needed; a volume as it is."""
        if image.ndim == 4:
            return image
        return shrink(image, stored_side(self.segmenter.image_size, self.native_resolution))

    def logits(self, images: Float[Tensor, "B C *S"], size: tuple[int, ...]) -> Float[Tensor, "B K *S0"]:
        """The class logits of images in [0, 1], in main memory; `size` is the length of each axis of the result."""
        return torch.cat(list(self.parts(images, size)), dim=2)

    def parts(
        self, images: Float[Tensor, "B C *S"], size: tuple[int, ...]
    ) -> Iterator[Float[Tensor, "B K *part"]]:
        """Yields the logits in the parts of `resized_in_parts`, in main memory; the arguments are those of `logits`."""
        shape = (-1, *[1] * (images.ndim - 2))
        mean, std = (torch.tensor(values).view(shape) for values in (self.mean, self.std))
        normalised = (torch.stack([self.fitted(image) for image in images]) - mean) / std
        found = window_logits(self.segmenter, normalised, native_resolution=self.native_resolution)
        return (part.cpu() for part in resized_in_parts(found, size))


@dataclass(frozen=True)
class Segmented:
    """What was found in a file, in the order of `Pixels.array`."""

    mask: UInt8[np.ndarray, "*shape"]
    """The class of every pixel."""
    probabilities: Float32[np.ndarray, "*shape K"] | None = None
    """The probability of every class at every pixel; None if it was not asked for."""
    uncertainty: Float32[np.ndarray, "*shape"] | None = None
    """`normalised_entropy` of the probabilities; None if it was not asked for."""


@dataclass(frozen=True)
class Ensemble:
    """One run or several, whose probabilities are averaged."""

    members: tuple[Predictor, ...]

    @classmethod
    def of_runs(cls, runs: Sequence[Path], device: str = "auto", select: str | None = None) -> Ensemble:
        """The segmenters of fine-tuning runs; see `Predictor.of_run`.

        Raises:
            InputError: if there is no run, one cannot be used, or they differ in their classes or channels.
        """
        if not runs:
            raise InputError("no `run` is given: give the folder of a fine-tuning run.")
        members = [Predictor.of_run(run, device, select) for run in runs]
        for name, text in (("num_classes", "classes"), ("channels", "channels")):
            numbers = [getattr(member.segmenter, name) for member in members]
            for run, number in zip(runs, numbers, strict=True):
                if number != numbers[0]:
                    raise InputError(
                        f"{runs[0]} has {numbers[0]} {text} and {run} has {number}: give each `run` of an ensemble "
                        "the same number."
                    )
        for run, member in zip(runs, members, strict=True):
            if len(member.segmenter.image_size) != len(members[0].segmenter.image_size):
                raise InputError(
                    f"one of {runs[0]} and {run} was trained on images and the other on volumes: give an ensemble runs "
                    "of one kind."
                )
            if different := differences(member.processing, members[0].processing):
                raise InputError(
                    f"the runs of an ensemble were trained on images with another `{different[0]}`: give runs that "
                    f"have the same, and train them with one `{different[0]}` or dataset.json."
                )
        return cls(tuple(members))

    @property
    def processing(self) -> Processing:
        """How the runs scaled, resampled and sliced their images."""
        return self.members[0].processing

    @property
    def in_volumes(self) -> bool:
        """Whether the runs were trained on whole volumes, and not on images or slices."""
        return len(self.members[0].segmenter.image_size) == 3

    @property
    def num_classes(self) -> int:
        """Number of classes with the background."""
        return self.members[0].segmenter.num_classes

    @property
    def class_names(self) -> dict[int, str]:
        """The name of each foreground class in the data of the first run; `class 1` and so on without one."""
        known = self.members[0].processing.classes
        return {index: known.get(str(index), f"class {index}") for index in range(1, self.num_classes)}

    @property
    def channels(self) -> int:
        """Number of image channels."""
        return self.members[0].segmenter.channels

    def scaled(
        self,
        image: np.ndarray,
        origin: str,
        *,
        apart: bool = False,
        spacing: tuple[float, ...] | None = None,
    ) -> Float[Tensor, "C *S"]:
        """The image, scaled to [0, 1] as in training, at its own size or that of the `spacing` of the run.

        Args:
            image: rows, columns and, optionally, channels; of runs on volumes three axes and, optionally, channels. A
                grey image is repeated for a run on colour images.
            origin: its file, for messages.
            apart: the channels are modalities, each scaled by itself.
            spacing: millimetres per row and column, or along each axis of a volume, if the file states them.

        Raises:
            InputError: if it is no image, has another number of channels than the training images, or states no
                spacing although the run needs it.
        """
        pixels = channels_last(image, origin, axes=3) if self.in_volumes else channels_last(image, origin)
        if (pixels.shape[-1], self.channels) == (1, 3):
            pixels = np.repeat(pixels, 3, axis=-1)
        if pixels.shape[-1] != self.channels:
            way_out = "give the folder with the files of all modalities, " if pixels.shape[-1] == 1 else ""
            raise InputError(
                f"wrong channel count: {origin} has {pixels.shape[-1]}, expected {self.channels} like the "
                f"training images of the run; {way_out}convert it, or remove it."
            )
        scaled = scale(pixels, self.processing, self.channels if apart else 1)
        return to_spacing(scaled, spacing, self.processing, origin)

    def probabilities(
        self, images: Float[Tensor, "B C *S"], size: tuple[int, ...]
    ) -> Float[Tensor, "B K *S0"]:
        """The mean over the runs of the softmax of images in [0, 1]; `size` is that of the result."""
        return torch.cat([self._shares(scores) for scores in self._scores(images, size)], dim=2)

    def classes(self, image: Float[Tensor, "C *S"], size: tuple[int, ...]) -> Int[Tensor, "*S0"]:
        """The class of every pixel of an image in [0, 1]; `size` is the length of each axis of the result."""
        return torch.cat([scores[0].argmax(dim=0) for scores in self._scores(image[None], size)])

    def segment(
        self,
        pixels: Pixels,
        origin: str,
        *,
        apart: bool = False,
        probabilities: bool = False,
        uncertainty: bool = False,
    ) -> Segmented:
        """Segments a file: an image, or a volume by batches of slices; of a series in time, frame by frame.

        Runs on volumes segment a volume as a whole, by windows in three dimensions. `apart` is that of `scaled`.

        Raises:
            InputError: as `scaled` does, or for an image if the runs were trained on volumes.
        """
        if self.in_volumes and not pixels.is_volume:
            raise InputError(
                f"{origin} is an image, and the run was trained on volumes: give volumes, such as NIfTI files, or "
                "choose another `run`."
            )
        asked = {"apart": apart, "probabilities": probabilities, "uncertainty": uncertainty}
        in_time = pixels.fourth == "time" or (self.channels == 1 and not pixels.fourth_is_sure)
        if pixels.is_volume and in_time and pixels.array.ndim == 4:
            return _in_time(
                self.segment(frame, f"{origin} (frame {at})", **asked)
                for at, frame in enumerate(frames_of(pixels))
            )
        whole = self.in_volumes
        size = pixels.array.shape[: 3 if whole else 2]
        images = [(pixels.array, origin)] if whole or not pixels.is_volume else slices_of(pixels, origin)
        together = max(1, min(MAX_SLICES, MAX_VALUES // (self.num_classes * math.prod(size))))
        masks, softmax, entropy = [], [], []
        for first in range(0, len(images), together):
            batch = torch.stack(
                [
                    self.scaled(*image, apart=apart, spacing=pixels.spacing)
                    for image in images[first : first + together]
                ]
            )
            for scores in self._scores(batch, size):
                found = [scores.argmax(dim=1).byte()]
                if probabilities or uncertainty:
                    shares = self._shares(scores)
                    found += [shares.movedim(1, -1), normalised_entropy(shares)]
                # The parts of a volume follow each other along its first axis, and batches of slices along the batch.
                rows = [one[0] if whole else one for one in found]
                masks.append(rows[0])
                softmax += rows[1:2] * probabilities
                entropy += rows[2:] * uncertainty
        mask, *maps = (
            _in_order(torch.cat(parts).numpy(), pixels, whole=whole) if parts else None
            for parts in (masks, softmax, entropy)
        )
        assert mask is not None, "a file has at least one image"
        return Segmented(mask, *maps)

    def _scores(
        self, images: Float[Tensor, "B C *S"], size: tuple[int, ...]
    ) -> Iterator[Float[Tensor, "B K *part"]]:
        """Yields what the classes are chosen by, in the parts of `resized_in_parts` and in main memory.

        It is the logits of one run, or the mean probabilities of several.
        """
        if len(self.members) == 1:
            yield from self.members[0].parts(images, size)
            return
        for parts in zip(*(member.parts(images, size) for member in self.members), strict=True):
            yield torch.stack([part.softmax(dim=1) for part in parts]).mean(dim=0)

    def _shares(self, scores: Float[Tensor, "B K *S"]) -> Float[Tensor, "B K *S"]:
        """The probabilities that follow from these scores."""
        return scores.softmax(dim=1) if len(self.members) == 1 else scores


def slices_of(pixels: Pixels, origin: str) -> list[tuple[np.ndarray, str]]:
    """The slices of a volume, each with its name for messages."""
    array = pixels.array
    return [(array[:, :, at], f"{origin} (slice {at})") for at in range(array.shape[2])]


def frames_of(pixels: Pixels) -> list[Pixels]:
    """The volumes of a series in time."""
    return [replace(pixels, array=frame, fourth="channels") for frame in np.moveaxis(pixels.array, 3, 0)]


def _in_time(found: Iterable[Segmented]) -> Segmented:
    """What was found in each frame, with time in the axis after the slices."""
    parts = zip(*((one.mask, one.probabilities, one.uncertainty) for one in found), strict=True)
    mask, *maps = (None if part[0] is None else np.stack(part, axis=3) for part in parts)
    assert mask is not None, "every frame has a mask"
    return Segmented(mask, *maps)


def normalised_entropy(probabilities: Float[Tensor, "B K *S"]) -> Float[Tensor, "B *S"]:
    """The entropy of the classes' probabilities, divided by that of equal ones: 0 (certain) to 1."""
    entropy = torch.special.entr(probabilities).sum(dim=1)
    return (entropy / np.log(probabilities.shape[1])).clamp(0.0, 1.0)


def _in_order(maps: np.ndarray, pixels: Pixels, *, whole: bool) -> np.ndarray:
    """Maps in the order of `Pixels.array`, of slices (S, H, W, ...), an image (1, H, W, ...) or a whole volume."""
    if whole:
        return maps
    return np.ascontiguousarray(np.moveaxis(maps, 0, 2)) if pixels.is_volume else maps[0]
