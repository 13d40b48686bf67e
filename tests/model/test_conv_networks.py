import copy
import hashlib
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from ahm_gym.errors import InputError
from ahm_gym.masking.selection import mask_top_k
from ahm_gym.model.conv_autoencoder import HIDING, ConvAutoencoder
from ahm_gym.model.masked_layers import make_maskable
from ahm_gym.model.patches import patchify, unpatchify
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.resenc import nnunet_weights
from ahm_gym.model.unet import UNet
from ahm_gym.model.vit import build_autoencoder

SIZE = (32, 48)
VOLUME = (16, 32, 16)

NETWORKS = pytest.mark.parametrize("model", ["unet", "resenc"])
HIDDEN = pytest.mark.parametrize("hiding", HIDING)
AXES = pytest.mark.parametrize("size", [SIZE, VOLUME])


def build(model="unet", channels=2, seed=0, patch_size=8, size=SIZE, **options) -> ConvAutoencoder:
    autoencoder = build_autoencoder(
        model, image_size=size, patch_size=patch_size, channels=channels, seed=seed, **options
    )
    assert isinstance(autoencoder, ConvAutoencoder)
    return autoencoder


def images_and_mask(channels=2, batch=3, patch_size=8, size=SIZE):
    """Three of four patches are masked."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, channels, *size, generator=generator)
    scores = torch.rand(batch, math.prod(size) // patch_size ** len(size), generator=generator)
    return images, mask_top_k(scores, scores.shape[1] * 3 // 4, generator=generator)


def trained(autoencoder) -> ConvAutoencoder:
    """The same with random norms and tokens, as after some updates: at the start they hide what blocks compute."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in autoencoder.parameters():
            if value.dim() == 1:
                value.copy_(torch.randn(value.shape, generator=generator))
    return autoencoder


def hidden_pixels(autoencoder, mask):
    """True in the pixels of masked patches, in the shape of the images."""
    width = autoencoder.dim
    patches = mask[..., None].expand(-1, -1, width).float()
    return unpatchify(patches, autoencoder.grid, autoencoder.patch_size) > 0


@NETWORKS
@HIDDEN
@pytest.mark.parametrize(("size", "patch_size"), [(SIZE, 8), (SIZE, 4), (VOLUME, 4)])
def test_a_hidden_pixel_changes_no_visible_feature_and_no_prediction(model, hiding, size, patch_size):
    autoencoder = trained(build(model, hiding=hiding, patch_size=patch_size, size=size))
    images, mask = images_and_mask(patch_size=patch_size, size=size)
    hidden = hidden_pixels(autoencoder, mask)
    images.requires_grad_(True)
    seen = []
    encode = autoencoder.encoder.encode
    autoencoder.encoder.encode = lambda shown: seen.append(encode(shown)) or seen[-1]
    first = autoencoder(images, mask)
    (gradient,) = torch.autograd.grad(
        first.prediction.square().sum() + sum(m.square().sum() for m in seen[0]), images
    )
    assert gradient[hidden].abs().max() == 0 and gradient[~hidden].abs().max() > 0
    second = autoencoder(torch.where(hidden, 100.0, images.detach()), mask)
    assert torch.equal(first.prediction, second.prediction)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    shown = autoencoder(torch.where(hidden, images.detach(), images.detach() + torch.rand_like(images)), mask)
    assert not torch.equal(first.prediction, shown.prediction)


@NETWORKS
@AXES
def test_masked_layers_keep_hidden_pixels_at_zero_and_compute_visible_ones_from_visible_ones_alone(
    model, size
):
    autoencoder = trained(build(model, hiding="masked", size=size))
    images, mask = images_and_mask(size=size)
    hidden = hidden_pixels(autoencoder, mask)[:, :1]
    network = autoencoder.encoder
    with network.visibility.of((~hidden).float()):
        maps = network.encode(images.masked_fill(hidden, 0.0))
    for features in maps:
        pool = functional.adaptive_max_pool2d if len(size) == 2 else functional.adaptive_max_pool3d
        empty = pool((~hidden).float(), features.shape[2:]) == 0
        empty = empty.expand_as(features)
        assert features[empty].abs().sum() == 0 and features[~empty].abs().min() > 0
    statistics = maps[0].masked_select(~hidden.expand_as(maps[0]))
    assert statistics.isfinite().all()
    assert network.visibility.at(size) is None  # outside the context


@NETWORKS
@pytest.mark.parametrize("size", [SIZE, (32, 32, 32)])  # a norm of two pixels enlarges rounding errors
def test_an_image_without_hidden_patches_gives_the_same_features_with_masked_layers(model, size):
    network = trained(build(model, size=size)).encoder
    images, _ = images_and_mask(size=size, batch=2)
    with network.visibility.of(torch.ones(2, 1, *size)):
        masked = network.encode(images)
    for found, expected in zip(masked, network.encode(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_masked_norm_is_that_of_the_visible_pixels():
    norm = nn.InstanceNorm2d(3, affine=True)
    visibility = make_maskable(norm)
    maps = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    visible = torch.zeros(2, 1, 4, 6)
    visible[:, :, :2, :3] = 1.0
    with visibility.of(visible):
        found = norm(maps)
    torch.testing.assert_close(found[:, :, :2, :3], norm(maps[:, :, :2, :3].contiguous()))
    assert found.masked_select(visible.expand_as(found) == 0).abs().max() == 0


@NETWORKS
@HIDDEN
def test_every_network_learns_with_every_way_to_hide(model, hiding):
    autoencoder = build(model, hiding=hiding)
    pretrainer = Pretrainer(autoencoder, num_steps=30, learning_rate=3e-3)
    images, mask = images_and_mask()
    images = functional.avg_pool2d(images, 9, 1, 4) * 9
    losses = [float(pretrainer.step(images, mask).loss) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]
    assert [tuple(token.shape) for token in autoencoder.tokens] == {
        "zero": [], "token": [(128,)], "masked": [(width,) for width in autoencoder.encoder.map_widths],
    }[hiding]  # fmt: skip


def test_an_unknown_way_to_hide_is_refused():
    with pytest.raises(InputError, match="unknown hiding 'maskd'.*masked"):
        build(hiding="maskd")


def test_the_residual_u_net_has_nnu_nets_weights_under_all_their_names():
    """Compared with dynamic_network_architectures 0.4.4, whose results are equal to the last bit."""
    weights = nnunet_weights(build("resenc", channels=1).encoder)
    assert len(weights) == 392 and sum(value.numel() for value in weights.values()) == 12_146_704
    assert hashlib.sha256(" ".join(sorted(weights)).encode()).hexdigest()[:16] == "289089c4cc0a6b39"
    some = {
        "encoder.stem.convs.0.all_modules.0.weight": (16, 1, 3, 3),
        "encoder.stages.1.blocks.0.skip.1.norm.weight": (32,),
        "decoder.encoder.stages.4.blocks.1.conv2.all_modules.1.bias": (256,),
        "decoder.stages.0.convs.0.conv.weight": (128, 256, 3, 3),
        "decoder.transpconvs.3.weight": (32, 16, 2, 2),
    }
    assert {name: tuple(weights[name].shape) for name in some} == some


@pytest.mark.parametrize("sizes", [{"features": (8, 16)}, {"blocks": (1, 2, 0, 2, 2)}])
def test_sizes_of_the_residual_u_net_that_do_not_fit_are_refused(sizes):
    with pytest.raises(InputError, match="one of each per resolution"):
        build("resenc", **sizes)


def test_the_prediction_is_that_of_the_image_with_zeros_in_the_masked_patches():
    autoencoder = build()
    images, mask = images_and_mask()
    zeros = unpatchify(patchify(images, 8) * ~mask[..., None], (4, 6), 8)
    expected = patchify(autoencoder.head(autoencoder.encoder(zeros)), 8)
    torch.testing.assert_close(autoencoder(images, mask).prediction, expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("normalise", [False, True])
def test_the_loss_is_the_mean_squared_error_of_the_masked_patches(channels, normalise):
    autoencoder = build(channels=channels, target="normalised" if normalise else "pixels")
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
        UNet(image_size=size, patch_size=8, channels=1)


def test_images_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"\(1, 32, 48\) do not fit .* \(2, 32, 48\)"):
        build()(torch.zeros(1, 1, *SIZE), images_and_mask(batch=1)[1])


def test_the_weights_of_a_u_net_fit_any_image_size():
    unet = UNet(image_size=SIZE, patch_size=8, channels=1)
    assert unet(torch.zeros(1, 1, 64, 80)).shape == (1, 32, 64, 80)
