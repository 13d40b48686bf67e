"""Checks for mask policies: everything that the training loop relies on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ahm_gym.errors import InputError
from ahm_gym.masking.drawing import draw_masks
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.selection import PatchBatch, mask_top_k
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.policies.base import MaskPolicy
from ahm_gym.testing.agents import check_base, check_class, check_shares, saved_and_loaded

_PATCH_SIZE = 8
_CASES = (((32, 32), 1), ((16, 40), 1), ((40, 24), 3))
"""Image sizes and channels: square, wide, tall."""


def check_policy(make_policy: Callable[[Autoencoder], Any]) -> None:
    """Checks a mask policy: its base class, scores, weights, draws, shares, metrics and state.

    Args:
        make_policy: the class, or a function, that builds a new policy for an autoencoder.

    Raises:
        AssertionError: with a sentence about the first requirement that is not met.
    """
    check_class(make_policy, MaskPolicy)
    for image_size, channels in _CASES:
        autoencoder = build_autoencoder(
            "tiny", image_size=image_size, patch_size=_PATCH_SIZE, channels=channels
        )
        weights = [value.clone() for value in autoencoder.state_dict().values()]
        policy = make_policy(autoencoder)
        check_base(policy, MaskPolicy)
        for batch in (1, 4):
            _check_draws(policy, _patches(autoencoder, batch))
        check_shares(policy)
        _check_weights(policy, _patches(autoencoder, 4))
        _check_observe(policy, _patches(autoencoder, 4))
        _check_state(policy, make_policy(autoencoder), _patches(autoencoder, 4))
        same = map(torch.equal, weights, autoencoder.state_dict().values())
        assert all(same), "the policy has changed the autoencoder: only the pretrainer may change it."


def _patches(autoencoder: Autoencoder, batch: int) -> PatchBatch:
    height, width = autoencoder.image_size
    generator = torch.Generator().manual_seed(batch)
    images = torch.randn(batch, autoencoder.channels, height, width, generator=generator)
    with torch.no_grad():
        return PatchBatch(images, autoencoder.embed(images), autoencoder.grid, 0.5)


def _scores(policy: Any, patches: PatchBatch, seed: int = 0) -> Tensor:
    """The scores of the policy, checked."""
    scores = policy.score(patches, torch.Generator().manual_seed(seed))
    expected = tuple(patches.embeddings.shape[:2])
    said = f"score() of {expected[0]} images on a grid of {patches.grid[0]}x{patches.grid[1]} returns"
    assert isinstance(scores, Tensor), f"{said} a {type(scores).__name__}: expected a tensor."
    assert tuple(scores.shape) == expected and scores.is_floating_point(), (
        f"{said} {scores.dtype} {tuple(scores.shape)}: expected one float score per patch, {expected}."
    )
    assert bool(torch.isfinite(scores).all()), f"{said} scores that are not finite."
    assert not scores.requires_grad, f"{said} scores that require a gradient: use torch.no_grad()."
    return scores.clone()


def _check_draws(policy: Any, patches: PatchBatch) -> None:
    images, embeddings = patches.images.clone(), patches.embeddings.clone()
    before = torch.get_rng_state()
    first, second = (_scores(policy, patches) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state()), (
        "score() draws from torch's global generator: draw from the generator that it is passed."
    )
    assert torch.equal(first, second), (
        "score() returns other scores for the same images and generator: draw from the generator that it is passed."
    )
    unchanged = torch.equal(images, patches.images) and torch.equal(embeddings, patches.embeddings)
    assert unchanged, "score() has changed the images or embeddings that it was passed."


def _check_weights(policy: MaskPolicy, patches: PatchBatch) -> None:
    scores, generator = _scores(policy, patches), torch.Generator().manual_seed(0)
    masks = draw_masks(scores, patches.grid, patches.num_masked, generator)
    before = torch.get_rng_state()
    try:
        masks.weighted(policy.weigh(patches, masks, generator))
    except InputError as error:
        raise AssertionError(f"weigh() returns invalid weights: {error}") from error
    assert torch.equal(before, torch.get_rng_state()), "weigh() draws from torch's global generator."


def _check_observe(policy: Any, patches: PatchBatch) -> None:
    scores = _scores(policy, patches)
    before = torch.get_rng_state()
    for seed in range(2):
        mask = mask_top_k(scores, patches.num_masked, generator=torch.Generator().manual_seed(seed))
        metrics = policy.observe(patches, Masks.of(mask), scores.sigmoid() * mask)
        assert isinstance(metrics, dict), f"observe() returns a {type(metrics).__name__}: expected a dict."
        for name, value in metrics.items():
            assert isinstance(name, str) and isinstance(value, (int, float)), (
                f"observe() returns {name!r}: {value!r}, expected a name and a number."
            )
    assert torch.equal(before, torch.get_rng_state()), "observe() draws from torch's global generator."


def _check_state(policy: Any, other: Any, patches: PatchBatch) -> None:
    expected = _scores(policy, patches)
    other.load_state_dict(saved_and_loaded(policy.state_dict()))
    assert torch.equal(_scores(other, patches), expected), (
        "after load_state_dict() another policy scores differently: the state is incomplete."
    )
    mask = mask_top_k(expected, patches.num_masked, generator=torch.Generator().manual_seed(2))
    for one in (policy, other):
        one.observe(patches, Masks.of(mask), expected.sigmoid() * mask)
    assert torch.equal(_scores(other, patches), _scores(policy, patches)), (
        "after load_state_dict() another policy learns differently: the state is incomplete."
    )
