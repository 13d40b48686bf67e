import pytest
import torch

from ahm_gym.masking.selection import PatchBatch
from ahm_gym.model.patch_difficulty import true_patch_loss
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.policies import make_policy
from ahm_gym.pretraining.mask_quality import rank_correlation

SIZE = (32, 48)


@pytest.fixture(scope="module", params=["tiny", "unet"])
def autoencoder(request):
    return build_autoencoder(request.param, image_size=SIZE, patch_size=8, seed=0)


@pytest.fixture
def patches(autoencoder):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 1, *SIZE, generator=generator) * torch.rand(6, 1, *SIZE, generator=generator)
    return PatchBatch(images, autoencoder.embed(images).detach(), autoencoder.grid, 0.5, 0.5)


def test_the_oracle_scores_by_the_true_loss_and_its_opposite_by_the_reverse(autoencoder, patches):
    oracle, low = (
        make_policy(name, autoencoder).score(patches, torch.Generator().manual_seed(3))
        for name in ("oracle_hard", "low_loss")
    )
    seed = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(3)))
    assert torch.equal(oracle, true_patch_loss(autoencoder, patches.images, 12, seed=seed))
    assert torch.equal(low, -oracle)
    assert rank_correlation(oracle, true_patch_loss(autoencoder, patches.images, 12)) > 0.8


@pytest.mark.parametrize("name", ["oracle_hard", "low_loss"])
def test_they_follow_the_autoencoder_as_it_is_now_and_guide_every_masked_patch(name, autoencoder, patches):
    policy = make_policy(name, autoencoder)
    before = policy.score(patches, torch.Generator().manual_seed(0))
    weight = next(parameter for parameter in autoencoder.parameters() if parameter.ndim > 1)
    kept = weight.detach().clone()
    weight.data.mul_(1.5)
    assert not torch.equal(policy.score(patches, torch.Generator().manual_seed(0)), before)
    weight.data.copy_(kept)
    assert policy.guided_fraction == 1.0 and policy.state_dict() == {}
