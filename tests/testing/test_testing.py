"""The conformance kit, on parts without a fault and on parts with one fault each."""

import numpy as np
import pytest
import torch
from plugin_package.ahm_bright import Bright, PositionBandit

from ahm_gym.agents import AGENTS, Agent, agent_class
from ahm_gym.policies import POLICIES, MaskPolicy, make_policy
from ahm_gym.policies.random import RandomPolicy
from ahm_gym.testing import check_agent, check_policy


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_every_agent_passes_our_checker(name):
    check_agent(agent_class(name))


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"agent"}))
def test_every_policy_passes_our_checker(name):
    check_policy(lambda autoencoder: make_policy(name, autoencoder))


def test_a_policy_and_an_agent_of_another_package_pass_our_checker():
    check_policy(Bright)
    check_agent(PositionBandit)


class NoAgent:
    env_id = "AHM/Masking-v0"


class OnlyActs(Agent):
    def __init__(self, observation_shape, *, grid, seed, device):
        pass

    def act(self, observation, *, deterministic):
        return torch.zeros(observation.shape[:2])


class UnknownEnvironment(PositionBandit):
    env_id = "AHM/Maskin-v0"


class OneScoreAnImage(PositionBandit):
    def act(self, observation, *, deterministic):
        return super().act(observation, deterministic=deterministic).mean(dim=1)


class Array(PositionBandit):
    def act(self, observation, *, deterministic):
        return np.zeros(observation.shape[:2])


class NotFinite(PositionBandit):
    def act(self, observation, *, deterministic):
        return super().act(observation, deterministic=deterministic) / 0


class WithGradient(PositionBandit):
    def act(self, observation, *, deterministic):
        return super().act(observation, deterministic=deterministic).requires_grad_()


class AlwaysDraws(PositionBandit):
    def act(self, observation, *, deterministic):
        return super().act(observation, deterministic=False)


class OneMore(PositionBandit):
    def learn(self, make_env, num_steps, *, seed, callback):
        super().learn(make_env, num_steps + 1, seed=seed, callback=callback)


class CallsInTheEnd(PositionBandit):
    def learn(self, make_env, num_steps, *, seed, callback):
        calls = []
        super().learn(make_env, num_steps, seed=seed, callback=calls.append)
        for metrics in calls:
            callback(metrics)


class StartsAgain(PositionBandit):
    """Interprets the number of steps as a total, as some libraries do."""

    num_updates = 0

    def learn(self, make_env, num_steps, *, seed, callback):
        super().learn(make_env, num_steps - self.num_updates, seed=seed, callback=callback)
        self.num_updates = num_steps


class NeverStops(PositionBandit):
    def learn(self, make_env, num_steps, *, seed, callback):
        super().learn(make_env, num_steps, seed=seed, callback=lambda metrics: callback(metrics) and False)


class NoReward(PositionBandit):
    def learn(self, make_env, num_steps, *, seed, callback):
        super().learn(make_env, num_steps, seed=seed, callback=lambda m: callback({"loss": m["loss"]}))


class TensorMetrics(PositionBandit):
    def learn(self, make_env, num_steps, *, seed, callback):
        super().learn(
            make_env, num_steps, seed=seed, callback=lambda m: callback(m | {"loss": torch.zeros(1)})
        )


class IgnoresTheSeed(PositionBandit):
    def learn(self, make_env, num_steps, *, seed, callback):
        super().learn(make_env, num_steps, seed=None, callback=callback)


class OneSeed(PositionBandit):
    def learn(self, make_env, num_steps, *, seed, callback):
        super().learn(make_env, num_steps, seed=3, callback=callback)


class CannotBeSaved(PositionBandit):
    def state_dict(self):
        return {"generator": self.generator}


class ForgetsWhatItLearned(PositionBandit):
    def load_state_dict(self, state):
        self.generator.set_state(state["generator"])


class ForgetsItsDraws(PositionBandit):
    def load_state_dict(self, state):
        self.paid, self.masked = state["paid"], state["masked"]


class ForgetsItsCounts(PositionBandit):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.paid, self.masked = self.paid / self.masked.clamp(min=1), self.masked.clamp(max=1)


@pytest.mark.parametrize(
    ("agent", "sentence"),
    [
        (NoAgent, r"NoAgent is not a subclass of Agent: let it inherit from ahm_gym\.agents\.Agent"),
        (lambda *args, **options: NoAgent(), r"let it inherit from ahm_gym\.agents\.Agent"),
        (OnlyActs, "OnlyActs has no learn, load_state_dict, state_dict"),
        (UnknownEnvironment, "env_id is 'AHM/Maskin-v0'"),
        (OneScoreAnImage, r"returns torch.float32 \(4,\): expected one float score per patch, \(4, 8\)"),
        (Array, "returns a ndarray"),
        (NotFinite, "not finite"),
        (WithGradient, "require a gradient"),
        (AlwaysDraws, "other scores the second time"),
        (OneMore, "made 4 updates"),
        (CallsInTheEnd, r"after updates \[3, 3, 3\]"),
        (StartsAgain, "seed=None\\) made 0 more updates"),
        (NeverStops, "continued to update 6"),
        (NoReward, "have no 'reward'"),
        (TensorMetrics, r"metrics\['loss'\] is a Tensor"),
        (IgnoresTheSeed, "the same seed differ"),
        (OneSeed, "another seed of learn\\(\\) changes nothing"),
        (CannotBeSaved, "state/generator is a Generator"),
        (ForgetsWhatItLearned, "acts differently \\(deterministic=True\\)"),
        (ForgetsItsDraws, "acts differently \\(deterministic=False\\)"),
        (ForgetsItsCounts, "learns differently"),
    ],
)
def test_our_checker_finds_the_fault_of_an_agent(agent, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check_agent(agent)


class NoPolicy:
    def __init__(self, autoencoder):
        pass

    def score(self, patches, generator):
        return torch.zeros(patches.embeddings.shape[:2])


class NoScores(MaskPolicy):
    pass


class SquareOnly(RandomPolicy):
    def score(self, patches, generator):
        side = max(patches.grid)
        return torch.rand(len(patches.images), side * side, generator=generator)


class GreyOnly(RandomPolicy):
    def score(self, patches, generator):
        return torch.rand(
            *patches.images.shape[:2], patches.embeddings.shape[1], generator=generator
        ).squeeze(1)


class Whole(RandomPolicy):
    def score(self, patches, generator):
        return super().score(patches, generator).argsort(dim=1)


class Infinite(RandomPolicy):
    def score(self, patches, generator):
        return super().score(patches, generator) / 0


class Attached(RandomPolicy):
    def score(self, patches, generator):
        return self.autoencoder.embed(patches.images).mean(dim=-1)


class Global(RandomPolicy):
    def score(self, patches, generator):
        return torch.rand(patches.embeddings.shape[:2])


class Elsewhere(RandomPolicy):
    def score(self, patches, generator):
        return torch.from_numpy(np.random.default_rng().random(patches.embeddings.shape[:2]))


class Meddling(RandomPolicy):
    def score(self, patches, generator):
        patches.images.clamp_(-1, 1)
        return super().score(patches, generator)


class Percent(RandomPolicy):
    def guided_fraction(self, progress):
        return 100 * progress


class HalfSpread(RandomPolicy):
    def spread_fraction(self, progress):
        return 0.5 - progress


class Everything(RandomPolicy):
    mask_ratio = 1.0


class NoWeights(RandomPolicy):
    def weigh(self, patches, masks, generator):
        return torch.zeros_like(masks.weight)


class GlobalWeights(RandomPolicy):
    def weigh(self, patches, masks, generator):
        return masks.weight * torch.rand(masks.weight.shape)


class Silent(RandomPolicy):
    def observe(self, patches, masks, patch_loss):
        return None


class Tensors(RandomPolicy):
    def observe(self, patches, masks, patch_loss):
        return {"loss": patch_loss.mean()}


class Shuffling(RandomPolicy):
    def observe(self, patches, masks, patch_loss):
        return {"chosen": float(torch.randperm(3)[0])}


class Training(RandomPolicy):
    def observe(self, patches, masks, patch_loss):
        self.autoencoder.mask_token.data += 1
        return {}


class Forgetful(RandomPolicy):
    """Adds up the losses of patches, but leaves the sum out of its state."""

    total = 0.0

    def score(self, patches, generator):
        return super().score(patches, generator) + self.total

    def observe(self, patches, masks, patch_loss):
        self.total = self.total + patch_loss.mean(dim=0)
        return {}


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        (
            NoPolicy,
            r"NoPolicy is not a subclass of MaskPolicy: let it inherit from ahm_gym\.policies\.MaskPolicy",
        ),
        (lambda autoencoder: NoPolicy(autoencoder), r"let it inherit from ahm_gym\.policies\.MaskPolicy"),
        (NoScores, "NoScores has no score"),
        (SquareOnly, r"on a grid of 2x5 returns torch.float32 \(1, 25\)"),
        (GreyOnly, r"on a grid of 5x3 returns torch.float32 \(1, 3, 15\)"),
        (Whole, "returns torch.int64"),
        (Infinite, "not finite"),
        (Attached, "require a gradient"),
        (Global, "torch's global generator"),
        (Elsewhere, "other scores for the same images"),
        (Meddling, "changed the images"),
        (Percent, "guided_fraction\\(0.25\\) is 25.0"),
        (HalfSpread, r"spread_fraction\(0.75\) is -0.25"),
        (Everything, "mask_ratio is 1.0 at the start"),
        (NoWeights, "weigh.* every masked patch has weight 0"),
        (GlobalWeights, "weigh.* draws from torch's global generator"),
        (Silent, "observe\\(\\) returns a NoneType"),
        (Tensors, "expected a name and a number"),
        (Shuffling, "observe\\(\\) draws from"),
        (Training, "changed the autoencoder"),
        (Forgetful, "scores differently"),
    ],
)
def test_our_checker_finds_the_fault_of_a_policy(policy, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check_policy(policy)
