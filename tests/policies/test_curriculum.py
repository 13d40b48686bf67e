from itertools import product

import pytest
import torch
from contrasts import SIZE, contrast_patches

from ahm_gym.masking.masks import Masks
from ahm_gym.masking.selection import PatchBatch, mask_top_k
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.policies import make_policy
from ahm_gym.policies.curriculum import (
    calibrated,
    curriculum_factor,
    overlap_term,
    ratio_term,
    reconstruction_term,
)
from ahm_gym.pretraining.mask_quality import rank_correlation

LOGITS = torch.tensor([[0.5, -1.0, 1.5, 0.0]])
PATCH_LOSS = torch.tensor([[2.0, 0.5, 1.0, 0.1]])


def gradient(factor, mask):
    logits = LOGITS.clone().requires_grad_()
    reconstruction_term(logits, PATCH_LOSS, mask, factor).backward()
    return logits.grad[0]


def test_the_factor_goes_from_partner_to_adversary():
    assert [curriculum_factor(progress) for progress in (0.0, 0.25, 0.5, 1.0)] == [1.0, 0.5, 0.0, -1.0]


def test_the_gradient_changes_sign_with_the_factor_and_vanishes_between():
    mask = torch.tensor([[True, True, True, False]])
    helping, opposing = gradient(1.0, mask), gradient(-1.0, mask)
    torch.testing.assert_close(helping, -opposing)
    assert helping[0] > 0 > helping[1] and helping[3] == 0  # descent masks the costly patch less
    assert (gradient(0.0, mask) == 0).all()


def test_the_gradient_over_all_masks_of_four_patches_is_the_enumerated_one():
    probability = LOGITS.sigmoid()[0]
    found, expected = torch.zeros(4), torch.zeros(4)
    for coins in product([False, True], repeat=4):
        mask = torch.tensor([coins])
        if not mask.any():
            continue
        chance = torch.where(mask[0], probability, 1 - probability).prod()
        found += chance * gradient(1.0, mask)
        mean = PATCH_LOSS[mask].mean()
        centred = (PATCH_LOSS[0] - mean) * mask[0]
        scale = centred.square().sum().div(mask.sum()).sqrt().clamp(min=1e-8)
        expected += chance * centred / scale * (1 - probability) / mask.sum()
    torch.testing.assert_close(found, expected)


def test_with_a_fixed_baseline_the_estimate_is_the_gradient_of_the_expected_loss():
    probability = LOGITS.sigmoid()[0].requires_grad_()
    (PATCH_LOSS[0] * probability).sum().backward()
    true = probability.grad * probability.detach() * (1 - probability.detach())
    estimate = torch.zeros(4)
    for coins in product([False, True], repeat=4):
        mask = torch.tensor(coins)
        chance = torch.where(mask, probability, 1 - probability).prod().detach()
        estimate += (
            chance * PATCH_LOSS[0] * mask * (1 - probability.detach())
        )  # L_i times d log p_i / d logit
    torch.testing.assert_close(estimate, true)


def test_calibrated_coins_have_the_mask_ratio_as_mean_and_keep_it_when_logits_move():
    logits = torch.tensor([[0.5, -1.0, 1.5, 0.0], [30.0, -30.0, 0.0, 1.0]], dtype=torch.float64)
    probability = calibrated(logits, 0.6).sigmoid()
    torch.testing.assert_close(probability.mean(dim=1), torch.full((2,), 0.6, dtype=torch.float64))
    torch.testing.assert_close(calibrated(logits + 7.0, 0.6), calibrated(logits, 0.6))
    assert torch.equal(probability.argsort(dim=1), logits.argsort(dim=1))
    free = logits[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda values: calibrated(values, 0.6), (free,), atol=1e-4)


def test_the_ratio_term_is_the_mean_divergence_of_the_coins_from_one_of_the_ratio():
    assert float(ratio_term(torch.full((2, 4), 0.75), 0.75)) == pytest.approx(0.0, abs=1e-6)
    probability = torch.tensor([[0.2, 0.4]])
    coins = [torch.distributions.Bernoulli(p) for p in (probability, torch.tensor(0.75))]
    expected = torch.distributions.kl_divergence(*coins).mean()
    torch.testing.assert_close(ratio_term(probability, 0.75), expected)


def test_the_overlap_is_the_mean_covariance_of_two_images():
    probability = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))
    pairs = [
        ((probability[a] - probability[a].mean()) * (probability[b] - probability[b].mean())).mean()
        for a in range(5)
        for b in range(5)
        if a != b
    ]
    torch.testing.assert_close(overlap_term(probability), torch.stack(pairs).mean())
    assert overlap_term(probability[:1]) == 0


def test_scores_mask_each_patch_as_often_as_its_coin_says():
    """With many patches, because the count is exact but coins only have it on average."""
    policy = make_policy("curriculum", build_autoencoder("tiny", image_size=(128, 128), patch_size=8))
    logits = torch.linspace(-2, 3, 256)
    policy.scorer.network.forward = lambda embeddings: logits.expand(len(embeddings), -1)
    patches = PatchBatch(torch.zeros(2000, 1, 1, 1), torch.zeros(2000, 256, 1), (16, 16), 0.5)
    scores = policy.score(patches, torch.Generator().manual_seed(0))
    num_masked = round(float(logits.sigmoid().sum()))
    mask = mask_top_k(scores, num_masked, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mask.float().mean(dim=0), logits.sigmoid(), atol=0.05, rtol=0)


@pytest.mark.parametrize(("progress", "sign"), [(0.0, -1), (1.0, 1)])
def test_it_learns_to_mask_easy_patches_at_first_and_hard_ones_at_the_end(progress, sign):
    autoencoder = build_autoencoder("tiny", image_size=SIZE, patch_size=8, seed=0)
    policy = make_policy("curriculum", autoencoder)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        patches, contrast = contrast_patches(autoencoder, generator, progress)
        scores = policy.score(patches, generator)
        metrics = policy.observe(patches, Masks.of(mask_top_k(scores, 18, generator=generator)), contrast)
    assert sign * rank_correlation(policy.score(patches, generator), contrast) > 0.3
    assert metrics["policy/factor"] == -sign and metrics["policy/ratio_divergence"] < 0.5
