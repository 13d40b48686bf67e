"""The interface of encoders: a new one needs no change elsewhere."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from ahm_gym.errors import InputError
from ahm_gym.model.conv_autoencoder import ConvAutoencoder
from ahm_gym.model.encoder_base import ARCHITECTURES, NUM_MAPS, Encoder
from ahm_gym.model.encoders import as_encoder, export_encoder, load_encoder
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.segmentation.segmenter import build_segmenter, load_segmenter, parameter_groups, save_segmenter

STATISTICS = {"mean": (0.5,), "std": (0.2,)}


class Averages(nn.Module):
    """A new encoder: a linear map of the mean of each patch."""

    has_decoder, width = False, 6

    def __init__(self, image_size=(32, 48), patch_size=8, channels=1):
        super().__init__()
        self.image_size, self.patch_size, self.channels = image_size, patch_size, channels
        self.layer = nn.Conv2d(channels, self.width, 1)

    def patch_features(self, images):
        return self.feature_maps(images)[-1].flatten(2).transpose(1, 2)

    def feature_maps(self, images):
        return [self.layer(functional.avg_pool2d(images, self.patch_size))] * NUM_MAPS

    def parameter_groups(self, weight_decay):
        return [{"params": list(self.parameters()), "weight_decay": weight_decay, "lr_scale": 0.5}]

    def export(self, folder, statistics):
        folder.mkdir(parents=True)
        save_file(self.state_dict(), folder / "model.safetensors")
        shape = {"img_size": self.image_size, "patch_size": self.patch_size, "in_chans": self.channels}
        config = {"kind": "averages", "architecture": "averages", "model_args": shape}
        (folder / "config.json").write_text(json.dumps(config))


as_encoder.register(Averages, lambda network: network)


def load(folder, **shape):
    network = Averages(**shape)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network


def build(model):
    if model == "averages":
        return Averages()
    return build_autoencoder(model, image_size=(32, 48), patch_size=8, seed=0).encoder


@pytest.fixture(autouse=True)
def architectures(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "averages", "averages_encoder")
    module = SimpleNamespace(load=load, build=lambda seed, **_: build_autoencoder("unet", seed=seed))
    monkeypatch.setitem(sys.modules, "averages_encoder", module)


def noise(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model", ["tiny", "tiny_conv", "unet", "resenc", "averages"])
def test_an_encoder_reports_the_shapes_that_it_returns(model):
    network = build(model).eval()
    encoder = as_encoder(network)
    assert isinstance(encoder, Encoder)
    assert (encoder.image_size, encoder.patch_size, encoder.channels) == ((32, 48), 8, 1)
    images = noise(2, 1, 32, 48)
    assert encoder.patch_features(images).shape[:2] == (2, 24)
    maps = encoder.feature_maps(images)
    expected = [(2, encoder.width, 32, 48)] if encoder.has_decoder else [(2, encoder.width, 4, 6)] * NUM_MAPS
    assert [tuple(found.shape) for found in maps] == expected
    assert encoder.has_decoder is (model in ("unet", "resenc"))


@pytest.mark.parametrize("model", ["tiny", "tiny_conv", "unet", "resenc", "averages"])
def test_every_trained_parameter_is_in_one_group_and_a_frozen_one_in_none(model):
    network = build(model).requires_grad_(True)
    given = [p for group in as_encoder(network).parameter_groups(0.05) for p in group["params"]]
    assert sorted(map(id, given)) == sorted(map(id, network.parameters()))
    if model != "averages":
        assert as_encoder(network.requires_grad_(False)).parameter_groups(0.05) == []


def test_a_view_of_an_encoder_adds_no_weights_and_leaves_timms_names():
    network = build("tiny")
    names = list(network.state_dict())
    segmenter = build_segmenter(network, 2)
    assert segmenter.encoder is network and list(network.state_dict()) == names
    own = [name for name in segmenter.state_dict() if not name.startswith("decoder.")]
    assert own == [f"encoder.{name}" for name in names]


def test_a_new_encoder_is_exported_loaded_and_segments_without_a_change_elsewhere(tmp_path):
    network = build("averages")
    export_encoder(network, tmp_path / "encoder", **STATISTICS)
    loaded = load_encoder(tmp_path / "encoder")
    assert isinstance(loaded, Averages) and torch.equal(loaded.layer.weight, network.layer.weight)
    segmenter = build_segmenter(loaded, 3).eval()
    images = noise(2, 1, 32, 48)
    assert segmenter(images).shape == (2, 3, 32, 48)
    assert {group["lr_scale"] for group in parameter_groups(segmenter)} == {0.5, 1.0}
    save_segmenter(segmenter, tmp_path / "segmenter", **STATISTICS)
    assert torch.equal(load_segmenter(tmp_path / "segmenter").eval()(images), segmenter(images))


def test_a_new_architecture_builds_its_own_autoencoder():
    assert isinstance(build_autoencoder("averages", seed=7), ConvAutoencoder)


def test_a_network_of_an_unknown_class_is_refused():
    with pytest.raises(InputError, match="Linear is not a known encoder"):
        as_encoder(nn.Linear(2, 2))
