from itertools import permutations

import pytest
import torch
from contrasts import SIZE, contrast_patches

from ahm_gym.masking.masks import Masks
from ahm_gym.masking.selection import mask_top_k
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.policies import make_policy
from ahm_gym.policies.adamae import gumbel_noise, relative_entropy, sampling_loss
from ahm_gym.pretraining.mask_quality import rank_correlation

LOGITS = torch.tensor([[0.5, -1.0, 1.5, 0.0]])
PATCH_LOSS = torch.tensor([[2.0, 0.5, 1.0, 0.1]])


def draw_probabilities(probability, num_visible):
    """Probability of every set of visible patches, drawn one after another without replacement."""
    result = {}
    for order in permutations(range(4), num_visible):
        chance, left = 1.0, 1.0
        for patch in order:
            chance *= float(probability[patch]) / left
            left -= float(probability[patch])
        result[frozenset(order)] = result.get(frozenset(order), 0.0) + chance
    return result


def test_visible_patches_are_drawn_without_replacement_by_their_probability():
    generator = torch.Generator().manual_seed(0)
    log_prob = LOGITS.log_softmax(dim=1).expand(40_000, 4)
    mask = mask_top_k(-(log_prob + gumbel_noise(log_prob, generator)), 2, generator=generator)
    for visible, chance in draw_probabilities(LOGITS.softmax(dim=1)[0], 2).items():
        shown = torch.tensor([patch in visible for patch in range(4)])
        assert float((~mask == shown).all(dim=1).float().mean()) == pytest.approx(chance, abs=0.01)


def test_the_gradient_over_all_draws_of_four_patches_is_the_enumerated_one():
    logits = LOGITS.clone().requires_grad_()
    probability = LOGITS.softmax(dim=1)[0]
    expected, total = torch.zeros(4), torch.zeros(())
    for visible, chance in draw_probabilities(probability, 2).items():
        masked = [patch for patch in range(4) if patch not in visible]
        mask = torch.tensor([[patch in masked for patch in range(4)]])
        total = total + chance * sampling_loss(logits, PATCH_LOSS, mask)
        for patch in masked:  # a masked patch is paid its loss: L_i times the gradient of log p_i
            score = -probability.clone()
            score[patch] += 1.0
            expected -= chance * PATCH_LOSS[0, patch] * score / 2
    total.backward()
    torch.testing.assert_close(logits.grad[0], expected)


def test_only_the_loss_of_masked_patches_counts():
    mask = torch.tensor([[True, False, True, False]])
    other = PATCH_LOSS + 10.0 * ~mask
    assert torch.equal(sampling_loss(LOGITS, PATCH_LOSS, mask), sampling_loss(LOGITS, other, mask))


def test_noise_is_finite_whatever_is_drawn(monkeypatch):
    for drawn in (0.0, 1.0):
        monkeypatch.setattr(
            "ahm_gym.policies.adamae.random_scores", lambda shape, *_, drawn=drawn: torch.full(shape, drawn)
        )
        assert torch.isfinite(gumbel_noise(torch.zeros(1, 3), torch.Generator())).all()


def test_entropy_is_one_if_all_patches_are_alike_and_zero_if_one_has_all_probability():
    assert relative_entropy(torch.zeros(2, 6)) == pytest.approx(1.0)
    assert relative_entropy(torch.tensor([[100.0, 0.0, 0.0]])) == pytest.approx(0.0, abs=1e-6)


def test_it_learns_to_show_patches_with_a_high_loss():
    autoencoder = build_autoencoder("tiny", image_size=SIZE, patch_size=8, seed=0)
    policy = make_policy("adamae", autoencoder)
    generator = torch.Generator().manual_seed(0)
    for _ in range(80):
        patches, contrast = contrast_patches(autoencoder, generator)
        hard = contrast**4
        scores = policy.score(patches, generator)
        metrics = policy.observe(patches, Masks.of(mask_top_k(scores, 18, generator=generator)), hard)
    assert rank_correlation(policy.score(patches, generator), hard) < -0.3
    assert 0.3 < metrics["policy/entropy"] < 0.98
