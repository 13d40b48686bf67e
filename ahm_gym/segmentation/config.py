"""The settings of the probe and of fine-tuning."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

EncoderPath = Annotated[
    str | os.PathLike[str],
    tyro.conf.arg(constructor=str, metavar="RUN_DIR|none", help_behavior_hint="(default: none)"),
]


TRANSFERS: tuple[str, ...] = ("all", "encoder")


HEADS: tuple[str, ...] = ("patch", "pixel")


@dataclass(frozen=True)
class EvaluationConfig:
    """The settings that the probe and fine-tuning share."""

    encoder: EncoderPath = "none"
    """Folder of a pretraining run, or none for an untrained encoder."""
    data: str | None = None
    """Labelled images, as for pretraining. None uses the images of the encoder's run, or the MNI152 brain."""
    data_root: Path | None = None
    """Folder in which relative names of data are looked up, before AHM_DATA and the current folder."""
    patient_regex: str | None = None
    """Regular expression that finds the patient in the name of an image, as for pretraining. None: that of the
    encoder's run if its images are used, or else by a rule that is found in all names, and told."""
    labels: int | None = None
    """Number of labelled training images. None uses all of them."""
    model: str | None = None
    """tiny, tiny_conv, small, base, unet, resenc, or a plain vision transformer of timm. None: that of the
    encoder, or tiny."""
    image_size: int | tuple[int, ...] | None = None
    """Side of the training images in pixels, or height and width. None: the encoder's, or 64."""
    patch_size: int | None = None
    """Side of a patch in pixels. None: the encoder's, or 8."""
    seed: int = 0
    """Seed of the initial weights, and of the choice, the order and the crops of the labelled images."""
    device: str = "auto"
    """auto, cpu or cuda; auto uses a GPU if there is one."""
    run_dir: Path | None = None
    """Folder of the run. None: the first free runs/ENCODER-finetune-N or runs/ENCODER-probe-N.
    Without an encoder, ENCODER is DATA-scratch."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoder", os.fspath(self.encoder))


@dataclass(frozen=True)
class ProbeConfig(EvaluationConfig):
    """Evaluate a frozen encoder in seconds, by a linear map from its features to the labels."""

    head: str = "patch"
    """What is predicted. patch: the share of every class in each patch, from the features of the last layer.
    pixel: the class of each pixel, from the features of several depths."""


@dataclass(frozen=True)
class FinetuneConfig(EvaluationConfig):
    """Segmentation with a pretrained encoder, or from scratch, on a number of labelled images."""

    steps: int = 300
    """Number of updates of the segmenter."""
    batch_size: int = 8
    """Number of images in an update."""
    learning_rate: float = 3e-3
    """Peak learning rate of the decoder; it decreases towards the first layers of the encoder."""
    encoder_rate: float = 1.0
    """Factor on the learning rate of the encoder, and of a U-Net's decoder. New layers keep the full rate."""
    frozen_steps: int = 0
    """Number of first updates that train the new layers alone."""
    transfer: str = "all"
    """What a U-Net takes over from pretraining: all of its layers, or its encoder alone, with a new decoder."""
    decoder: str = "unetr"
    """Decoder on a vision transformer. unetr: also reads the image, for the best segmentations.
    plain: reads the features alone, to measure an encoder. A U-Net has its own decoder."""
    freeze: bool = False
    """Keep the encoder unchanged and train only the decoder."""
    augmentation: str = "light"
    """Random changes of the labelled images. light: crops and flips.
    nnunet: also rotations, zooms, noise, blur, contrast and gamma, as nnU-Net makes them."""
    split: str | None = None
    """Images to score: test, or val to choose settings without a look at the test images.
    None: test, or val if no test image has a label."""
    native_resolution: bool = False
    """Segment images at their full size, window by window, instead of shrinking them first."""
    checkpoint_every: int = 100
    """Number of updates between two checkpoints."""


@dataclass(frozen=True)
class Finetune(FinetuneConfig):
    """Fine-tune an encoder for segmentation and evaluate it.

    Segmentation with a pretrained encoder, or from scratch, on a number of labelled images.
    """

    resume: bool = False
    """Continue the run in the run folder, with its own settings."""


@dataclass(frozen=True)
class PredictConfig:
    """Segment new scans with a fine-tuned run."""

    scans: tyro.conf.Positional[Path]
    """A folder of images, or one image, in any format of training data."""
    run: Path
    """Folder of a fine-tuning run. Its settings and the statistics of its training images are used."""
    out: Path = Path("predictions")
    """Folder of the masks. Files that are there are kept, so the same command continues after a stop."""
    device: str = "auto"
    """auto, cpu or cuda; auto uses a GPU if there is one."""
