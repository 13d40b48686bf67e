"""Operations of an update of the autoencoder, and the largest rate that the device reaches."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from ahm_gym.model.autoencoder import Autoencoder


def flops_per_image(autoencoder: Autoencoder, num_masked: int) -> float:
    """Floating-point operations of the forward and backward pass of one image with `num_masked` masked patches.

    Only matrix products, convolutions and attention count; a multiply-add counts as two operations.
    """
    device = autoencoder.device
    images = torch.zeros(1, autoencoder.channels, *autoencoder.image_size, device=device)
    mask = torch.arange(autoencoder.num_patches)[None] < num_masked
    # Attention as plain matrix products: the counter has no formula for the fused attention of a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        with autoencoder.autocast():
            loss = autoencoder(images, mask).loss
        loss.backward()
    autoencoder.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


def matmul_limit(device: torch.device) -> float:
    """Floating-point operations per second of a large matrix product: bfloat16 on a GPU, float32 on a CPU."""
    on_gpu = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if on_gpu else (1024, torch.float32)
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    timer = Timer("a @ b", globals={"a": a, "b": b}, num_threads=torch.get_num_threads())
    return 2 * size**3 / timer.blocked_autorange(min_run_time=0.2).median
