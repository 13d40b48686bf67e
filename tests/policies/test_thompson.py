import math

import pytest
import torch

from ahm_gym.envs import MaskingVectorEnv
from ahm_gym.errors import InputError
from ahm_gym.mixing.battery import Battery
from ahm_gym.mixing.strategies import STRATEGIES
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.policies import make_policy
from ahm_gym.policies.thompson import ThompsonPolicy
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.policy_agent import PolicyAgent
from ahm_gym.pretraining.training import Training

IMAGES = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def trained(policy, pretrainer, num_steps, monkeypatch):
    """The metrics of each update and the `info` of its masks."""
    agent = PolicyAgent(policy)
    options = {
        name: getattr(agent, name) for name in ("mask_ratio", "guided_fraction", "spread_fraction", "weigh")
    }
    env = MaskingVectorEnv(4, data=IMAGES, pretrainer=pretrainer, **options)
    rows, infos, step = [], [], env.step

    def recorded(scores):
        outcome = step(scores)
        infos.append(outcome[-1])
        return outcome

    monkeypatch.setattr(env, "step", recorded)
    agent.learn(lambda: env, num_steps, seed=0, callback=rows.append)
    return rows, infos


@pytest.fixture
def pretrainer():
    return Pretrainer(build_autoencoder("tiny", image_size=(32, 32), patch_size=8), num_steps=16)


def test_every_update_has_the_masks_of_the_strategy_that_the_metrics_name(pretrainer, monkeypatch):
    policy = ThompsonPolicy(pretrainer.autoencoder, period=2)
    rows, infos = trained(policy, pretrainer, 15, monkeypatch)
    chosen = [one for row in rows for one in STRATEGIES if row[f"policy/share_{one.name}"]]
    assert len(chosen) == 15 and {one.name for one in chosen} == {one.name for one in STRATEGIES}
    assert chosen[0] == chosen[1] == chosen[2] and all(chosen[i] == chosen[i + 1] for i in range(3, 15, 2))
    for strategy, info in zip(chosen, infos, strict=True):
        masked = round(16 * strategy.mask_ratio)
        assert (info["mask"].sum(axis=1) == masked).all()
        assert (info["guided"].sum(axis=1) == round(masked * strategy.guided_fraction)).all()
        assert ((info["weight"] > 0).sum(axis=1) == round(masked * strategy.target_fraction)).all()


def test_a_choice_is_paid_the_fall_of_the_log_of_the_battery_loss(pretrainer, monkeypatch):
    policy = ThompsonPolicy(pretrainer.autoencoder, period=2)
    paid, losses = [], []
    monkeypatch.setattr(policy.bandit, "learn", lambda arm, reward: paid.append((arm, reward)))
    first = policy.arm
    rows, _ = trained(policy, pretrainer, 5, monkeypatch)
    losses = [row["policy/battery_loss"] for row in rows if "policy/battery_loss" in row]
    assert len(losses) == 2 and paid[0][0] == first
    assert paid[1][1] == pytest.approx(math.log(losses[0] / losses[1]))
    assert losses[1] == pytest.approx(
        Battery(policy._battery.images, pretrainer.autoencoder).measure(pretrainer.autoencoder).loss
    )


def test_a_mask_ratio_in_the_settings_is_refused(discs):
    for options in ({"mask_ratio": 0.6}, {"initial_mask_ratio": 0.5}):
        (name,) = options
        with pytest.raises(InputError, match=f"`{name}` does not go with policy thompson, which chooses"):
            Training(PretrainConfig(data=str(discs), policy="thompson", image_size=32, **options))


@pytest.mark.parametrize(
    ("options", "message"), [({"period": 0}, "`period` is 0"), ({"forgetting": 1.5}, "`forgetting` is 1.5")]
)
def test_options_out_of_range_are_refused(pretrainer, options, message):
    with pytest.raises(InputError, match=message):
        make_policy("thompson", pretrainer.autoencoder, **options)
