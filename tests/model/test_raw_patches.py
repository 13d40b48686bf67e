import pytest
import torch

from ahm_gym.errors import InputError
from ahm_gym.model.encoders import export_encoder, load_encoder
from ahm_gym.model.raw_patches import RawPatches
from ahm_gym.model.vit import build_autoencoder


def test_a_patch_is_described_by_the_mean_and_the_deviation_of_each_channel():
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    encoder = RawPatches(image_size=(16, 24), patch_size=8, channels=3)
    features = encoder.patch_features(images)
    assert features.shape == (2, 6, 6) and encoder.width == 6
    patch = images[1, :, 8:16, 16:24]
    torch.testing.assert_close(features[1, 5, :3], patch.mean(dim=(1, 2)))
    torch.testing.assert_close(features[1, 5, 3:], patch.std(dim=(1, 2), correction=0))
    maps = encoder.feature_maps(images)
    assert len(maps) == 4 and torch.equal(maps[0][1, :, 1, 2], features[1, 5])


def test_it_is_found_by_name_and_exported_without_weights(tmp_path):
    encoder = load_encoder(None, model="raw_patches", image_size=(16, 24), channels=2)
    assert isinstance(encoder, RawPatches) and list(encoder.parameters()) == []
    export_encoder(encoder, tmp_path / "encoder", mean=(0.5, 0.5), std=(0.2, 0.2))
    loaded = load_encoder(tmp_path / "encoder")
    assert isinstance(loaded, RawPatches) and (loaded.image_size, loaded.channels) == ((16, 24), 2)


def test_there_is_nothing_to_pretrain():
    with pytest.raises(InputError, match="nothing to pretrain"):
        build_autoencoder("raw_patches")
