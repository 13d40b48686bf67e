import pytest
import torch
from programs import assert_same
from safetensors.torch import save_file

from ahm_gym.errors import InputError
from ahm_gym.model.published import load_published
from ahm_gym.model.vit import build_autoencoder


def build(image_size=(32, 32), patch_size=8, channels=3, seed=0):
    return build_autoencoder(
        "tiny", image_size=image_size, patch_size=patch_size, channels=channels, seed=seed
    )


@pytest.fixture(scope="module")
def published():
    """A checkpoint as MAE publishes it: a decoder too, under the key model."""
    return build(seed=1).state_dict()


def test_a_checkpoint_of_the_same_shape_matches_in_every_tensor(published, tmp_path):
    torch.save({"model": published}, tmp_path / "mae.pth")
    autoencoder = build()
    report = load_published(autoencoder, tmp_path / "mae.pth")
    assert len(report.matched) == len(published)
    assert report.resized == report.left_out == report.missing == []
    assert all(torch.equal(value, published[key]) for key, value in autoencoder.state_dict().items())


def test_the_teacher_starts_from_the_published_encoder(published, tmp_path):
    torch.save({"model": published}, tmp_path / "mae.pth")
    autoencoder = build_autoencoder("tiny", image_size=(32, 32), channels=3, seed=0, target="latent")
    report = load_published(autoencoder, tmp_path / "mae.pth")
    assert set(report.missing) == {"latent.head.weight", "latent.head.bias"}
    assert_same(autoencoder.latent.teacher.state_dict(), autoencoder.encoder.state_dict())
    assert torch.equal(autoencoder.encoder.norm.weight, published["norm.weight"])


def test_an_encoder_alone_leaves_the_decoder_as_it_was(published, tmp_path):
    encoder = {
        key: value for key, value in published.items() if not key.startswith(("decoder", "mask_token"))
    }
    save_file(encoder | {"head.weight": torch.zeros(10, 128)}, tmp_path / "vit.safetensors")
    autoencoder = build()
    before = autoencoder.decoder_pred.weight.clone()
    report = load_published(autoencoder, tmp_path / "vit.safetensors")
    assert report.left_out == ["head.weight"]
    assert all(key.startswith(("decoder", "mask_token")) for key in report.missing) and report.missing
    assert torch.equal(before, autoencoder.decoder_pred.weight)
    assert "left out: head.weight" in str(report)


def test_other_sizes_and_channel_counts_are_resized(published, tmp_path):
    torch.save(published, tmp_path / "mae.pth")
    autoencoder = build(image_size=(32, 48), patch_size=16, channels=1)
    report = load_published(autoencoder, tmp_path / "mae.pth")
    assert set(report.resized) == {"pos_embed", "patch_embed.proj.weight", "decoder_pos_embed"}
    assert set(report.left_out) == {"decoder_pred.weight", "decoder_pred.bias"}
    assert torch.equal(
        autoencoder.state_dict()["blocks.0.attn.qkv.weight"], published["blocks.0.attn.qkv.weight"]
    )


def test_grey_images_see_the_summed_colour_weights(published, tmp_path):
    torch.save(published, tmp_path / "mae.pth")
    autoencoder = build(channels=1)
    load_published(autoencoder, tmp_path / "mae.pth")
    grey = torch.randn(1, 1, 32, 32)
    expected = build(seed=1).encode(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(autoencoder.encode(grey), expected, atol=1e-5, rtol=1e-4)


def test_a_checkpoint_of_another_model_is_refused(published, tmp_path):
    torch.save(published, tmp_path / "mae.pth")
    other = build_autoencoder("small", image_size=(32, 32), patch_size=8, channels=3)
    with pytest.raises(InputError, match=r"mae\.pth does not fit this model.*`model`"):
        load_published(other, tmp_path / "mae.pth")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_an_unreadable_file_is_refused_by_name(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} cannot be read"):
        load_published(build(), tmp_path / name)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"gone\.pth does not exist"):
        load_published(build(), tmp_path / "gone.pth")
    with pytest.raises(InputError, match="is a folder: give a"):
        load_published(build(), tmp_path)


def test_a_file_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match="holds no tensors"):
        load_published(build(), tmp_path / "odd.pth")
