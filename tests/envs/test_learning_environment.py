"""What an environment whose inside learns promises: nothing is lost, nothing learns unasked, and what it tells."""

import multiprocessing

import gymnasium as gym
import numpy as np
import pytest
import torch
from episodes import IMAGES, SIZES, B, L, make_env
from gymnasium.vector import AsyncVectorEnv
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import FlattenObservation, NormalizeObservation

import ahm_gym
from ahm_gym.envs import (
    REWARDS,
    MaskingEnv,
    MaskingVectorEnv,
    SequentialMaskingEnv,
    SequentialMaskingVectorEnv,
)
from ahm_gym.errors import InputError, check_seed
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.vit import build_autoencoder


def act(env, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (env.num_envs, env.num_patches)).astype(np.float32)


def weights_of(env):
    return [weight.detach().clone() for weight in env.pretrainer.autoencoder.parameters()]


def same(first, second):
    return all(map(torch.equal, first, second))


def test_a_reset_keeps_the_pretrainer_and_what_it_has_learned():
    env = make_env(MaskingVectorEnv)
    taken = env.pretrainer
    env.reset()
    env.step(act(env))
    learned = weights_of(env)
    env.reset(seed=3)
    _, info = env.reset()
    assert env.pretrainer is taken and taken.updates == 1 and same(learned, weights_of(env))
    assert (info["updates"] == 1).all()


def test_the_first_seed_draws_the_weights_unless_others_were_loaded():
    first, second, loaded = (make_env(MaskingVectorEnv) for _ in range(3))
    first.reset(seed=1)
    second.reset(seed=2)
    assert not same(weights_of(first), weights_of(second))
    state = build_autoencoder("tiny", image_size=(32, 32), seed=9).state_dict()
    loaded.pretrainer.autoencoder.load_state_dict(state)
    before = weights_of(loaded)
    loaded.reset(seed=1)
    assert same(before, weights_of(loaded))


def test_a_restart_is_exactly_a_new_environment():
    def trace(env, **options):
        env.reset(seed=4, **options)
        return [env.step(act(env, step))[1] for step in range(3)]

    env = make_env(MaskingVectorEnv, reward="relative", guided_fraction=0.5)
    pretrainer, first = env.pretrainer, trace(env)
    assert np.array_equal(trace(env, options={"restart": True}), first) and env.pretrainer is pretrainer
    passed = make_env(MaskingVectorEnv, pretrainer=pretrainer)
    with pytest.raises(InputError, match="`pretrainer` was passed in, so a reset cannot restart it"):
        passed.reset(options={"restart": True})


@pytest.mark.parametrize("reward", sorted(set(REWARDS) - {"progress"}))
def test_a_frozen_environment_pays_without_learning(reward):
    env = make_env(MaskingVectorEnv, reward=reward, guided_fraction=0.5)
    env.reset(seed=0)
    env.step(act(env))
    learned = weights_of(env)
    test = make_env(
        MaskingVectorEnv, reward=reward, guided_fraction=0.5, pretrainer=env.pretrainer, frozen=True
    )
    test.reset(seed=1)
    rewards = [test.step(act(test, step))[1] for step in range(3)]
    assert np.any(rewards) and same(learned, weights_of(env)) and env.pretrainer.updates == 1


def test_progress_cannot_be_paid_by_an_environment_that_never_learns():
    with pytest.raises(InputError, match="with `frozen` choose another"):
        make_env(MaskingVectorEnv, reward="progress:1", frozen=True)


@pytest.mark.parametrize("masking_steps", [1, 3])
@pytest.mark.parametrize("reward", sorted(REWARDS))
def test_training_goes_on_after_an_evaluation_as_if_there_had_been_none(reward, masking_steps):
    traces = []
    for evaluates in (False, True):
        env = make_env(
            MaskingVectorEnv, reward=reward, guided_fraction=0.5, masking_steps=masking_steps, num_steps=20
        )
        env.reset(seed=0)
        trace = []
        for step in range(7):
            if evaluates and step == 4:  # in the middle of an episode of three steps
                shown = env.patches.images.clone()
                with env.frozen():
                    assert not torch.equal(env.patches.images, shown)
                    observation, _ = env.reset(seed=8)
                    paid = [env.step(act(env, number))[1] for number in range(6)]
                    assert np.array_equal(env.reset(seed=8)[0], observation)
                    assert np.any(paid)
                assert torch.equal(env.patches.images, shown)
            observation, paid, *_, info = env.step(act(env, step))
            trace += [observation, paid, info["mask"], info["updates"]]
        traces.append([*trace, *(weight.numpy() for weight in weights_of(env))])
    assert all(map(np.array_equal, *traces))


def test_a_frozen_context_ends_with_an_error_as_with_success():
    env = make_env(MaskingVectorEnv)
    env.reset(seed=0)
    with pytest.raises(ZeroDivisionError), env.frozen():
        env.step(act(env))
        raise ZeroDivisionError
    assert env.learns and env.pretrainer.updates == 0
    env.step(act(env))
    assert env.pretrainer.updates == 1


def test_sb3s_evaluation_leaves_the_updates_alone():
    from stable_baselines3 import PPO
    from stable_baselines3.common.evaluation import evaluate_policy

    env = MaskingEnv(data=IMAGES, **SIZES)
    agent = PPO("MlpPolicy", env, n_steps=4, batch_size=4, n_epochs=1, device="cpu").learn(4)
    updates = env.pretrainer.updates
    with env.frozen():
        evaluate_policy(agent, agent.get_env(), n_eval_episodes=3, warn=False)
    assert env.pretrainer.updates == updates == 4
    agent.learn(4, reset_num_timesteps=False)
    assert env.pretrainer.updates == 8


def near_oracle(env, generator):
    """Scores that are the mean reward of each patch over random masks of the same images."""
    draws = torch.rand(12, env.num_envs, env.num_patches, generator=generator).argsort(dim=2).argsort(dim=2)
    measured = env.evaluate(draws < env.num_masked)
    paid = (measured.patch_reward).sum(axis=0) / (draws < env.num_masked).sum(dim=0).clamp(min=1).numpy()
    return (paid - paid.mean()) / (3 * paid.std() + 1e-9)


@pytest.mark.parametrize("reward", sorted(REWARDS))
def test_with_the_defaults_a_policy_near_the_oracle_is_paid_clearly_more_than_chance(reward):
    images = IMAGES.clone()
    images[:, :, :, 16:] *= 0.1  # one half of every image is easy
    paid = {"oracle": [], "random": []}
    for name, rewards in paid.items():
        env = MaskingVectorEnv(8, data=images, reward=reward, **SIZES)
        generator = torch.Generator().manual_seed(0)
        env.reset(seed=0)
        for update in range(24 if reward != "progress" else 48):
            drawn = torch.rand(8, L, generator=generator).numpy() - 0.5
            *_, info = env.step(near_oracle(env, generator) if name == "oracle" else drawn)
            assert info["guided"].sum(axis=1).tolist() == [6] * 8
            rows = info["paid"]
            if update >= 4:
                rewards.append(
                    (info["patch_reward"] * info["guided"])[rows].sum() / info["guided"][rows].sum()
                )
    difference = np.mean(paid["oracle"]) - np.mean(paid["random"])
    spread = sum(np.var(rewards) / len(rewards) for rewards in paid.values()) ** 0.5
    assert difference > 3 * spread and difference > 0, (difference, spread)


@pytest.mark.parametrize("reward", sorted(REWARDS))
def test_what_is_evaluated_is_what_a_step_then_pays(reward):
    env = make_env(MaskingVectorEnv, reward=reward, guided_fraction=1.0)
    env.reset(seed=0)
    if reward in ("relative", "progress"):
        env.step(act(env))
    masks = torch.rand(3, B, L, generator=torch.Generator().manual_seed(1)).argsort(dim=2).argsort(dim=2) < 12
    state = env.generator.get_state()
    measured = env.evaluate(masks)
    env.generator.set_state(state)
    assert measured.reward.shape == (3, B) and env.pretrainer.updates == int(
        reward in ("relative", "progress")
    )
    assert not measured.patch_loss[~masks.numpy()].any()
    if reward == "relative":
        env.reward.momentum, env.reward.count = 0.0, 10**9  # its statistics stay what they were
    *_, paid, _, _, info = env.step(masks[0].numpy() - 0.5)
    assert np.array_equal(info["mask"], masks[0])
    np.testing.assert_allclose(measured.patch_loss[0], info["patch_loss"], rtol=1e-4, atol=1e-6)
    if reward != "advantage":  # which draws other random masks
        rows = info["paid"]
        np.testing.assert_allclose(
            measured.patch_reward[0][rows], info["patch_reward"][rows], rtol=1e-3, atol=1e-4
        )
        np.testing.assert_allclose(measured.reward[0][rows], paid[rows], rtol=1e-3, atol=1e-4)


def test_an_evaluation_changes_nothing():
    traces = []
    for evaluates in (False, True):
        env = make_env(MaskingVectorEnv, reward="relative", guided_fraction=0.5)
        env.reset(seed=0)
        rewards = []
        for step in range(4):
            if evaluates:
                env.evaluate(np.tile(np.arange(L) < 12, (2, B, 1)))
            rewards.append(env.step(act(env, step))[1])
        traces.append(rewards)
    assert np.array_equal(*traces)


def test_the_reward_of_an_evaluation_is_the_mean_of_the_guided_patches():
    env = make_env(MaskingVectorEnv, reward="loss")
    env.reset(seed=0)
    masks = np.tile(np.arange(L) < 12, (1, B, 1))
    measured = env.evaluate(masks, guided=masks & (np.arange(L) < 3))
    np.testing.assert_allclose(measured.reward[0], measured.patch_loss[0][:, :3].mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("masks", "guided", "message"),
    [
        (np.ones((B, L), bool), None, r"shape \(4, 16\): expected \(number of masks, 4, 16\)"),
        (np.ones((2, B, L), bool), None, "hide 16 to 16 of 16 patches"),
        (np.tril(np.ones((2, B, L), bool)), None, "hide 1 to 4 of 16 patches"),
        (np.tile(np.arange(L) < 12, (2, B, 1)), np.ones((1, B, L), bool), "expected that of the masks"),
        (np.tile(np.arange(L) < 12, (2, B, 1)), np.ones((2, B, L), bool), "a guided patch is not masked"),
    ],
)
def test_masks_that_cannot_be_evaluated_are_refused(masks, guided, message):
    env = make_env(MaskingVectorEnv)
    with pytest.raises(gym.error.ResetNeeded):
        env.evaluate(masks, guided)
    env.reset(seed=0)
    with pytest.raises(InputError, match=message):
        env.evaluate(masks, guided)


@pytest.mark.parametrize("cls", [MaskingVectorEnv, SequentialMaskingVectorEnv])
def test_info_tells_where_the_training_stands(cls):
    env = make_env(cls, guided_fraction=0.25, num_steps=8, mask_ratio=lambda progress: 0.5 + progress / 4)
    _, info = env.reset(seed=0)
    assert info["num_guided"].tolist() == [1 if cls is SequentialMaskingVectorEnv else 2] * B
    assert (
        (info["updates"] == 0).all() and (info["progress"] == 0).all() and (info["mask_ratio"] == 0.5).all()
    )
    ended = False
    while not ended:
        action = env.action_space.sample()
        *_, terminated, _, info = env.step(action)
        ended = terminated.all()
    assert (info["updates"] == 1).all() and (info["progress"] == 1 / 8).all() and info["_updates"].all()
    assert (info["final_info"]["num_guided"] == info["num_guided"]).all()
    single = MaskingEnv(data=IMAGES, **SIZES)
    _, info = single.reset(seed=0)
    assert info["updates"] == 0 and info["num_guided"] == single.num_guided == 6
    assert single.pretrainer is single.vector.pretrainer and single.patches.images.shape == (1, 1, 32, 32)


def test_a_single_environment_continues_from_its_state():
    env = MaskingEnv(data=IMAGES, **SIZES, reward="loss")
    env.reset(seed=0)
    env.step(np.linspace(-1, 1, L))
    env.reset()
    state, weights = env.state_dict(), env.pretrainer.state_dict()
    other = MaskingEnv(data=IMAGES, **SIZES, reward="loss")
    other.pretrainer.load_state_dict(weights)
    other.load_state_dict(state)
    observation, _ = other.reset()
    assert np.array_equal(observation, env.vector.patches.embeddings[0].numpy())


@pytest.mark.parametrize("spread_fraction", [0.0, 1.0])
def test_info_says_where_spread_masks_overrule_the_scores(spread_fraction):
    env = make_env(MaskingVectorEnv, spread_fraction=spread_fraction, guided_fraction=0.5)
    env.reset(seed=0)
    found = []
    for step in range(8):
        action = act(env, step)
        *_, info = env.step(action)
        best = np.argsort(-action, axis=1)[:, :6]
        overruled = ~np.take_along_axis(info["guided"], best, axis=1).all(axis=1)
        assert np.array_equal(info["repaired"], overruled)
        found.append(overruled)
    assert np.any(found) == bool(spread_fraction)


def test_the_end_of_the_schedule_is_told_once():
    env = make_env(MaskingVectorEnv, num_steps=2)
    env.reset(seed=0)
    env.step(act(env))
    env.step(act(env))
    with pytest.warns(UserWarning, match="the schedule of 2 updates is over"):
        env.step(act(env))
    env.step(act(env))
    with env.frozen():
        env.step(act(env))


def test_a_limit_below_the_length_of_an_episode_is_told():
    env = TimeLimit(SequentialMaskingEnv(data=IMAGES, **SIZES), 2)
    with pytest.warns(UserWarning, match="A TimeLimit has to allow 6 steps"):
        for _ in range(3):
            env.reset()
            for patch in range(2):
                env.step(patch)


def share_of(pretrainer, cls=MaskingEnv):
    return lambda: cls(data=IMAGES, pretrainer=pretrainer, reward="loss", **SIZES)


def small_pretrainer():
    return Pretrainer(build_autoencoder("tiny", image_size=(32, 32), seed=0), num_steps=20)


def test_copies_in_other_processes_share_an_autoencoder_in_shared_memory():
    pretrainer = small_pretrainer().share_memory(multiprocessing.get_context("fork").Lock())
    before = [weight.detach().clone() for weight in pretrainer.autoencoder.parameters()]
    env = AsyncVectorEnv([share_of(pretrainer)] * 2, context="fork", shared_memory=False)
    env.reset(seed=0)
    for _ in range(3):
        env.step(env.action_space.sample())
    env.close()
    assert 4 <= pretrainer.updates <= 6
    assert not same(before, pretrainer.autoencoder.parameters())


class TellsWarnings(MaskingEnv):
    """Puts what it warns about into `info`, because a warning stays in its process."""

    def step(self, action):
        with pytest.warns(UserWarning) as told:
            *outcome, info = super().step(action)
        return *outcome, info | {"told": str(told[0].message)}


def test_a_copy_that_learns_alone_in_another_process_says_so():
    pretrainer = small_pretrainer()
    env = AsyncVectorEnv([share_of(pretrainer, TellsWarnings)], context="fork", shared_memory=False)
    env.reset(seed=0)
    *_, info = env.step(env.action_space.sample())
    env.close()
    assert "trains a copy of the autoencoder of its own" in info["told"][0] and pretrainer.updates == 0


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize("cls", [MaskingVectorEnv, SequentialMaskingVectorEnv])
def test_the_observation_can_be_flat_or_a_dict_with_the_action_mask(cls, tensors):
    envs = {
        form: make_env(cls, observation=form, masking_steps=2, tensors=tensors)
        if cls is MaskingVectorEnv
        else make_env(cls, observation=form, tensors=tensors)
        for form in ("patches", "flat", "dict")
    }
    seen = {form: env.reset(seed=0)[0] for form, env in envs.items()}
    for step in range(2):
        patches = np.asarray(seen["patches"])
        assert np.array_equal(np.asarray(seen["flat"]), patches.reshape(B, -1))
        assert np.array_equal(np.asarray(seen["dict"]["patches"]), patches)
        mask = np.asarray(seen["dict"]["action_mask"])
        assert mask.dtype == np.int8 and np.array_equal(mask == 0, (patches == 0).all(axis=2))
        assert mask.all() == (step == 0)
        if not tensors:
            for form, env in envs.items():
                assert env.observation_space.contains(seen[form])
        action = act(envs["flat"]) if cls is MaskingVectorEnv else np.full(B, 3)
        seen = {form: env.step(action)[0] for form, env in envs.items()}
    single = gym.make("AHM/Masking-v0", data=IMAGES, observation="dict", **SIZES)
    observation, _ = single.reset(seed=0)
    assert single.observation_space.contains(observation)


def test_gymnasiums_vector_wrappers_work_with_the_right_autoreset():
    env = NormalizeObservation(FlattenObservation(make_env(MaskingVectorEnv, autoreset_mode="NextStep")))
    observation, _ = env.reset(seed=0)
    assert observation.shape == (B, L * 128)


def test_the_autoencoder_of_an_environment_follows_its_settings():
    env = ahm_gym.make_vec(
        2, data=IMAGES, target="hog", learning_rate=5e-4, device="cpu", num_steps=7, **SIZES
    )
    pretrainer = env.pretrainer
    assert (pretrainer.learning_rate, pretrainer.num_steps) == (5e-4, 7)
    assert pretrainer.autoencoder.target.name == "hog" and pretrainer.device.type == "cpu"
    with pytest.raises(InputError, match="`device=quantum` is unknown"):
        make_env(MaskingVectorEnv, device="quantum")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gym.make("AHM/Masking-v0", num_envs=3, data=IMAGES), "`num_envs` is an option of a batch"),
        (lambda: make_env(MaskingVectorEnv, autoreset_mode="nextstep"), "did you mean 'NextStep'"),
        (lambda: check_seed([1, 2]), r"`seed` is \[1, 2\]: choose a whole number"),
        (lambda: make_env(MaskingVectorEnv, observation="image"), "unknown form of the observation 'image'"),
        (lambda: make_env(MaskingVectorEnv, reward="progress:0"), "the share of the images that are paid"),
        (lambda: make_env(MaskingVectorEnv, reward="progress:all"), "the share of the images that are paid"),
        (lambda: make_env(MaskingVectorEnv, reward="loss:1"), "only ahm2025 and progress have one"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(("share", "expected"), [("progress", 2), ("progress:1", 4), ("progress:0.25", 1)])
def test_the_images_that_progress_pays_take_turns(share, expected):
    env = make_env(MaskingVectorEnv, reward=share, guided_fraction=0.5)
    env.reset(seed=0)
    paid = np.array([env.step(act(env, step))[-1]["paid"] for step in range(8)])
    assert (paid.sum(axis=1) == expected).all() and (paid.sum(axis=0) == 2 * expected).all()
