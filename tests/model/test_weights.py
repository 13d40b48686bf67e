"""How much each masked patch counts in the loss, for both autoencoders."""

import pytest
import torch

from ahm_gym.masking.masks import Masks
from ahm_gym.masking.selection import mask_top_k
from ahm_gym.model.patches import patchify, unpatchify
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.vit import build_autoencoder

MODELS = pytest.mark.parametrize("model", ["tiny", "unet", "resenc"])


def build(model, **options):
    return build_autoencoder(model, image_size=(32, 32), **options)


def images_and_masks():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 1, 32, 32, generator=generator)
    mask = mask_top_k(torch.rand(4, 16, generator=generator), 12, generator=generator)
    return images, Masks.of(mask, mask)


def hiding(masks):
    """The masks with weight 0 at the first masked patch of each image, and where these are."""
    first = (masks.masked.cumsum(dim=1) == 1) & masks.masked
    return masks.weighted(masks.weight.masked_fill(first, 0.0)), first


def changed(images, patches):
    """The images with other pixels in these patches."""
    pixels = patchify(images, 8)
    return unpatchify(torch.where(patches[..., None], -3.0 * pixels + 1.0, pixels), (4, 4), 8)


def gradients(autoencoder, images, masks):
    autoencoder.zero_grad()
    result = autoencoder(images, masks)
    result.loss.backward()
    return result, [parameter.grad for parameter in autoencoder.parameters() if parameter.grad is not None]


@MODELS
@pytest.mark.parametrize("normalise", [False, True])
def test_without_weights_the_loss_is_the_mean_of_the_masked_patches_to_the_bit(model, normalise):
    autoencoder = build(model, target="normalised" if normalise else "pixels")
    images, masks = images_and_masks()
    result = autoencoder(images, masks)
    expected = (result.patch_loss * masks.masked).sum() / masks.masked.sum()
    assert torch.equal(result.loss, expected)
    assert torch.equal(autoencoder(images, masks.masked).loss, expected)


@MODELS
def test_the_loss_is_the_weighted_mean_and_the_loss_of_a_patch_is_not_weighted(model):
    autoencoder = build(model)
    images, masks = images_and_masks()
    weight = masks.weight * torch.rand(4, 16, generator=torch.Generator().manual_seed(1))
    plain, weighted = autoencoder(images, masks), autoencoder(images, masks.weighted(weight))
    torch.testing.assert_close(weighted.loss, (plain.patch_loss * weight).sum() / weight.sum())
    assert not torch.equal(weighted.loss, plain.loss)
    assert torch.equal(weighted.patch_loss, plain.patch_loss)


@MODELS
def test_a_patch_of_weight_0_is_hidden_but_not_reconstructed(model):
    autoencoder = build(model)
    images, masks = images_and_masks()
    weighted, first = hiding(masks)
    others = changed(images, first)
    (one, one_gradients), (two, two_gradients) = (
        gradients(autoencoder, batch, weighted) for batch in (images, others)
    )
    assert torch.equal(one.loss, two.loss)
    assert all(map(torch.equal, one_gradients, two_gradients))
    assert not torch.equal(one.patch_loss[first], two.patch_loss[first])
    # The test can fail: with its weight the patch counts.
    assert not torch.equal(autoencoder(images, masks).loss, autoencoder(others, masks).loss)


@MODELS
def test_an_update_does_not_depend_on_the_pixels_of_patches_of_weight_0(model):
    images, masks = images_and_masks()
    weighted, first = hiding(masks)
    states = []
    for batch, own in ((images, weighted), (changed(images, first), weighted), (images, masks)):
        pretrainer = Pretrainer(build(model), num_steps=10)
        for _ in range(2):
            pretrainer.step(batch, own)
        states.append(
            torch.cat([value.flatten().float() for value in pretrainer.model.state_dict().values()])
        )
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


@MODELS
def test_weights_created_in_inference_mode_can_be_used_in_an_update(model):
    pretrainer = Pretrainer(build(model), num_steps=10)
    with torch.inference_mode():
        images, masks = images_and_masks()
        pretrainer.step(images, hiding(masks)[0])
    assert pretrainer.updates == 1
