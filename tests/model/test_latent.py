"""The target latent: features of a teacher beside the pixels."""

import copy
import pickle

import pytest
import torch
from programs import assert_same
from torch.nn import functional

from ahm_gym.envs.rewards import ProgressReward
from ahm_gym.masking.masks import Masks
from ahm_gym.model.encoder_base import as_encoder
from ahm_gym.model.encoders import export_encoder, load_encoder
from ahm_gym.model.patches import patchify, unpatchify
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.vit import build_autoencoder

MODELS = [
    ("tiny", {}), ("unet", {}), ("unet", {"hiding": "token"}), ("unet", {"hiding": "masked"}), ("resenc", {}),
]  # fmt: skip


def build(model="tiny", **options):
    return build_autoencoder(model, image_size=(32, 32), seed=0, target="latent", **options)


def trained(model="tiny", num_steps=20, **options):
    return Pretrainer(build(model), num_steps=num_steps, learning_rate=0.01, **options)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 1, 32, 32, generator=generator)
    return images, torch.rand(4, 16, generator=generator).argsort(dim=1) < 12


def predicted_features(autoencoder, images, mask):
    """The features that the autoencoder predicts, and the result."""
    seen = []
    with autoencoder.latent.head.register_forward_hook(lambda module, inputs, output: seen.append(output)):
        result = autoencoder(images, mask)
    (features,) = seen
    return features if features.ndim == 3 else features.flatten(2).transpose(1, 2), result


@pytest.mark.parametrize(("model", "options"), MODELS)
def test_the_loss_is_that_of_normalised_features_and_half_that_of_the_pixels(model, options):
    autoencoder = build(model, **options)
    images, mask = batch()
    features, result = predicted_features(autoencoder, images, mask)
    whole = as_encoder(autoencoder.encoder).patch_features(images)  # the teacher starts as the encoder
    target = (whole - whole.mean(dim=2, keepdim=True)) / (
        whole.var(dim=2, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    error = (features - target).square().mean(dim=2)
    pixels = (result.prediction - patchify(images, 8)).square().mean(dim=2)
    torch.testing.assert_close(result.patch_loss, error + 0.5 * pixels, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.loss, result.patch_loss[mask].mean())
    shown = autoencoder.reconstruct(images, mask, result.prediction)
    torch.testing.assert_close(patchify(shown, 8)[mask], result.prediction[mask])


@pytest.mark.parametrize(("model", "options"), MODELS)
def test_hidden_pixels_reach_the_targets_but_no_prediction(model, options):
    autoencoder = build(model, **options)
    images, mask = batch()
    patches = patchify(images, 8)
    noise = torch.randn(patches.shape, generator=torch.Generator().manual_seed(9))
    changed = unpatchify(torch.where(mask[..., None], noise, patches), (4, 4), 8)
    features, result = predicted_features(autoencoder, images, mask)
    others, other = predicted_features(autoencoder, changed, mask)
    assert torch.equal(features, others) and torch.equal(result.prediction, other.prediction)
    targets = [autoencoder.latent.target(value) for value in (images, changed)]
    assert not torch.allclose(*targets)


@pytest.mark.parametrize("model", ["tiny", "unet"])
def test_features_are_learned_by_the_encoder_and_never_by_the_teacher(model):
    autoencoder = build(model)
    images, mask = batch()
    features, _ = predicted_features(autoencoder, images, mask)
    (features - autoencoder.latent.target(images)).square().mean().backward()
    gradients = [value.grad for value in autoencoder.encoder.parameters() if value.requires_grad]
    assert any(gradient is not None and bool(gradient.any()) for gradient in gradients)
    assert all(value.grad is None for value in autoencoder.latent.teacher.parameters())
    held = {
        id(value)
        for group in Pretrainer(autoencoder, num_steps=1).optimizer.param_groups
        for value in group["params"]
    }
    assert not held & {id(value) for value in autoencoder.latent.teacher.parameters()}


def test_the_teacher_follows_the_encoder_in_place_ever_more_slowly(monkeypatch):
    pretrainer = trained(num_steps=6000)
    encoder, latent = pretrainer.autoencoder.encoder, pretrainer.autoencoder.latent
    expected = [value.clone() for value in encoder.state_dict().values()]
    places = [value.data_ptr() for value in latent.teacher.state_dict().values()]
    for update in (0, 1, 3000, 5999, 6000):
        pretrainer._updates.fill_(update)
        pretrainer.step(*batch(update))
        momentum = min(0.996 + 0.004 * update / 6000, (1 + update) / (10 + update))
        now = encoder.state_dict().values()
        expected = [momentum * old + (1 - momentum) * new for old, new in zip(expected, now, strict=True)]
    found = latent.teacher.state_dict().values()
    assert [value.data_ptr() for value in found] == places
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other)
    assert not torch.equal(latent.teacher.norm.weight, encoder.norm.weight)


@pytest.mark.parametrize("model", ["tiny", "unet"])
def test_updates_lower_both_errors_and_continue_exactly(model):
    first, second = trained(model), trained(model)
    before = first.forward(*batch())
    for _ in range(15):
        first.step(*batch())
    second.load_state_dict(first.state_dict())
    after = first.forward(*batch())
    images, mask = batch()
    errors = [(value.prediction - patchify(images, 8)).square()[mask].mean() for value in (before, after)]
    assert errors[1] < errors[0] and after.loss - 0.5 * errors[1] < before.loss - 0.5 * errors[0]
    for pretrainer in (first, second):
        pretrainer.step(*batch(1))
    assert_same(first.state_dict(), second.state_dict())


def test_the_teacher_is_not_exported(tmp_path):
    pretrainer = trained()
    pretrainer.step(*batch())
    encoder = pretrainer.trained.encoder
    export_encoder(encoder, tmp_path / "encoder", mean=(0.5,), std=(0.5,))
    exported = load_encoder(tmp_path / "encoder").state_dict()
    assert_same(dict(exported), dict(encoder.state_dict()))


def test_a_frozen_autoencoder_keeps_its_teacher():
    pretrainer = trained(frozen=True)
    before = copy.deepcopy(pretrainer.autoencoder.latent.teacher.state_dict())
    pretrainer.step(*batch())
    assert_same(dict(pretrainer.autoencoder.latent.teacher.state_dict()), dict(before))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_the_teacher_of_a_copy_follows_the_encoder_of_the_copy(copied):
    autoencoder = copied(build())
    average = autoencoder.latent.average
    assert average.network is autoencoder.latent.teacher and average.followed is autoencoder.encoder


def test_the_reward_progress_compares_losses_of_the_same_targets():
    pretrainer = trained()
    reward = ProgressReward(pretrainer, torch.Generator())
    images, mask = batch()
    for seed in range(5):
        pretrainer.step(*batch(seed))
    earlier = reward.earlier.model
    assert torch.equal(earlier.latent.target(images), pretrainer.model.latent.target(images))
    untrained = build()
    untrained.latent.teacher = pretrainer.model.latent.teacher
    expected = untrained(images, Masks.of(mask)).patch_loss
    torch.testing.assert_close(reward.earlier.patch_loss(images, mask), expected)
    reward.load_state_dict(reward.state_dict())
    assert functional.mse_loss(earlier.encoder.norm.weight, pretrainer.model.encoder.norm.weight) > 0
