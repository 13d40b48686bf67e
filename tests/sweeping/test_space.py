"""What a sweep searches, as it is written on the command line."""

import dataclasses

import pytest

from ahm_gym.errors import InputError
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.segmentation.config import FinetuneConfig
from ahm_gym.sweeping.config import FINETUNING, SweepConfig, check
from ahm_gym.sweeping.space import Dimension, parse_space, settings_of_trial

TUNED = SweepConfig(objective="finetune")


def parsed(given, config=TUNED):
    (one,) = parse_space(dataclasses.replace(config, search=(given,)))
    return one


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("learning_rate=1e-4..1e-2:log", ("pretrain", "learning_rate", 1e-4, 1e-2, True, ())),
        ("pretrain.mask_ratio=.5..0.9", ("pretrain", "mask_ratio", 0.5, 0.9, False, ())),
        ("mask_ratio=0.5,0.75", ("pretrain", "mask_ratio", 0, 0, False, ("0.5", "0.75"))),
        ("mask_ratio=0.5,[0.25,0.75]", ("pretrain", "mask_ratio", 0, 0, False, ("0.5", "[0.25,0.75]"))),
        ("batch_size=8..64:log", ("pretrain", "batch_size", 8, 64, True, ())),
        ("target=pixels,hog", ("pretrain", "target", 0, 0, False, ("pixels", "hog"))),
        ("average=None,0.999", ("pretrain", "average", 0, 0, False, ("None", "0.999"))),
        ("compile=true,False", ("pretrain", "compile", 0, 0, False, ("true", "False"))),
        ("finetune.learning_rate=1e-3..1:log", ("finetune", "learning_rate", 1e-3, 1.0, True, ())),
        ("agent.entropy_coef=0..1", ("agent", "entropy_coef", 0.0, 1.0, False, ())),
        ("agent.width=8..64", ("agent", "width", 8, 64, False, ())),
        ("agent.network=conv,attention", ("agent", "network", 0, 0, False, ("conv", "attention"))),
        ("policy=random,a3c:gamma=1,width=8",
         ("pretrain", "policy", 0, 0, False, ("random", "a3c:gamma=1.0,width=8"))),
    ],
)  # fmt: skip
def test_ranges_and_choices_are_read(given, expected):
    one = parsed(given)
    assert dataclasses.astuple(one) == (given.partition("=")[0], *expected)
    assert [type(end) for end in (one.low, one.high)] == [type(end) for end in expected[2:4]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("learning_rate", "write NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A,B,C, such as"),
        ("learning_rate=", "write NAME=LOW..HIGH"),
        ("learnin_rate=1..2", "unknown setting of pretrain 'learnin_rate': did you mean 'learning_rate'"),
        ("finetuning.steps=1..2", "unknown kind of setting 'finetuning': did you mean 'finetune'"),
        ("agent.gama=0..1", "unknown option of agent a3c 'gama': did you mean 'gamma'"),
        ("learning_rate=1e-4..1e-2:lgo", "ends in :lgo"),
        ("learning_rate=0..1:log", "starts at 0: a range with :log starts above 0"),
        ("learning_rate=1..0.1", "write the smaller number first"),
        ("learning_rate=a..b", "'a' is not a number"),
        ("learning_rate=1..inf", "'inf' is not a number"),
        ("learning_rate=1,nan", "`learning_rate` in `search` is 'nan': expected a number"),
        ("learning_rate=1,high", "`learning_rate` in `search` is 'high': expected a number"),
        ("batch_size=1.5..3", "takes whole numbers"),
        ("learning_rate=1,NaN", "NaN is not a finite number"),
        ("target=1..2", "target is no number"),
        ("target=hog", "has one choice"),
        ("target=hog,hog", "has a choice twice"),
        ("policy=random,a3c:gama=1", "did you mean 'gamma'"),
        ("agent.width=8,wide", "expected a value like 32"),
        ("seed=0,1", "cannot be searched: the sweep sets it itself"),
        ("finetune.split=val,test", "cannot be searched: the sweep sets it itself"),
        ("agent_options=a=1,b=2", "search agent.NAME instead"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_the_way_out(given, message):
    with pytest.raises(InputError, match=message):
        parsed(given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search": ()}, "`search` is empty"),
        ({"search": ("batch_size=1..2", "pretrain.batch_size=1..2")}, "twice: give it once"),
        ({"search": ("agent.gamma=0..1",), "policy": "random"}, "`policy=random` is none"),
        ({"search": ("agent.gamma=0..1",), "policy": "a3c:gamma=0.5"}, "also given as one value"),
        ({"search": ("batch_size=1..2",), "pretrain": PretrainConfig(batch_size=2)}, "also given as one value"),
        ({"search": ("policy=random,a3c",), "policy": "ppo"}, "also given as one value"),
        ({"search": ("policy=random,a3c", "agent.gamma=0..1")}, "several policies"),
        ({"search": ("finetune.steps=1..2",), "objective": "probe"}, "choose `objective=finetune`"),
        ({"search": ("reward=loss,rank",), "objective": "reward"}, "changes what a reward means"),
        ({"search": ("policy=a3c,ppo",), "objective": "reward"}, "or give one `pretrain.reward` for all"),
    ],
)  # fmt: skip
def test_searches_without_meaning_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        parse_space(dataclasses.replace(TUNED, **settings))


def test_policies_can_be_compared_by_one_reward():
    config = dataclasses.replace(TUNED, objective="reward", pretrain=PretrainConfig(reward="loss"))
    assert parsed("policy=a3c,ppo", config).choices == ("a3c", "ppo")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trials": 0}, "`trials` is 0"),
        ({"seeds": 0}, "`seeds` is 0"),
        ({"seeds": 1001}, "at most 1,000"),
        ({"labels": 0}, "`labels` is 0"),
        ({"seed": -1}, "`seed` is -1"),
        ({"objective": "prob"}, "did you mean 'probe'"),
        ({"prune": True}, "choose 2 or more"),
        ({"time_budget": 0.0}, "above 0"),
        ({"pretrain": PretrainConfig(seed=1)}, "`pretrain.seed` is set by the sweep"),
        ({"finetune": dataclasses.replace(FINETUNING, split="test")}, "`finetune.split` is set by the sweep"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        check(dataclasses.replace(TUNED, **settings))


def test_the_values_of_a_trial_become_settings_of_its_programs():
    config = dataclasses.replace(
        TUNED,
        policy="a3c:gamma=0.5",
        search=("mask_ratio=0.5,[0.25,0.75]", "agent.width=8..64", "finetune.freeze=true,false", "average=None,0.9"),
    )  # fmt: skip
    space = parse_space(config)
    values = {"mask_ratio": "[0.25,0.75]", "agent.width": 16, "finetune.freeze": "true", "average": "None"}
    pretraining, finetuning = settings_of_trial(config, space, values)
    assert pretraining == PretrainConfig(
        policy="a3c:gamma=0.5", mask_ratio=(0.25, 0.75), agent_options=("width=16",)
    )
    assert finetuning == FinetuneConfig(freeze=True, validate_every=0)


def test_a_dimension_proposes_numbers_of_its_kind():
    class Asked:
        def __getattr__(self, name):
            return lambda *given, **options: (name, *given, *options.items())

    ask = Asked()
    assert Dimension("a", "pretrain", "a", 1, 4).suggest(ask) == ("suggest_int", "a", 1, 4, ("log", False))
    one = Dimension("a", "pretrain", "a", 1.0, 4.0, log=True)
    assert one.suggest(ask) == ("suggest_float", "a", 1.0, 4.0, ("log", True))
    two = Dimension("a", "pretrain", "a", choices=("x", "y"))
    assert two.suggest(ask) == ("suggest_categorical", "a", ("x", "y"))
