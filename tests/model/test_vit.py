import pytest
import timm
import torch
from lightly.models.modules import MaskedVisionTransformerTIMM
from torch.nn import functional

from ahm_gym.errors import InputError
from ahm_gym.masking.selection import mask_top_k
from ahm_gym.model.patches import patchify, visible_indices
from ahm_gym.model.vit import MaskedAutoencoder, build_autoencoder
from ahm_gym.model.vit_encoder import build_encoder

SIZE = (32, 48)


def build(**options):
    return build_autoencoder("tiny", image_size=SIZE, patch_size=8, channels=2, **options)


def images_and_mask(num_masked=18, batch=3):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 2, *SIZE, generator=generator)
    return images, mask_top_k(torch.rand(batch, 24, generator=generator), num_masked, generator=generator)


def with_random_biases(autoencoder):
    """Initial biases and tokens are zero, which would hide a term that is left out."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in autoencoder.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return autoencoder.eval()


def test_masked_encoding_equals_lightlys_to_1e_5():
    autoencoder = with_random_biases(build())
    images, mask = images_and_mask()
    other = MaskedVisionTransformerTIMM(
        autoencoder.encoder, weight_initialization="skip", pos_embed_initialization="skip"
    ).eval()
    visible = visible_indices(mask)
    keep = torch.cat([torch.zeros(3, 1, dtype=torch.int64), visible + 1], dim=1)  # 0 is the class token
    torch.testing.assert_close(
        autoencoder.encode(images, mask), other.encode(images, idx_keep=keep), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    "name",
    ["vit_small_patch16_224", "vit_base_patch16_clip_224", "vit_small_patch14_reg4_dinov2", "deit3_small_patch16_224",
     "vit_medium_patch16_gap_240"],
)  # fmt: skip
def test_unmasked_encoding_equals_timms_own_forward_to_1e_5(name):
    autoencoder = with_random_biases(build_autoencoder(name, image_size=(32, 48), patch_size=16, channels=2))
    images = torch.randn(2, 2, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            autoencoder.encode(images), autoencoder.encoder.forward_features(images), atol=1e-5, rtol=1e-5
        )


def test_the_state_dict_has_the_keys_of_published_mae_checkpoints():
    autoencoder = build_autoencoder("base", image_size=(32, 32), patch_size=16, channels=3)
    keys = set(autoencoder.state_dict())
    encoder = set(timm.create_model("vit_base_patch16_224", num_classes=0).state_dict())
    own = {key for key in keys if key.startswith("decoder_")} | {"mask_token"}
    assert keys - own == encoder
    heads = {key.split(".")[0] for key in own}
    assert heads == {
        "decoder_embed",
        "mask_token",
        "decoder_pos_embed",
        "decoder_blocks",
        "decoder_norm",
        "decoder_pred",
    }
    assert len({key.split(".")[1] for key in own if key.startswith("decoder_blocks")}) == 8


def test_the_state_dict_loads_back_unchanged():
    first, second = build(seed=1), build(seed=2)
    second.load_state_dict(first.state_dict())
    images, mask = images_and_mask()
    assert torch.equal(first(images, mask).loss, second(images, mask).loss)


def test_masked_pixels_do_not_reach_the_encoder():
    autoencoder = build()
    images, mask = images_and_mask()
    hidden = mask.reshape(3, 1, 4, 6).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = torch.where(hidden, torch.full_like(images, 100.0), images)
    assert torch.equal(autoencoder.encode(images, mask), autoencoder.encode(changed, mask))
    assert torch.equal(autoencoder(images, mask).prediction, autoencoder(changed, mask).prediction)


@pytest.mark.parametrize("normalise", [False, True])
def test_the_loss_is_the_mean_squared_error_of_the_masked_patches(normalise):
    autoencoder = build(target="normalised" if normalise else "pixels")
    images, mask = images_and_mask()
    result = autoencoder(images, mask)
    target = patchify(images, 8)
    if normalise:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(result.loss, functional.mse_loss(result.prediction[mask], target[mask]))
    torch.testing.assert_close(result.loss, result.patch_loss[mask].mean())


def test_gradients_reach_every_trained_parameter():
    autoencoder = build()
    autoencoder(*images_and_mask()).loss.backward()
    silent = [
        name for name, p in autoencoder.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]  # fmt: skip
    assert silent == []


@pytest.mark.parametrize("normalise", [False, True])
def test_a_perfect_prediction_reconstructs_the_image(normalise):
    autoencoder = build(target="normalised" if normalise else "pixels")
    images, mask = images_and_mask()
    perfect = autoencoder.target.of(images, patchify(images, 8))
    torch.testing.assert_close(autoencoder.reconstruct(images, mask, perfect), images, atol=1e-4, rtol=0)


def test_a_reconstruction_keeps_the_visible_patches():
    autoencoder = build()
    images, mask = images_and_mask()
    filled = autoencoder.reconstruct(images, mask, torch.zeros(3, 24, 128))
    kept = patchify(filled, 8)[~mask]
    assert torch.equal(kept, patchify(images, 8)[~mask])
    assert patchify(filled, 8)[mask].abs().sum() == 0


def test_the_embedding_is_the_sum_of_timms_patch_and_position_embedding():
    autoencoder = with_random_biases(build())
    images, _ = images_and_mask()
    encoder = autoencoder.encoder
    expected = encoder.patch_embed(images) + encoder.pos_embed[:, 1:]
    torch.testing.assert_close(autoencoder.embed(images), expected, atol=1e-5, rtol=0)


def test_building_is_reproducible_and_does_not_change_the_global_generator():
    before = torch.get_rng_state()
    first, second, other = build(seed=3), build(seed=3), build(seed=4)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.decoder_pred.weight, second.decoder_pred.weight)
    assert not torch.equal(first.decoder_pred.weight, other.decoder_pred.weight)


def test_norm_eps_reaches_every_layer_norm():
    encoder = build_encoder("tiny", image_size=SIZE, patch_size=8, channels=2)
    autoencoder = MaskedAutoencoder(encoder, norm_eps=1e-3)
    assert {m.eps for m in autoencoder.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-3}


def test_an_unknown_model_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match=r"unknown model 'tinny': did you mean 'tiny'"):
        build_encoder("tinny")
    with pytest.raises(InputError, match="did you mean 'vit_small_patch16_224'") as error:
        build_encoder("vit_smal_patch16_224")
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_relpos_small_patch16_224", "eva02_tiny_patch14_224", "vit_tiny_r_s16_p8_224"]
)
def test_a_model_that_is_not_a_plain_vision_transformer_is_refused(name):
    with pytest.raises(InputError, match="plain vision transformers"):
        build_encoder(name, image_size=(224, 224), patch_size=16, channels=3)


def test_images_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"\(1, 32, 48\) do not fit .* \(2, 32, 48\)"):
        build()(torch.zeros(1, 1, *SIZE), images_and_mask(batch=1)[1])


def test_masks_of_uneven_counts_are_refused():
    mask = torch.zeros(2, 24, dtype=torch.bool)
    mask[0, :3] = mask[1, :4] = True
    with pytest.raises(InputError, match="hides 3 to 4 of 24 patches"):
        build()(torch.zeros(2, 2, *SIZE), mask)
