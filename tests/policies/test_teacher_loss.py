import pytest
import torch

from ahm_gym.masking.masks import Masks
from ahm_gym.masking.selection import PatchBatch, mask_top_k
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.policies import make_policy

SIZE = (32, 48)


@pytest.fixture(scope="module", params=["tiny", "unet"])
def autoencoder(request):
    return build_autoencoder(request.param, image_size=SIZE, patch_size=8, seed=0)


@pytest.fixture
def patches(autoencoder):
    images = torch.randn(8, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    return PatchBatch(images, autoencoder.embed(images).detach(), autoencoder.grid, 0.5, 0.5)


def test_scores_are_the_teachers_losses_under_a_random_mask_and_patches_that_it_saw_rank_below(
    autoencoder, patches
):
    policy = make_policy("teacher_loss", autoencoder)
    scores = policy.score(patches, torch.Generator().manual_seed(0))
    mask = scores >= 0
    assert (mask.sum(dim=1) == 12).all() and len({tuple(row.tolist()) for row in mask}) == 8
    with torch.no_grad():
        loss = policy.teacher.network(patches.images, mask).patch_loss
    torch.testing.assert_close(scores[mask], loss[mask])
    assert (scores[~mask] == -1).all()


def test_the_hardest_patches_are_the_guided_ones_and_their_share_ramps(autoencoder, patches):
    policy = make_policy("teacher_loss", autoencoder)
    assert [policy.guided_fraction(progress) for progress in (0.0, 0.5, 1.0)] == [0.0, 0.25, 0.5]
    scores = policy.score(patches, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    mask = mask_top_k(scores, 12, guided_fraction=0.5, generator=generator)
    assert mask.gather(1, scores.argsort(dim=1, descending=True)[:, :6]).all()


def test_the_teacher_reconstructs_and_the_autoencoder_only_leads_it(patches, autoencoder):
    policy = make_policy("teacher_loss", autoencoder)
    before = policy.score(patches, torch.Generator().manual_seed(0))
    weight = next(parameter for parameter in autoencoder.parameters() if parameter.ndim > 1)
    kept = weight.detach().clone()
    weight.data.mul_(1.5)
    assert torch.equal(policy.score(patches, torch.Generator().manual_seed(0)), before)
    assert policy.observe(patches, Masks.of(before > 0), before) == {}
    assert not torch.equal(policy.score(patches, torch.Generator().manual_seed(0)), before)
    weight.data.copy_(kept)
