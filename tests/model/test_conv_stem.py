"""The vision transformer with a convolutional stem: what its tokens see, its exports, and its rates."""

import itertools
import json

import pytest
import timm
import torch
from torch import nn

from ahm_gym.errors import InputError
from ahm_gym.masking.selection import mask_top_k
from ahm_gym.model.conv_stem import ConvStemAutoencoder, ConvStemTransformer
from ahm_gym.model.encoder_base import as_encoder
from ahm_gym.model.encoders import export_encoder, find_encoder, load_encoder
from ahm_gym.model.patches import patchify, unpatchify
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.published import load_published
from ahm_gym.model.vit import build_autoencoder

SIZE = (32, 48)
PATCH_SIZES = pytest.mark.parametrize("patch_size", [4, 8, 16])


def build(patch_size=8, image_size=SIZE, **options) -> ConvStemAutoencoder:
    """With random biases, norms and tokens, as after some updates."""
    autoencoder = build_autoencoder(
        "tiny_conv", image_size=image_size, patch_size=patch_size, channels=2, **options
    )
    assert isinstance(autoencoder, ConvStemAutoencoder)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in autoencoder.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return autoencoder.eval()


def images_and_mask(patch_size=8, batch=3):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 2, *SIZE, generator=generator)
    patches = SIZE[0] * SIZE[1] // patch_size**2
    return images, mask_top_k(
        torch.rand(batch, patches, generator=generator), patches // 2, generator=generator
    )


def hidden_pixels(mask, patch_size):
    """True in the pixels of masked patches: B C H W."""
    grid = (SIZE[0] // patch_size, SIZE[1] // patch_size)
    return unpatchify(mask[..., None].expand(-1, -1, 2 * patch_size**2).float(), grid, patch_size) > 0


@PATCH_SIZES
def test_a_hidden_pixel_has_no_gradient_in_visible_tokens_and_predictions(patch_size):
    autoencoder = build(patch_size)
    images, mask = images_and_mask(patch_size)
    hidden = hidden_pixels(mask, patch_size)
    images.requires_grad_(True)
    outputs = {
        "embedding": autoencoder.embed(images)[~mask],
        "encoded": autoencoder.encode(images, mask),
        "prediction": autoencoder(images, mask).prediction,
    }
    for name, output in outputs.items():
        (gradient,) = torch.autograd.grad(output.square().sum(), images, retain_graph=True)
        assert gradient[hidden].abs().max() == 0, name
        assert gradient[~hidden].abs().min() > 0, name


@PATCH_SIZES
def test_another_hidden_pixel_changes_no_visible_token_and_no_prediction(patch_size):
    autoencoder = build(patch_size)
    images, mask = images_and_mask(patch_size)
    hidden = hidden_pixels(mask, patch_size)
    changed = torch.where(hidden, 100.0, images)
    assert torch.equal(autoencoder.embed(images)[~mask], autoencoder.embed(changed)[~mask])
    assert torch.equal(autoencoder.encode(images, mask), autoencoder.encode(changed, mask))
    assert torch.equal(autoencoder(images, mask).prediction, autoencoder(changed, mask).prediction)
    shown = torch.where(hidden, images, images + 1.0)
    assert not torch.equal(autoencoder(images, mask).prediction, autoencoder(shown, mask).prediction)


def test_every_token_of_the_encoders_own_stem_sees_its_patch_alone():
    stem = build().encoder.patch_embed
    images, _ = images_and_mask(batch=1)
    images.requires_grad_(True)
    (gradient,) = torch.autograd.grad(stem(images)[0, 7].square().sum(), images)
    touched = patchify(gradient, 8)[0].abs().sum(dim=1) > 0
    assert touched.nonzero().flatten().tolist() == [7]


@PATCH_SIZES
def test_the_stem_halves_a_patch_to_one_pixel_and_doubles_the_channels(patch_size):
    stem = build(patch_size).encoder.patch_embed.proj
    *convolutions, last = (layer for layer in stem if isinstance(layer, nn.Conv2d))
    widths = [layer.out_channels for layer in convolutions]
    assert 2 ** len(widths) == patch_size and widths[-1] == last.out_channels == 128
    assert all(later == 2 * earlier for earlier, later in itertools.pairwise(widths))
    assert stem(torch.zeros(5, 2, patch_size, patch_size)).shape == (5, 128, 1, 1)


def test_unmasked_encoding_equals_timms_own_forward():
    autoencoder = build()
    images, _ = images_and_mask()
    with torch.no_grad():
        expected = autoencoder.encoder.forward_features(images)
        torch.testing.assert_close(autoencoder.encode(images), expected, atol=1e-5, rtol=1e-5)


def test_it_is_no_larger_than_tiny():
    sizes = {
        model: sum(p.numel() for p in build_autoencoder(model).encoder.parameters())
        for model in ("tiny", "tiny_conv")
    }
    assert 0.85 * sizes["tiny"] < sizes["tiny_conv"] <= sizes["tiny"]


def test_it_learns_and_every_parameter_has_a_gradient():
    autoencoder = build_autoencoder("tiny_conv", image_size=SIZE, channels=2)
    images, mask = images_and_mask()
    images = nn.functional.avg_pool2d(images, 9, 1, 4) * 9
    autoencoder(images, mask).loss.backward()
    silent = [
        name for name, p in autoencoder.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0
    ]
    assert silent == []
    pretrainer = Pretrainer(autoencoder, num_steps=30, learning_rate=3e-3)
    losses = [float(pretrainer.step(images, mask).loss) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


def test_building_is_reproducible_and_does_not_change_the_global_generator():
    before = torch.get_rng_state()
    first, same, other = (
        build_autoencoder("tiny_conv", seed=seed).state_dict()["patch_embed.proj.0.weight"]
        for seed in (3, 3, 4)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, same) and not torch.equal(first, other)


@pytest.mark.parametrize("patch_size", [1, 6, 12])
def test_a_patch_size_that_is_no_power_of_two_is_refused(patch_size):
    with pytest.raises(InputError, match=f"`patch_size` is {patch_size}: choose a power of two"):
        build_autoencoder("tiny_conv", image_size=(24, 24), patch_size=patch_size)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "encoder"
    encoder = build().encoder
    export_encoder(encoder, folder, mean=(0.5, 0.5), std=(0.2, 0.2))
    return folder, encoder


def test_an_export_loads_exactly_and_reports_its_shapes(exported):
    folder, encoder = exported
    found = find_encoder(folder)
    assert (found.model, found.image_size, found.patch_size, found.channels) == ("tiny_conv", SIZE, 8, 2)
    assert json.loads((folder / "config.json").read_text())["pretrained_cfg"]["mean"] == [0.5, 0.5]
    before = torch.get_rng_state()
    loaded = load_encoder(folder).eval()
    assert isinstance(loaded, ConvStemTransformer) and torch.equal(before, torch.get_rng_state())
    images, _ = images_and_mask()
    assert torch.equal(as_encoder(loaded).patch_features(images), as_encoder(encoder).patch_features(images))


@pytest.mark.parametrize(("size", "channels"), [((64, 64), 2), ((48, 32), 1), ((32, 48), 3)])
def test_other_sizes_and_channels_are_converted(exported, size, channels):
    folder, encoder = exported
    loaded = load_encoder(folder, image_size=size, channels=channels)
    assert as_encoder(loaded).channels == channels
    images = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(0))
    assert as_encoder(loaded).patch_features(images).shape == (1, size[0] * size[1] // 64, 128)
    own, weights = encoder.state_dict(), loaded.state_dict()
    assert torch.equal(weights["patch_embed.proj.3.weight"], own["patch_embed.proj.3.weight"])
    assert torch.equal(weights["pos_embed"], own["pos_embed"]) is (size == SIZE)


def test_another_patch_size_or_model_is_refused(exported):
    with pytest.raises(
        InputError, match="`patch_size` is 16 and the convolutional stem in .* patches of 8 pixels"
    ):
        load_encoder(exported[0], patch_size=16)
    with pytest.raises(InputError, match=r"`model=tiny` does not fit `encoder=.* is tiny_conv"):
        load_encoder(exported[0], model="tiny")


def test_timm_does_not_load_the_export_and_names_it(exported):
    with pytest.raises(RuntimeError, match="tiny_conv"):
        timm.create_model(f"local-dir:{exported[0]}", pretrained=True)


def test_published_weights_are_refused(tmp_path):
    with pytest.raises(InputError, match="do not fit one with a convolutional stem: leave `init` out"):
        load_published(build(), tmp_path / "mae.pth")


def test_the_stem_is_the_lowest_layer_of_the_learning_rates():
    encoder = build().encoder.requires_grad_(True)
    groups = as_encoder(encoder).parameter_groups(0.05)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    blocks = [scales[id(block.attn.qkv.weight)] for block in encoder.blocks]
    assert [a / b for a, b in itertools.pairwise(blocks)] == pytest.approx([0.75] * 4)
    stem = {scales[id(p)] for p in encoder.patch_embed.parameters()}
    assert stem == {min(scales.values())} and stem.pop() == pytest.approx(0.75 * blocks[0])
