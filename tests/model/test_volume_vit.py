"""The vision transformer of volumes in other hands: exported, loaded by timm, and fitted to other sizes."""

import json

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.layers.patch_embed import resample_patch_embed
from timm.models.vision_transformer import VisionTransformer

import ahm_gym.model.volume_vit  # what a reader imports for timm
from ahm_gym.errors import InputError
from ahm_gym.model.encoders import export_encoder, find_encoder, load_encoder, statistics_of
from ahm_gym.model.published import load_published
from ahm_gym.model.resampling import adapt_channels, resample_kernel, resample_positions
from ahm_gym.model.vit import build_autoencoder

SIZE, SIDE = (12, 16, 20), 4
STATISTICS = {"mean": (0.5, 0.25), "std": (0.2, 0.1)}


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of an exported encoder, and the encoder."""
    folder = tmp_path_factory.mktemp("exports") / "encoder"
    encoder = build_autoencoder("tiny", image_size=SIZE, patch_size=SIDE, channels=2, seed=7).encoder
    export_encoder(encoder, folder, **STATISTICS)
    return folder, encoder.eval()


def test_timm_loads_exactly_the_encoder_that_was_exported(exported):
    folder, encoder = exported
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert type(loaded) is VisionTransformer and loaded.num_prefix_tokens == 0
    volumes = noise(2, 2, *SIZE)
    assert torch.equal(loaded.forward_features(volumes), encoder.forward_features(volumes))
    assert torch.equal(load_encoder(folder).eval()(volumes), encoder(volumes))
    assert tuple(loaded.pretrained_cfg["mean"]) == STATISTICS["mean"]
    assert statistics_of(folder) == (STATISTICS["mean"], STATISTICS["std"])
    assert ahm_gym.model.volume_vit.NAME in timm.list_models()


def test_timm_puts_a_head_on_the_encoder(exported):
    folder, encoder = exported
    volumes = noise(2, 2, *SIZE)
    headed = timm.create_model(
        f"local-dir:{folder}", pretrained=True, num_classes=3, global_pool="avg"
    ).eval()
    assert torch.equal(headed.forward_features(volumes), encoder.forward_features(volumes))
    assert headed(volumes).shape == (2, 3)


def test_an_encoder_with_another_epsilon_is_exported_with_it(tmp_path):
    encoder = build_autoencoder("tiny", image_size=SIZE, patch_size=SIDE, norm_eps=1e-2).encoder
    export_encoder(encoder, tmp_path, mean=(0.0,), std=(1.0,))
    volumes = noise(1, 1, *SIZE)
    assert torch.equal(load_encoder(tmp_path).eval()(volumes), encoder.eval()(volumes))


def test_the_exported_folder_says_what_it_holds(exported):
    found = find_encoder(exported[0])
    assert (found.model, found.image_size, found.patch_size, found.channels) == ("tiny", SIZE, SIDE, 2)
    config = json.loads((exported[0] / "config.json").read_text())
    del config["model_args"]["volume_size"]
    (exported[0] / "config.json").rename(exported[0] / "kept.json")
    (exported[0] / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"img_size` is missing in .*config\.json"):
        find_encoder(exported[0])
    (exported[0] / "kept.json").rename(exported[0] / "config.json")


@pytest.mark.parametrize(
    ("size", "patch_size", "channels"), [((16, 16, 32), 4, 2), (SIZE, 2, 1), ((24, 16, 8), 8, 3)]
)
def test_other_sizes_and_channels_are_converted(exported, size, patch_size, channels):
    folder, encoder = exported
    loaded = load_encoder(folder, image_size=size, patch_size=patch_size, channels=channels)
    num_patches = size[0] * size[1] * size[2] // patch_size**3
    assert loaded.forward_features(noise(1, channels, *size)).shape == (1, num_patches, 128)
    name = "blocks.3.mlp.fc1.weight"
    assert torch.equal(loaded.state_dict()[name], encoder.state_dict()[name])


def test_a_volume_that_is_enlarged_with_its_patches_keeps_its_tokens():
    kernel, coarse = noise(8, 1, 4, 4, 4), noise(1, 1, 4, 4, 4)
    fine = torch.nn.functional.interpolate(coarse, scale_factor=2, mode="nearest")
    matched = resample_kernel(kernel, 8)
    tokens = [(matched * fine).sum(dim=(1, 2, 3, 4)), (kernel * coarse).sum(dim=(1, 2, 3, 4))]
    assert torch.corrcoef(torch.stack(tokens))[0, 1] > 0.9


def test_two_axes_are_resampled_as_timm_does_and_a_third_alike():
    positions, kernel = noise(1, 12, 8), noise(8, 3, 6, 6)
    expected = resample_abs_pos_embed(positions, [6, 5], [3, 4], num_prefix_tokens=0)
    assert torch.allclose(resample_positions(positions, (3, 4), (6, 5)), expected, atol=1e-5)
    assert torch.allclose(resample_kernel(kernel, 4), resample_patch_embed(kernel, [4, 4]), atol=1e-4)
    planes = torch.stack([positions[0].view(3, 4, 8), noise(12, 8).view(3, 4, 8).flip(0)], dim=2)
    moved = resample_positions(planes.flatten(0, 2)[None], (3, 4, 2), (6, 5, 2)).view(6, 5, 2, 8)
    assert torch.allclose(moved[:, :, 0], expected.view(6, 5, 8), atol=1e-5)


def test_channels_of_volumes_are_converted_as_timm_converts_those_of_images():
    kernel = noise(8, 3, 4, 4, 4)
    assert torch.allclose(adapt_channels(kernel, 1), kernel.sum(dim=1, keepdim=True))
    assert torch.allclose(adapt_channels(kernel, 6).sum(dim=1), kernel.sum(dim=1), atol=1e-5)


def test_weights_of_another_number_of_axes_are_refused(exported, tmp_path):
    folder, encoder = exported
    with pytest.raises(InputError, match=r"`image_size=64x64` does not fit .* with 12x16x20: give 3 lengths"):
        load_encoder(folder, image_size=(64, 64))
    volumes = build_autoencoder("tiny", image_size=SIZE, patch_size=SIDE, channels=2)
    flat = build_autoencoder("tiny", image_size=(16, 16), patch_size=SIDE, channels=2)
    torch.save(flat.state_dict(), tmp_path / "flat.pth")
    with pytest.raises(InputError, match="holds weights for images, and this run is on volumes"):
        load_published(volumes, tmp_path / "flat.pth")
    with pytest.raises(InputError, match="holds weights for volumes, and this run is on images"):
        load_published(flat, folder / "model.safetensors")
    report = load_published(volumes, folder / "model.safetensors")
    assert not report.resized and not report.left_out and len(report.matched) == len(encoder.state_dict())
