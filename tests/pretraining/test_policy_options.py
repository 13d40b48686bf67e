"""Options in the name of a policy, and how several policies are written in one line."""

import dataclasses

import pytest

from ahm_gym.errors import InputError
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.mask_source import canonical
from ahm_gym.pretraining.policy_options import (
    MAX_NAME,
    folder_name,
    split_options,
    split_policies,
    with_options_of_policy,
)
from ahm_gym.pretraining.training import Training
from ahm_gym.runs.folder import RunFolder


@pytest.mark.parametrize(
    ("given", "policies"),
    [
        (["random,a3c"], ["random", "a3c"]),
        (["a3c", "a3c:entropy_coef=0.1"], ["a3c", "a3c:entropy_coef=0.1"]),
        (["a3c:credit=local,width=64,random"], ["a3c:credit=local,width=64", "random"]),
        (["random, a3c:width=64, credit=local ,ppo:gamma=1"], ["random", "a3c:width=64,credit=local", "ppo:gamma=1"]),
        (["x:sizes=[64,64],width=2,random"], ["x:sizes=[64,64],width=2", "random"]),
        (["agent:runs/lr=0.1,random"], ["agent:runs/lr=0.1", "random"]),
        ([",", ""], []),
    ],
)  # fmt: skip
def test_a_part_with_an_equals_sign_belongs_to_the_policy_before_it(given, policies):
    assert split_policies(given) == tuple(policies)


@pytest.mark.parametrize(
    ("given", "way_out"),
    [
        (["a3c,width=64"], "such as a3c:width=64"),
        (["a3c:credit=local,", "width=64"], "without spaces, such as a3c:width=64"),
        (["agent:runs/a,b=3"], "the folder of a run without commas"),
    ],
)
def test_an_option_of_no_policy_is_refused_with_the_way_out(given, way_out):
    with pytest.raises(InputError, match=way_out):
        split_policies(given)


def test_the_trained_agent_of_a_run_has_no_options():
    assert split_options("agent:runs/a=1") == ("agent:runs/a=1", ())
    assert split_options("a3c:width=64,sizes=[1,2]") == ("a3c", ("width=64", "sizes=[1,2]"))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("a3c:width", "has 'width' after the colon: write NAME:OPTION=VALUE"),
        ("a3c:", "has '' after the colon"),
        ("a3c:width=1,,gamma=1", "has '' after the colon"),
        ("a3c:width=1,width=2", "sets width twice"),
        ("a3c:gama=1", "unknown option of agent a3c 'gama': did you mean 'gamma'.*entropy_coef"),
        ("a3c:gamma=high", "expected a value like 1.0"),
        ("random:width=3", "not with policy random"),
        ("randm:width=3", "did you mean 'random'"),
    ],
)
def test_options_that_cannot_be_used_are_refused(policy, message):
    with pytest.raises(InputError, match=message):
        canonical(policy)


def test_equal_settings_have_one_name():
    assert canonical("a3c:width=64,entropy_coef=0.10") == canonical("a3c:entropy_coef=1e-1,width=64")
    assert canonical("a3c:gamma=1") == "a3c:gamma=1.0"
    assert canonical("a3c") == "a3c" and canonical("agent:runs/a=1") == "agent:runs/a=1"
    name = canonical("a3c:network=conv,gamma=1")
    assert canonical(name) == name == "a3c:gamma=1.0,network=conv"


def test_the_names_of_folders_are_safe_short_and_their_own():
    assert folder_name("a3c") == "a3c" and folder_name("a3c:gamma=1.0,width=64") == "a3c-gamma-1.0-width-64"
    long = ["a3c:" + ",".join(f"option_{i}={last if i == 19 else i}" for i in range(20)) for last in (1, 2)]
    first, second = map(folder_name, long)
    assert first != second and len(first) == len(second) == MAX_NAME
    assert folder_name(long[0]) == first and "/" not in folder_name("a3c:path=a/b/../c")


def test_options_of_the_policy_are_agent_options():
    config = with_options_of_policy(PretrainConfig(policy="a3c:width=8", agent_options=("gamma=0.5",)))
    assert (config.policy, config.agent_options) == ("a3c", ("gamma=0.5", "width=8"))
    with pytest.raises(
        InputError, match="`agent_options=width=4` and `policy=a3c:width=8` set the same option"
    ):
        with_options_of_policy(PretrainConfig(policy="a3c:width=8", agent_options=("width=4",)))


def test_a_run_with_options_in_the_policy_is_that_with_agent_options(discs, tmp_path):
    from ahm_gym.pretraining.run import pretrain

    config = PretrainConfig(
        data=str(discs), steps=2, batch_size=4, image_size=32, device="cpu", run_dir=tmp_path / "one",
        policy="a3c:entropy_coef=0.5,width=8",
    )  # fmt: skip
    pretrain(config)
    options = ("entropy_coef=0.5", "width=8")
    plain = dataclasses.replace(config, policy="a3c", agent_options=options, run_dir=tmp_path / "two")
    pretrain(plain)
    one, two = (RunFolder.open(tmp_path / name, "pretrain") for name in ("one", "two"))
    assert one.config == two.config | {"run_dir": str(tmp_path / "one")}
    assert [row["loss"] for row in one.metrics() if "loss" in row] == [
        row["loss"] for row in two.metrics() if "loss" in row
    ]
    assert pretrain(config, resume=True, given={"policy"}) == tmp_path / "one"
    with pytest.raises(InputError, match="differs from the"):
        pretrain(dataclasses.replace(config, policy="a3c:width=9"), resume=True)


def test_a_policy_takes_the_options_of_its_class(discs, monkeypatch):
    from ahm_gym.policies import POLICIES
    from ahm_gym.policies.random import RandomPolicy

    class Sharp(RandomPolicy):
        def __init__(self, autoencoder, *, power: float = 1.0):
            super().__init__(autoencoder)
            self.power = power

    from ahm_gym.policies import random

    monkeypatch.setattr(random, "Sharp", Sharp, raising=False)
    monkeypatch.setitem(POLICIES, "sharp", "ahm_gym.policies.random:Sharp")
    assert canonical("sharp:power=2") == "sharp:power=2.0"
    with pytest.raises(InputError, match="unknown option of policy sharp 'pover': did you mean 'power'"):
        canonical("sharp:pover=2")
    config = PretrainConfig(data=str(discs), steps=1, batch_size=4, image_size=32, policy="sharp:power=2")
    assert Training(config).agent.policy.power == 2.0
