import math

import pytest
import torch
from contrasts import SIZE, contrast_patches

from ahm_gym.masking.masks import Masks
from ahm_gym.masking.selection import mask_top_k
from ahm_gym.model.encoders import as_encoder
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.policies import make_policy
from ahm_gym.policies.hard_patches import rank_loss
from ahm_gym.pretraining.mask_quality import rank_correlation


@pytest.fixture(scope="module", params=["tiny", "unet"])
def autoencoder(request):
    return build_autoencoder(request.param, image_size=SIZE, patch_size=8, seed=0)


def batch(autoencoder, seed):
    return contrast_patches(autoencoder, torch.Generator().manual_seed(seed), 0.0)


def test_the_loss_is_the_cross_entropy_of_all_pairs_of_masked_patches():
    generator = torch.Generator().manual_seed(0)
    predicted, patch_loss = torch.randn(2, 3, 8, generator=generator)
    patch_loss[0, :3] = 1.0
    mask = mask_top_k(torch.rand(3, 8, generator=generator), 6, generator=generator)
    mask[0] = torch.arange(8) < 6
    terms, right = [], []
    for b in range(3):
        for i in range(8):
            for j in range(8):
                if not (mask[b, i] and mask[b, j]) or patch_loss[b, i] == patch_loss[b, j]:
                    continue
                harder = 1 / (1 + math.exp(predicted[b, j] - predicted[b, i]))
                truth = bool(patch_loss[b, i] > patch_loss[b, j])
                terms.append(-math.log(harder if truth else 1 - harder))
                right.append((harder > 0.5) == truth)
    loss, accuracy = rank_loss(predicted, patch_loss, mask)
    assert float(loss) == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    assert float(accuracy) == pytest.approx(sum(right) / len(right))


def test_the_loss_of_a_visible_patch_teaches_nothing():
    predicted, patch_loss = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(8) < 5).expand(3, 8)
    other = torch.where(mask, patch_loss, 100.0)
    assert torch.equal(rank_loss(predicted, patch_loss, mask)[0], rank_loss(predicted, other, mask)[0])


def test_equal_losses_give_a_loss_of_zero():
    assert rank_loss(torch.randn(2, 4), torch.ones(2, 4), torch.ones(2, 4, dtype=torch.bool))[0] == 0


def test_the_predictor_learns_which_patches_are_hard():
    autoencoder = build_autoencoder("tiny", image_size=SIZE, patch_size=8, seed=0)
    policy = make_policy("hard_patches", autoencoder)
    generator = torch.Generator().manual_seed(0)
    metrics = []
    for step in range(40):
        patches, hard = batch(autoencoder, step)
        scores = policy.score(patches, generator)
        metrics.append(policy.observe(patches, Masks.of(mask_top_k(scores, 18, generator=generator)), hard))
    unseen, hard = batch(autoencoder, 1000)
    assert rank_correlation(policy.score(unseen, generator), hard) > 0.6
    assert metrics[0]["policy/rank_accuracy"] < 0.6 < metrics[-1]["policy/rank_accuracy"]
    assert metrics[0]["policy/rank_loss"] == pytest.approx(math.log(2), abs=0.05)


def test_scores_come_from_averages_of_predictor_and_encoder(autoencoder):
    policy = make_policy("hard_patches", autoencoder)
    patches, hard = batch(autoencoder, 0)
    policy.observe(patches, Masks.of(torch.ones_like(hard, dtype=torch.bool)), hard)
    with torch.no_grad():
        features = as_encoder(policy.encoder.network).patch_features(patches.images)
        expected = policy.predictor.network(features)
    assert torch.equal(policy.score(patches, torch.Generator()), expected)
    assert policy.predictor.updates == policy.encoder.updates == 1
    assert not torch.equal(policy.predictor.network.head.weight, policy.scorer.network.head.weight)


def test_features_from_scoring_are_only_used_for_the_same_patches(autoencoder):
    first, hard = batch(autoencoder, 0)
    mask = torch.ones_like(hard, dtype=torch.bool)
    results = []
    for scored in (None, first, batch(autoencoder, 1)[0]):
        policy = make_policy("hard_patches", autoencoder)
        if scored is not None:
            policy.score(scored, torch.Generator())
        policy.observe(first, Masks.of(mask), hard)
        results.append(policy.score(first, torch.Generator()))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_the_guided_share_ramps_from_none_to_half(autoencoder):
    policy = make_policy("hard_patches", autoencoder)
    assert [policy.guided_fraction(progress) for progress in (0.0, 0.5, 1.0)] == [0.0, 0.25, 0.5]
