import dataclasses
import json
from pathlib import Path

import pytest

from ahm_gym.errors import InputError
from ahm_gym.flags import flags_in
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.run import pretrain


@pytest.mark.parametrize(
    ("other", "own"),
    [("tiny", {"model": "unet"}), ("unet", {"model": "tiny"}), ("tiny", {"patch_size": 16}),
     ("tiny", {"target": "normalised"}), ("tiny", {"model": "small"})],
)  # fmt: skip
def test_the_autoencoder_of_another_model_or_size_is_refused(config, other, own, tmp_path):
    source = dataclasses.replace(config, policy="random", model=other, steps=1, run_dir=tmp_path / "source")
    pretrain(source)
    with pytest.raises(InputError, match=f"`model={other}`, .* differs from that of this run"):
        pretrain(dataclasses.replace(config, reconstructor=tmp_path / "source", **own))
    assert not config.run_dir.exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("steps", 50, "`steps=50` differs from the 8"), ("patch_size", 4, "`patch_size=4` differs from the 8")],
)
def test_settings_that_differ_from_the_run_are_refused_with_the_reason(config, field, value, message):
    config = dataclasses.replace(config, policy="random")
    path = pretrain(config)
    with pytest.raises(InputError, match=message):
        pretrain(PretrainConfig(run_dir=path, **{field: value}), resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 1.2}, "mask ratio 1.2"),
        ({"mask_ratio": ()}, "`mask_ratio` is empty"),
        ({"mask_ratio": (0.5, 1.0)}, "mask ratio 1.0 is out of range"),
        ({"mask_ratio": (0.5, 0.75), "initial_mask_ratio": 0.25}, "several were given"),
        ({"initial_mask_ratio": 0.0}, "initial mask ratio 0.0"),
        ({"initial_mask_ratio": 1.0}, "initial mask ratio 1.0"),
        ({"initial_mask_ratio": float("nan")}, "initial mask ratio nan"),
        ({"initial_mask_ratio": 0.8}, "initial mask ratio 0.8 is above the final mask ratio 0.75"),
        ({"policy": "random", "masking_steps": 2}, "`masking_steps=2` goes with a learning agent"),
        ({"initial_mask_ratio": 0.25, "masking_steps": 5}, "`masking_steps` is 5: choose from 1 to the 4"),
        ({"patch_size": 5}, "patch size 5 does not divide"),
        ({"policy": "a3d"}, "did you mean 'a3c'"),
        ({"crop": "center"}, "unknown crop 'center': did you mean 'centre'"),
        ({"model": "smal"}, "did you mean 'small'"),
        ({"target": "hogs"}, "unknown target 'hogs': did you mean 'hog'"),
        ({"target": "hog", "patch_size": 1}, "`target=hog` needs patches of at least 2 pixels"),
        ({"target": "hog", "reward": "ahm2025"}, "`target=hog` predicts none"),
        ({"target": "latent", "num_workers": 2}, "`num_workers` above 1 does not go with `target=latent`"),
        ({"joint_labels": 0}, "`joint_labels=0` is out of range: discs has 24 labelled"),
        ({"joint_labels": 25}, "`joint_labels=25` is out of range: discs has 24 labelled"),
        ({"joint_labels": 4, "joint_weight": 0.0}, "`joint_weight` is 0.0: choose a positive number"),
        ({"joint_weight": 0.5}, "`joint_weight=0.5` weighs the loss of `joint_labels`"),
        ({"joint_labels": 4, "num_workers": 2}, "`num_workers` above 1 does not go with `joint_labels`"),
        ({"joint_labels": 4, "reconstructor": Path("nowhere")}, "which `reconstructor` freezes"),
        ({"hiding": "masked"}, "`hiding=masked` goes with a U-Net"),
        ({"model": "tiny_conv", "hiding": "token"}, "`hiding=token` goes with a U-Net"),
        ({"model": "tiny_conv", "init": "mae.pth"}, "do not fit one with a convolutional stem"),
        ({"model": "tiny_con"}, "did you mean 'tiny_conv'"),
        ({"model": "unet", "compile": True}, "`compile` does not work with `model=unet`"),
        ({"model": "unet", "hiding": "mask"}, "unknown hiding 'mask'"),
        ({"reward": "progres"}, "did you mean 'progress'"),
        ({"guided_fraction": 1.5}, "guided fraction 1.5"),
        ({"spread_fraction": -0.5}, "spread fraction -0.5"),
        ({"guided_ramp": (0.0, 1.0)}, "`guided_ramp` has no share to rise to"),
        ({"spread_ramp": (0.0, 1.0)}, "`spread_ramp` has no share to fall from"),
        (
            {"guided_fraction": 0.5, "guided_ramp": (0.8, 0.2)},
            "`guided_ramp`: a ramp from progress 0.8 to 0.2",
        ),
        ({"target_fraction": 0.0}, "`target_fraction` is 0.0: choose a number above 0"),
        ({"target_fraction": 1.1}, "`target_fraction` is 1.1: choose a number above 0"),
        ({"steps": 0}, "`steps` is 0"),
        ({"batch_size": 0}, "`batch_size` is 0"),
        ({"seed": -1}, "`seed` is -1"),
        ({"num_workers": 10_000}, "`num_workers=10000` is too many"),
        ({"data_workers": -1}, "`data_workers` is -1"),
        ({"data_workers": 1_000_000}, "`data_workers=1000000` is too many for this machine: choose at most"),
        ({"reward": ""}, "`reward` is empty"),
        ({"patch_size": 0}, "patch size 0 does not fit"),
        ({"learning_rate": float("inf")}, "learning rate is inf"),
        ({"image_size": (32, 32, 3)}, "image size 32 32 3"),
        ({"device": "tpu"}, "`device=tpu`"),
        ({"data": "nowhere.npz"}, "nowhere.npz"),
        ({"num_workers": 2, "policy": "random"}, "choose 1 with policy random"),
        ({"init": "nothing.pth"}, "nothing.pth does not exist"),
        ({"policy": "agent:nowhere"}, "holds no trained agent"),
        ({"policy": "ahm2025"}, "agent ahm2025 sees the raw image, and `model=tiny` shows embeddings"),
        ({"model": "unet", "image_size": (24,)}, "image size 24x24 does not fit the U-Net"),
        ({"model": "unet", "init": "nothing.pth"}, "a U-Net cannot use published weights"),
        ({"reconstructor": Path("nowhere")}, "there is no folder"),
        ({"reconstructor": Path("nowhere"), "policy": "random"}, "policy random learns nothing"),
        ({"reconstructor": Path("nowhere"), "init": "nothing.pth"}, "both set the initial weights"),
        ({"agent_options": ("critic",)}, "write NAME=VALUE"),
        ({"agent_options": ("gama=1",)}, "did you mean 'gamma'"),
        ({"agent_options": ("gamma=high",)}, "gamma=high`: expected a value like 1.0"),
        ({"agent_options": ("network=3",)}, "network=3`: expected a value like 'conv'"),
        ({"agent_options": ("gamma=1",), "policy": "random"}, "not with policy random"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_refused_run_leaves_no_folder_behind(config, options, message, tmp_path):
    options = {key: Path(value) if key == "init" else value for key, value in options.items()}
    with pytest.raises(InputError, match=message):
        pretrain(dataclasses.replace(config, **options))
    assert not (tmp_path / "run").exists()


def test_a_given_flag_counts_even_if_it_has_the_default_value(config):
    path = pretrain(config)
    given = flags_in(["--resume", "--steps", str(PretrainConfig.steps), "--no-native-resolution"])
    assert {"steps", "native_resolution"} <= given
    with pytest.raises(InputError, match=f"`steps={PretrainConfig.steps}` differs from the 8"):
        pretrain(PretrainConfig(run_dir=path), resume=True, given=given)


def test_an_existing_folder_is_refused_and_left_alone(config):
    config.run_dir.mkdir()
    (config.run_dir / "thesis.tex").write_text("dear")
    with pytest.raises(InputError, match="exists already"):
        pretrain(config)
    assert [p.name for p in config.run_dir.iterdir()] == ["thesis.tex"]


def test_resuming_a_folder_that_is_not_a_run_is_refused(config, tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        pretrain(config, resume=True)
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="is not a run folder"):
        pretrain(config, resume=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"kind": "finetune"}))
    with pytest.raises(InputError, match="is a finetune run"):
        pretrain(config, resume=True)
    with pytest.raises(InputError, match="`resume` needs `run_dir`"):
        pretrain(PretrainConfig(), resume=True)
