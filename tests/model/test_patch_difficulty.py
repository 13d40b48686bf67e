import pytest
import torch

from ahm_gym.masking.selection import select_patches
from ahm_gym.model.patch_difficulty import local_variance, true_patch_loss
from ahm_gym.model.patches import patchify
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.pretraining.mask_quality import rank_correlation


@pytest.fixture(scope="module")
def autoencoder():
    return build_autoencoder("tiny", image_size=(32, 32), patch_size=8, seed=0).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num_masked", [2, 12])
def test_the_true_patch_loss_covers_every_patch_and_is_reproducible(autoencoder, images, num_masked):
    first = true_patch_loss(autoencoder, images, num_masked)
    assert torch.isfinite(first).all() and (first > 0).all()
    assert torch.equal(first, true_patch_loss(autoencoder, images, num_masked))


def test_the_true_patch_loss_is_the_mean_over_masks_that_hide_the_patch(autoencoder, images):
    generator = torch.Generator().manual_seed(0)
    total, count = torch.zeros(6, 16), torch.zeros(6, 16)
    for _ in range(40):
        mask, _ = select_patches(torch.rand(6, 16, generator=generator), 12, 12, generator)
        with torch.no_grad():
            total += autoencoder(images, mask).patch_loss * mask
        count += mask
    many = true_patch_loss(autoencoder, images, 12, num_masks=40, seed=5)
    assert rank_correlation(many, total / count) > 0.9
    torch.testing.assert_close(many.mean(), (total / count).mean(), rtol=0.02, atol=0)


def test_local_variance_is_that_of_the_pixels(images):
    torch.testing.assert_close(local_variance(images, 8), patchify(images, 8).var(dim=-1))
