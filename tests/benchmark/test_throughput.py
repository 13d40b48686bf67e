import pytest
import torch

from ahm_gym.benchmark.throughput import flops_per_image, matmul_limit
from ahm_gym.model.vit import build_autoencoder


def block(num_tokens, dim):
    """A transformer block: four projections and a hidden layer of 4 widths, then attention, twice for a sum."""
    return 2 * num_tokens * 12 * dim**2 + 2 * 2 * num_tokens**2 * dim


@pytest.mark.parametrize("num_masked", [16, 48])
def test_the_operations_of_an_update_are_those_of_its_layers_forward_and_twice_backward(num_masked):
    autoencoder = build_autoencoder("tiny", image_size=(64, 64), patch_size=8, channels=1, seed=0)
    dim, width = autoencoder.dim, autoencoder.decoder_embed.out_features
    visible, tokens = 64 - num_masked + 1, 64 + 1
    forward = len(autoencoder.encoder.blocks) * block(visible, dim)
    forward += len(autoencoder.decoder_blocks) * block(tokens, width)
    forward += 2 * 64 * 64 * dim + 2 * visible * dim * width + 2 * tokens * width * 64
    assert flops_per_image(autoencoder, num_masked) == pytest.approx(3 * forward, rel=0.03)
    assert all(parameter.grad is None for parameter in autoencoder.parameters())


def test_a_u_net_counts_its_convolutions_whatever_is_masked():
    autoencoder = build_autoencoder("unet", image_size=(32, 32), patch_size=8, channels=3, seed=0)
    assert flops_per_image(autoencoder, 4) == flops_per_image(autoencoder, 12) > 1e8


def test_the_limit_of_a_machine_is_plausible():
    limit = matmul_limit(torch.device("cpu"))
    assert 1e8 < limit < 1e15
