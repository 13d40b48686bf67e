import copy

import pytest
import torch
from torch.nn import functional

from ahm_gym.errors import InputError
from ahm_gym.masking.selection import mask_top_k
from ahm_gym.model.patches import patchify, unpatchify
from ahm_gym.model.unet import UNet, UNetAutoencoder
from ahm_gym.model.vit import build_autoencoder

SIZE = (32, 48)


def build(channels=2, seed=0, **options) -> UNetAutoencoder:
    autoencoder = build_autoencoder(
        "unet", image_size=SIZE, patch_size=8, channels=channels, seed=seed, **options
    )
    assert isinstance(autoencoder, UNetAutoencoder)
    return autoencoder


def images_and_mask(channels=2, num_masked=18, batch=3):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, channels, *SIZE, generator=generator)
    return images, mask_top_k(torch.rand(batch, 24, generator=generator), num_masked, generator=generator)


def test_masked_pixels_do_not_reach_the_u_net():
    autoencoder = build()
    images, mask = images_and_mask()
    patches = patchify(images, 8)
    changed = unpatchify(torch.where(mask[..., None], torch.full_like(patches, 100.0), patches), (4, 6), 8)
    assert not torch.equal(images, changed)
    prediction = autoencoder(images, mask).prediction
    assert torch.equal(prediction, autoencoder(changed, mask).prediction)
    shown = torch.where(mask[..., None], patches, patches + 1.0)
    assert not torch.equal(prediction, autoencoder(unpatchify(shown, (4, 6), 8), mask).prediction)


def test_the_prediction_is_that_of_the_image_with_zeros_in_the_masked_patches():
    autoencoder = build()
    images, mask = images_and_mask()
    zeros = unpatchify(patchify(images, 8) * ~mask[..., None], (4, 6), 8)
    expected = patchify(autoencoder.head(autoencoder.encoder(zeros)), 8)
    torch.testing.assert_close(autoencoder(images, mask).prediction, expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("normalise", [False, True])
def test_the_loss_is_the_mean_squared_error_of_the_masked_patches(channels, normalise):
    autoencoder = build(channels, normalise_target=normalise)
    images, mask = images_and_mask(channels)
    result = autoencoder(images, mask)
    target = patchify(images, 8)
    if normalise:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(result.patch_loss, (result.prediction - target).square().mean(-1))
    torch.testing.assert_close(result.loss, functional.mse_loss(result.prediction[mask], target[mask]))


def test_the_embedding_is_the_raw_image_patch_by_patch():
    autoencoder = build()
    images, _ = images_and_mask()
    embedding = autoencoder.embed(images)
    assert embedding.shape == (3, autoencoder.num_patches, autoencoder.dim) == (3, 24, 128)
    assert torch.equal(unpatchify(embedding, autoencoder.grid, 8), images)
    assert autoencoder.embeds_pixels and autoencoder.embedding_state() == {}


def test_gradients_reach_every_parameter():
    autoencoder = build()
    autoencoder(*images_and_mask()).loss.backward()
    # The bias of a convolution before an instance norm has no effect.
    silent = [name for name, value in autoencoder.named_parameters() if value.grad is None]
    assert silent == []


def test_building_is_reproducible_and_does_not_change_the_global_generator():
    before = torch.get_rng_state()
    first, second, other = build(seed=3), build(seed=3), build(seed=4)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.head.weight, second.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)
    assert copy.deepcopy(first).image_size == SIZE


def test_features_of_a_patch_are_the_mean_of_its_pixels_features():
    encoder = build().encoder.eval()
    images, _ = images_and_mask()
    maps = encoder(images)
    pooled = encoder.patch_features(images)
    torch.testing.assert_close(pooled[1, 7], maps[1, :, 8:16, 8:16].mean(dim=(1, 2)))
    assert pooled.shape == (3, 24, 32)


@pytest.mark.parametrize("size", [(40, 48), (16, 16)])
def test_an_image_size_that_four_halvings_do_not_divide_is_refused(size):
    with pytest.raises(InputError, match=f"image size {size[0]}x{size[1]} does not fit the U-Net"):
        UNetAutoencoder(image_size=size, patch_size=8)


def test_images_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"\(1, 32, 48\) do not fit .* \(2, 32, 48\)"):
        build()(torch.zeros(1, 1, *SIZE), images_and_mask(batch=1)[1])


def test_the_weights_of_a_u_net_fit_any_image_size():
    unet = UNet(image_size=SIZE, patch_size=8, channels=1)
    assert unet(torch.zeros(1, 1, 64, 80)).shape == (1, 32, 64, 80)
