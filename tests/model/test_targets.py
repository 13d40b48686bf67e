import pytest
import torch

from ahm_gym.model.targets import PixelTarget


def patches():
    return 3.0 + 2.0 * torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))


def test_raw_pixels_are_their_own_target():
    assert torch.equal(PixelTarget().of(patches()), patches())
    assert torch.equal(PixelTarget().to_pixels(torch.zeros(2, 5, 16), patches()), torch.zeros(2, 5, 16))


def test_a_normalised_target_has_zero_mean_and_unit_variance_in_every_patch():
    target = PixelTarget(normalise=True).of(patches())
    torch.testing.assert_close(target.mean(dim=2), torch.zeros(2, 5), atol=1e-6, rtol=0)
    torch.testing.assert_close(target.var(dim=2), torch.ones(2, 5), atol=1e-4, rtol=0)


def test_a_constant_patch_has_a_finite_target():
    assert torch.equal(PixelTarget(normalise=True).of(torch.full((1, 1, 16), 7.0)), torch.zeros(1, 1, 16))


@pytest.mark.parametrize("normalise", [False, True])
def test_a_perfect_prediction_gives_the_pixels(normalise):
    target = PixelTarget(normalise)
    torch.testing.assert_close(target.to_pixels(target.of(patches()), patches()), patches())
