"""Runs are the same with any number of ranks, up to rounding."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from medical_files import volume
from pretraining_runs import stop_at
from ranks import in_ranks, outcomes
from recorded_runs import Recorded, assert_close, in_folder, recorded, use_double_precision

from ahm_gym.pretraining.config import PretrainConfig

REWARDS = ("loss", "relative", "rank", "progress", "progress:0.25", "advantage", "ahm2025")
LONG = {
    **{name: {"policy": name} for name in ("random", "hard_patches", "adamae", "attention", "teacher_loss")},
    **{f"a3c-{reward}": {"policy": "a3c", "reward": reward} for reward in REWARDS},
    "latent": {"policy": "a3c", "target": "latent", "average": 0.9},
    "steps": {"policy": "a3c", "masking_steps": 3, "initial_mask_ratio": 0.5},
    "group": {"policy": "group"},
    "patch_ppo": {"policy": "patch_ppo"},
    "oracle_hard": {"policy": "oracle_hard"},
    "curriculum": {"policy": "curriculum"},
    "joint": {"policy": "random", "joint_labels": 4},
    "targets": {"policy": "a3c", "target_fraction": 0.3},
    "contrast": {"policy": "spread", "crop": "contrast"},
}
JOINT_GRADIENT = 1e-4
"""The head of the joint task has kinks, which enlarge rounding: in double precision gradients differ by 8e-15."""


@pytest.fixture
def config(discs, tmp_path):
    return PretrainConfig(
        data=str(discs), image_size=32, steps=50, batch_size=8, checkpoint_every=100, device="cpu",
        run_dir=tmp_path / "run",
    )  # fmt: skip


def run(config: PretrainConfig, size: int, **options: bool) -> Recorded:
    """A run with that many ranks, which all compute the same bits."""
    if size == 1:
        return recorded(config, **options)
    first, *others = in_ranks(size, lambda: recorded(config, **options))
    for other in others:
        for name in ("losses", "patch_losses", "gradients", "scores"):
            for mine, theirs in zip(getattr(first, name), getattr(other, name), strict=True):
                assert torch.equal(torch.as_tensor(mine), torch.as_tensor(theirs)), name
    return first


@pytest.mark.parametrize("name", ["hard_patches", "a3c-progress"])
def test_two_ranks_compute_what_one_process_does(config, name):
    config = replace(config, steps=4, **LONG[name])
    assert_close(run(in_folder(config, "1"), 1), run(in_folder(config, "2"), 2))


@pytest.mark.parametrize("policy", ["a3c", pytest.param("random", marks=pytest.mark.slow)])
def test_two_ranks_compute_of_volumes_what_one_process_does(config, tmp_path, policy):
    rng = np.random.default_rng(0)
    for number in range(8):  # of several sizes, some of them smaller than a crop
        array = rng.integers(1, 900, (14 + number, 20, 18)).astype(np.int16)
        volume(tmp_path / "volumes" / f"p{number}.nii.gz", array)
    config = replace(
        config,
        data=str(tmp_path / "volumes"),
        volumes=True,
        image_size=16,
        patch_size=4,
        steps=4,
        policy=policy,
    )
    assert_close(run(in_folder(config, "1"), 1), run(in_folder(config, "2"), 2))


@pytest.mark.parametrize(("before", "after"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_another_number_of_ranks_goes_on(config, before, after):
    config = replace(config, steps=6, policy="a3c", checkpoint_every=3)
    whole = run(in_folder(config, "whole"), after)
    parts = in_folder(config, "parts")
    run_to_checkpoint(parts, before)
    rest = run(parts, after, resume=True)
    assert_close(rest, Recorded(*(getattr(whole, item.name)[3:] for item in fields(Recorded))))


def run_to_checkpoint(config: PretrainConfig, size: int) -> None:
    """A run that ends by an error in update 4, after its checkpoint."""
    found = outcomes(size, broken, config)
    assert all("Stop" in outcome.error for outcome in found)


def broken(config: PretrainConfig) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 4)
        recorded(config)


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_fifty_updates_do_not_depend_on_the_number_of_ranks(config, name):
    config = replace(config, **LONG[name])
    alone = run(in_folder(config, "1"), 1)
    gradients = {"gradients": JOINT_GRADIENT} if name == "joint" else {}
    for size in (2, 4):
        assert_close(alone, run(in_folder(config, str(size)), size), **gradients)


@pytest.mark.slow
def test_u_nets_do_not_depend_on_the_number_of_ranks_in_double_precision(config, monkeypatch):
    """Masked regions are constant, so that in single precision rounding decides for all of their pixels at once on
    which side of the kink of an activation they are."""
    use_double_precision(monkeypatch)
    config = replace(config, steps=20, policy="random", model="unet")
    alone = run(in_folder(config, "1"), 1)
    assert alone.gradients[0].dtype == torch.float64
    for size in (2, 4):
        assert_close(alone, run(in_folder(config, str(size)), size), 1e-11, gradients=1e-11)
