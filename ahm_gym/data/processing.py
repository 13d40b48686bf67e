"""What is done to the values of images and labels before they are stored, as a description of the data says."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pydantic
import torch
from jaxtyping import Float, Shaped
from pydantic import Discriminator, Field, Tag
from torch import Tensor

from ahm_gym.data.ignored import IGNORED
from ahm_gym.data.scaling import (
    MAX_CLASSES,
    PERCENTILES,
    channels_first,
    resample,
    rounded,
    scale_intensities,
)
from ahm_gym.errors import InputError

Finite = Annotated[float, Field(allow_inf_nan=False)]
Class = Annotated[int, Field(ge=0, lt=MAX_CLASSES)]
Index = Annotated[str, Field(pattern=r"^\d{1,2}$")]
Shade = Annotated[str, Field(pattern=r"^(\d{1,5}|#[0-9a-fA-F]{6})$")]
Percent = Annotated[float, Field(ge=0, le=100)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Spacing = Positive | tuple[Positive, ...]
Plane = Literal["axial", "coronal", "sagittal"]
Ignorable = Annotated[int, Field(ge=0, lt=1 << 16)] | Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]


class Strict(pydantic.BaseModel):
    """Refuses keys that it does not know."""

    model_config: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(extra="forbid", frozen=True)


class Window(Strict):
    """Intensities from `low` to `high`, such as Hounsfield units, become 0 to 1; others are clipped."""

    low: Finite
    high: Finite
    found: str = ""
    """What low and high are, if they were found in the training images."""

    @pydantic.model_validator(mode="after")
    def _check_order(self) -> Window:
        if not self.low < self.high:
            raise ValueError(f"low is {self.low} and high {self.high}: expected low below high")
        return self


class DatasetScaling(Strict):
    """Intensities between two percentiles of all training images become 0 to 1; others are clipped.

    Over the foreground, it is the scheme of nnU-Net for CT: after it, images are normalised by mean and deviation.
    """

    kind: Literal["dataset"]
    over: Literal["image", "foreground"] = "image"
    """The pixels that count: all, or those of structures in the labels, without ignored ones."""
    percentiles: tuple[Percent, Percent] = PERCENTILES

    @pydantic.model_validator(mode="after")
    def _check_order(self) -> DatasetScaling:
        if not self.percentiles[0] < self.percentiles[1]:
            raise ValueError(f"percentiles are {self.percentiles}: expected the lower one first")
        return self


def _kind(value: Any) -> str:
    """Which form of scaling is meant, so that an error is one about this form."""
    if isinstance(value, str):
        return "name"
    if isinstance(value, Window) or (isinstance(value, dict) and {"low", "high"} & set(value)):
        return "window"
    if isinstance(value, DatasetScaling) or (isinstance(value, dict) and "kind" in value):
        return "dataset"
    return "modalities"


Ranges = Annotated[Window, Tag("window")] | Annotated[DatasetScaling, Tag("dataset")]
OfModality = Annotated[Annotated[Literal["channel"], Tag("name")] | Ranges, Discriminator(_kind)]
Scaling = Annotated[
    Annotated[Literal["image", "channel"], Tag("name")]
    | Ranges
    | Annotated[dict[str, OfModality], Tag("modalities")],
    Discriminator(_kind),
]


class Processing(Strict):
    """What is done to the values of the images and labels of a data set."""

    modalities: dict[str, str] = {}
    """What `{modality}` stands for in file names, and the name of each, in the order of the channels."""
    classes: dict[Index, str] = {}
    """Names of the classes by index, such as `{"1": "liver"}`."""
    label_values: dict[Shade, Class] = {}
    """The class of each value of the label files, `"128"`, or colour, `"#ff0000"`. Empty: values are classes."""
    ignore: tuple[Ignorable, ...] = ()
    """Values, `255`, or colours, `"#ffffff"`, of label pixels whose class is unknown: they are neither trained nor
    scored."""
    instances: bool = False
    """Whether labels number objects: every value above 0 is then class 1."""
    scaling: Scaling | None = None
    """How intensities become 0 to 1. image: by the 0.5 and 99.5 percentiles of each image over all of its channels.
    channel: by those of each channel of each image. A window: from `low` to `high`. dataset: by percentiles of all
    training images, of each modality by itself. By the name of the modality if they differ. None: channel if there are
    several modalities, otherwise image."""
    spacing: Spacing | None = None
    """Millimetres to which images are resampled within their plane: of a pixel, or of its rows and columns; of
    `volumes`, of a voxel, or towards right, anterior and superior. Masks and distances keep those of the file."""
    plane: Plane | None = None
    """The plane of the slices of volumes. None: that in which each was acquired."""
    spacing_found: str = ""
    """What `spacing` is, if it was found in the training images."""
    volumes: bool = False
    """Whether a volume is one image in three dimensions; otherwise each of its slices is an image."""

    @pydantic.model_validator(mode="after")
    def _check_names(self) -> Processing:
        unknown = (
            self.scaling.keys() - set(self.modalities.values()) if isinstance(self.scaling, dict) else set()
        )
        if unknown:
            raise ValueError(f"scaling names {min(unknown)!r}, which is no name in modalities")
        if isinstance(self.spacing, tuple) and len(self.spacing) != self.axes:
            raise ValueError(f"spacing has {len(self.spacing)} numbers: expected 1 or {self.axes}")
        if self.volumes and self.plane:
            raise ValueError("plane is that of slices, and volumes are not sliced: expected one of the two")
        if self.instances and self.label_values:
            raise ValueError(
                "instances makes every value above 0 class 1, and label_values gives other classes"
            )
        listed = {_number(key) for key in self.label_values}
        if both := [value for value in self.ignore if _number(value) in listed]:
            raise ValueError(f"ignore names {both[0]!r}, to which label_values gives a class")
        if any(str(value).startswith("#") != self.has_colours for value in self.ignore):
            raise ValueError("ignore and label_values name colours and other values: expected one of the two")
        return self

    @property
    def axes(self) -> int:
        """The number of axes of an image."""
        return 3 if self.volumes else 2

    @property
    def has_colours(self) -> bool:
        """Whether labels are pictures whose colours have a class."""
        return any(key.startswith("#") for key in self.label_values)


PLAIN: Processing = Processing()
"""What is done without a description."""


def scale(
    image: Shaped[np.ndarray, "*S C"], processing: Processing, num_modalities: int = 1
) -> Float[Tensor, "C *S"]:
    """Scales the intensities of an image to [0, 1] as `Processing.scaling` says.

    Args:
        image: an image or a volume, with its channels in the last axis.
        processing: what to do; percentiles of the data set must have become windows, see `settled`.
        num_modalities: number of files that are stacked in the channels.
    """
    scaling = processing.scaling or ("channel" if num_modalities > 1 else "image")
    if scaling == "image":
        return scale_intensities(image)
    names = list(processing.modalities.values())
    channels = []
    for channel in range(image.shape[-1]):
        own = scaling.get(names[channel], "channel") if isinstance(scaling, dict) else scaling
        values = image[..., channel : channel + 1]
        channels.append(clip_to(own, values) if isinstance(own, Window) else scale_intensities(values))
    return torch.cat(channels)


def to_spacing(
    image: Float[Tensor, "C *S"], spacing: tuple[float, ...] | None, processing: Processing, origin: str
) -> Float[Tensor, "C *S2"]:
    """An image with pixels, or a volume with voxels, of the size that `Processing.spacing` says.

    Args:
        image: intensities from 0 to 1.
        spacing: millimetres per row and column of its file, and of a volume also along the third axis; None if unknown.
        processing: what to do.
        origin: its file, for messages.

    Raises:
        InputError: if the file does not state the size of its pixels, or the image would be too large.
    """
    wanted = processing.spacing
    if wanted is None:
        return image
    if spacing is None:
        raise InputError(
            f"{origin} does not state the size of its pixels, and would be resampled to {in_mm(wanted)}: save it in a "
            "format that states it, such as NIfTI, remove it, or leave out a `spacing` that you gave."
        )
    axes = image.ndim - 1
    aims = wanted if isinstance(wanted, tuple) else (wanted,) * axes
    return resample(image, tuple(own / aim for own, aim in zip(spacing[:axes], aims, strict=True)), origin)


def in_mm(spacing: float | tuple[float, ...] | None) -> str:
    """A spacing as it is said, such as 1x1x1.5 mm."""
    return "x".join(f"{size:.4g}" for size in np.atleast_1d(np.array(spacing, float))) + " mm"


def differences(one: Processing, other: Processing) -> list[str]:
    """The names of the settings by which images become other values or other slices."""
    return [name for name in OF_IMAGES if getattr(one, name) != getattr(other, name)]


OF_IMAGES: tuple[str, ...] = ("scaling", "spacing", "plane", "volumes")
"""Settings on which the values of images depend."""


def clip_to(window: Window, values: Shaped[np.ndarray, "*S C"]) -> Float[Tensor, "C *S"]:
    """Intensities of a window as 0 to 1."""
    scaled = ((values.astype(np.float64) - window.low) / (window.high - window.low)).clip(0.0, 1.0)
    return channels_first(scaled)


def to_classes(
    label: np.ndarray, processing: Processing, origin: str, *, is_volume: bool = False
) -> np.ndarray:
    """The classes of a label as `Processing` says, with `IGNORED` for ignored pixels.

    Args:
        label: rows and columns, optionally with channels after them: equal ones, or red, green and blue; or a volume.
        processing: what to do.
        origin: file of the label, for messages.
        is_volume: whether the third axis holds slices.

    Raises:
        InputError: if the label has a value or a colour that the description does not name.
    """
    if not (processing.instances or processing.label_values or processing.ignore):
        return label
    label = rounded(label)
    if label.ndim == 3 and not is_volume:
        coloured = processing.has_colours
        label = packed(label) if coloured else label[:, :, 0] if (label == label[:, :, :1]).all() else label
    if processing.instances:
        classes = (label > 0).astype(np.uint8)
    else:
        classes = look_up(label, processing, origin) if processing.label_values else label
    return with_ignored(classes, label, processing, origin) if processing.ignore else classes


def with_ignored(
    classes: Shaped[np.ndarray, "*size"],
    values: Shaped[np.ndarray, "*size"],
    processing: Processing,
    origin: str,
) -> Shaped[np.ndarray, "*size"]:
    """Classes with `IGNORED` where the values of the label are among those to ignore.

    Raises:
        InputError: if another pixel already has that value.
    """
    ignored = np.isin(values, [_number(value) for value in processing.ignore])
    if (classes[~ignored] == IGNORED).any():
        raise InputError(
            f"class index out of range: {origin} contains the value {IGNORED}, which stands for ignored pixels here: "
            "name it in `ignore`, or give its class in `label_values`."
        )
    return np.where(ignored, np.uint8(IGNORED), classes)


def look_up(values: np.ndarray, processing: Processing, origin: str) -> np.ndarray:
    """The class of every value in `Processing.label_values`; 0 is the background if it is not listed.

    A value to ignore becomes `IGNORED`.

    Raises:
        InputError: if a value is not listed.
    """
    table = {0: 0} | {_number(key): index for key, index in processing.label_values.items()}
    table |= {_number(value): IGNORED for value in processing.ignore}
    found, places = np.unique(values, return_inverse=True)
    unknown = [value for value in found.tolist() if value not in table]
    if unknown:
        listed = ", ".join(processing.label_values)
        coloured = processing.has_colours
        name = f"the colour #{int(unknown[0]):06x}" if coloured else f"the value {unknown[0]:g}"
        raise InputError(
            f"{origin} contains {name}, which is not in `label_values` ({listed}): add it with its class."
        )
    return np.array([table[value] for value in found.tolist()], np.uint8)[places].reshape(values.shape)


def _number(value: int | str) -> int:
    """A value of labels as it is written in a description: a number, or a colour as `packed` gives it."""
    text = str(value)
    return int(text[1:], 16) if text.startswith("#") else int(text)


def packed(label: Shaped[np.ndarray, "H W C"]) -> Shaped[np.ndarray, "H W"]:
    """Red, green and blue as one number, as in `#rrggbb`."""
    red, green, blue = (label[:, :, channel].astype(np.int64) for channel in range(3))
    return red * 65_536 + green * 256 + blue
