"""A mask policy and an agent of one's own."""

import torch

from ahm_gym.agents import Agent
from ahm_gym.agents.base import update_metrics
from ahm_gym.model.patches import patchify
from ahm_gym.policies import MaskPolicy


class Bright(MaskPolicy):
    """Masks the brightest patches: a quarter of what is masked; the rest is random."""

    guided_fraction = 0.25

    def score(self, patches, generator):
        return patchify(patches.images, self.autoencoder.patch_size).mean(dim=-1)


class PositionBandit(Agent):
    """Learns what each position pays on average, whatever the image shows, and masks the best."""

    def __init__(self, observation_shape, *, grid=None, seed=0, device="cpu"):
        num_patches, _ = observation_shape
        self.paid, self.masked = torch.zeros(num_patches), torch.zeros(num_patches)
        self.generator = torch.Generator().manual_seed(seed)

    def learn(self, make_env, num_steps, *, seed, callback=None):
        env = make_env()
        if seed is not None:
            self.generator.manual_seed(seed)
        observation, _ = env.reset(seed=seed)
        num_updates = 0
        while num_updates < num_steps:
            scores = self.act(observation, deterministic=False)
            observation, reward, terminated, _, info = env.step(scores.numpy())
            if not terminated.all():  # with masking_steps above 1, the autoencoder learns in the last one
                continue
            num_updates += 1
            self.paid += torch.from_numpy(info["patch_reward"]).sum(dim=0)
            self.masked += torch.from_numpy(info["mask"] & info["paid"][:, None]).sum(dim=0)
            if callback is not None and callback(update_metrics(info, reward)):
                return

    def act(self, observation, *, deterministic):
        mean = (self.paid / self.masked.clamp(min=1)).repeat(len(observation), 1)
        return mean if deterministic else mean + torch.randn(mean.shape, generator=self.generator)

    def state_dict(self):
        return {"paid": self.paid, "masked": self.masked, "generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.paid, self.masked = state["paid"].clone(), state["masked"].clone()
        self.generator.set_state(state["generator"])
