"""The bridge to nnU-Net: a network of the sizes in its plans, and a checkpoint that its training starts from."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ahm_gym.errors import InputError
from ahm_gym.model.resenc import ResEncUNet, nnunet_weights
from ahm_gym.runs.schema import Schema, checked, read_json

CONFIGURATIONS: dict[int, str] = {2: "2d", 3: "3d_fullres"}
"""nnU-Net's configuration for each number of axes."""
NETWORK: str = "ResidualEncoderUNet"
"""The class of nnU-Net's residual-encoder U-Net."""
HEADS: str = "decoder.seg_layers."
"""What the names of nnU-Net's segmentation heads start with; it leaves them out when it loads weights."""
PLANNED: str = "expected a plans file of nnU-Net 2.4 or newer; plan again with nnUNetv2_plan_and_preprocess"


class NetworkArguments(Schema):
    """The arguments of the network in nnU-Net's plans."""

    features_per_stage: list[int]
    n_blocks_per_stage: list[int]
    kernel_sizes: list[list[int]]
    strides: list[list[int]]
    n_conv_per_stage_decoder: list[int]
    conv_bias: bool
    norm_op: str
    dropout_op: str | None
    nonlin: str


class NamedNetwork(Schema):
    """The network in nnU-Net's plans; its arguments are read once its class is known."""

    network_class_name: str
    arch_kwargs: dict[str, Any]


class Configuration(Schema):
    """A configuration in nnU-Net's plans."""

    architecture: NamedNetwork
    patch_size: list[int] = Field(min_length=2, max_length=3)


class PlansFile(Schema):
    """The part of nnU-Net's plans that is used."""

    configurations: dict[str, dict[str, Any]]
    transpose_forward: list[int] = Field(default=[0, 1, 2])


class Plan(NamedTuple):
    """What nnU-Net has planned for images or volumes."""

    sizes: dict[str, Any]
    """Arguments of `ResEncUNet`: features, blocks, kernels and strides."""
    image_size: tuple[int, ...]
    """Lengths, in pixels, of what nnU-Net trains on."""
    order: tuple[int, ...]
    """For each axis of nnU-Net's network, which axis of this project it is."""


def read_plan(path: Path, axes: int) -> Plan:
    """The network in a plans file of nnU-Net: that of 3d_fullres for volumes, and that of 2d for images.

    The axes of volumes run to the right, forwards and upwards here. nnU-Net has them in the opposite order, and then
    transposes them as its plans say. Sizes are given in the order of this project.

    Args:
        path: such as nnUNet_preprocessed/DATASET/nnUNetResEncUNetMPlans.json.
        axes: 2 for images, 3 for volumes.

    Raises:
        InputError: if the file holds no such plan, or plans a network that `ResEncUNet` cannot be.
    """
    name = CONFIGURATIONS[axes]
    file = checked(PlansFile, read_json(path, PLANNED), path, PLANNED)
    configurations = file.configurations
    if name not in configurations:
        raise InputError(f"{path} has no configuration {name}, but {', '.join(configurations)}: {PLANNED}.")
    found = checked(Configuration, configurations[name], path, PLANNED)
    network = found.architecture.network_class_name.rpartition(".")[2]
    if network != NETWORK:
        raise InputError(
            f"{path} plans a {network}, and `model=resenc` is a {NETWORK}: plan with "
            "nnUNetv2_plan_and_preprocess -pl nnUNetPlannerResEncM."
        )
    planned = checked(NetworkArguments, found.architecture.arch_kwargs, path, PLANNED)
    usual: dict[str, Any] = {
        "n_conv_per_stage_decoder": [1] * (len(planned.features_per_stage) - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
        "dropout_op": None,
        "nonlin": "torch.nn.LeakyReLU",
    }
    for key, value in usual.items():
        if (given := getattr(planned, key)) != value:
            raise InputError(
                f"{path} plans {key}={given}, and `model=resenc` has {value}: leave the plans out."
            )
    order = tuple(range(axes)) if axes == 2 else tuple(2 - axis for axis in file.transpose_forward)
    if sorted(order) != list(range(axes)):
        raise InputError(f"`transpose_forward` in {path} is {file.transpose_forward}: {PLANNED}.")
    sizes = {
        "features": tuple(planned.features_per_stage),
        "blocks": tuple(planned.n_blocks_per_stage),
        "kernels": tuple(_reordered(level, order) for level in planned.kernel_sizes),
        "strides": tuple(_reordered(level, order) for level in planned.strides),
    }
    return Plan(sizes, _reordered(found.patch_size, order), order)


def _reordered(lengths: Sequence[int], order: tuple[int, ...]) -> tuple[int, ...]:
    """Numbers for nnU-Net's axes in the order of this project."""
    return tuple(length for _, length in sorted(zip(order, lengths, strict=True)))


def check_plan(network: ResEncUNet, path: Path) -> int:
    """Compares the names and shapes of all weights with those of the network that nnU-Net has planned.

    Args:
        network: the network whose weights nnU-Net shall take.
        path: nnU-Net's plans file.

    Returns:
        the number of weights, all of which have the same name and shape there.

    Raises:
        InputError: if some differ; nnU-Net would refuse them.
    """
    plan = read_plan(path, len(network.image_size))
    with torch.device("meta"):
        fresh = ResEncUNet(image_size=plan.image_size, patch_size=1, channels=network.channels, **plan.sizes)
    own, planned = (_shapes(nnunet_weights(one)) for one in (network, fresh))
    differing = sorted(name for name in own.keys() | planned.keys() if own.get(name) != planned.get(name))
    if differing:
        name = differing[0]
        raise InputError(
            f"{len(differing)} of the {len(planned)} weights that {path} plans differ, such as {name} "
            f"({own.get(name, 'missing')} here, {planned.get(name, 'missing')} there): pretrain with `plans={path}`."
        )
    return len(own)


def checkpoint(network: ResEncUNet, order: tuple[int, ...] | None = None) -> bytes:
    """The content of a file for `nnUNetv2_train ... -pretrained_weights FILE`: tensors only, as torch pickles them.

    Args:
        network: the network whose weights nnU-Net shall take.
        order: that of `Plan`; None: for volumes the opposite one, which plans without a transposition have.
    """
    axes = len(network.image_size)
    if order is None:
        order = (0, 1) if axes == 2 else (2, 1, 0)
    dimensions = (0, 1, *(2 + axis for axis in order))
    weights = {
        name: value.permute(dimensions).contiguous() if value.ndim == 2 + axes else value
        for name, value in nnunet_weights(network).items()
    }
    content = io.BytesIO()
    torch.save({"network_weights": weights}, content)
    return content.getvalue()


def _shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items()}
