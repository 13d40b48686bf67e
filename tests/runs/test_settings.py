"""Settings as JSON, and their merge with those of a saved run."""

from dataclasses import replace
from pathlib import Path

import pytest

from ahm_gym.benchmark.config import BenchmarkConfig
from ahm_gym.errors import InputError
from ahm_gym.pretraining.config import Pretrain, PretrainConfig
from ahm_gym.runs.settings import as_config, from_json, merge_resumed, to_json


def test_settings_come_back_from_json_with_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = PretrainConfig(image_size=(32, 48), data_root=Path("images"), agent_options=("width=8",))
    values = to_json(config)
    assert values["data_root"] == str(tmp_path / "images")
    assert from_json(PretrainConfig, values, "a test") == replace(config, data_root=tmp_path / "images")


def test_missing_settings_have_defaults_and_unknown_ones_are_ignored():
    assert from_json(PretrainConfig, {"steps": 3, "kind": "pretrain"}, "a test") == PretrainConfig(steps=3)


def test_settings_are_converted_to_their_base_class():
    converted = as_config(PretrainConfig, Pretrain(steps=3, resume=True))
    assert type(converted) is PretrainConfig and converted == PretrainConfig(steps=3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": "abc"}, "`steps` in a test is 'abc': expected a whole number."),
        ({"steps": None}, "`steps` in a test is None: expected a whole number."),
        ({"steps": 2.5}, "`steps` in a test is 2.5: expected a whole number."),
        ({"mask_ratio": "half"}, "`mask_ratio` in a test is 'half': expected a number or a list."),
        ({"policy": 3}, "`policy` in a test is 3: expected text."),
        ({"init": 3}, "`init` in a test is 3: expected text."),
        ({"target": True}, "`target` in a test is True: expected text."),
        ({"image_size": "abc"}, "`image_size` in a test is 'abc': expected a whole number or a list."),
        (
            {"image_size": [32, "x"]},
            "`image_size` in a test is [32, 'x']: expected a whole number or a list of whole numbers.",
        ),
        ({"agent_options": [3]}, "`agent_options` in a test is [3]: expected a list of texts."),
        ({"agent_options": "width=8"}, "`agent_options` in a test is 'width=8': expected a list."),
        ({"guided_ramp": [0.1, "x"]}, "`guided_ramp` in a test is [0.1, 'x']: expected a list of numbers."),
        ({"guided_ramp": [0.1]}, "`guided_ramp` in a test is [0.1]: expected a list of more values."),
        (
            {"guided_ramp": [0.1, 0.2, 0.3]},
            "`guided_ramp` in a test is [0.1, 0.2, 0.3]: expected fewer values.",
        ),
        ({"steps": "abc", "seed": "abc"}, "`steps` in a test is 'abc': expected a whole number."),
    ],
)
def test_a_value_of_the_wrong_type_is_one_sentence_with_its_name(values, message):
    with pytest.raises(InputError) as caught:
        from_json(PretrainConfig, values, "a test")
    assert str(caught.value) == message


def test_a_nested_value_of_the_wrong_type_is_named_with_its_program():
    with pytest.raises(InputError) as caught:
        from_json(BenchmarkConfig, {"pretrain": {"steps": "abc"}}, "a test")
    assert str(caught.value) == "`pretrain.steps` in a test is 'abc': expected a whole number."


def test_a_wrong_type_in_the_config_of_a_run_is_refused_when_it_is_resumed():
    with pytest.raises(InputError) as caught:
        merge_resumed(PretrainConfig(), to_json(PretrainConfig()) | {"batch_size": "abc"})
    assert str(caught.value) == "`batch_size` in the settings of this run is 'abc': expected a whole number."


def test_a_resumed_run_keeps_its_settings_but_not_its_folder():
    saved = to_json(PretrainConfig(steps=5, image_size=(32,), run_dir=Path("/old")))
    merged = merge_resumed(PretrainConfig(steps=5, run_dir=Path("/new")), saved)
    assert merged == PretrainConfig(steps=5, image_size=(32,), run_dir=Path("/new"))


@pytest.mark.parametrize(
    ("asked", "given", "message"),
    [
        (PretrainConfig(steps=6), (), "`steps=6` differs from the 5 .* its schedule depends on that length"),
        (PretrainConfig(), ("steps",), "`steps=1200` differs from the 5"),
        (PretrainConfig(image_size=(32, 48)), (), "`image_size=32 48` differs from the 32 .* a run keeps its settings"),
    ],
)  # fmt: skip
def test_a_setting_that_differs_from_the_run_is_refused(asked, given, message):
    with pytest.raises(InputError, match=message):
        merge_resumed(asked, to_json(PretrainConfig(steps=5, image_size=32)), given)


def test_a_setting_that_the_saved_run_does_not_have_is_the_given_one():
    saved = to_json(PretrainConfig())
    del saved["masking_steps"]
    assert merge_resumed(PretrainConfig(masking_steps=3), saved).masking_steps == 3


def test_one_number_for_a_size_agrees_with_the_square_that_was_saved():
    saved = to_json(PretrainConfig(image_size=(32, 32), steps=3))
    for size in (32, (32,), (32, 32)):
        assert merge_resumed(PretrainConfig(image_size=size), saved).image_size == (32, 32)
    with pytest.raises(InputError, match="`image_size=48` differs from the 32 32"):
        merge_resumed(PretrainConfig(image_size=48), saved)


def test_a_run_that_has_lost_its_number_of_steps_is_not_resumed_with_another():
    saved = to_json(PretrainConfig(steps=3))
    del saved["steps"]
    with pytest.raises(InputError, match="`steps` is missing in the settings of this run"):
        merge_resumed(PretrainConfig(), saved)


def test_no_text_or_truth_value_is_read_as_a_number():
    for value in ("3", True):
        with pytest.raises(InputError, match="`steps` in a test is .*: expected a whole number"):
            from_json(PretrainConfig, {"steps": value}, "a test")


def test_paths_of_nested_settings_become_absolute():
    nested = to_json(BenchmarkConfig(pretrain=PretrainConfig(init=Path("a.pth"))))["pretrain"]
    assert Path(nested["init"]).is_absolute()
