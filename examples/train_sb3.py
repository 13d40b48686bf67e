"""Train stable-baselines3's PPO on the masking environment, with SB3's own callbacks, logs and progress bar.

`examples/pretrain.py --policy ppo` does the same in a run with checkpoints; this script shows the plain SB3 loop.
"""

from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import tyro
from stable_baselines3 import PPO

from ahm_gym.agents.sb3_env import CountUpdates, MaskingVecEnv
from ahm_gym.agents.sb3_policies import PatchActorCriticPolicy
from ahm_gym.cli import command_line
from ahm_gym.errors import InputError
from ahm_gym.runs.storage import make_folder


@dataclass(frozen=True)
class Arguments:
    """PPO over a batch of images, with one network for all patches."""

    data: str | None = None
    """Images, as for examples/pretrain.py (default: the MNI152 brain)."""
    updates: int = 200
    """Updates of the autoencoder: one per environment step of the batch."""
    num_envs: int = 32
    """Images per update."""
    guided_fraction: float = 0.5
    """Share of the masked patches that the agent chooses."""
    out: Path = Path("runs/train-sb3")
    """Folder of the TensorBoard events and the trained agent."""
    seed: int = 0


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    with command_line():
        if arguments.num_envs < 2:
            raise InputError(
                f"--num-envs is {arguments.num_envs}: PPO standardises over a batch; choose at least 2."
            )
        make_folder(arguments.out, "--out")
        train(arguments)


def train(arguments: Arguments) -> None:
    env = gym.make_vec(
        "ahm_gym:AHM/Masking-v0",
        num_envs=arguments.num_envs,
        data=arguments.data,
        guided_fraction=arguments.guided_fraction,
        num_steps=arguments.updates,
    )
    agent = PPO(
        PatchActorCriticPolicy,
        MaskingVecEnv(env),
        n_steps=4,
        batch_size=arguments.num_envs,
        gamma=1.0,
        policy_kwargs={"log_std_init": -1.0},
        tensorboard_log=str(arguments.out / "events"),
        seed=arguments.seed,
        device="cpu",
    )
    agent.learn(
        arguments.updates * arguments.num_envs,
        callback=CountUpdates(arguments.updates, lambda metrics: False),
        progress_bar=True,
    )
    agent.save(arguments.out / "agent.zip")
    print(f"\nWrote {arguments.out}/agent.zip; tensorboard --logdir {arguments.out}/events shows the curves")


if __name__ == "__main__":
    main()
