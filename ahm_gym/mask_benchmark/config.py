"""The settings of MaskBench."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ahm_gym.errors import InputError, check_numbers, unknown_name

PROGRESS: str = "progress"
"""The reward that needs an autoencoder that learns."""


@dataclass(frozen=True)
class MaskBenchConfig:
    """Score agents and mask policies on frozen autoencoders, without labels.

    An autoencoder is pretrained once with random masks and frozen at several points. On each of these, every agent
    learns to choose patches that pay. Score 0 is random masks, 1 an oracle that knows what each patch pays. Finished
    work is never run again: the same command continues, and more data, policies, rewards or seeds add to it.
    """

    data: tuple[str, ...] = ()
    """Data sets, each as for pretraining; labels are not read. Default: the MNI152 brain."""
    data_root: Path | None = None
    """Folder in which relative names of data are looked up, before that of AHM_DATA and the current folder."""
    policies: tuple[str, ...] = ()
    """Mask policies and agents, by their names in pretraining, or MODULE:CLASS for a class that can be imported.
    Default: all that are installed and fit the model."""
    rewards: tuple[str, ...] = ("relative",)
    """What a masked patch pays: loss, relative, rank, advantage or ahm2025. progress needs a learning autoencoder."""
    seeds: int = 3
    """Number of seeds: 0, 1, ... of the agents and their images; the autoencoders are the same for all."""
    steps: int = 60
    """Number of updates of an agent, each after one batch."""
    batch_size: int = 16
    """Number of images in a batch of an agent."""
    num_points: int = 10
    """Number of times that the score is measured while an agent learns, beside its start."""
    images: int = 64
    """Largest number of held-out images that masks are scored on."""
    masks: int = 16
    """Number of masks of each held-out image that a score is averaged over."""
    mask_ratio: float = 0.75
    """Share of the patches that are masked, between 0 and 1."""
    guided_fraction: float = 0.5
    """Share of the masked patches that the policy chooses, above 0 and up to 1; the rest is random."""
    checkpoints: tuple[int, ...] = (5, 25, 50, 100)
    """Percent of pretraining after which the autoencoder is frozen."""
    pretrain_steps: int = 600
    """Number of updates of the autoencoder."""
    pretrain_batch_size: int = 32
    """Number of images in an update of the autoencoder."""
    model: str = "tiny"
    """The autoencoder, as for pretraining."""
    volumes: bool = False
    """Read volumes whole, in three dimensions, as for pretraining."""
    spacing: float | tuple[float, ...] | None = None
    """Millimetres to which images are resampled, as for pretraining."""
    image_size: int | tuple[int, ...] = 64
    """Side of the images in pixels, or height and width."""
    patch_size: int = 8
    """Side of a patch in pixels."""
    device: str = "auto"
    """auto, cpu or cuda; auto uses a GPU if there is one."""
    jobs: int = 1
    """Number of agents that learn at the same time, each in its own process; 1 starts no process."""
    time_budget: float | None = None
    """Minutes after which no new work is started. None: no limit."""
    out: Path = Path("runs/maskbench")
    """Folder of the rows and the report, and of the autoencoders unless AHM_CACHE names another."""


def check(config: MaskBenchConfig) -> None:
    """Checks what can be checked without opening the data.

    Raises:
        InputError: if a setting is out of range.
    """
    counts = (
        "seeds", "steps", "batch_size", "num_points", "images", "masks", "pretrain_steps", "pretrain_batch_size",
        "jobs",
    )  # fmt: skip
    check_numbers("count", **{name: getattr(config, name) for name in counts})
    check_numbers("share", guided_fraction=config.guided_fraction)
    if config.guided_fraction == 0:
        raise InputError(
            "`guided_fraction` is 0, so no policy chooses a patch: choose a number above 0, up to 1."
        )
    if not 0 < config.mask_ratio < 1:
        raise InputError(f"`mask_ratio` is {config.mask_ratio}: choose a number between 0 and 1.")
    if not config.checkpoints or not all(1 <= percent <= 100 for percent in config.checkpoints):
        listed = ",".join(map(str, config.checkpoints))
        raise InputError(f"`checkpoints={listed}`: choose whole numbers of percent from 1 to 100.")
    if config.time_budget is not None and not config.time_budget > 0:
        raise InputError(f"`time_budget` is {config.time_budget}: choose a number of minutes above 0.")
    if not config.rewards:
        raise InputError("`rewards` is empty: name at least one.")
    from ahm_gym.envs import REWARDS  # imports torch, which takes seconds and --help does without

    for reward in config.rewards:
        name = reward.partition(":")[0]
        if name not in REWARDS:
            raise unknown_name("reward", reward, [known for known in REWARDS if known != PROGRESS])
        if name == PROGRESS:
            raise InputError(
                f"`rewards={reward}` measures what the autoencoder learns, and here it is frozen: choose "
                "loss, relative, rank, advantage or ahm2025."
            )
        if name in ("relative", "rank") and config.guided_fraction == 1:
            raise InputError(
                f"`rewards={reward}` compares guided with random patches, and with `guided_fraction=1` there are none: "
                "choose a smaller one, such as 0.5, or another reward."
            )
