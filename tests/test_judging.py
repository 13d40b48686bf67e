import pytest
import torch
from scipy.stats import spearmanr

from ahm_gym.autoencoder import build_autoencoder
from ahm_gym.difficulty import true_patch_loss
from ahm_gym.judging import foreground_patches, judge, mask_overlap, rank_correlation
from ahm_gym.masking import mask_top_k


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


def test_scores_that_are_all_equal_correlate_with_nothing():
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


def test_a_judgement_brackets_the_best_and_the_worst_policy(autoencoder, images):
    truth = true_patch_loss(autoencoder, images, 12)
    best = judge(lambda patches: truth, autoencoder, images, 12, 0.5)
    worst = judge(lambda patches: -truth, autoencoder, images, 12, 0.5)
    assert best["val/spearman"] == pytest.approx(1.0) and worst["val/spearman"] == pytest.approx(-1.0)
    assert set(best) == {
        "val/loss", "val/spearman", "val/spearman_variance", "val/overlap", "val/masked_foreground"
    }  # fmt: skip
