import warnings

import gymnasium as gym
import numpy as np
import pytest
from episodes import IMAGES, NUM_MASKED, SIZES, B, L, begin, bits, make_env, play
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import ahm_gym.envs
from ahm_gym.envs import (
    GroupMaskingVectorEnv,
    MaskingVectorEnv,
    MultiBinaryMaskingVectorEnv,
    RectangleMaskingVectorEnv,
    SequentialMaskingVectorEnv,
)
from ahm_gym.errors import InputError
from ahm_gym.masking.schedules import RisingMaskRatio
from ahm_gym.masking.selection import count_masked
from ahm_gym.testing import check_vector_env

STEPWISE = [SequentialMaskingVectorEnv, GroupMaskingVectorEnv, RectangleMaskingVectorEnv]
FORMS = [MultiBinaryMaskingVectorEnv, *STEPWISE]
IDS = [env_id for env_id in gym.registry if env_id.startswith("AHM/") and env_id != "AHM/Curriculum-v0"]
RISING = RisingMaskRatio(0.25, 0.75)
WHOLE = np.array([0, 0, 3, 3])
"""The rectangle that covers the image."""


def test_five_forms_of_the_action_are_registered():
    assert sorted(IDS) == sorted(
        f"AHM/{form}Masking-v0" for form in ("", "MultiBinary", "Sequential", "Group", "Rectangle")
    )


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("guided_fraction", [0.4, 1.0])
@pytest.mark.parametrize("cls", FORMS)
def test_every_form_passes_our_checker(cls, guided_fraction, mode):
    check_vector_env(lambda: make_env(cls, guided_fraction=guided_fraction, autoreset_mode=mode))


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("guided_fraction", [0.4, 1.0])
@pytest.mark.parametrize("cls", [MaskingVectorEnv, *FORMS])
def test_every_form_passes_our_checker_while_the_mask_ratio_rises(cls, guided_fraction, mode):
    options = {"mask_ratio": RISING, "num_steps": 2, "guided_fraction": guided_fraction}
    check_vector_env(lambda: make_env(cls, autoreset_mode=mode, **options))


@pytest.mark.filterwarnings("ignore:.*the schedule of 4 updates is over")
@pytest.mark.parametrize("guided_fraction", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("cls", [MaskingVectorEnv, *FORMS])
def test_every_batch_masks_the_count_of_its_progress(cls, guided_fraction):
    env = begin(cls, mask_ratio=RISING, num_steps=4, guided_fraction=guided_fraction)
    lengths = []
    for update in range(6):
        assert env.pretrainer.updates == update
        expected = count_masked(L, RISING(min(update / 4, 1.0)))
        assert env.num_masked == expected
        infos = play(env)
        num_guided = round(guided_fraction * expected)
        if cls in STEPWISE:
            num_guided = max(1, num_guided)
        assert (infos[-1]["mask"].sum(axis=1) == expected).all()
        assert (infos[-1]["guided"].sum(axis=1) == num_guided).all()
        assert env.num_masked == expected
        lengths.append(len(infos))
        env.reset()
    if cls is SequentialMaskingVectorEnv and guided_fraction == 1.0:
        assert lengths == [4, 6, 8, 10, 12, 12]


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (MaskingVectorEnv, "masking_steps"),
        (GroupMaskingVectorEnv, "group_size"),
        (RectangleMaskingVectorEnv, "num_rectangles"),
    ],
)
def test_a_count_must_fit_the_fewest_patches_of_a_rising_ratio(cls, name):
    make_env(cls, mask_ratio=RISING, **{name: 4})
    with pytest.raises(InputError, match=f"`{name}` is 5: choose from 1 to the 4"):
        make_env(cls, mask_ratio=RISING, **{name: 5})


@pytest.mark.parametrize("env_id", IDS)
def test_check_env_of_gymnasium_and_of_sb3_pass(env_id):
    env = gym.make(f"ahm_gym:{env_id}", data=IMAGES, **SIZES).unwrapped
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r".*Box observation space (minimum|maximum) value is (-)?infinity.*"
        )
        check_env(env)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*observation .* has an unconventional shape.*")
        check_env_sb3(env)


@pytest.mark.parametrize("prefix", ["", "ahm_gym:"])
@pytest.mark.parametrize("env_id", IDS)
def test_an_id_makes_the_one_image_and_the_vector_form(env_id, prefix):
    name = env_id.removeprefix("AHM/").removesuffix("-v0")
    single = gym.make(prefix + env_id, data=IMAGES, **SIZES)
    vector = gym.make_vec(prefix + env_id, num_envs=3, data=IMAGES, **SIZES)
    assert type(single.unwrapped) is getattr(ahm_gym.envs, f"{name}Env")
    assert type(vector) is getattr(ahm_gym.envs, f"{name}VectorEnv")
    assert vector.observation_space.shape == (3, L, 128)
    _, info = single.reset(seed=0)
    *_, info = single.step(single.action_space.sample())
    assert info["mask"].shape == (L,)


@pytest.mark.parametrize("guided_fraction", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("cls", FORMS)
def test_an_episode_is_one_update_and_masks_exactly_the_number_of_patches(cls, guided_fraction):
    env = begin(cls, guided_fraction=guided_fraction)
    infos = play(env)
    num_guided = round(guided_fraction * NUM_MASKED)
    if cls in STEPWISE:
        num_guided = max(1, num_guided)
    assert env.pretrainer.updates == 1 and env.num_guided == 0
    assert (infos[-1]["mask"].sum(axis=1) == NUM_MASKED).all()
    assert (infos[-1]["guided"].sum(axis=1) == num_guided).all()
    assert infos[-1]["repaired"].shape == (B,) and infos[-1]["repaired"].dtype == bool


@pytest.mark.parametrize("cls", STEPWISE)
def test_before_the_last_step_only_guided_patches_are_masked(cls):
    *infos, last = play(begin(cls, guided_fraction=0.5, reward="loss"))
    assert infos
    for info in infos:
        assert np.array_equal(info["mask"], info["guided"])
        assert not info["patch_reward"].any()
    assert (last["mask"] & ~last["guided"]).sum(axis=1).tolist() == [6] * B
    assert len({tuple(row) for row in last["mask"] & ~last["guided"]}) > 1


@pytest.mark.parametrize("cls", STEPWISE)
def test_a_number_of_steps_is_refused_if_it_follows_from_the_guided_patches(cls):
    with pytest.raises(InputError, match="masking_steps does not apply to this form"):
        make_env(cls, masking_steps=2)


@pytest.mark.parametrize(
    ("cls", "name"), [(GroupMaskingVectorEnv, "group_size"), (RectangleMaskingVectorEnv, "num_rectangles")]
)
@pytest.mark.parametrize("count", [0, 13])
def test_a_count_out_of_range_is_refused(cls, name, count):
    with pytest.raises(InputError, match=f"`{name}` is {count}: choose from 1 to the 12"):
        make_env(cls, **{name: count})


@pytest.mark.parametrize(
    ("cls", "action", "message"),
    [
        (SequentialMaskingVectorEnv, [0, 1, 2, L], "contain 16: expected patch indices from 0 to 15"),
        (SequentialMaskingVectorEnv, [0, 1, 2], r"shape \(3,\): expected patch indices"),
        (
            GroupMaskingVectorEnv,
            np.full((B, 4), -1),
            "contain -1: expected patch indices from 0 to 15, 4 per image",
        ),
        (GroupMaskingVectorEnv, np.zeros((B, 3)), r"shape \(4, 3\)"),
        (MultiBinaryMaskingVectorEnv, np.full((B, L), 0.5), "contain 0.5: expected 0 or 1"),
        (MultiBinaryMaskingVectorEnv, np.full((B, L), np.nan), "contain nan"),
        (MultiBinaryMaskingVectorEnv, bits(1)[:, 1:], r"shape \(4, 15\)"),
        (RectangleMaskingVectorEnv, [WHOLE, WHOLE, WHOLE, WHOLE + 1], "contain 4: expected top, left"),
        (RectangleMaskingVectorEnv, [WHOLE], r"shape \(1, 4\)"),
    ],
)
def test_bad_actions_are_refused_and_change_nothing(cls, action, message):
    env = begin(cls)
    with pytest.raises(InputError, match=message):
        env.step(action)
    play(env)
    assert env.pretrainer.updates == 1


def test_the_scores_form_keeps_its_number_of_steps():
    env = begin(MaskingVectorEnv, masking_steps=4, guided_fraction=0.0)
    assert env.masking_steps == 4 and env.num_guided == 0
    assert len(play(env)) == 4
