import itertools

import pytest
import torch
from torch import Tensor

from ahm_gym.data import Sample
from ahm_gym.data.store import working_size
from ahm_gym.errors import InputError
from ahm_gym.model.decoders import DECODERS
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.model.vit_encoder import build_encoder, feature_depths
from ahm_gym.segmentation.segmenter import (
    Segmenter,
    build_segmenter,
    load_segmenter,
    parameter_groups,
    predict,
    save_segmenter,
)


def untrained(image_size=(32, 32), patch_size=8, channels=1, model="tiny"):
    return build_autoencoder(
        model, image_size=image_size, patch_size=patch_size, channels=channels, seed=0
    ).encoder


def noise(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def sample_of(image, label_size):
    return Sample(image, torch.zeros(label_size, dtype=torch.int64), "a", "a", None)


@pytest.mark.parametrize(
    ("image_size", "patch_size", "channels"),
    [((32, 48), 8, 1), ((64, 32), 16, 3), ((16, 24), 4, 2), ((64, 64), 32, 1), ((28, 42), 14, 1), ((9, 6), 3, 5),
     ((6, 4), 1, 1)],
)  # fmt: skip
@pytest.mark.parametrize("decoder", DECODERS)
def test_logits_have_one_value_a_class_and_pixel_for_any_patch_size(
    image_size, patch_size, channels, decoder
):
    segmenter = build_segmenter(untrained(image_size, patch_size, channels), 3, decoder=decoder)
    logits = segmenter(noise(2, channels, *image_size))
    assert logits.shape == (2, 3, *image_size)
    logits.square().mean().backward()
    unused = [
        name for name, value in segmenter.named_parameters() if value.requires_grad and value.grad is None
    ]
    assert unused == []


@pytest.mark.parametrize(
    ("num_blocks", "depths"),
    [(12, [2, 5, 8, 11]), (6, [1, 2, 3, 5]), (2, [0, 0, 1, 1]), (24, [5, 11, 17, 23])],
)
def test_features_come_from_four_evenly_spaced_depths(num_blocks, depths):
    assert feature_depths(num_blocks) == depths


def test_features_are_the_normed_patch_tokens_of_their_block():
    encoder = untrained().eval()
    images = noise(2, 1, 32, 32)
    tokens = encoder._pos_embed(encoder.patch_embed(images))
    for name, block in encoder.blocks.named_children():
        tokens = block(tokens) if int(name) < 3 else tokens
    tokens = encoder.norm(tokens)
    maps = Segmenter(encoder, 2).features(images)
    expected = tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    assert torch.allclose(maps[1], expected, atol=1e-6)
    last = encoder.forward_features(images)[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    assert torch.allclose(maps[3], last, atol=1e-6)


def test_the_plain_decoder_reads_every_depth_and_no_pixel():
    segmenter = build_segmenter(untrained(), 2, decoder="plain").eval()
    images = noise(2, 1, 32, 32).requires_grad_(True)
    features = [value.detach().requires_grad_(True) for value in segmenter.features(images)]
    segmenter.decoder(images, features).square().sum().backward()
    assert images.grad is None and all(value.grad.abs().sum() > 0 for value in features)


def test_the_unetr_decoder_reads_the_pixels():
    segmenter = build_segmenter(untrained(), 2).eval()
    images = noise(2, 1, 32, 32).requires_grad_(True)
    segmenter.decoder(images, [value.detach() for value in segmenter.features(images)]).sum().backward()
    assert images.grad.abs().sum() > 0


def test_an_unknown_decoder_is_refused():
    with pytest.raises(InputError, match="unknown decoder 'plane'.*plain"):
        build_segmenter(untrained(), 2, decoder="plane")


def test_a_u_net_refuses_the_plain_decoder():
    with pytest.raises(InputError, match="`decoder=plain` goes with a vision transformer"):
        build_segmenter(untrained(model="unet"), 2, decoder="plain")


def test_all_four_depths_reach_the_logits_at_patch_size_16():
    segmenter = build_segmenter(untrained((32, 32), 16), 2).eval()
    images = noise(1, 1, 32, 32)
    features = segmenter.features(images)
    logits = segmenter.decoder(images, features)
    for depth in range(4):
        changed = [
            torch.zeros_like(value) if place == depth else value for place, value in enumerate(features)
        ]
        assert not torch.allclose(segmenter.decoder(images, changed), logits)


def test_the_image_itself_reaches_the_logits_pixel_by_pixel():
    segmenter = build_segmenter(untrained(), 2).eval()
    images = noise(1, 1, 32, 32)
    other = images.clone()
    other[0, 0, 13, 17] += 1
    features = segmenter.features(images)
    change = (segmenter.decoder(images, features) - segmenter.decoder(other, features)).abs().sum(dim=1)[0]
    assert change[13, 17] > 10 * change.median()


def test_a_frozen_encoder_gets_no_gradient_and_stays_in_evaluation_mode():
    segmenter = build_segmenter(untrained(), 2, freeze=True).train()
    assert segmenter.decoder.training and not any(module.training for module in segmenter.encoder.modules())
    segmenter(noise(2, 1, 32, 32)).mean().backward()
    assert all(parameter.grad is None for parameter in segmenter.encoder.parameters())
    assert all(parameter.grad is not None for parameter in segmenter.decoder.parameters())


def test_an_encoder_that_is_not_frozen_is_trained_whole():
    encoder = untrained()
    assert not dict(encoder.named_parameters())["pos_embed"].requires_grad, "as pretraining keeps it"
    assert all(parameter.requires_grad for parameter in build_segmenter(encoder, 2).parameters())


def test_the_decoder_depends_on_the_seed_alone():
    first, second, other = (
        build_segmenter(untrained(), 2, seed=seed).decoder.state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["out.conv.conv.weight"], other["out.conv.conv.weight"])


def test_one_class_is_refused():
    with pytest.raises(InputError, match="number of classes is 1"):
        Segmenter(untrained(), 1)


def test_learning_rates_decay_from_the_decoder_to_the_patch_embedding():
    segmenter = build_segmenter(untrained(), 2)
    scales = {
        id(parameter): group["lr_scale"]
        for group in parameter_groups(segmenter)
        for parameter in group["params"]
    }
    assert len(scales) == len(list(segmenter.parameters()))
    assert {scales[id(parameter)] for parameter in segmenter.decoder.parameters()} == {1.0}
    weights = dict(segmenter.encoder.named_parameters())
    blocks = [scales[id(weights[f"blocks.{block}.attn.qkv.weight"])] for block in range(6)]
    ratios = [earlier / later for earlier, later in itertools.pairwise(blocks)]
    assert ratios == pytest.approx([0.75] * 5)
    assert scales[id(segmenter.encoder.patch_embed.proj.weight)] == pytest.approx(0.75 * blocks[0])


def test_every_parameter_is_in_one_group_and_vectors_do_not_decay():
    segmenter = build_segmenter(untrained(), 2)
    groups = parameter_groups(segmenter)
    assert sum(len(group["params"]) for group in groups) == len(list(segmenter.parameters()))
    for group in groups:
        if group["weight_decay"] > 0:
            assert all(parameter.ndim > 1 for parameter in group["params"])


def test_a_frozen_encoder_is_not_given_to_the_optimiser():
    segmenter = build_segmenter(untrained(), 2, freeze=True)
    given = {id(parameter) for group in parameter_groups(segmenter) for parameter in group["params"]}
    assert given == {id(parameter) for parameter in segmenter.decoder.parameters()}


def test_a_prediction_has_the_size_of_the_label():
    segmenter = build_segmenter(untrained(), 3).eval()
    image = noise(1, 40, 60)
    assert predict(segmenter, image, (100, 150)).shape == (100, 150)


def test_an_image_of_the_training_size_is_segmented_in_one_pass():
    segmenter = build_segmenter(untrained(), 3).eval()
    image = noise(1, 32, 32)
    expected = segmenter(image[None]).argmax(dim=1)[0]
    assert torch.equal(predict(segmenter, image, (32, 32)), expected)


class Threshold(Segmenter):
    """Knows the answer: bright pixels are class 1. It sees windows of its own size alone."""

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[2:] == self.image_size
        bright = (images[:, :1] - 0.5) * 20
        return torch.cat([-bright, bright], dim=1)


@pytest.mark.parametrize("size", [(32, 80), (90, 40)])
def test_windows_cover_the_whole_of_a_larger_image(size):
    segmenter = Threshold(untrained(), 2).eval()
    image = noise(1, *size).round()
    found = predict(segmenter, image, size, native_resolution=True)
    assert torch.equal(found, image[0].long())


def test_images_are_shrunk_to_cover_the_training_size_unless_they_stay_as_they_are():
    assert working_size((128, 256), (64, 64), False) == (64, 128)
    assert working_size((100, 30), (32, 48), False) == (160, 48)
    assert working_size((128, 256), (64, 64), True) == (128, 256)
    assert working_size((32, 256), (64, 64), True) == (64, 512)


def test_a_saved_segmenter_loads_with_the_same_numbers_and_its_encoder_with_timm(tmp_path):
    segmenter = build_segmenter(untrained((32, 48), 8, 2), 3, freeze=True).eval()
    save_segmenter(segmenter, tmp_path, mean=(0.1, 0.2), std=(1.0, 2.0))
    loaded = load_segmenter(tmp_path).eval()
    images = noise(2, 2, 32, 48)
    assert torch.equal(loaded(images), segmenter(images))
    assert loaded.freeze


def test_a_folder_without_a_segmenter_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no segmenter"):
        load_segmenter(tmp_path)


def test_timms_own_vision_transformers_work_without_a_preset():
    encoder = build_encoder("vit_tiny_patch16_224", image_size=(32, 32), patch_size=16)
    assert build_segmenter(encoder, 2)(noise(1, 1, 32, 32)).shape == (1, 2, 32, 32)
