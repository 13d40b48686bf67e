import math
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from programs import write_discs
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3
from torch.nn.utils import parameters_to_vector

from ahm_gym.data import open_data
from ahm_gym.envs.curriculum import CurriculumEnv
from ahm_gym.errors import InputError
from ahm_gym.mixing.bandit import ThompsonSampling
from ahm_gym.mixing.strategies import STRATEGIES, Strategy
from ahm_gym.segmentation.probe import Probe
from ahm_gym.segmentation.probe_score import ProbeScore

IMAGES = torch.randn(24, 1, 32, 32, generator=torch.Generator().manual_seed(0))
SMALL = {"image_size": 32, "num_steps": 7, "updates_per_step": 3, "batch_size": 4, "held_out": 4}


def make(**options):
    return CurriculumEnv(**{"data": IMAGES} | SMALL | options)


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    path = write_discs(tmp_path_factory.mktemp("data") / "discs.npz")
    return open_data(str(path), image_size=(32, 32), need_labels=True)


def run(env, actions, seed=0):
    """Observations, rewards and the last info of an episode, and the weights after it."""
    observation, info = env.reset(seed=seed)
    rows, rewards, ended = [observation], [], False
    for action in actions:
        assert not ended
        observation, reward, ended, truncated, info = env.step(action)
        assert not truncated
        rows.append(observation)
        rewards.append(reward)
    assert ended
    return np.stack(rows), rewards, info, weights(env)


def weights(env):
    return parameters_to_vector(env.pretrainer.autoencoder.parameters()).detach().clone()


@pytest.mark.parametrize(
    "action",
    ["strategies", *(pytest.param(name, marks=pytest.mark.slow) for name in ("controller", "mixture"))],
)
def test_the_checkers_of_gymnasium_and_stable_baselines3_have_nothing_to_say(action):
    env = gym.make(
        "ahm_gym:AHM/Curriculum-v0",
        data=IMAGES,
        action=action,
        **SMALL | {"num_steps": 2, "updates_per_step": 1},
    ).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)
        check_env_of_sb3(env)


@pytest.mark.parametrize(
    ("algorithm", "action"),
    [
        (PPO, "strategies"),
        pytest.param(PPO, "controller", marks=pytest.mark.slow),
        pytest.param(DQN, "strategies", marks=pytest.mark.slow),
    ],
)
def test_stable_baselines3_learns_on_it_unmodified(algorithm, action):
    options = {"n_steps": 4, "batch_size": 4} if algorithm is PPO else {"learning_starts": 2}
    model = algorithm("MlpPolicy", make(action=action), device="cpu", seed=0, **options)
    assert model.learn(8).num_timesteps >= 8


def test_the_rewards_of_an_episode_sum_up_to_the_fall_of_the_log_of_the_battery_loss():
    env = make()
    _, begin = env.reset(seed=0)
    _, rewards, info, _ = run(env, [0, 5, 1])
    assert sum(rewards) == pytest.approx(math.log(begin["battery_loss"] / info["battery_loss"]))
    assert sum(rewards) > 0.01


def test_the_last_step_makes_the_rest_of_the_updates_and_info_says_where_training_is():
    env = make()
    observations, _, info, _ = run(env, [0, 0, 4])
    assert (info["updates"], info["progress"]) == (7, 1.0)
    assert info["shares"].tolist() == pytest.approx([6 / 7, 0, 0, 0, 1 / 7, 0, 0])
    assert info["battery_loss"] == pytest.approx(info["battery_losses"].mean())
    named = dict(zip(env.observation_names, observations[-1], strict=True))
    assert named["progress"] == 1 and named["share_block"] == pytest.approx(1 / 7)
    columns = [index for index, name in enumerate(env.observation_names) if name.startswith("log_loss")]
    changes = [index for index, name in enumerate(env.observation_names) if name.startswith("change")]
    assert np.allclose(observations[:, changes].cumsum(axis=0), observations[:, columns], atol=1e-5)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(0)


def test_a_seed_and_the_actions_fix_an_episode_also_after_another_one():
    env, other = make(action="mixture"), make(action="mixture")
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(3)]
    first, _, _, trained = run(env, actions)
    run(other, actions, seed=1)
    again, _, _, same = run(other, actions)
    assert np.array_equal(first, again) and torch.equal(trained, same)
    different, _, _, _ = run(env, actions, seed=1)
    assert not np.array_equal(first, different)


def test_a_reset_starts_a_new_run():
    env = make()
    env.reset(seed=0)
    start = weights(env)
    env.step(0)
    _, info = env.reset()
    assert info["updates"] == 0 and not torch.equal(start, weights(env))
    env.reset(seed=0)
    assert torch.equal(start, weights(env))


@pytest.mark.parametrize("arm", [0, 4, 6])
def test_measuring_the_battery_more_often_leaves_the_training_bit_identical(arm):
    trained = [run(make(updates_per_step=every), [arm] * math.ceil(7 / every))[-1] for every in (1, 7)]
    assert torch.equal(*trained)


def test_an_update_has_the_masks_of_its_strategy(monkeypatch):
    seen = []
    env = make(action="controller", guide="textured")
    step = env.vector.step
    monkeypatch.setattr(env.vector, "step", lambda scores: seen.append(step(scores)[-1]) or (None, seen[-1]))
    env.reset(seed=0)
    for action in ([-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]):
        env.step(np.array(action, dtype=np.float32))
    counts = [(int(info["mask"].sum()) / 4, int(info["guided"].sum()) / 4) for info in seen]
    assert counts == [(4, 0)] * 3 + [(14, 14)] * 3 + [(9, 4)]  # of 16 patches: 0.25, 0.9 and 0.575


def test_only_the_harder_half_counts_for_hard_targets(monkeypatch):
    env, seen = make(), []
    step = env.vector.step
    monkeypatch.setattr(env.vector, "step", lambda scores: seen.append(step(scores)[-1]) or (None, seen[-1]))
    env.reset(seed=0)
    env.step([one.name for one in STRATEGIES].index("hard_targets"))
    assert seen[0]["mask"].sum() == 4 * 12 and (seen[0]["weight"] > 0).sum() == 4 * 6
    scores, weight, mask = env._scores.numpy(), seen[-1]["weight"] > 0, seen[-1]["mask"]
    assert (
        np.where(weight, scores, np.inf).min(axis=1) >= np.where(mask & ~weight, scores, -np.inf).max(axis=1)
    ).all()


def test_a_mixture_draws_strategies_with_its_weights():
    env = make(action="mixture", strategies=STRATEGIES[:3], num_steps=40, updates_per_step=40, batch_size=1)
    shares = run(env, [np.array([1.0, -1.0, 0.0])])[2]["shares"]
    assert shares[1] == 0 and shares.sum() == pytest.approx(1) and abs(shares[0] - 2 / 3) < 0.15
    weights = [weight for _, weight in env.form.mixture(-np.ones(3))]
    assert weights == pytest.approx([1 / 3] * 3)


def test_held_out_images_are_not_trained_on(discs):
    env = make()
    assert torch.equal(env.battery.images, IMAGES[-4:]) and torch.equal(env.vector.data, IMAGES[:-4])
    chosen = [discs.indices("val")[place] for place in (0, 2, 3, 5)]
    assert torch.equal(make(data=discs).battery.images, discs.resized(chosen, (32, 32)))


def test_a_probe_pays_the_rise_of_a_score_from_labels(discs):
    env = make(data=discs, reward="probe", score=ProbeScore(discs, labels=4))
    _, begin = env.reset(seed=0)
    _, rewards, info, _ = run(env, [0, 0, 0])
    assert sum(rewards) == pytest.approx(info["score"] - begin["score"])
    probe = Probe(env.pretrainer.autoencoder.encoder, discs)
    assert info["score"] == probe(labels=4)["val_patch_dice"]


def test_a_bandit_plays_an_episode():
    bandit = ThompsonSampling(len(STRATEGIES))
    rows = bandit.play(make(updates_per_step=1), seed=0)
    assert sorted(row["action"] for row in rows) == list(range(7)) and rows[-1]["updates"] == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": "probe"}, "`reward=probe` needs labels: pass `score=ProbeScore"),
        ({"reward": "batery"}, "did you mean 'battery'"),
        ({"action": "mixtures"}, "did you mean 'mixture'"),
        ({"guide": "hrad", "action": "controller"}, "did you mean 'hard'"),
        ({"updates_per_step": 0}, "`updates_per_step` is 0"),
        ({"held_out": 24}, "leaves none to train on"),
        ({"strategies": [Strategy("one")]}, "at least two"),
        ({"target": "latent"}, "`target=latent`"),
        ({"render_mode": "human"}, "nothing to render"),
    ],
)
def test_what_cannot_be_used_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_too_few_validation_images_and_labels_are_refused(discs):
    with pytest.raises(InputError, match="more than the 6 validation images"):
        make(data=discs, held_out=7)
    with pytest.raises(InputError, match="labels"):
        ProbeScore(discs, labels=1000)


@pytest.mark.parametrize(
    ("action", "value", "message"),
    [
        ("strategies", 7, "number of a strategy, 0 to 6"),
        ("mixture", np.full(7, np.nan), "7 numbers from -1 to 1"),
        ("controller", np.zeros(3), "2 numbers from -1 to 1"),
        ("controller", np.array([0.0, 1.5]), "2 numbers from -1 to 1"),
    ],
)
def test_actions_outside_the_space_are_refused(action, value, message):
    env = make(action=action)
    env.reset(seed=0)
    with pytest.raises(InputError, match=message):
        env.step(value)
    env.step(env.action_space.sample())
