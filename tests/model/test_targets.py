import pytest
import torch

from ahm_gym.errors import InputError
from ahm_gym.masking.selection import mask_top_k
from ahm_gym.model.patches import patchify
from ahm_gym.model.targets import TARGETS, HogTarget, PixelTarget, make_target
from ahm_gym.model.vit import build_autoencoder


def images():
    return 3.0 + 2.0 * torch.randn(2, 1, 16, 24, generator=torch.Generator().manual_seed(0))


def patches():
    return patchify(images(), 8)


def test_raw_pixels_are_their_own_target():
    target = PixelTarget(1)
    assert target.of(images(), patches()) is not None and torch.equal(
        target.of(images(), patches()), patches()
    )
    assert torch.equal(target.to_pixels(torch.zeros(2, 6, 64), patches()), torch.zeros(2, 6, 64))


def test_a_normalised_target_has_zero_mean_and_unit_variance_in_every_patch():
    target = PixelTarget(1, normalise=True).of(images(), patches())
    torch.testing.assert_close(target.mean(dim=2), torch.zeros(2, 6), atol=1e-6, rtol=0)
    torch.testing.assert_close(target.var(dim=2), torch.ones(2, 6), atol=1e-4, rtol=0)


def test_a_constant_patch_has_a_finite_target():
    constant = torch.full((1, 1, 8, 8), 7.0)
    for name in TARGETS:
        assert make_target(name, 1, 8).of(constant, patchify(constant, 8)).isfinite().all()
    assert make_target("normalised", 1, 8).of(constant, patchify(constant, 8)).abs().max() == 0


@pytest.mark.parametrize("normalise", [False, True])
def test_a_perfect_prediction_gives_the_pixels(normalise):
    target = PixelTarget(1, normalise=normalise)
    torch.testing.assert_close(target.to_pixels(target.of(images(), patches()), patches()), patches())


@pytest.mark.parametrize(("angle", "strongest"), [(0.0, 0), (90.0, 4), (45.0, 2), (170.0, 8)])
def test_an_edge_counts_for_the_direction_of_its_gradient(angle, strongest):
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    turned = torch.deg2rad(torch.tensor(angle + 1.0))  # not on the border between two directions
    image = (columns * turned.cos() + rows * turned.sin())[None, None]
    histograms = HogTarget(1, 8).of(image, patchify(image, 8)).unflatten(2, (4, 9))
    assert histograms.shape == (1, 16, 4, 9)
    assert (histograms[:, 5:7].argmax(dim=3) == strongest).all()
    torch.testing.assert_close(histograms.norm(dim=3), torch.ones(1, 16, 4))


def test_histograms_do_not_depend_on_brightness_or_contrast():
    target = HogTarget(1, 8)
    first = target.of(images(), patches())
    torch.testing.assert_close(target.of(5.0 * images() - 2.0, patches()), first)


def test_the_histograms_of_a_patch_are_those_at_its_place():
    target = HogTarget(1, 8)
    changed = images()
    changed[:, :, 9:15, 9:15] = 0.0  # inside the patch of row 1 and column 1
    differs = (target.of(changed, patches()) != target.of(images(), patches())).any(dim=2)
    assert differs.tolist() == [[False, False, False, False, True, False]] * 2


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", ["tiny", "unet", "resenc"])
@pytest.mark.parametrize(("patch_size", "channels"), [(8, 1), (16, 3)])
def test_every_network_predicts_every_target(model, target, patch_size, channels):
    shape = {"image_size": (32, 48), "patch_size": patch_size, "channels": channels}
    autoencoder = build_autoencoder(model, **shape, target=target)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, channels, 32, 48, generator=generator)
    mask = mask_top_k(torch.rand(2, autoencoder.num_patches, generator=generator), 4, generator=generator)
    result = autoencoder(image, mask)
    assert result.prediction.shape == (2, autoencoder.num_patches, autoencoder.target_size)
    assert result.patch_loss.shape == mask.shape
    expected = autoencoder.target.of(image, patchify(image, patch_size))
    if target != "latent":
        torch.testing.assert_close(result.patch_loss, (result.prediction - expected).square().mean(dim=2))
    result.loss.backward()
    shown = autoencoder.reconstruct(image, mask, result.prediction.detach())
    assert shown.shape == image.shape


def test_a_patch_without_predicted_pixels_is_shown_as_the_mean_of_the_images():
    autoencoder = build_autoencoder("tiny", image_size=(16, 24), target="hog")
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[:, 2] = True
    shown = patchify(autoencoder.reconstruct(images(), mask, torch.ones(2, 6, 36)), 8)
    assert shown[:, 2].abs().max() == 0 and torch.equal(shown[:, 3], patches()[:, 3])


def test_an_unknown_target_and_a_patch_without_gradients_are_refused():
    with pytest.raises(InputError, match="unknown target 'hogg'.*hog"):
        make_target("hogg", 1, 8)
    with pytest.raises(InputError, match="at least 2 pixels"):
        make_target("hog", 1, 1)
