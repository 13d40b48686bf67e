import shutil

import pytest
import torch
from timm.models import save_for_hf

from ahm_gym.errors import InputError
from ahm_gym.model.encoders import find_encoder, load_encoder
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.runs.folder import RunFolder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A pretraining run as its exports leave it, and the encoder in it."""
    folder = tmp_path_factory.mktemp("runs") / "brain"
    encoder = build_autoencoder("tiny", image_size=(32, 48), patch_size=8, channels=2, seed=7).encoder
    RunFolder.create(folder, {"kind": "pretrain", "data": "brain.npz", "data_root": "/scans"})
    statistics = {"mean": (0.5, 0.5), "std": (0.2, 0.2)}
    save_for_hf(encoder, str(folder / "encoder"), safe_serialization=True, data_config=statistics)
    return folder, encoder.eval()


@pytest.mark.parametrize("part", ["", "encoder"])
def test_a_run_folder_and_its_encoder_folder_load_exactly(pretrained, part):
    folder, encoder = pretrained
    loaded = load_encoder(folder / part).eval()
    images = torch.randn(2, 2, 32, 48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.forward_features(images), encoder.forward_features(images))


@pytest.mark.parametrize("part", ["", "encoder"])
def test_a_run_reports_its_shapes_and_its_data(pretrained, part):
    found = find_encoder(pretrained[0] / part)
    assert (found.model, found.image_size, found.patch_size, found.channels) == ("tiny", (32, 48), 8, 2)
    assert (found.data, str(found.data_root)) == ("brain.npz", "/scans")


def test_an_encoder_folder_that_was_copied_elsewhere_loads_without_its_run(pretrained, tmp_path):
    copy = shutil.copytree(pretrained[0] / "encoder", tmp_path / "copy")
    found = find_encoder(copy)
    assert (found.model, found.image_size, found.data) == ("tiny", (32, 48), None)


@pytest.mark.parametrize(
    ("size", "patch_size", "channels"), [((64, 64), 8, 2), ((32, 48), 4, 1), ((48, 32), 16, 3)]
)
def test_other_sizes_and_channels_are_converted(pretrained, size, patch_size, channels):
    encoder = load_encoder(pretrained[0], image_size=size, patch_size=patch_size, channels=channels)
    images = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(0))
    assert encoder.forward_features(images).shape == (1, 1 + size[0] * size[1] // patch_size**2, 128)
    untouched = "blocks.3.mlp.fc1.weight"
    assert torch.equal(encoder.state_dict()[untouched], pretrained[1].state_dict()[untouched])


def test_an_untrained_encoder_is_the_one_that_pretraining_starts_from():
    start = build_autoencoder(
        "tiny", image_size=(32, 32), patch_size=8, channels=1, seed=3
    ).encoder.state_dict()
    encoder = load_encoder(None, model="tiny", image_size=(32, 32), patch_size=8, channels=1, seed=3)
    assert all(torch.equal(value, start[name]) for name, value in encoder.state_dict().items())


def test_loading_does_not_change_the_global_generator(pretrained):
    before = torch.get_rng_state()
    load_encoder(pretrained[0])
    load_encoder(None)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_differs_from_the_encoders_is_refused(pretrained):
    with pytest.raises(InputError, match=r"`model=small` does not fit `encoder=.* is tiny"):
        load_encoder(pretrained[0], model="small")


def test_a_patch_size_that_does_not_divide_is_refused(pretrained):
    with pytest.raises(InputError, match="patch size 7 does not divide"):
        load_encoder(pretrained[0], patch_size=7)


def test_folders_that_hold_no_encoder_are_refused(pretrained, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        find_encoder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="neither a run folder nor an exported encoder"):
        find_encoder(tmp_path)
    RunFolder.create(tmp_path / "early", {"kind": "pretrain"})
    with pytest.raises(InputError, match=r"has exported no encoder yet: .*`resume`"):
        find_encoder(tmp_path / "early")
    RunFolder.create(tmp_path / "segmented", {"kind": "segment"})
    with pytest.raises(InputError, match="is a segment run: give a pretraining run"):
        find_encoder(tmp_path / "segmented")
    (tmp_path / "config.json").write_text("{torn")
    with pytest.raises(InputError, match="is not JSON"):
        find_encoder(tmp_path)


def test_truncated_weights_are_refused_by_name(pretrained, tmp_path):
    copy = shutil.copytree(pretrained[0] / "encoder", tmp_path / "copy")
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match=r"the encoder in .*copy cannot be used"):
        load_encoder(copy)


@pytest.mark.parametrize("trained", [False, True])
def test_a_patch_size_of_0_is_not_taken_for_the_default(pretrained, trained):
    with pytest.raises(InputError, match="patch size 0 does not fit"):
        load_encoder(pretrained[0] if trained else None, patch_size=0)
