"""The U-Net after pretraining: exported, loaded again, fine-tuned and probed."""

import dataclasses
import json
import shutil

import pytest
import torch

from ahm_gym.data import open_data
from ahm_gym.errors import InputError
from ahm_gym.model.encoders import export_encoder, find_encoder, load_encoder
from ahm_gym.model.unet import UNet
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.runs.folder import RunFolder
from ahm_gym.segmentation.config import FinetuneConfig
from ahm_gym.segmentation.finetune import finetune
from ahm_gym.segmentation.inputs import open_labelled, resolve, starting_encoder
from ahm_gym.segmentation.probe import Probe
from ahm_gym.segmentation.segmenter import build_segmenter, load_segmenter, parameter_groups, save_segmenter

STATISTICS = {"mean": (0.5, 0.5), "std": (0.2, 0.2)}


def noise(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def untrained(seed=0, size=(32, 48), channels=2, patch_size=8) -> UNet:
    return build_autoencoder(
        "unet", image_size=size, patch_size=patch_size, channels=channels, seed=seed
    ).encoder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A pretraining run as its exports leave it, and the U-Net in it."""
    folder = tmp_path_factory.mktemp("runs") / "brain"
    unet = untrained(seed=7)
    RunFolder.create(folder, {"kind": "pretrain", "data": "brain.npz", "data_root": "/scans"})
    export_encoder(unet, folder / "encoder", **STATISTICS)
    return folder, unet.eval()


@pytest.mark.parametrize("part", ["", "encoder"])
def test_a_run_folder_and_its_encoder_folder_load_exactly(pretrained, part):
    folder, unet = pretrained
    found = find_encoder(folder / part)
    assert (found.model, found.image_size, found.patch_size, found.channels) == ("unet", (32, 48), 8, 2)
    assert found.data == "brain.npz"
    images = noise(2, 2, 32, 48)
    assert torch.equal(load_encoder(folder / part).eval()(images), unet(images))
    config = json.loads((folder / "encoder" / "config.json").read_text())
    assert config["kind"] == "unet" and config["pretrained_cfg"]["mean"] == [0.5, 0.5]


def test_other_sizes_and_channels_are_converted(pretrained):
    unet = load_encoder(pretrained[0], image_size=(64, 64), patch_size=16, channels=1)
    assert unet(noise(1, 1, 64, 64)).shape == (1, 32, 64, 64)
    assert torch.equal(unet.state_dict()["down_4.convs.conv_1.conv.weight"],
                       pretrained[1].state_dict()["down_4.convs.conv_1.conv.weight"])  # fmt: skip


def test_an_untrained_u_net_is_the_one_that_pretraining_starts_from():
    unet = load_encoder(None, model="unet", image_size=(32, 48), channels=2, seed=3).state_dict()
    assert all(torch.equal(value, unet[name]) for name, value in untrained(seed=3).state_dict().items())


@pytest.mark.parametrize("model", ["unet", "resenc"])
def test_the_encoder_alone_can_be_transferred(model, discs, tmp_path):
    trained = build_autoencoder(model, image_size=(32, 32), channels=1, seed=7).encoder
    export_encoder(trained, tmp_path / "trained", mean=(0.5,), std=(0.2,))
    config = FinetuneConfig(encoder=str(tmp_path / "trained"), data=str(discs), transfer="encoder", seed=2)
    config = resolve(config)
    dataset = open_labelled(config)
    found = starting_encoder(config, dataset).state_dict()
    new = build_autoencoder(model, image_size=(32, 32), channels=1, seed=2).encoder.state_dict()
    for name, value in trained.state_dict().items():
        expected = new[name] if name.startswith(trained.decoder_prefixes) else value
        assert torch.equal(found[name], expected), name
    whole = starting_encoder(dataclasses.replace(config, transfer="all"), dataset).state_dict()
    assert all(torch.equal(whole[name], value) for name, value in trained.state_dict().items())
    assert sum(name.startswith(trained.decoder_prefixes) for name in whole) in (40, 24)


def test_a_vision_transformer_has_no_decoder_to_leave_behind_and_other_transfers_are_refused(discs):
    config = FinetuneConfig(data=str(discs), image_size=32, transfer="encoder")
    config = resolve(config)
    with pytest.raises(InputError, match="`transfer=encoder` leaves the decoder of a U-Net behind"):
        starting_encoder(config, open_labelled(config))
    with pytest.raises(InputError, match="unknown transfer 'everything'"):
        resolve(dataclasses.replace(config, transfer="everything"))


def test_a_vision_transformer_is_refused_for_a_u_net_and_the_reverse(pretrained, tmp_path):
    with pytest.raises(InputError, match=r"`model=tiny` does not fit `encoder=.* is unet"):
        load_encoder(pretrained[0], model="tiny")
    export_encoder(build_autoencoder("tiny", channels=2).encoder, tmp_path / "vit", **STATISTICS)
    with pytest.raises(InputError, match=r"`model=unet` does not fit `encoder=.* is tiny"):
        load_encoder(tmp_path / "vit", model="unet")


def test_sizes_that_do_not_fit_and_truncated_weights_are_refused(pretrained, tmp_path):
    with pytest.raises(InputError, match="image size 40x48 does not fit the U-Net"):
        load_encoder(pretrained[0], image_size=(40, 48))
    copy = shutil.copytree(pretrained[0] / "encoder", tmp_path / "copy")
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match=r"the encoder in .*copy cannot be used"):
        load_encoder(copy)


def test_the_segmenter_is_the_same_network_with_a_new_head():
    unet = untrained().eval()
    segmenter = build_segmenter(unet, 3).eval()
    images = noise(2, 2, 32, 48)
    assert torch.equal(segmenter(images), segmenter.decoder.out(unet(images)))
    assert segmenter(images).shape == (2, 3, 32, 48)
    assert sum(p.numel() for p in segmenter.decoder.parameters()) == 3 * (32 + 1)


@pytest.mark.parametrize("freeze", [False, True])
def test_every_trained_parameter_of_a_u_net_is_in_one_group_of_the_same_rate(freeze):
    segmenter = build_segmenter(untrained(), 2, freeze=freeze).train()
    assert segmenter.encoder.training is not freeze
    given = [parameter for group in parameter_groups(segmenter) for parameter in group["params"]]
    expected = segmenter.decoder if freeze else segmenter
    assert {id(p) for p in given} == {id(p) for p in expected.parameters()}
    assert {group["lr_scale"] for group in parameter_groups(segmenter)} == {1.0}


def test_a_saved_segmenter_loads_with_the_same_numbers(tmp_path):
    segmenter = build_segmenter(untrained(), 3).eval()
    save_segmenter(segmenter, tmp_path, **STATISTICS)
    images = noise(2, 2, 32, 48)
    assert torch.equal(load_segmenter(tmp_path).eval()(images), segmenter(images))


def test_a_few_labels_suffice_for_bright_discs_from_scratch(discs, tmp_path):
    config = FinetuneConfig(
        model="unet", data=str(discs), image_size=(32,), labels=6, steps=40, batch_size=4, run_dir=tmp_path / "run"
    )  # fmt: skip
    assert finetune(config)["dice"] > 0.85
    short = dataclasses.replace(config, steps=2, run_dir=tmp_path / "native", native_resolution=True)
    assert finetune(dataclasses.replace(short, image_size=(16, 32)))["num_cases"] == 8


def test_the_probe_reads_bright_discs_from_the_pooled_feature_map(discs):
    dataset = open_data(str(discs), image_size=(32, 32))
    unet = untrained(size=(32, 32), channels=1, patch_size=4).train()
    results = Probe(unet, dataset)(labels=10)
    assert results["patch_dice"] > 0.85
    assert unet.training
