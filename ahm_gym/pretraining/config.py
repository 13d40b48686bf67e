"""The settings of a pretraining run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ahm_gym.errors import InputError, check_numbers, check_seed


@dataclass(frozen=True)
class PretrainConfig:
    """Self-supervised pretraining in which a mask policy or a learning agent chooses the masks."""

    data: str | None = None
    """Images: a folder, an .npz file, medsegbench:NAME or medmnist:NAME.
    None uses an averaged brain (MNI152) that comes with nilearn, to try things out."""
    data_root: Path | None = None
    """Folder in which relative names of data are looked up, before AHM_DATA and the current folder."""
    patient_regex: str | None = None
    """Regular expression that finds the patient in the name of an image without its suffix, such as '^[^_]+' or
    'case(.+?)_': its first group, or else its whole match. Images of one patient stay in one split.
    None: by what the files state, or else by a rule that is found in all names, and told."""
    policy: str = "a3c"
    """The policy or the learning agent that chooses the masks.
    Policies: random, block, grid, spread, hard_patches, teacher_loss, attention, attention_low, attention_hints,
    adamae, curriculum, thompson. Controls: oracle_hard, low_loss, textured, flat.
    Learning agents: a3c, patch_ppo, group, ahm2025, ppo, a2c, sac, td3, dqn; trpo, tqc, maskable_ppo with the extra
    contrib.
    agent:RUN_DIR is the trained agent of a run, frozen. Installed packages may add more.
    Options may follow a colon, as in a3c:entropy_coef=0.1,width=64; they are the same as --agent-options."""
    steps: int = 1200
    """Number of updates of the autoencoder."""
    epochs: float | None = None
    """Passes over the training images, in place of a number of steps."""
    batch_size: int = 64
    """Number of images in an update."""
    volumes: bool = False
    """Read volumes whole and learn in three dimensions; image_size is then that of random crops. Otherwise each slice
    of a volume is an image. It needs a folder of NIfTI, MetaImage, NRRD or DICOM files."""
    spacing: float | tuple[float, ...] | None = None
    """Millimetres to which images are resampled: one number, or one for each axis, of volumes to the right, forwards
    and upwards. None: that of the dataset.json; without one, volumes get the median of train and others stay."""
    image_size: int | tuple[int, ...] = 64
    """Side of the training images in pixels, or height and width; of volumes one number or three."""
    patch_size: int = 8
    """Side of a patch in pixels."""
    crop: str = "uniform"
    """Which part of an image is shown. uniform: a random crop. In half of the images of a batch, one of four random
    crops: with centre the one nearest to the image's centre, with contrast the one whose pixels vary most, with oracle
    the one with the largest share of labelled structures, as a control."""
    model: str = "tiny"
    """The autoencoder: tiny, small, base, or the name of a plain vision transformer of timm; tiny_conv, which embeds
    patches by convolutions; unet (MONAI's U-Net), or resenc (nnU-Net's residual-encoder U-Net)."""
    plans: Path | None = None
    """A plans file of nnU-Net, such as nnUNet_preprocessed/DATASET/nnUNetResEncUNetMPlans.json, whose network resenc
    becomes: with `export --format nnunet`, nnU-Net can then start from it. None: resenc has sizes of its own."""
    hiding: str | None = None
    """How a U-Net hides masked patches. zero: they are 0, the mean. token: they show a learned patch. masked: its
    encoder skips them, as in SparK. None: zero. A vision transformer always leaves them out."""
    init: Path | None = None
    """Published weights to start from: an MAE or timm checkpoint, .pth or .safetensors. None: random weights."""
    reconstructor: Path | None = None
    """A pretraining run from which the autoencoder is taken. It is never updated, so only the agent learns.
    The number of steps then counts batches."""
    agent_options: tuple[str, ...] = ()
    """Settings of the agent as NAME=VALUE, such as entropy_coef=0.05."""
    target: str = "pixels"
    """What is predicted for masked patches. pixels: the raw pixels. normalised: pixels with zero mean and unit variance
    in each patch. hog: histograms of oriented gradients, as in MaskFeat. latent: the features of a slow average of the
    encoder, which sees the whole image, as in data2vec and I-JEPA; and with half the weight the raw pixels."""
    joint_labels: int | None = None
    """Number of labelled training images that every update also learns to segment, beside the reconstruction, whatever
    chooses the masks: those that fine-tuning takes with as many labels and the same seed. None: none.
    Fine-tuning with fewer labels or another seed then starts from an encoder that has seen further labels."""
    joint_weight: float = 1.0
    """Weight of the loss of this segmentation, beside that of the reconstruction."""
    learning_rate: float | None = None
    """Peak learning rate of the autoencoder, reached after the warm-up. None: 0.001 for tiny models and U-Nets, 0.0005
    for small and 0.0003 for others; above 64 images in an update, times the square root of their number / 64."""
    average: float | None = None
    """Decay of an average of the weights over the updates (EMA), such as 0.999. The encoder of the average is then
    exported. None exports the last weights."""
    mask_ratio: float | tuple[float, ...] = 0.75
    """Share of the patches that are masked, between 0 and 1. Several, such as 0.25 0.5 0.75: each update has one of
    them at random."""
    initial_mask_ratio: float | None = None
    """Mask ratio at the start of training, which rises linearly to mask_ratio. None keeps the ratio constant."""
    target_fraction: float = 1.0
    """Share of the masked patches of each image that count in the loss, above 0 and up to 1: those to which the policy
    or the agent gives the highest scores. The others are only hidden. An agent is paid for every patch it chose."""
    reward: str | None = None
    """Reward of a masked patch: loss, relative, rank, progress, advantage or ahm2025.
    None: the agent's own, which is progress for a3c, patch_ppo, group and ahm2025, relative for others and with a
    reconstructor."""
    guided_fraction: float | None = None
    """Share of the masked patches that the scores choose, 0 to 1; the rest is random.
    None: the policy's own schedule, or 1 with a reconstructor."""
    guided_ramp: tuple[float, float] | None = None
    """Start and end, as shares of training, between which guided_fraction rises linearly from 0.
    It needs guided_fraction. None keeps that constant."""
    spread_fraction: float | None = None
    """Share of the images whose visible patches are spread over the whole image, regardless of the scores.
    At a mask ratio of 0.75, one of every 2x2 patches is visible.
    None: the policy's own schedule, or 0 with a reconstructor."""
    spread_ramp: tuple[float, float] | None = None
    """Start and end, as shares of training, between which spread_fraction falls linearly to 0.
    It needs spread_fraction. None keeps that constant."""
    masking_steps: int = 1
    """Number of steps in which an agent builds each mask."""
    num_workers: int = 1
    """Number of workers of the agent. 1 learns in this process and is deterministic.
    More are processes with one thread each."""
    ray: str | None = None
    """Ray cluster on whose machines the workers of a3c run, one thread each: auto, HOST:PORT or ray://HOST:PORT; local
    starts Ray on this machine. It needs the extra ray. A resumed run may name another. None: no Ray."""
    data_workers: int | None = None
    """Number of processes that load images; 0 loads them between updates. None: up to 8 with a GPU, 0 without."""
    seed: int = 0
    """Seed of the initial weights, the masks and the order of the images."""
    compile: bool = False
    """Compile the updates (torch.compile): a minute or two at the start, then faster updates, most of all on a GPU."""
    device: str = "auto"
    """auto, cpu or cuda; auto uses a GPU if there is one."""
    run_dir: Path | None = None
    """Folder of the run. None uses the first free runs/DATA-POLICY-N."""
    checkpoint_every: int = 200
    """Number of updates between two checkpoints."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis of the training images in pixels.

        Raises:
            InputError: if `image_size` does not fit `volumes`.
        """
        from ahm_gym.model.patches import image_size_of  # imports torch, which --help does without

        return image_size_of(self.image_size, axes=3 if self.volumes else 2)


@dataclass(frozen=True)
class Pretrain(PretrainConfig):
    """Pretrain an encoder with a learned mask.

    Self-supervised pretraining in which a mask policy or a learning agent chooses the masks.
    """

    preset: str = "laptop"
    """Settings for a machine. laptop: the defaults. gpu: the residual U-Net at 128 pixels, 30,000 steps, compiled.
    A setting that is given replaces that of the preset."""
    recipe: str | None = None
    """A published method with several stages. ahm2025 trains a U-Net, then an agent against it, then a new U-Net.
    If a number of steps is given, it is that of each stage."""
    resume: bool = False
    """Continue the run in the run folder, with its own settings. Under torchrun, begin it if it is not there."""
    wandb: str | None = None
    """Project on Weights & Biases to which the metrics are logged, too; it needs the extra wandb. WANDB_MODE=offline
    sends nothing. A resumed run continues there by itself. None: no project."""


def check_counts(config: PretrainConfig) -> None:
    """Raises InputError if a count or the seed is out of range."""
    names = ("steps", "batch_size", "checkpoint_every", "num_workers")
    check_numbers("count", **{name: getattr(config, name) for name in names})
    if config.data_workers is not None and config.data_workers < 0:
        raise InputError(f"`data_workers` is {config.data_workers}: choose 0 or more.")
    most = 4 * (os.cpu_count() or 1)
    here = ("data_workers",) if config.ray not in (None, "local") else ("num_workers", "data_workers")
    for name in here:
        if (number := getattr(config, name)) is not None and number > most:
            raise InputError(f"`{name}={number}` is too many for this machine: choose at most {most}.")
    if config.reward == "":
        raise InputError("`reward` is empty: name one, or leave it out for the agent's own.")
    check_seed(config.seed)
