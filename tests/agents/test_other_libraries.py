"""Agents of other libraries learn on the registered environments, and the autoencoder learns with them."""

# pyright: reportMissingImports=false
# Tianshou is not installed on Python 3.10.

import gymnasium as gym
import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal
from torch.nn.utils import parameters_to_vector


@pytest.fixture
def env():
    images = torch.randn(12, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    return gym.make("ahm_gym:AHM/Masking-v0", data=images, image_size=32, disable_env_checker=True)


def weights(module):
    return parameters_to_vector(module.parameters()).detach()


def autoencoder(env):
    return env.unwrapped.vector.pretrainer.autoencoder


def updates(env):
    return env.unwrapped.vector.pretrainer.updates


class PatchActor(nn.Module):
    """Mean and deviation of the score of every patch, from the patch alone."""

    def __init__(self, dim):
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2))

    def forward(self, observation):
        loc, scale = self.net(observation).unbind(dim=-1)
        return loc, nn.functional.softplus(scale) + 1e-3


class TianshouActor(PatchActor):
    def forward(self, observation, state=None, info=None):
        return super().forward(torch.as_tensor(observation)), state


@pytest.mark.filterwarnings("ignore:Creating .*WeightUpdater:DeprecationWarning")  # within TorchRL
def test_torchrl_accepts_the_environment_and_its_ppo_updates_the_autoencoder(env):
    pytest.importorskip("torchrl", reason="TorchRL comes with the extra `contrib`")
    from tensordict.nn import TensorDictModule
    from torchrl.collectors import Collector
    from torchrl.envs import GymWrapper, InitTracker, TransformedEnv
    from torchrl.envs.utils import check_env_specs
    from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE

    wrapped = TransformedEnv(GymWrapper(env), InitTracker())
    check_env_specs(wrapped)
    num_patches, dim = env.observation_space.shape
    actor = ProbabilisticActor(
        TensorDictModule(PatchActor(dim), in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        return_log_prob=True,
        spec=wrapped.action_spec,
    )
    critic = ValueOperator(nn.Sequential(nn.Flatten(-2), nn.Linear(num_patches * dim, 1)))
    estimate = GAE(gamma=1.0, lmbda=1.0, value_network=critic)
    loss = ClipPPOLoss(actor, critic)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    before, acting, start = weights(autoencoder(env)), weights(actor), updates(env)
    for batch in Collector(wrapped, actor, frames_per_batch=8, total_frames=16):
        assert batch["next", "done"].all()
        estimate(batch)
        losses = loss(batch)
        optimizer.zero_grad()
        sum(losses[key] for key in ("loss_objective", "loss_critic", "loss_entropy")).backward()
        optimizer.step()
    assert updates(env) == start + 16
    assert not torch.equal(weights(autoencoder(env)), before)
    assert not torch.equal(weights(actor), acting)


def test_ppo_of_tianshou_updates_the_autoencoder(env):
    pytest.importorskip("tianshou", reason="Tianshou 2 needs Python 3.11 and comes with the extra `contrib`")
    from tianshou.algorithm import PPO
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.trainer import OnPolicyTrainerParams
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.continuous import ContinuousCritic

    actor = TianshouActor(env.observation_space.shape[1])
    policy = ProbabilisticActorPolicy(
        actor=actor,
        dist_fn=lambda loc_scale: Independent(Normal(*loc_scale), 1),
        action_space=env.action_space,
    )
    critic = ContinuousCritic(preprocess_net=Net(state_shape=env.observation_space.shape, hidden_sizes=[16]))
    algorithm = PPO(policy=policy, critic=critic, optim=AdamOptimizerFactory(lr=1e-3))
    before, acting = weights(autoencoder(env)), weights(actor)
    algorithm.run_training(
        OnPolicyTrainerParams(
            training_collector=Collector(algorithm, DummyVectorEnv([lambda: env]), VectorReplayBuffer(8, 1)),
            max_epochs=1,
            epoch_num_steps=16,
            collection_step_num_env_steps=8,
            show_progress=False,
        )
    )
    assert updates(env) == 16
    assert not torch.equal(weights(autoencoder(env)), before)
    assert not torch.equal(weights(actor), acting)
