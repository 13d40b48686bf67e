import torch

from ahm_gym.masking.selection import PatchBatch, mask_top_k
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.policies import make_policy


def test_the_patches_that_vary_most_or_least_are_masked():
    autoencoder = build_autoencoder("tiny", image_size=(16, 24), patch_size=8, channels=2)
    images = torch.zeros(1, 2, 16, 24)
    images[:, :, :, :8] = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))
    images[:, :, :, 16:] = 5.0
    patches = PatchBatch(images, autoencoder.embed(images).detach(), autoencoder.grid, 0.0)
    masks = {}
    for name, num_masked in (("textured", 2), ("flat", 4)):
        policy = make_policy(name, autoencoder)
        masks[name] = mask_top_k(policy.score(patches, torch.Generator()), num_masked)
        assert policy.guided_fraction == 1.0
    assert masks["textured"].tolist() == [[True, False, False, True, False, False]]
    assert torch.equal(masks["flat"], ~masks["textured"])
