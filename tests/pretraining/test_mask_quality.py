import math

import pytest
import torch
from programs import write_discs
from scipy.stats import spearmanr

from ahm_gym.data import open_data
from ahm_gym.masking.selection import mask_top_k
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.model.patch_difficulty import true_patch_loss
from ahm_gym.model.patches import patchify
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.pretraining.mask_quality import (
    excess_loss,
    foreground_patches,
    mask_entropy,
    mask_overlap,
    mask_quality,
    rank_correlation,
    reconstruction_psnr,
)


@pytest.fixture(scope="module")
def autoencoder():
    return build_autoencoder("tiny", image_size=(32, 32), patch_size=8, seed=0).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_rank_correlation_is_scipys_averaged_over_images():
    scores, truth = torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(0))
    expected = sum(spearmanr(a, b).statistic for a, b in zip(scores, truth, strict=True)) / 4
    assert rank_correlation(scores, truth) == pytest.approx(expected)


def test_equal_scores_have_a_correlation_of_zero():
    assert rank_correlation(torch.zeros(2, 8), torch.rand(2, 8)) == 0.0


def test_overlap_is_one_for_equal_masks_and_the_ratio_for_random_ones():
    equal = mask_top_k(torch.rand(1, 64), 48).expand(20, 64)
    assert mask_overlap(equal) == pytest.approx(1.0)
    generator = torch.Generator().manual_seed(0)
    assert mask_overlap(mask_top_k(torch.rand(200, 64, generator=generator), 48)) == pytest.approx(
        0.75, abs=0.01
    )


def test_foreground_is_what_is_brighter_than_otsus_threshold():
    images = torch.full((1, 1, 32, 32), -1.0)
    images[..., :16, :16] = 2.0
    expected = torch.zeros(1, 4, 4, dtype=torch.bool)
    expected[:, :2, :2] = True
    assert torch.equal(foreground_patches(images, 8), expected.flatten(1))


def test_the_best_and_the_worst_policy_get_the_extreme_values(autoencoder, images):
    truth = true_patch_loss(autoencoder, images, 12)
    best = mask_quality(lambda patches: truth, autoencoder, images, 12, 0.5)
    worst = mask_quality(lambda patches: -truth, autoencoder, images, 12, 0.5)
    assert best["val/spearman"] == pytest.approx(1.0) and worst["val/spearman"] == pytest.approx(-1.0)
    assert best["val/excess"] == pytest.approx(1.0) and worst["val/excess"] < 0
    assert set(best) == {
        "val/loss", "val/spearman", "val/spearman_variance", "val/excess", "val/overlap", "val/entropy",
        "val/masked_foreground",
    }  # fmt: skip


def test_the_excess_of_random_masks_is_about_zero(autoencoder, images):
    many = images.repeat(20, 1, 1, 1) + 0.1 * torch.randn(120, 1, 32, 32)
    truth = true_patch_loss(autoencoder, many, 12)
    drawn = mask_top_k(torch.rand(120, 16, generator=torch.Generator().manual_seed(3)), 12)
    assert abs(excess_loss(autoencoder, many, drawn, truth)) < 0.25


def test_the_excess_is_undefined_while_the_hardest_patches_are_no_harder(autoencoder, images):
    mask = mask_top_k(torch.rand(6, 16), 12)
    assert math.isnan(excess_loss(autoencoder, images, mask, -true_patch_loss(autoencoder, images, 12)))


def test_entropy_is_zero_for_equal_masks_and_one_for_random_ones():
    generator = torch.Generator().manual_seed(0)
    assert mask_entropy(mask_top_k(torch.rand(1, 64), 48).expand(20, 64)) == pytest.approx(0.0, abs=1e-12)
    assert mask_entropy(mask_top_k(torch.rand(400, 64, generator=generator), 48)) == pytest.approx(
        1.0, abs=0.01
    )


def test_psnr_is_that_of_the_masked_pixels_in_the_range_of_the_image(tmp_path):
    dataset = open_data(str(write_discs(tmp_path / "discs.npz")), image_size=(32, 32))
    indices = dataset.indices("test")

    class Adds(Autoencoder):
        """Is wrong by 0.1 of the range everywhere."""

        def forward(self, images, masks):
            patches = patchify(images, self.patch_size)
            return self.compare(patches + 0.1 / dataset.std[0], images, patches, masks.weight)

    autoencoder = Adds(image_size=(32, 32), patch_size=8, channels=1, dim=4)
    autoencoder.weight = torch.nn.Parameter(torch.zeros(1))
    shown = dataset.denormalise(dataset.resized(indices, (32, 32)))
    error = ((shown + 0.1).clamp(0, 1) - shown).square().mean()  # bright pixels are wrong by less
    expected = float(-10 * error.log10())
    assert reconstruction_psnr(autoencoder, dataset, indices, 15) == pytest.approx(expected, abs=0.5)
    assert reconstruction_psnr(autoencoder, dataset, indices, 15) >= 20
