import numpy as np
import pytest
import torch
from torch.nn import functional

from ahm_gym.agents import make_agent
from ahm_gym.agents.ahm2025 import ConvActorCritic, independent_loss, patch_size_of
from ahm_gym.agents.networks import LOGIT_CAP, ActorCriticOutput, bounded
from ahm_gym.errors import InputError
from ahm_gym.masking.selection import random_scores
from ahm_gym.model.patches import patchify
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.pretraining.mask_source import agent_options, make_mask_source
from ahm_gym.testing import PixelIdentityTask

SHAPE = (16, 16)
EVERYTHING = torch.ones(4, 16, dtype=torch.bool)


def build(**options):
    return make_agent("ahm2025", SHAPE, **options)


def play(agent, steps, env=None, seed=0):
    metrics = []
    task = env or PixelIdentityTask(num_envs=8)
    agent.learn(lambda: task, steps, seed=seed, callback=lambda m: metrics.append(m) or False)
    return metrics


def test_the_network_of_the_paper_has_four_halvings_and_about_its_number_of_parameters():
    network = ConvActorCritic((20, 20), 16, 1)
    convolutions = [layer for layer in network.stem if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.stride[0] for layer in convolutions] == [1, 2, 2, 2, 2]
    assert sum(parameter.numel() for parameter in network.parameters()) == 370_562


@pytest.mark.parametrize(("patch_size", "channels"), [(2, 1), (4, 3), (8, 1)])
def test_one_number_a_patch_comes_from_the_image_that_the_patches_make(patch_size, channels):
    network = ConvActorCritic((2, 3), patch_size, channels, width=8).eval()
    torch.nn.init.ones_(network.policy_head.weight)
    images = torch.randn(2, channels, 2 * patch_size, 3 * patch_size)
    output = network(patchify(images, patch_size))
    assert output.logits.shape == output.values.shape == (2, 6)
    logits = network.policy_head(network.policy(network.stem(images))).flatten(1)
    torch.testing.assert_close(output.logits, bounded(logits, torch.ones(2, 6, dtype=torch.bool)))
    network.draws = "top_k"
    logits_of_their_own = network(patchify(images, patch_size)).logits
    torch.testing.assert_close(logits_of_their_own, LOGIT_CAP * (logits / LOGIT_CAP).tanh())


def test_patches_are_drawn_with_noise_unless_top_k_is_chosen():
    logits = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    uniforms = [random_scores((4, 16), torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    drawn = [build().draw(logits, EVERYTHING, uniform) for uniform in uniforms]
    assert not torch.equal(*drawn)
    highest = [build(draws="top_k").draw(logits, EVERYTHING, uniform) for uniform in uniforms]
    assert torch.equal(highest[0], logits.argsort(dim=1, descending=True))
    assert torch.equal(*highest)


def test_top_k_chooses_masked_patches_last():
    available = EVERYTHING.clone()
    available[:, :3] = False
    order = build(draws="top_k").draw(torch.ones(4, 16), available, torch.zeros(4, 16))
    assert set(order[:, 13:].flatten().tolist()) == {0, 1, 2}


def test_top_k_learns_from_the_probability_of_every_patch_and_has_no_entropy():
    generator = torch.Generator().manual_seed(2)
    logits, values, paid = torch.randn(3, 4, 16, generator=generator)
    logits.requires_grad_()
    output = ActorCriticOutput(logits, values, values.mean(dim=1))
    for rows in (slice(None), slice(1, 3)):
        told = torch.zeros(4, dtype=torch.bool)
        told[rows] = True
        loss = independent_loss(output, paid, told)
        expected = -(logits.sigmoid().log() * (paid - values))[rows].mean()
        torch.testing.assert_close(loss.policy, expected)
        torch.testing.assert_close(loss.value, functional.mse_loss(values[rows], paid[rows]))
    agent = build(draws="top_k")
    assert agent.entropy_coef == 0.0 and build().entropy_coef > 0
    metrics = play(agent, 2)
    assert [m["agent/draw_entropy"] for m in metrics] == [0.0, 0.0]
    assert play(build(), 1)[0]["agent/draw_entropy"] > 0.9


class Rich(PixelIdentityTask):
    """Every masked patch pays 50."""

    def step(self, actions):
        observation, reward, terminated, truncated, info = super().step(actions)
        info["patch_reward"] = 50.0 * info["mask"].astype(np.float32)
        return observation, reward, terminated, truncated, info


def test_the_critic_follows_the_scale_of_the_rewards_unless_it_is_capped_at_6():
    linear, capped = build(), build(critic="relu6")
    for agent in (linear, capped):
        play(agent, 3, Rich(num_envs=8))
    assert float(linear.network.reward_scale.value()) == pytest.approx(50.0)
    assert float(capped.network.reward_scale.value()) == 1.0
    for agent, low, high in ((linear, -100.0, 100.0), (capped, 0.0, 6.0)):
        torch.nn.init.constant_(agent.network.value_head.bias, high)
        values = agent.network.eval()(torch.randn(3, *SHAPE)).values
        assert (values > 6).any() == (agent is linear)
        torch.nn.init.constant_(agent.network.value_head.bias, low - 1.0)
        assert (agent.network(torch.randn(3, *SHAPE)).values < 0).any() == (agent is linear)


def test_the_learning_rate_stays_unless_it_decays_at_every_update():
    for decay, expected in ((1.0, 2e-4), (0.5, 2e-4 * 0.5**2)):
        agent = build(learning_rate_decay=decay)
        play(agent, 3)
        assert agent.optimizer.param_groups[0]["lr"] == pytest.approx(expected)


@pytest.mark.slow
def test_two_workers_learn_together():
    agent = build(num_workers=2, width=8)
    metrics = []
    agent.learn(PixelIdentityTask, 6, seed=0, callback=lambda m: metrics.append(m) or False)
    assert len(metrics) == int(agent.writes) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": "topk"}, "did you mean 'top_k'"),
        ({"critic": "relu"}, "did you mean 'relu6'"),
        ({"learning_rate_decay": 0.0}, "learning_rate_decay is 0.0"),
        ({"channels": 3}, "with 3 channels"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)


@pytest.mark.parametrize(("dim", "channels", "side"), [(1, 1, 1), (64, 1, 8), (192, 3, 8), (256, 4, 8)])
def test_the_side_of_a_patch_follows_from_its_values(dim, channels, side):
    assert patch_size_of(dim, channels) == side


@pytest.mark.parametrize(("dim", "channels"), [(128, 1), (144, 1), (192, 1)])
def test_embeddings_and_patches_without_a_power_of_two_are_refused(dim, channels):
    with pytest.raises(InputError, match="sees the raw image; choose `model=unet`"):
        patch_size_of(dim, channels)


def test_a_vision_transformers_embeddings_are_refused_by_the_training_loop():
    autoencoder = build_autoencoder("tiny", image_size=(32, 32))
    with pytest.raises(InputError, match="shows embeddings of its patches: choose `model=unet`"):
        agent_options("ahm2025", (), autoencoder, "tiny")
    autoencoder = build_autoencoder("unet", image_size=(32, 32), channels=3)
    options = agent_options("ahm2025", (), autoencoder, "unet")
    assert options == {"channels": 3}
    settings = {"num_workers": 1, "seed": 0, "device": torch.device("cpu")}
    agent = make_mask_source("ahm2025", autoencoder, options=options, **settings)
    assert agent.act(torch.zeros(2, autoencoder.num_patches, autoencoder.dim), deterministic=True).shape == (
        2,
        16,
    )


def test_equal_probabilities_of_the_published_agent_do_not_give_raster_order():
    agent = make_agent("ahm2025", (16, 16), draws="top_k")
    available = torch.ones(200, 16, dtype=torch.bool)
    uniform = random_scores((200, 16), torch.Generator().manual_seed(0))
    orders = agent.draw(torch.zeros(200, 16), available, uniform)
    assert len(set(orders[:, 0].tolist())) == 16
