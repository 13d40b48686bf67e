"""Attention runs as PyTorch's fused kernel."""

import torch
from episodes import B, L

from ahm_gym.masking.selection import mask_top_k
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.vit import build_autoencoder


def test_attention_is_fused(monkeypatch):
    fused, calls = torch.nn.functional.scaled_dot_product_attention, []

    def counted(*args, **options):
        calls.append(args[0].shape)
        return fused(*args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(B, 1, 32, 32, generator=generator)
    mask = mask_top_k(torch.rand(B, L, generator=generator), 12, generator=generator)
    Pretrainer(build_autoencoder("tiny", image_size=(32, 32), seed=0), num_steps=20).forward(images, mask)
    assert len(calls) == 6 + 2
    assert {shape[2] for shape in calls} == {1 + L - 12, 1 + L}
