"""Resolves what the settings of a pretraining run name: data, initial weights and the run folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ahm_gym.data import ImageDataset, open_data
from ahm_gym.data.sources import absolute, stem_of
from ahm_gym.device import ranks
from ahm_gym.device.ray_cluster import ray_library
from ahm_gym.errors import InputError, say
from ahm_gym.model import conv_stem, resenc
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.model.encoder_base import ARCHITECTURES
from ahm_gym.model.nnunet import read_plan
from ahm_gym.model.patches import by
from ahm_gym.model.published import load_autoencoder, load_published
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.policy_options import FROZEN

if TYPE_CHECKING:
    from ahm_gym.model.joint import JointTask


def with_absolute_paths(config: PretrainConfig) -> PretrainConfig:
    """The same settings with absolute paths, so that they are valid in any working directory.

    Raises:
        InputError: if the data does not exist.
    """
    data, root = config.data, config.data_root
    if data is not None:
        data, root = absolute(data, root)
    policy, _, argument = config.policy.partition(":")
    return replace(
        config,
        data=data,
        data_root=None if root is None else root.absolute(),
        policy=f"{policy}:{Path(argument).absolute()}" if policy == FROZEN and argument else config.policy,
        plans=None if config.plans is None else config.plans.absolute(),
        init=None if config.init is None else config.init.absolute(),
        reconstructor=None if config.reconstructor is None else config.reconstructor.absolute(),
    )


def run_stem(config: PretrainConfig) -> str:
    """DATA-POLICY, the start of the default name of a run folder."""
    return f"{stem_of(config.data)}-{config.policy.partition(':')[0]}"


def open_images(config: PretrainConfig, *, need_labels: bool | None = False) -> ImageDataset:
    """The images of the settings; `need_labels` is that of `open_data`.

    Raises:
        InputError: if the data cannot be used.
    """
    return open_data(
        config.data,
        root=config.data_root,
        image_size=config.shape,
        need_labels=need_labels,
        patient_regex=config.patient_regex,
        spacing=config.spacing,
    )


def starting_autoencoder(config: PretrainConfig, channels: int, *, fresh: bool) -> Autoencoder:
    """Builds the autoencoder of the settings.

    Args:
        config: settings of the run.
        channels: number of image channels.
        fresh: load the weights of `init` or `reconstructor`; not needed if a checkpoint replaces them.

    Raises:
        InputError: if the model is unknown, has no such `hiding` or cannot be compiled, or the weights do not fit it.
    """
    options: dict[str, Any] = {"target": config.target}
    image_size = config.shape
    if config.hiding is not None:
        if config.model not in ARCHITECTURES or config.model == conv_stem.KIND:
            raise InputError(
                f"`hiding={config.hiding}` goes with a U-Net (`model=unet` or `model=resenc`); `model={config.model}` "
                "leaves masked patches out: leave `hiding` out."
            )
        options["hiding"] = config.hiding
    if config.plans is not None:
        options |= planned_sizes(config, image_size)
    autoencoder = build_autoencoder(
        config.model,
        image_size=image_size,
        patch_size=config.patch_size,
        channels=channels,
        seed=config.seed,
        **options,
    )
    if config.compile and not autoencoder.can_compile:
        raise InputError(
            f"`compile` does not work with `model={config.model}`, whose padding torch.compile gets wrong: choose "
            "`model=resenc`, or leave `compile` out."
        )
    autoencoder.compiled = config.compile
    if config.init is not None and fresh:
        for line in f"{config.init}: {load_published(autoencoder, config.init)}".splitlines():
            say(line)
    if config.reconstructor is not None and fresh:
        load_autoencoder(autoencoder, config.reconstructor)
    return autoencoder


def planned_sizes(config: PretrainConfig, image_size: tuple[int, ...]) -> dict[str, Any]:
    """The sizes of the network in the plans file of the settings; says if nnU-Net trains on another `image_size`.

    Raises:
        InputError: if the model is another one, or the file cannot be used.
    """
    if config.model != resenc.ResEncUNet.kind:
        raise InputError(f"`plans` goes with `model=resenc`, and `model` is {config.model}: leave it out.")
    assert config.plans is not None, "given"
    plan = read_plan(config.plans, len(image_size))
    if plan.image_size != image_size:
        sizes = by(plan.image_size), by(image_size)
        say(f"note: nnU-Net trains on {sizes[0]} pixels by {config.plans}, and this run on {sizes[1]}.")
    return plan.sizes


def check_joint(config: PretrainConfig) -> None:
    """Checks the settings that go with `joint_labels`.

    Raises:
        InputError: if there is a weight without labels, or the autoencoder is frozen or belongs to several processes.
    """
    if config.joint_labels is None:
        if config.joint_weight != PretrainConfig.joint_weight:
            raise InputError(
                f"`joint_weight={config.joint_weight}` weighs the loss of `joint_labels`: give both, or leave it out."
            )
        return
    if config.reconstructor is not None:
        raise InputError(
            "`joint_labels` trains the autoencoder, which `reconstructor` freezes: leave one of them out."
        )
    if config.num_workers > 1:
        raise InputError(
            "`num_workers` above 1 does not go with `joint_labels`, whose head belongs to one process: choose 1 "
            "worker, or leave `joint_labels` out."
        )
    if config.ray is not None:
        raise InputError(
            "`ray` does not go with `joint_labels`, whose head belongs to one process: leave one out."
        )


def check_ray(config: PretrainConfig, device: torch.device) -> None:
    """Checks what `ray` goes with, and that it is installed.

    Raises:
        InputError: with the setting to change, or the command that installs Ray.
    """
    if config.ray is None:
        return
    if config.ray == "":
        raise InputError("`ray` is empty: name the address of a cluster, auto or local, or leave it out.")
    if config.policy != "a3c":
        raise InputError(
            f"`ray={config.ray}` needs the asynchronous workers of `policy=a3c`, and policy {config.policy} has none: "
            "leave it out."
        )
    if device.type != "cpu":
        raise InputError("`ray` computes on CPUs, with one thread for each worker: choose `device=cpu`.")
    if config.target == "latent":
        raise InputError(
            "`ray` does not go with `target=latent`, whose teacher belongs to one process: choose another `target`."
        )
    ray_library()


def check_ranks(config: PretrainConfig) -> None:
    """Checks the settings that several processes of torchrun go with.

    Raises:
        InputError: if the batch cannot be divided among them, or each would have workers or name the same GPU.
    """
    ranks.check_batch(config.batch_size)
    ranks.check_device(config.device)
    if config.ray is not None and ranks.world_size() > 1:
        raise InputError(
            "`ray` starts workers of its own: start the command without torchrun, or leave `ray` out."
        )
    if config.num_workers > 1 and ranks.world_size() > 1:
        raise InputError(
            f"`num_workers={config.num_workers}` shares weights on one machine, and torchrun started "
            f"{ranks.world_size()} processes: choose 1 worker, or start the command without torchrun."
        )


def joint_task(config: PretrainConfig, dataset: ImageDataset, autoencoder: Autoencoder) -> JointTask | None:
    """The joint task of the settings; None without `joint_labels`.

    Raises:
        InputError: if the data has too few labels, or the weight is not positive and finite.
    """
    if config.joint_labels is None:
        return None
    from ahm_gym.model.joint import build_joint_task  # imports MONAI, which takes a second

    return build_joint_task(
        dataset,
        autoencoder.encoder,
        labels=config.joint_labels,
        batch_size=config.batch_size,
        seed=config.seed,
        weight=config.joint_weight,
    )
