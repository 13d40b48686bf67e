import copy
import math
import random
import sys
import types

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from programs import run, start, write_discs
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from ahm_gym.agents import make_agent
from ahm_gym.agents.sb3 import seeded
from ahm_gym.agents.sb3_env import MaskingVecEnv
from ahm_gym.agents.sb3_policies import PatchActionValue, PatchActorCriticPolicy, PatchQNetwork
from ahm_gym.agents.sb3_presets import ALGORITHMS, MEMORY, observation_bytes
from ahm_gym.envs import MaskingVectorEnv, SequentialMaskingVectorEnv
from ahm_gym.errors import InputError
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.run import pretrain
from ahm_gym.runs.folder import RunFolder
from ahm_gym.testing import IdentityTask


@pytest.fixture
def make_env():
    images = torch.randn(12, 1, 32, 32, generator=torch.Generator().manual_seed(0))

    def build(cls=MaskingVectorEnv, **options):
        return cls(4, data=images, image_size=32, patch_size=8, **options)

    return build


def env_class(name):
    return MaskingVectorEnv if ALGORITHMS[name].env_id == "AHM/Masking-v0" else SequentialMaskingVectorEnv


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_an_agent_makes_exactly_as_many_updates_as_it_is_asked_for(name, make_env):
    env = make_env(env_class(name))
    agent = make_agent(name, env.single_observation_space.shape)
    for steps, total in ((7, 7), (3, 10)):
        agent.learn(lambda: env, steps, seed=0 if total == 7 else None)
        assert env.pretrainer.updates == total
    assert agent.num_updates == 10


def test_dqn_s_exploration_follows_the_share_of_updates(make_env):
    env = make_env(SequentialMaskingVectorEnv, guided_fraction=lambda progress: 0.5 * progress)
    agent = make_agent("dqn", env.single_observation_space.shape, exploration_fraction=0.5)
    rates = []
    agent.learn(
        lambda: env, 20, seed=0, callback=lambda m: rates.append(agent.algorithm.exploration_rate) or False
    )
    assert rates[5] > 0.4
    assert rates[-1] == pytest.approx(0.02)


def test_dqn_s_exploration_goes_on_from_a_checkpoint_in_the_middle_of_a_session(make_env):
    env = make_env(SequentialMaskingVectorEnv)
    agent = make_agent("dqn", env.single_observation_space.shape, exploration_fraction=0.5)
    states = []

    def save(metrics):
        states.append(copy.deepcopy(agent.state_dict()))
        return len(states) == 12

    agent.learn(lambda: env, 16, seed=0, callback=save)
    assert [state["num_updates"] for state in states] == list(range(1, 13))
    other = make_agent("dqn", env.single_observation_space.shape, exploration_fraction=0.5)
    other.load_state_dict(states[-1])
    rates = []
    other.learn(
        lambda: env, 4, seed=None, callback=lambda m: rates.append(other.algorithm.exploration_rate) or False
    )
    assert max(rates[1:]) == pytest.approx(0.02)


def test_the_progress_bar_of_sb3_reaches_its_end(make_env, monkeypatch):
    totals = []
    learn = PPO.learn

    def noted(self, total, **options):
        totals.append(total)
        return learn(self, total, **options)

    monkeypatch.setattr(PPO, "learn", noted)
    env = make_env(masking_steps=2)
    make_agent("ppo", env.single_observation_space.shape).learn(lambda: env, 6, seed=0)
    assert totals == [6 * 2 * env.num_envs]


def test_the_normaliser_follows_the_first_observation_of_an_episode_alone(make_env):
    env = make_env(masking_steps=3)
    agent = make_agent("ppo", env.single_observation_space.shape)
    agent.learn(lambda: env, 5, seed=0)
    assert int(agent.normalise.count) == 1 + 5


@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_the_callback_can_stop_an_agent(name, make_env):
    env = make_env(env_class(name))
    agent = make_agent(name, env.single_observation_space.shape)
    agent.learn(lambda: env, 100, seed=0, callback=lambda metrics: True)
    assert env.pretrainer.updates == 1


def test_ppo_learns_in_episodes_of_several_steps(make_env):
    env = make_env(masking_steps=3)
    seen = []
    make_agent("ppo", env.single_observation_space.shape).learn(
        lambda: env, 6, seed=0, callback=lambda metrics: seen.append(metrics) or False
    )
    assert env.pretrainer.updates == len(seen) == 6
    assert all(set(metrics) == {"loss", "reward", "guided"} for metrics in seen)


class Counting(BaseCallback):
    def __init__(self):
        super().__init__()
        self.rewards, self.rollouts = [], 0

    def _on_step(self):
        self.rewards.extend(info["episode"]["r"] for info in self.locals["infos"] if "episode" in info)
        return True

    def _on_rollout_end(self):
        self.rollouts += 1


@pytest.mark.filterwarnings("ignore:.*rich is experimental:tqdm.std.TqdmExperimentalWarning")
def test_callbacks_tensorboard_and_progress_bar_of_sb3_keep_working(tmp_path):
    counting = Counting()
    agent = make_agent(
        "ppo", (16, 8), callbacks=(counting,), progress_bar=True, tensorboard_log=str(tmp_path), verbose=0
    )
    rewards = []
    agent.learn(IdentityTask, 9, seed=0, callback=lambda m: rewards.append(m["reward"]) or False)
    assert counting.rollouts == 2
    assert np.mean(counting.rewards) == pytest.approx(np.mean(rewards))
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_the_vec_env_shows_the_batch_as_parallel_environments(make_env):
    env = make_env(masking_steps=2)
    shown = MaskingVecEnv(env, scale=lambda reward: 2.0)
    shown.seed(5)
    first = shown.reset()
    expected, _ = make_env(masking_steps=2).reset(seed=5)
    assert np.array_equal(first, expected)
    actions = np.zeros((4, 16), dtype=np.float32)
    _, _, dones, infos = shown.step(actions)
    assert not dones.any() and shown.update is None and "episode" not in infos[0]
    observation, rewards, dones, infos = shown.step(actions)
    assert dones.all() and shown.update is not None
    for row in range(4):
        assert infos[row]["episode"]["r"] == pytest.approx(2 * rewards[row])
        assert infos[row]["episode"]["l"] == 2
        assert not np.array_equal(infos[row]["terminal_observation"], observation[row])


def test_action_masks_come_row_by_row(make_env):
    env = MaskingVecEnv(make_env(SequentialMaskingVectorEnv))
    env.reset()
    env.step(np.array([3, 4, 5, 6]))
    masks = np.stack(env.env_method("action_masks"))
    assert masks.shape == (4, 16)
    assert [row.tolist().index(False) for row in masks] == [3, 4, 5, 6]
    assert env.env_method("action_masks", indices=[2])[0].tolist().index(False) == 5


def test_an_environment_of_another_autoreset_mode_is_refused(make_env):
    with pytest.raises(InputError, match="stable-baselines3 needs SAME_STEP"):
        MaskingVecEnv(make_env(autoreset_mode=AutoresetMode.DISABLED))


def test_sb3_itself_runs_on_the_environment(make_env):
    env = MaskingVecEnv(make_env())
    PPO(PatchActorCriticPolicy, env, n_steps=2, batch_size=8).learn(16)
    assert env.env.pretrainer.updates == 4


class Large(gym.vector.VectorEnv):
    """The spaces of ViT-S at 224 px, 64 images."""

    num_envs = 64
    single_observation_space = gym.spaces.Box(-np.inf, np.inf, (196, 384), np.float32)
    single_action_space = gym.spaces.Box(-1, 1, (196,), np.float32)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_the_presets_hold_no_more_than_a_gigabyte_of_observations(name):
    presets = ALGORITHMS[name].presets(Large())
    stored = presets.get("buffer_size") or presets["n_steps"] * Large.num_envs
    assert Large.num_envs <= stored
    assert stored * observation_bytes(Large()) <= MEMORY
    assert presets.get("optimize_memory_usage", True)


def test_hardly_any_of_ppo_s_first_scores_are_clipped_to_the_same_value():
    agent = make_agent("ppo", (16, 8))
    observation, _ = IdentityTask(num_envs=256).reset(seed=0)
    scores = agent.act(observation, deterministic=False)
    assert float((scores.abs() >= 1).float().mean()) < 0.01
    assert float(scores.std()) == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_the_networks_are_shared_over_patches_and_see_their_neighbours(name):
    small, large = (make_agent(name, (rows * rows, 8)) for rows in (4, 8))
    sizes = [sum(p.numel() for p in agent.algorithm.policy.parameters()) for agent in (small, large)]
    # Only positions (32 numbers per patch in every network) and the Gaussian's deviations grow with the grid.
    assert sizes[1] - sizes[0] <= 48 * (32 * 6 + 1)


def test_the_critic_of_scores_knows_that_only_their_order_matters():
    critic = PatchActionValue(16, 16 * 4)
    features, scores = torch.randn(3, 64), torch.randn(3, 16)
    values = [critic(torch.cat([features, scores + shift], dim=1)) for shift in (0.0, 0.7)]
    torch.testing.assert_close(values[0], values[1])


def test_a_patch_that_is_masked_already_is_never_the_best():
    network = make_agent("dqn", (16, 8)).algorithm.policy.q_net
    assert isinstance(network, PatchQNetwork)
    torch.nn.init.normal_(
        network.q_net[0].advantage.linear.weight, generator=torch.Generator().manual_seed(0)
    )
    observation = torch.randn(64, 16, 8, generator=torch.Generator().manual_seed(1))
    observation[:, :12] = 0
    assert int(network(observation).argmax(dim=1).min()) >= 12


def test_learning_leaves_the_global_generators_as_they_were():
    agent = make_agent("sac", (16, 8))  # imports what it needs
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    agent.learn(IdentityTask, 12, seed=0)
    agent.act(IdentityTask().reset(seed=0)[0], deterministic=False)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_python_s_generator_is_seeded_only_for_a_while():
    random.seed(3)
    before = random.getstate()
    with seeded(5):
        assert random.random() == random.Random(5).random()
    assert random.getstate() == before


def test_settings_of_the_algorithm_replace_the_presets():
    agent = make_agent(
        "ppo", (16, 8), n_steps=3, batch_size=48, learning_rate=1e-4, policy_kwargs={"log_std_init": -2.0}
    )
    agent.learn(IdentityTask, 1, seed=0)
    assert agent.algorithm.n_steps == 3
    assert agent.algorithm.learning_rate == 1e-4
    assert math.isclose(agent.algorithm.policy.log_std[0].item(), -2.0)


def test_a_setting_that_the_algorithm_does_not_have_is_refused_with_the_nearest_one():
    with pytest.raises(InputError, match="did you mean 'n_steps'"):
        make_agent("ppo", (16, 8), n_step=3)


def test_settings_of_the_networks_keep_the_grid():
    agent = make_agent(
        "ppo", (36, 8), grid=(4, 9), policy_kwargs={"features_extractor_kwargs": {"width": 16}}
    )
    trunk = agent.algorithm.policy.features_extractor.trunk
    assert trunk.context.grid == (4, 9) and trunk.project.out_features == 16
    assert agent.algorithm.policy.log_std[0].item() == pytest.approx(math.log(1 / 3))


def test_rewards_that_were_not_measured_count_as_the_mean_of_the_others():
    told = []
    scale = lambda reward: told.append(reward.tolist()) or 2.0  # noqa: E731

    class Mostly(IdentityTask):
        def step(self, actions):
            observation, _, terminated, truncated, info = super().step(actions)
            info["paid"] = np.array([True, False, True, False])
            return observation, np.array([1.0, 0.0, 3.0, 0.0]), terminated, truncated, info

    env = MaskingVecEnv(Mostly(num_envs=4), scale=scale)
    env.reset()
    _, reward, _, infos = env.step(np.zeros((4, 16)))
    assert reward.tolist() == [0.5, 1.0, 1.5, 1.0] and told == [[1.0, 3.0]]
    assert [info["episode"]["r"] for info in infos] == [1.0, 2.0, 3.0, 2.0]
    assert env.update["reward"] == 2.0


def test_algorithms_of_a_missing_extra_say_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(InputError, match=r"pip install 'ahm-gym\[contrib\]'"):
        make_agent("trpo", (16, 8))


def test_another_error_on_import_is_not_mistaken_for_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sb3_contrib", types.ModuleType("sb3_contrib"))
    with pytest.raises(AttributeError):
        make_agent("trpo", (16, 8))


def test_the_example_trains_with_sb3_s_own_tools(tmp_path):
    data = write_discs(tmp_path / "discs.npz", size=64)
    process = start("train_sb3.py", "--data", data, "--updates", 5, "--num-envs", 4, cwd=tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert (tmp_path / "runs" / "train-sb3" / "agent.zip").exists()
    assert list((tmp_path / "runs" / "train-sb3" / "events").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--num-envs", 1), "--num-envs is 1"), (("--out", "discs.npz"), "discs.npz cannot be created")],
)
def test_the_example_refuses_what_it_cannot_use(options, message, tmp_path):
    write_discs(tmp_path / "discs.npz", size=64)
    done = run("train_sb3.py", "--data", "discs.npz", *options, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_a_run_trains_resumes_and_serves_as_a_frozen_policy(name, tmp_path, monkeypatch, capsys):
    config = PretrainConfig(
        data=str(write_discs(tmp_path / "discs.npz")),
        policy=name,
        image_size=(32,),
        steps=6,
        batch_size=4,
        checkpoint_every=3,
        run_dir=tmp_path / "run",
    )
    saved = RunFolder.save_checkpoint

    def interrupted(self, step, state):
        saved(self, step, state)
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config)
    pretrain(config, resume=True)
    assert f"{name} continues with its weights" in capsys.readouterr().err
    run = RunFolder.open(tmp_path / "run", "pretrain")
    assert run.checkpoint_step() == 6
    run.close()
    frozen = PretrainConfig(
        **(vars(config) | {"policy": f"agent:{tmp_path / 'run'}", "run_dir": tmp_path / "frozen"})
    )
    pretrain(frozen)
