"""Volumes: every room that images go through takes a third axis, or refuses it in one sentence."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from ahm_gym.agents import agents, make_agent
from ahm_gym.envs import REWARDS, MaskingVectorEnv, RectangleMaskingVectorEnv
from ahm_gym.envs.rectangles import rectangle_distance
from ahm_gym.errors import InputError
from ahm_gym.masking.blocks import block_scores
from ahm_gym.masking.drawing import draw_masks
from ahm_gym.masking.selection import mask_top_k
from ahm_gym.masking.spread import spread_over
from ahm_gym.model.encoder_base import NUM_MAPS, as_encoder
from ahm_gym.model.patches import image_size_of, patchify, unpatchify
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.vit import build_autoencoder, position_embedding
from ahm_gym.policies import make_policy, policies
from ahm_gym.pretraining.policy_agent import PolicyAgent
from ahm_gym.pretraining.training import EnvFactory

SIZE, GRID, SIDE = (12, 16, 20), (3, 4, 5), 4
L = 60
VOLUMES = torch.randn(8, 1, *SIZE, generator=torch.Generator().manual_seed(0))
REFUSED = {"ahm2025"}
"""What has no form for volumes."""


def autoencoder(**options):
    return build_autoencoder("tiny", image_size=SIZE, patch_size=SIDE, **options)


def env_of(**options) -> MaskingVectorEnv:
    return MaskingVectorEnv(4, data=VOLUMES, pretrainer=Pretrainer(autoencoder(), num_steps=20), **options)


def test_patches_of_a_volume_are_in_reading_order_and_ordered_by_axis_then_channel():
    volumes = torch.arange(2 * 3 * 12 * 16 * 20.0).view(2, 3, *SIZE)
    patches = patchify(volumes, SIDE)
    for number, (plane, row, column) in ((0, (0, 0, 0)), (7, (0, 1, 2)), (59, (2, 3, 4))):
        cut = volumes[:, :, 4 * plane : 4 * plane + 4, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        assert torch.equal(patches[:, number], cut.movedim(1, -1).flatten(1))
    assert torch.equal(unpatchify(patches, GRID, SIDE), volumes)


@pytest.mark.parametrize(
    ("sizes", "axes", "expected"),
    [(64, 2, (64, 64)), ((64, 48), 2, (64, 48)), (48, 3, (48, 48, 48)), ((8, 16, 24), 3, (8, 16, 24))],
)
def test_one_number_is_that_of_all_axes(sizes, axes, expected):
    assert image_size_of(sizes, axes) == expected


def test_one_size_of_an_environment_is_that_of_all_axes_of_its_volumes():
    env = gym.make_vec(
        "ahm_gym:AHM/Masking-v0", num_envs=2, data=torch.randn(4, 1, 8, 8, 8), image_size=8, patch_size=4
    )
    assert env.unwrapped.grid == (2, 2, 2)


def test_two_numbers_are_no_size_of_a_volume():
    with pytest.raises(
        InputError, match="one number for a cube, or lengths to the right, forwards and upwards"
    ):
        image_size_of((64, 48), 3)


def test_every_window_of_a_spread_mask_keeps_its_share_of_visible_patches():
    spread = spread_over((4, 4, 4), 56)  # one of eight is visible
    assert torch.bincount(spread.window).tolist() == [8] * 8
    masks = draw_masks(
        torch.rand(3, 64), (4, 4, 4), 56, torch.Generator().manual_seed(0), spread_fraction=1.0
    )
    visible = ~masks.masked.view(3, 2, 2, 2, 2, 2, 2)
    assert (visible.sum(dim=(2, 4, 6)) == 1).all()


def test_positions_of_a_volume_differ_along_every_axis_and_leave_the_rest_zero():
    positions = position_embedding(128, GRID, 0)[0].view(*GRID, 128)
    for axis in range(3):
        assert (positions.diff(dim=axis).abs().amax(dim=-1) > 0.1).all()
    assert not positions[..., 126:].any() and len(positions.flatten(0, 2).unique(dim=0)) == L


def test_the_autoencoder_encodes_as_timm_does_and_never_sees_masked_voxels():
    model, volumes = autoencoder(), VOLUMES[:2].clone()
    assert torch.allclose(model.encode(volumes), model.encoder.forward_features(volumes), atol=1e-5)
    mask = mask_top_k(torch.rand(2, L), 45)
    encoded = model.encode(volumes, mask)
    patches = patchify(volumes, SIDE)
    patches[mask] = 1e3
    assert torch.equal(model.encode(unpatchify(patches, GRID, SIDE), mask), encoded)
    maps = as_encoder(model.encoder).feature_maps(volumes)
    assert [tuple(one.shape) for one in maps] == [(2, 128, *GRID)] * NUM_MAPS
    last = as_encoder(model.encoder).patch_features(volumes)
    assert torch.allclose(maps[-1].flatten(2).transpose(1, 2), last, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in policies() if name != "agent"])
def test_every_policy_masks_volumes(name: str):
    torch.manual_seed(0)
    env = env_of(tensors=True)
    PolicyAgent(make_policy(name, env.pretrainer.autoencoder)).learn(lambda: env, 2, seed=0)
    assert env.pretrainer.updates == 2 and env.unwrapped._mask.masks.masked.sum(dim=1).unique().numel() == 1


@pytest.mark.parametrize("name", ["a3c", "patch_ppo", "group", "ppo", "dqn"])
def test_agents_mask_volumes(name: str):
    assert name in agents()
    pretrainer = Pretrainer(autoencoder(), num_steps=20)
    agent = make_agent(name, (L, 128), grid=GRID, seed=0)
    options = {"num_envs": 4} | ({"tensors": True} if agent.takes_tensors else {})
    agent.learn(EnvFactory(agent.env_id, VOLUMES, pretrainer, options, shared=False), 2, seed=0)
    assert pretrainer.updates >= 2


@pytest.mark.parametrize("model", ["unet", "resenc"])
@pytest.mark.parametrize("name", ["random", "a3c"])
def test_u_nets_learn_from_masked_volumes(model: str, name: str):
    volumes = torch.randn(4, 1, 16, 16, 32, generator=torch.Generator().manual_seed(0))
    unet = build_autoencoder(model, image_size=(16, 16, 32), patch_size=8, hiding="masked", target="latent")
    pretrainer = Pretrainer(unet, num_steps=20)
    before = unet.encoder.state_dict()[unet.encoder.stem].clone()
    agent = (
        PolicyAgent(make_policy(name, unet))
        if name == "random"
        else make_agent(name, (unet.num_patches, unet.dim), grid=unet.grid, seed=0)
    )
    options = {"num_envs": 2} | ({"tensors": True} if agent.takes_tensors else {})
    agent.learn(EnvFactory(agent.env_id, volumes, pretrainer, options, shared=False), 2, seed=0)
    assert pretrainer.updates == 2 and not torch.equal(unet.encoder.state_dict()[unet.encoder.stem], before)


@pytest.mark.parametrize("reward", sorted(REWARDS.keys() - REFUSED))
def test_rewards_pay_for_volumes(reward: str):
    env = env_of(reward=reward)
    env.reset(seed=0)
    *_, info = env.step(np.random.default_rng(0).random((4, L)))
    assert np.isfinite(info["patch_reward"]).all()


def test_what_has_no_form_for_volumes_says_so():
    with pytest.raises(InputError, match="reward ahm2025 knows images and no volumes: choose another reward"):
        env_of(reward="ahm2025")
    with pytest.raises(InputError, match="`target=hog` knows images and no volumes"):
        autoencoder(target="hog")
    with pytest.raises(
        InputError, match="`model=tiny_conv` knows images and no volumes: choose .*unet or resenc"
    ):
        build_autoencoder("tiny_conv", image_size=SIZE, patch_size=SIDE)
    with pytest.raises(InputError, match="model 'vit_tiny_patch16_224' has no form for volumes: choose tiny"):
        build_autoencoder("vit_tiny_patch16_224", image_size=SIZE, patch_size=SIDE)


def test_blocks_of_a_volume_are_boxes():
    scores = block_scores(3, (6, 6, 6), torch.Generator().manual_seed(0)).view(3, 6, 6, 6)
    first = scores > 0  # all of the first box; random parts of a score are below 1
    for image in first:
        axes = [image.any(dim=tuple({0, 1, 2} - {axis})) for axis in range(3)]
        outer = axes[0][:, None, None] & axes[1][:, None] & axes[2]
        assert torch.equal(outer, image) and 0.05 < image.float().mean() < 0.5


def test_a_box_is_masked_a_step_and_boxes_grow_in_rings():
    distance = rectangle_distance(torch.tensor([[1, 1, 1, 0, 1, 2]]), GRID).view(GRID)
    assert (distance == 0).nonzero().tolist() == [[1, row, column] for row in (1, 2) for column in (1, 2, 3)]
    assert distance[0, 0, 0] == 1 and distance[2, 3, 4] == 1 and distance.max() == 1
    env = RectangleMaskingVectorEnv(
        2, data=VOLUMES, pretrainer=Pretrainer(autoencoder(), num_steps=20), num_rectangles=2
    )
    env.reset(seed=0)
    assert env.single_action_space == gym.spaces.MultiDiscrete([*GRID, *GRID])
    with pytest.raises(InputError, match=r"front, top, left, .* of a box in 3 x 4 x 5 patches"):
        env.step(np.full((2, 6), 9))
    for _ in range(2):
        env.step(np.zeros((2, 6), dtype=int))
    assert env.pretrainer.updates == 1


def test_a_volume_is_shown_by_its_three_middle_planes():
    env = env_of(render_mode="rgb_array")
    env.reset(seed=0)
    env.step(np.zeros((4, L)))
    picture = env.render()[0]
    assert picture.shape == (16 + 2 + 20 + 2 + 20, 4 * 16 + 3 * 2, 3)
    shown = (VOLUMES - VOLUMES.min()) / (VOLUMES.max() - VOLUMES.min())
    images = [(one * 255).round().byte() for one in shown[:, 0]]
    axial, coronal, sagittal = (
        torch.as_tensor(picture[rows, :width, 0])
        for rows, width in ((slice(16), 12), (slice(18, 38), 12), (slice(40, 60), 16))
    )
    assert any(
        torch.equal(axial, one[:, :, 10].T.flip(0))
        and torch.equal(coronal, one[:, 10].T.flip(0))
        and torch.equal(sagittal, one[6].T.flip(0))
        for one in images
    )
