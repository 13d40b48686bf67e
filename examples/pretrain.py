"""Pretrain an encoder with a learned mask: `python examples/pretrain.py --data FOLDER`."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from ahm_gym.errors import command_line
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.recipes import is_recipe_run, run_recipe
from ahm_gym.pretraining.run import pretrain
from ahm_gym.runs.settings import flags_in


@dataclass(frozen=True)
class Arguments:
    """Self-supervised pretraining in which a policy or a learning agent chooses the masks."""

    data: str | None = PretrainConfig.data
    """A folder of images, a .npz file, medsegbench:NAME or medmnist:NAME; nothing takes the MNI152 brain."""
    data_root: Path | None = PretrainConfig.data_root
    """Where relative names are looked up; the variable AHM_DATA does the same."""
    recipe: str | None = None
    """ahm2025 runs the paper's three stages, each for --steps updates where that is given."""
    policy: str = PretrainConfig.policy
    """Who chooses the masks: random, block, grid or spread; hard_patches, teacher_loss, attention, attention_low,
    attention_hints, adamae or curriculum, each after a paper; oracle_hard, low_loss, textured or flat to compare; a
    learning agent such as a3c, ppo or ahm2025; agent:RUN_DIR for a trained one, frozen; or a plug-in."""
    steps: int = PretrainConfig.steps
    """Updates of the autoencoder."""
    batch_size: int = PretrainConfig.batch_size
    """Images in an update."""
    image_size: tuple[int, ...] = PretrainConfig.image_size
    """Side of the training images in pixels, or height and width."""
    patch_size: int = PretrainConfig.patch_size
    """Side of a patch in pixels."""
    model: str = PretrainConfig.model
    """tiny, small, base, unet, or the name of one of timm's plain vision transformers."""
    init: Path | None = PretrainConfig.init
    """Published weights to start from: an MAE or timm checkpoint, .pth or .safetensors."""
    reconstructor: Path | None = PretrainConfig.reconstructor
    """A run whose autoencoder is taken and never updated: only the agent learns, and --steps counts batches."""
    agent_options: tuple[str, ...] = PretrainConfig.agent_options
    """Settings of the agent as NAME=VALUE, such as entropy_coef=0.05."""
    normalise_target: bool = PretrainConfig.normalise_target
    """Predict patches of zero mean and unit variance instead of raw pixels."""
    learning_rate: float = PretrainConfig.learning_rate
    """Of the autoencoder, after its warm-up."""
    mask_ratio: float = PretrainConfig.mask_ratio
    """Share of masked patches."""
    initial_mask_ratio: float | None = PretrainConfig.initial_mask_ratio
    """Share of masked patches at the beginning, from which it rises linearly to --mask-ratio over the run; nothing
    keeps it constant."""
    reward: str | None = PretrainConfig.reward
    """What a masked patch pays an agent: loss, relative, rank, progress, advantage or ahm2025; nothing takes the
    agent's own, progress for a3c and relative for the others and against a --reconstructor."""
    guided_fraction: float | None = PretrainConfig.guided_fraction
    """Share of masked patches that follow the scores; nothing takes the policy's own schedule."""
    guided_ramp: tuple[float, float] | None = PretrainConfig.guided_ramp
    """Progress of training, 0 to 1, from which to which that share rises from 0; nothing keeps it constant."""
    spread_fraction: float | None = PretrainConfig.spread_fraction
    """Share of images in which every cell of the grid keeps its part of the visible patches (one in 2x2 at a ratio
    of 0.75), whatever the scores say; nothing takes the policy's own schedule."""
    spread_ramp: tuple[float, float] | None = PretrainConfig.spread_ramp
    """Progress of training, 0 to 1, from which to which that share falls to 0; nothing keeps it constant."""
    masking_steps: int = PretrainConfig.masking_steps
    """Steps in which an agent builds up each mask."""
    num_workers: int = PretrainConfig.num_workers
    """Processes of an agent, one thread each; 1 is deterministic."""
    data_workers: int | None = PretrainConfig.data_workers
    """Processes that load images; 0 loads between the updates, nothing takes up to 8 with a GPU and 0 without."""
    seed: int = PretrainConfig.seed
    """Of weights, masks and the order of images."""
    device: str = PretrainConfig.device
    """auto, cpu or cuda."""
    run_dir: Path | None = PretrainConfig.run_dir
    """Where everything is written; nothing takes the first free runs/DATA-POLICY-N."""
    checkpoint_every: int = PretrainConfig.checkpoint_every
    """Updates between two checkpoints."""
    resume: bool = False
    """Go on with the run in --run-dir, with its own settings."""


def main() -> None:
    arguments = dataclasses.asdict(tyro.cli(Arguments, description=__doc__))
    resume, recipe = arguments.pop("resume"), arguments.pop("recipe")
    config, given = PretrainConfig(**arguments), flags_in(sys.argv)
    with command_line():
        if recipe is not None or (resume and is_recipe_run(config.run_dir)):
            run = run_recipe(recipe, config, resume=resume, given=given)
            print(f"\nWrote {run}/: one folder a stage, each with figures/masks.png, figures/curves.png")
        else:
            run = pretrain(config, resume=resume, given=given)
            print(f"\nWrote {run}/: encoder/, figures/masks.png, figures/curves.png, metrics.jsonl")
        print(f"Next: python examples/segment.py --encoder {shlex.quote(str(run))}")


if __name__ == "__main__":
    main()
