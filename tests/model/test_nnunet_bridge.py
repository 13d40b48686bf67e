"""The residual U-Net of nnU-Net's plans, and the checkpoint that nnU-Net's training starts from."""

import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ahm_gym.cli import main
from ahm_gym.errors import InputError
from ahm_gym.model.encoders import export_encoder, load_encoder
from ahm_gym.model.nnunet import CONFIGURATIONS, check_plan, checkpoint, read_plan
from ahm_gym.model.resenc import nnunet_weights
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.inputs import starting_autoencoder, with_absolute_paths
from ahm_gym.segmentation.config import FinetuneConfig
from ahm_gym.segmentation.inputs import resolve

SIZE = (8, 32, 32)


def plans(folder, axes=3, **changes):
    """A plans file as nnU-Net writes it, for thick slices: the first stages look at rows and columns alone."""
    name, transposed = changes.pop("network", "ResidualEncoderUNet"), changes.pop("transposed", [2, 1, 0])
    norm = f"torch.nn.modules.instancenorm.InstanceNorm{axes}d"
    arguments = {
        "n_stages": 4,
        "features_per_stage": [8, 16, 32, 40],
        "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "kernel_sizes": [[1, 3, 3][-axes:], *[[3] * axes] * 3],
        "strides": [[1] * axes, [1, 2, 2][-axes:], *[[2] * axes] * 2],
        "n_blocks_per_stage": [1, 3, 2, 2],
        "n_conv_per_stage_decoder": [1, 1, 1],
        "conv_bias": True,
        "norm_op": norm,
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    } | changes
    architecture = {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    path = folder / "nnUNetResEncUNetMPlans.json"
    planned = {CONFIGURATIONS[axes]: {"patch_size": list(SIZE[-axes:]), "architecture": architecture}}
    # nnU-Net's axes run upwards first, and are in the order of this project if it turns them around.
    content = {"configurations": planned, "transpose_forward": transposed}
    path.write_text(json.dumps({"plans_name": "nnUNetResEncUNetMPlans"} | content))
    return path


def network_of(path, channels=1, **options):
    sizes = read_plan(path, 3).sizes
    return build_autoencoder(
        "resenc", image_size=SIZE, patch_size=8, channels=channels, seed=3, **sizes, **options
    )


def test_the_network_of_a_plan_has_the_weights_of_nnu_nets_under_all_their_names(tmp_path):
    """Compared with dynamic_network_architectures 0.4.4, whose results are equal to the last bit."""
    path = plans(tmp_path)
    network = network_of(path).encoder
    weights = nnunet_weights(network)
    shapes = sorted(f"{name} {tuple(value.shape)}" for name, value in weights.items())
    digest = hashlib.sha256("\n".join(shapes).encode()).hexdigest()[:16]
    assert (len(weights), digest) == (338, "8925c26787795f9e")
    assert weights["encoder.stem.convs.0.conv.weight"].shape == (8, 1, 1, 3, 3)
    assert weights["decoder.transpconvs.2.weight"].shape == (16, 8, 1, 2, 2)
    assert check_plan(network, path) == len(weights)


def test_a_checkpoint_holds_tensors_alone_under_the_name_that_nnu_net_reads(tmp_path):
    network = network_of(plans(tmp_path)).encoder
    loaded = torch.load(io.BytesIO(checkpoint(network, (0, 1, 2))), weights_only=True)
    assert loaded.keys() == {"network_weights"}
    name = "decoder.encoder.stages.1.blocks.2.conv2.all_modules.1.bias"
    assert torch.equal(loaded["network_weights"][name], nnunet_weights(network)[name])


@pytest.mark.parametrize(("transposed", "turned"), [([0, 1, 2], (2, 1, 0)), ([1, 2, 0], (1, 0, 2))])
def test_nnu_net_sees_the_axes_in_its_own_order(tmp_path, transposed, turned):
    """Its arrays run upwards, forwards and to the right, and then as `transpose_forward` says."""
    path = plans(tmp_path, transposed=transposed)
    plan, planned = read_plan(path, 3), json.loads(path.read_text())["configurations"]["3d_fullres"]
    assert [plan.image_size[axis] for axis in turned] == planned["patch_size"]
    build = {"image_size": plan.image_size, "patch_size": 8, "seed": 3}
    ours = build_autoencoder("resenc", **build, **plan.sizes).encoder.eval()
    sizes = planned["architecture"]["arch_kwargs"]
    keys = {"kernels": "kernel_sizes", "strides": "strides"}
    levels = {name: tuple(map(tuple, sizes[key])) for name, key in keys.items()}
    theirs = build_autoencoder(
        "resenc", image_size=tuple(planned["patch_size"]), patch_size=8, **{**plan.sizes, **levels}
    ).encoder.eval()
    weights = torch.load(io.BytesIO(checkpoint(ours, plan.order)), weights_only=True)["network_weights"]
    theirs.load_state_dict({name: weights[name] for name in theirs.state_dict()})
    volumes = torch.randn(1, 1, *plan.image_size, generator=torch.Generator().manual_seed(0))
    dimensions = (0, 1, *(2 + axis for axis in turned))
    torch.testing.assert_close(
        theirs(volumes.permute(dimensions)), ours(volumes).permute(dimensions), atol=1e-4, rtol=1e-4
    )
    default = torch.load(io.BytesIO(checkpoint(ours)), weights_only=True)["network_weights"]
    name = "encoder.stem.convs.0.conv.weight"
    assert torch.equal(default[name], ours.state_dict()[name].permute(0, 1, 4, 3, 2))


def test_a_network_of_other_sizes_is_refused_by_the_name_of_a_weight(tmp_path):
    path = plans(tmp_path)
    other = build_autoencoder("resenc", image_size=(16, 16, 32), patch_size=8).encoder
    with pytest.raises(InputError, match=r"weights that .* plans differ, such as .*: pretrain with `plans="):
        check_plan(other, path)


def test_a_planned_network_is_exported_and_loaded_with_its_kernels_and_strides(tmp_path):
    encoder = network_of(plans(tmp_path), channels=2).encoder.eval()
    export_encoder(encoder, tmp_path / "encoder", mean=(0.0, 0.0), std=(1.0, 1.0))
    volumes = torch.randn(1, 2, *SIZE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_encoder(tmp_path / "encoder").eval()(volumes), encoder(volumes))
    config = FinetuneConfig(encoder=str(tmp_path / "encoder"), data=None, compare="none")
    with pytest.raises(InputError, match="`compare=none` .* does not know the sizes that the encoder has"):
        resolve(config)


def test_no_hidden_voxel_of_a_planned_network_is_seen(tmp_path):
    autoencoder = network_of(plans(tmp_path), hiding="masked")
    generator = torch.Generator().manual_seed(0)
    volumes, mask = torch.randn(2, 1, *SIZE, generator=generator), torch.zeros(2, 16, dtype=torch.bool)
    mask[:, ::2] = True
    volumes.requires_grad_(True)
    (gradient,) = torch.autograd.grad(autoencoder(volumes, mask).prediction.square().sum(), volumes)
    hidden = mask.unflatten(1, (1, 4, 4)).repeat_interleave(8, 2).repeat_interleave(8, 3).expand(2, 8, 32, 32)
    assert gradient[:, 0][hidden].abs().max() == 0 and gradient[:, 0][~hidden].abs().max() > 0


def test_a_run_takes_the_network_of_its_plans(tmp_path, capsys):
    path = plans(tmp_path, axes=2)
    config = PretrainConfig(model="resenc", image_size=32, plans=path)
    assert check_plan(starting_autoencoder(config, 1, fresh=True).encoder, path) == 338
    assert "note" not in capsys.readouterr().err
    starting_autoencoder(replace(config, image_size=64), 1, fresh=True)
    assert "note: nnU-Net trains on 32x32 pixels" in capsys.readouterr().err
    assert with_absolute_paths(replace(config, plans=Path("plans.json"))).plans.is_absolute()
    with pytest.raises(InputError, match="`plans` goes with `model=resenc`, and `model` is tiny"):
        starting_autoencoder(replace(config, model="tiny"), 1, fresh=True)


@pytest.mark.parametrize(
    ("changes", "axes", "message"),
    [
        ({"network": "PlainConvUNet"}, 3, "plans a PlainConvUNet, .* -pl nnUNetPlannerResEncM"),
        ({"n_conv_per_stage_decoder": [2, 2, 2]}, 3, r"plans n_conv_per_stage_decoder=\[2, 2, 2\]"),
        ({"conv_bias": False}, 3, "plans conv_bias=False, and `model=resenc` has True"),
        ({"strides": "2"}, 3, "`strides` in .*json is '2'"),
        ({}, 2, "has no configuration 2d, but 3d_fullres"),
    ],
)
def test_plans_of_another_network_are_refused(tmp_path, changes, axes, message):
    with pytest.raises(InputError, match=message):
        read_plan(plans(tmp_path, **changes), axes)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"kernels": ((3, 3, 3),)}, "kernels .* do not fit: give 3 odd numbers"),
        ({"kernels": ((2, 2, 2),) * 5}, "kernels .* do not fit: give 3 odd numbers"),
        ({"strides": ((1, 1),) * 5}, "strides .* do not fit: give 3 numbers"),
        ({"strides": ((2, 2, 2),) * 5}, "finest resolution of the residual U-Net has strides"),
        (
            {"strides": ((1, 1, 1), *((1, 2, 2),) * 4)},
            "image size 16x24x16 .* whose coarsest pixel covers 1x16x16",
        ),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        build_autoencoder("resenc", image_size=(16, 24, 16), patch_size=8, **sizes)


@pytest.mark.slow
def test_a_run_of_planned_sizes_is_resumed_exported_and_fine_tuned(tmp_path, discs, capsys):
    path, run, out = plans(tmp_path, axes=2), tmp_path / "run", tmp_path / "nnunet.pth"
    flags = (
        f"--data {discs} --image-size 32 --run-dir {run} --policy random --batch-size 4 --checkpoint-every 2"
    )
    main(f"pretrain {flags} --model resenc --plans {path} --steps 4".split())
    shutil.rmtree(run / "checkpoint" / "step-4")
    main(f"pretrain --run-dir {run} --resume".split())
    main(f"export --run {run} --format nnunet --plans {path} --out {out}".split())
    assert f"all 338 weights have the names and shapes that {path} plans" in capsys.readouterr().err
    weights = torch.load(out, weights_only=True)["network_weights"]
    trained = load_encoder(run).state_dict()
    assert trained.keys() <= weights.keys() and all(
        torch.equal(weights[name], trained[name]) for name in trained
    )
    main(f"finetune --encoder {run} --labels 4 --steps 2 --run-dir {tmp_path / 'finetuned'}".split())
    told = capsys.readouterr().out
    assert "Wrote" in told and "Next, to compare" not in told  # from scratch it would be another network
