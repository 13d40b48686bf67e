"""An agent of your own in one file: PPO from scratch on the masking environment, one score per patch."""

from collections.abc import Callable
from dataclasses import dataclass

import gymnasium as gym
import torch
import tyro
from torch import Tensor, nn
from torch.distributions import Normal

from ahm_gym.cli import command_line
from ahm_gym.envs import MaskingVectorEnv


@dataclass(frozen=True)
class Arguments:
    """PPO learns to mask the patches that the autoencoder reconstructs worst."""

    data: str | None = None
    """Images, as for examples/pretrain.py (default: the MNI152 brain)."""
    updates: int = 300
    """Updates of the autoencoder."""
    num_envs: int = 32
    """Images per update."""
    guided_fraction: float = 0.25
    """Share of the masked patches that the agent chooses; random ones keep the autoencoder from forgetting the rest."""
    rollout: int = 4
    """Batches of images per update of the agent."""
    epochs: int = 4
    """Passes over a rollout."""
    learning_rate: float = 3e-3
    clip: float = 0.2
    seed: int = 0


class PatchActorCritic(nn.Module):
    """A normal distribution over the score of every patch, and a value: one network for all patches."""

    def __init__(self, dim: int, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width), nn.GELU(), nn.Linear(width, 2))

    def forward(self, observation: Tensor) -> tuple[Normal, Tensor]:
        mean, value = self.body(observation).unbind(dim=-1)
        # Only the order of an image's scores matters, so their mean is fixed at 0.
        return Normal(mean - mean.mean(dim=-1, keepdim=True), 1.0), value


def mean_reward(env: MaskingVectorEnv, choose: Callable[[Tensor], Tensor], batches: int = 8) -> float:
    """Mean reward of masks under the current autoencoder, which does not learn here."""
    with env.frozen():
        observation, _ = env.reset(seed=1000)
        total = 0.0
        for _ in range(batches):
            observation, reward, *_ = env.step(choose(torch.as_tensor(observation)).detach().numpy())
            total += reward.mean() / batches
    return total


args = tyro.cli(Arguments, description=__doc__)
torch.manual_seed(args.seed)
task = {"num_envs": args.num_envs, "guided_fraction": args.guided_fraction}
with command_line():
    env = gym.make_vec(
        "ahm_gym:AHM/Masking-v0", data=args.data, reward="loss", num_steps=args.updates, **task
    )
assert isinstance(env, MaskingVectorEnv)
network = PatchActorCritic(env.pretrainer.autoencoder.dim)
optimizer = torch.optim.Adam(network.parameters(), lr=args.learning_rate)
observation, _ = env.reset(seed=args.seed)
for update in range(0, args.updates, args.rollout):
    steps = []
    for _ in range(min(args.rollout, args.updates - update)):
        seen = torch.as_tensor(observation)
        with torch.no_grad():
            policy, value = network(seen)
        scores = policy.sample()
        observation, reward, _, _, info = env.step(scores.numpy())
        # Each score that masked its patch is paid the loss of that patch; losses fall, so they are rescaled.
        paid = torch.as_tensor(info["patch_reward"] * info["guided"])
        steps.append((seen, scores, policy.log_prob(scores), paid / paid.std(), value))
    seen, scores, log_prob, paid, value = (torch.cat(parts) for parts in zip(*steps, strict=True))
    advantage = (paid - value - (paid - value).mean()) / (paid - value).std()
    for rows in (rows for _ in range(args.epochs) for rows in torch.randperm(len(seen)).split(args.num_envs)):
        policy, value = network(seen[rows])
        ratio = (policy.log_prob(scores[rows]) - log_prob[rows]).exp()
        clipped = ratio.clamp(1 - args.clip, 1 + args.clip)
        gain = torch.min(ratio * advantage[rows], clipped * advantage[rows]).mean()
        loss = 0.5 * (value - paid[rows]).square().mean() - gain
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"\rupdate {update + len(steps)}: mean reward {reward.mean():.3f}", end="")

agent = mean_reward(env, lambda observation: network(observation)[0].mean)
random = mean_reward(env, lambda observation: torch.rand(observation.shape[:2]))
print(f"\nmean reward: agent {agent:.4f}, random {random:.4f}, ratio {agent / random:.2f}")
