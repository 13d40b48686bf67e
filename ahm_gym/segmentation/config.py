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


SELECTIONS: tuple[str, ...] = ("last", "best")


FORMATS: tuple[str, ...] = ("onnx", "torchscript", "monai", "nnunet")


FEW_PATIENTS: int = 20
"""With fewer test patients than this, an interval is said to be too narrow."""


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
    """Number of labelled training images, or volumes. None uses all of them."""
    labelled_patients: int | None = None
    """Number of patients whose labelled training images are used, all of each. Use it for volumes and series."""
    model: str | None = None
    """tiny, tiny_conv, small, base, unet, resenc, or a plain vision transformer of timm. None: that of the
    encoder, or tiny."""
    image_size: int | tuple[int, ...] | None = None
    """Side of the training images in pixels, or height and width; of crops of volumes three sides, in voxels.
    None: the encoder's, or 64."""
    spacing: float | tuple[float, ...] | None = None
    """Millimetres to which images are resampled, as for pretraining. None: those of the encoder's run."""
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

    steps: int = 1000
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
    decoder: str | None = None
    """Decoder on a vision transformer. unetr: also reads the image, for the best segmentations.
    plain: reads the features alone, to measure an encoder. A U-Net has its own decoder.
    None: unetr in two dimensions, and plain in three, where unetr takes many times as long."""
    freeze: bool = False
    """Keep the encoder unchanged and train only the decoder."""
    augmentation: str = "light"
    """Random changes of the labelled images. light: crops and flips.
    nnunet: also rotations, zooms, noise, blur, contrast and gamma, as nnU-Net makes them."""
    split: str | None = None
    """Images to score: test, or val to choose settings without a look at the test images.
    None: test, or val if no test image has a label."""
    fold: int | None = None
    """Number of the fold, from 0, whose patients are val; the other patients of train and val are train.
    The test split stays as it is. Folds that the data names, such as nnU-Net's splits_final.json, are used instead.
    None: the splits of the data."""
    folds: int = 5
    """Number of folds that train and val are divided into by patient, the same way in every run."""
    validate_every: int | None = None
    """Number of updates between two scores of the val split, after which the best segmenter is kept; 0: never.
    None: a tenth of the updates, if val has labels."""
    select: str = "last"
    """Segmenter that is scored, and that predict, evaluate and export use. last: that of the last update.
    best: that of the highest Dice on val."""
    surface_tolerance: float = 1.0
    """Distance up to which two surfaces agree in the surface Dice: in mm, or in pixels if the spacing is unknown."""
    missed_distance: str = "diagonal"
    """HD95 of a structure that is missed, or found where it is not. diagonal: that of the image or volume.
    leave-out: none, so the mean covers only what was found."""
    native_resolution: bool = False
    """Segment images at their full size, window by window, instead of shrinking them first. Volumes always are."""
    compare: str | None = None
    """What the report compares the scores with, patient by patient. none: the same network from scratch, which is
    trained too, on the same labels, in the folder from-scratch of the run. Otherwise: another fine-tuning run."""
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
class RunsConfig:
    """The settings of programs that segment with fine-tuned runs."""

    run: Annotated[Path | tuple[Path, ...], tyro.conf.arg(metavar="RUN_DIR [RUN_DIR ...]")]
    """Folders of fine-tuning runs. Their settings and the statistics of their training images are used.
    Several runs segment together: the probabilities of each class are averaged."""
    select: str | None = None
    """last or best: which segmenter of the runs is used. None: the one that each run was scored by."""
    device: str = "auto"
    """auto, cpu or cuda; auto uses a GPU if there is one."""

    @property
    def runs(self) -> tuple[Path, ...]:
        """The folders of the runs, also if only one was given."""
        return (self.run,) if isinstance(self.run, Path) else self.run


@dataclass(frozen=True, kw_only=True)
class PredictConfig(RunsConfig):
    """Segment new scans with a fine-tuned run, or with several as an ensemble."""

    scans: tyro.conf.Positional[Path]
    """A folder of images, or one image, in any format of training data."""
    out: Path = Path("predictions")
    """Folder of the masks. Files that are there are kept, so the same command continues after a stop."""
    probabilities: bool = False
    """Also write the probability of every class at every pixel: NIfTI with a fourth axis, or .npz."""
    uncertainty: bool = False
    """Also write a map of the entropy of the probabilities, from 0 (certain) to 1 (all classes equally likely)."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RunsConfig):
    """Score a fine-tuned run, or several as an ensemble, on other labelled images."""

    scans: tyro.conf.Positional[str]
    """Labelled images, as for fine-tuning: a folder, an .npz file, or a name such as medsegbench:NAME."""
    data_root: Path | None = None
    """Folder in which a relative name is looked up, before AHM_DATA and the current folder."""
    out: Path = Path("evaluation")
    """Folder of results.json, overlays.png and report.html; it must not hold results yet."""
    split: str | None = None
    """Images to score: all, train, val or test. None: test if the data itself names test images or a run was
    trained on this data, and all otherwise."""


@dataclass(frozen=True)
class ExportConfig:
    """Export a fine-tuned segmenter, or a pretrained encoder, for programs without ahm-gym."""

    run: Path
    """Folder of a fine-tuning run; or, for the features of its encoder, of a pretraining run."""
    out: Path
    """File to write, such as model.onnx, model.ts or nnunet.pth; with --format monai a folder."""
    format: str = "onnx"
    """onnx, torchscript, monai or nnunet. monai: a MONAI bundle around the TorchScript of a segmenter, or the weights
    of a pretrained encoder for MONAI's ViT or BasicUNet. nnunet: the weights of a pretrained resenc, for
    nnUNetv2_train -pretrained_weights."""
    plans: Path | None = None
    """A plans file of nnU-Net, with whose network the weights are compared; for nnunet only. None: they are not."""
    select: str | None = None
    """last or best: which segmenter of the run is exported. None: the one that the run was scored by."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Write the features that a pretrained encoder gives to images."""

    scans: tyro.conf.Positional[str]
    """Images, as for pretraining: a folder, an .npz file, or a name such as medmnist:NAME."""
    run: Path
    """Folder of a pretraining run. The statistics of its training images are used."""
    data_root: Path | None = None
    """Folder in which a relative name is looked up, before AHM_DATA and the current folder."""
    out: Path = Path("features.npz")
    """File to write, ending in .npz or .parquet; it must not exist yet."""
    per_patch: bool = False
    """Write the features of every patch, instead of their mean over the image."""
    device: str = "auto"
    """auto, cpu or cuda; auto uses a GPU if there is one."""
