import copy
import dataclasses

import pytest
import torch
from programs import assert_same

from ahm_gym.agents import make_agent
from ahm_gym.envs import MaskingVectorEnv
from ahm_gym.errors import InputError
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.selection import PatchBatch, mask_top_k
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.policies import POLICIES, make_policy
from ahm_gym.pretraining.policy_agent import PolicyAgent
from ahm_gym.pretraining.trained_agent import save_agent
from ahm_gym.testing.agents import saved_and_loaded

SIZE = (32, 48)
NAMES = sorted(set(POLICIES) - {"agent"})
BY_CHANCE = ["block", "grid", "random", "spread"]


@pytest.fixture(scope="module")
def autoencoder():
    return build_autoencoder("tiny", image_size=SIZE, patch_size=8, seed=0)


@pytest.fixture(scope="module")
def patches(autoencoder):
    images = torch.randn(64, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    return PatchBatch(images, autoencoder.embed(images).detach(), autoencoder.grid, 0.5)


@pytest.fixture(scope="module")
def run(autoencoder, tmp_path_factory):
    """A folder with a trained agent, as a run leaves it."""
    folder = tmp_path_factory.mktemp("run")
    agent = make_agent("a3c", (24, 128), grid=(4, 6))
    torch.nn.init.normal_(agent.network.heads.weight, generator=torch.Generator().manual_seed(1))
    save_agent(folder / "agent", "a3c", {}, agent, "tiny", autoencoder)
    return folder, agent


@pytest.mark.parametrize("name", BY_CHANCE)
def test_a_rule_guides_every_masked_patch_and_draws_differently_from_another_generator(
    name, autoencoder, patches
):
    policy = make_policy(name, autoencoder)
    first, other = (policy.score(patches, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert not torch.equal(first, other)
    assert policy.guided_fraction == 1.0


def small_batch(autoencoder, seed):
    shape = (4, autoencoder.channels, *autoencoder.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return PatchBatch(images, autoencoder.embed(images).detach(), autoencoder.grid, seed / 4)


def learn(policy, autoencoder, steps):
    """Scores and metrics of a few updates, each with its own batch and generator."""
    history = []
    for step in steps:
        patches = small_batch(autoencoder, step)
        generator = torch.Generator().manual_seed(step)
        scores = policy.score(patches, generator)
        mask = mask_top_k(scores.cpu(), patches.num_masked, generator=generator)
        patch_loss = torch.rand(mask.shape, generator=generator)
        history.append((scores, policy.observe(patches, Masks.of(mask), patch_loss)))
    return history


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_continues_from_its_state_exactly_and_is_the_same_for_the_same_autoencoder(
    name, autoencoder
):
    whole, stopped = (make_policy(name, autoencoder) for _ in range(2))
    expected = learn(whole, autoencoder, range(4))
    learn(stopped, autoencoder, range(2))
    other = build_autoencoder("tiny", image_size=SIZE, patch_size=8, seed=1)
    resumed = make_policy(name, other)  # a resumed run makes its policy before it loads its weights
    other.load_state_dict(autoencoder.state_dict())
    resumed.load_state_dict(saved_and_loaded(stopped.state_dict()))
    for (scores, metrics), (same, too) in zip(expected[2:], learn(resumed, other, range(2, 4)), strict=True):
        assert torch.equal(scores, same) and metrics == too
    assert_same(saved_and_loaded(resumed.state_dict()), saved_and_loaded(whole.state_dict()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", ["unet", "test_vit2", "tiny_conv"])
def test_a_policy_works_with_every_autoencoder_for_which_its_rule_makes_sense(model, name):
    autoencoder = build_autoencoder(model, image_size=(32, 48), patch_size=8, channels=2)
    if model == "unet" and name.startswith("attention"):
        with pytest.raises(InputError, match="choose a vision transformer"):
            make_policy(name, autoencoder)
        return
    before = torch.get_rng_state()
    for scores, metrics in learn(make_policy(name, autoencoder), autoencoder, range(2)):
        assert scores.shape == (4, 24) and torch.isfinite(scores).all()
        assert all(key.startswith("policy/") for key in metrics)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", NAMES)
def test_looking_at_other_images_between_two_updates_changes_nothing(name, autoencoder):
    undisturbed, disturbed = (make_policy(name, autoencoder) for _ in range(2))
    expected = learn(undisturbed, autoencoder, range(2))
    found = []
    for step in range(2):
        disturbed.score(small_batch(autoencoder, 9), torch.Generator().manual_seed(9))
        found += learn(disturbed, autoencoder, [step])
    for (scores, metrics), (same, too) in zip(expected, found, strict=True):
        assert torch.equal(scores, same) and metrics == too


@pytest.mark.parametrize("name", sorted({*NAMES} - {"thompson"}))  # whose share is that of its strategy
def test_every_policy_pretrains_in_the_environment_with_its_own_guided_share(name, patches):
    autoencoder = build_autoencoder("tiny", image_size=SIZE, patch_size=8, seed=0)
    pretrainer = Pretrainer(autoencoder, num_steps=2)
    actor = PolicyAgent(make_policy(name, autoencoder))
    images = patches.images[:8]
    env = MaskingVectorEnv(4, data=images, pretrainer=pretrainer, guided_fraction=actor.guided_fraction)
    rows = []
    actor.learn(lambda: env, 2, seed=0, callback=rows.append)
    assert pretrainer.updates == 2 and all(row["loss"] > 0 for row in rows)
    share = 4 / 18 if name in ("hard_patches", "teacher_loss") else 1.0  # a quarter of 18, rounded
    assert [row["guided"] for row in rows] == pytest.approx([0.0 if share < 1 else 1.0, share])


def test_policies_know_how_many_patches_will_be_masked(autoencoder, patches):
    assert patches.num_masked == 18
    assert dataclasses.replace(patches, mask_ratio=0.6).num_masked == 14


def test_random_masks_are_uniform(autoencoder, patches):
    generator = torch.Generator().manual_seed(0)
    policy = make_policy("random", autoencoder)
    frequency = torch.stack([mask_top_k(policy.score(patches, generator), 18) for _ in range(50)])
    assert torch.allclose(frequency.float().mean(dim=(0, 1)), torch.full((24,), 0.75), atol=0.03)


def test_grid_keeps_one_of_each_two_by_two(autoencoder, patches):
    scores = make_policy("grid", autoencoder).score(patches, torch.Generator().manual_seed(0))
    visible = ~mask_top_k(scores, 18).reshape(64, 4, 6)
    blocks = visible.reshape(64, 2, 2, 3, 2).sum(dim=(2, 4))
    assert (blocks == 1).all()
    assert len({tuple(v.flatten().tolist()) for v in visible}) == 4


def test_block_masks_lie_together(autoencoder, patches):
    def neighbours(name):
        scores = make_policy(name, autoencoder).score(patches, torch.Generator().manual_seed(0))
        mask = mask_top_k(scores, 12).reshape(64, 4, 6).float()
        return float((mask[:, :, 1:] * mask[:, :, :-1]).mean() + (mask[:, 1:] * mask[:, :-1]).mean())

    assert neighbours("block") > 1.3 * neighbours("random")


def test_an_agent_as_policy_acts_as_it_was_trained_with_any_autoencoder(run, patches):
    folder, agent = run
    other = build_autoencoder("small", image_size=SIZE, patch_size=8, seed=9)
    policy = make_policy(f"agent:{folder}", other)
    seen = PatchBatch(patches.images, other.embed(patches.images).detach(), other.grid, 0.5)
    expected = agent.act(patches.embeddings, deterministic=True)
    torch.testing.assert_close(policy.score(seen, torch.Generator()), expected)
    assert policy.guided_fraction(0.25) == 0.25 and policy.spread_fraction(0.25) == 0.5
    assert policy.observe(patches, Masks.of(mask_top_k(expected, 18)), expected) == {}


def test_a_frozen_agent_is_part_of_the_state_of_the_run_that_it_masks_for(run, patches, autoencoder):
    policy = make_policy(f"agent:{run[0]}", autoencoder)
    state, expected = copy.deepcopy(policy.state_dict()), policy.score(patches, torch.Generator())
    for parameter in [*policy.agent.network.parameters(), policy.embedder.encoder.patch_embed.proj.weight]:
        parameter.data.add_(0.1)
    assert not torch.equal(policy.score(patches, torch.Generator()), expected)
    policy.load_state_dict(state)
    assert torch.equal(policy.score(patches, torch.Generator()), expected)


def test_an_agent_of_another_grid_is_refused(run):
    other = build_autoencoder("tiny", image_size=(32, 32), patch_size=8)
    with pytest.raises(
        InputError,
        match="was trained with a grid of 4x6 patches of 8 px with 1 channels, and this run has 4x4",
    ):
        make_policy(f"agent:{run[0]}", other)


def test_a_folder_without_an_agent_is_refused(autoencoder, tmp_path):
    with pytest.raises(InputError, match="holds no trained agent"):
        make_policy(f"agent:{tmp_path}", autoencoder)


@pytest.mark.parametrize(
    ("name", "message"),
    [("randm", "did you mean 'random'"), ("agent", "agent:RUN_DIR"), ("block:3", "bare name")],
)
def test_names_that_cannot_be_used_are_refused(name, message, autoencoder):
    with pytest.raises(InputError, match=message):
        make_policy(name, autoencoder)
