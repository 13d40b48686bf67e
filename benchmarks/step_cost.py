"""Measures the cost of a step: of a plain MAE, our bare update, the environment with random masks, and A3C.

`python benchmarks/step_cost.py` measures four sizes on random images: the tiny preset at 64 px in batches of 64, also
with the two rewards that need another forward pass; the residual U-Net at 64 px in batches of 16 (on a GPU 64);
ViT-S/16 at 224 px in batches of 16 (on a GPU ViT-S/8 at 128 px in batches of 256); and the tiny preset on volumes of
48x48x48 in batches of 8, beside MONAI's masked autoencoder. `--sizes` names some of them. `--quick` measures the tiny
size alone, without those rewards and the plain MAE. A3C has its default recipe at two points: at the start of a run,
when it chooses most, and in the second half, when it chooses nothing; "a3c run" is the mean of both. Steps are
interleaved, so that slow moments of the machine affect all kinds equally; on a GPU they are timed in blocks of 10, with
a synchronisation after each block. The last line is JSON: ratios of the tiny size.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import ahm_gym._compat  # noqa: F401

import numpy as np
import torch
import tyro
from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT
from plain_mae import PlainMAE
from scipy.stats import bootstrap
from torch import nn

from ahm_gym.agents.a3c import A3C
from ahm_gym.agents.learner import Learner
from ahm_gym.benchmark.throughput import flops_per_image, matmul_limit
from ahm_gym.device.choice import pick_device
from ahm_gym.device.cuda_graphs import Replay
from ahm_gym.envs import MaskingVectorEnv
from ahm_gym.masking.schedules import share_at
from ahm_gym.masking.selection import mask_top_k
from ahm_gym.model.patches import patchify
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.runs.provenance import hardware

MASK_RATIO = 0.75
SHARES = {"guided_fraction": A3C.guided_fraction, "spread_fraction": A3C.spread_fraction}


@dataclass(frozen=True)
class Arguments:
    """Measure the cost of a step in one run, and print ratios."""

    sizes: tuple[str, ...] = ("tiny", "resenc", "small", "volumes")
    """What is measured."""
    quick: bool = False
    """Measure the tiny size alone, without the plain MAE and the expensive rewards, for at most 36 seconds."""
    rounds: int = 100
    """Steps of each kind; --quick may end with fewer."""
    threads: int = 0
    """Threads of torch; 0 keeps its default."""
    device: str = "auto"
    """auto, cpu or cuda."""


@dataclass(frozen=True)
class Size:
    """The shapes of one measurement."""

    name: str
    model: str
    side: int
    """Pixels along each axis."""
    patch_size: int
    batch: int
    encoder: tuple[int, int, int] | None = None
    """Width, blocks and heads of the plain MAE's encoder; None measures no plain MAE."""
    decoder: tuple[int, int, int] = (64, 2, 4)
    """Width, blocks and heads of its decoder."""
    axes: int = 2

    @property
    def image_size(self) -> tuple[int, ...]:
        """Pixels along every axis."""
        return (self.side,) * self.axes


TINY = Size("tiny, 64 px, patch 8", "tiny", 64, 8, 64, (128, 6, 4))
RESENC = {
    "cpu": Size("residual U-Net, 64 px, patch 8", "resenc", 64, 8, 16),
    "cuda": Size("residual U-Net, 64 px, patch 8", "resenc", 64, 8, 64),
}
SMALL = {
    "cpu": Size("ViT-S/16, 224 px", "small", 224, 16, 16, (384, 12, 6), (192, 4, 6)),
    "cuda": Size("ViT-S/8, 128 px", "small", 128, 8, 256, (384, 12, 6), (192, 4, 6)),
}
VOLUMES = Size("tiny, volumes of 48, patch 8", "tiny", 48, 8, 8, (128, 6, 4), axes=3)
BLOCK = {"cpu": 1, "cuda": 10}
"""Steps that are timed together: a GPU still computes one step while the next is prepared."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = pick_device(arguments.device)
    limit = matmul_limit(device)
    print(f"{hardware(device)}, torch {torch.__version__}, mask ratio {MASK_RATIO}")
    print(f"limit of a large matrix product: {limit / 1e12:.2f} TFLOP/s")
    ratios = {}
    known = {"tiny": TINY, "resenc": RESENC[device.type], "small": SMALL[device.type], "volumes": VOLUMES}
    for size in [TINY] if arguments.quick else [known[name] for name in arguments.sizes]:
        kinds = steps(size, device)
        if arguments.quick:
            kinds.pop("plain")
        elif size is TINY:
            kinds |= reward_steps(size, device)
        seconds = measure(kinds, arguments.rounds, 36.0 if arguments.quick else math.inf, device)
        ratios[size.name] = report(size, seconds, flops(size) / limit)
    print(json.dumps(next(iter(ratios.values()))))


def steps(size: Size, device: torch.device) -> dict[str, Callable[[], object]]:
    """One function for each kind of step, all with the same images."""
    images = random_images(size)
    batch = images[: size.batch].to(device)
    bare = pretrainer(size, device)
    num_patches = bare.autoencoder.num_patches
    num_masked = round(num_patches * MASK_RATIO)
    mask = mask_top_k(torch.rand(size.batch, num_patches), num_masked)

    def a3c_at(progress: float) -> Callable[[], object]:
        shares = {name: share_at(share, progress, name) for name, share in SHARES.items()}
        agent = A3C((num_patches, bare.autoencoder.dim), grid=bare.autoencoder.grid, device=device)
        env = environment(size, images, device, reward=A3C.reward, **shares)
        return Learner(agent, agent.network, env, agent.generator, 0).episode

    plain = {} if size.encoder is None else {"plain": plain_step(size, batch, num_masked)}
    return plain | {
        "bare": lambda: bare.step(batch, mask),
        "random": random_step(environment(size, images, device)),
        "a3c": a3c_at(0.0),
        "a3c late": a3c_at(1.0),
    }


def plain_step(size: Size, batch: torch.Tensor, num_masked: int) -> Callable[[], object]:
    """An update of a plain MAE with a fixed mask, or of MONAI's on volumes, which draws its own."""
    assert size.encoder is not None, "the size has a plain MAE"
    num_patches = (size.side // size.patch_size) ** size.axes
    if size.axes == 2:
        plain = PlainMAE(size.side, size.patch_size, 1, size.encoder, size.decoder).to(batch.device)
        shuffle = torch.rand(size.batch, num_patches, device=batch.device).argsort(dim=1)
        given = (shuffle, num_patches - num_masked)
    else:
        plain, given = MonaiMAE(size, num_masked / num_patches).to(batch.device), ()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=batch.is_cuda):
            loss = plain(batch, *given)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()

    return step


class MonaiMAE(nn.Module):
    """MONAI's masked autoencoder with the sizes of ours, and the loss of the masked pixels."""

    def __init__(self, size: Size, mask_ratio: float) -> None:
        super().__init__()
        assert size.encoder is not None, "the size has a plain MAE"
        (dim, depth, heads), (decoder_dim, decoder_depth, decoder_heads) = size.encoder, size.decoder
        self.patch_size = size.patch_size
        self.network = MaskedAutoEncoderViT(
            1,
            size.image_size,
            size.patch_size,
            hidden_size=dim,
            mlp_dim=4 * dim,
            num_layers=depth,
            num_heads=heads,
            masking_ratio=mask_ratio,
            decoder_hidden_size=decoder_dim,
            decoder_mlp_dim=4 * decoder_dim,
            decoder_num_layers=decoder_depth,
            decoder_num_heads=decoder_heads,
            pos_embed_type="learnable",  # its sines need widths that 6 divides
            decoder_pos_embed_type="learnable",
            spatial_dims=size.axes,
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        prediction, mask = self.network(images)
        error = (prediction - patchify(images, self.patch_size)).square().mean(dim=2)
        return (error * mask).sum() / mask.sum()


def reward_steps(size: Size, device: torch.device) -> dict[str, Callable[[], object]]:
    """The environment with random masks and the rewards that need another forward pass."""
    images = random_images(size)
    return {
        reward: random_step(environment(size, images, device, reward=reward))
        for reward in ("progress", "advantage")
    }


def random_step(env: MaskingVectorEnv) -> Callable[[], object]:
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    return lambda: env.step(rng.uniform(-1, 1, (env.num_envs, env.num_patches)).astype(np.float32))


def random_images(size: Size) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4 * size.batch, 1, *size.image_size, generator=generator)


def pretrainer(size: Size, device: torch.device) -> Pretrainer:
    autoencoder = build_autoencoder(size.model, image_size=size.image_size, patch_size=size.patch_size)
    return Pretrainer(autoencoder, num_steps=10_000, device=device)


def flops(size: Size) -> float:
    """Floating-point operations of an update with one batch."""
    autoencoder = pretrainer(size, torch.device("cpu")).autoencoder
    return size.batch * flops_per_image(autoencoder, round(autoencoder.num_patches * MASK_RATIO))


def environment(
    size: Size,
    images: torch.Tensor,
    device: torch.device,
    *,
    reward: str = "relative",
    guided_fraction: float = 0.5,
    spread_fraction: float = 0.0,
) -> MaskingVectorEnv:
    return MaskingVectorEnv(
        size.batch,
        data=images,
        pretrainer=pretrainer(size, device),
        mask_ratio=MASK_RATIO,
        guided_fraction=guided_fraction,
        spread_fraction=spread_fraction,
        reward=reward,
        tensors=True,
    )


def measure(
    kinds: dict[str, Callable[[], object]], rounds: int, limit: float, device: torch.device
) -> dict[str, np.ndarray]:
    """Seconds of every step, by kind; the order within a round is random."""
    block = BLOCK[device.type]
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    warm_up = 2 + (Replay.settled if device.type == "cuda" else 0)
    for step in kinds.values():
        for _ in range(warm_up):
            step()
    rows: list[dict[str, float]] = []
    while len(rows) < min(rounds, 5) or (len(rows) < rounds and time.perf_counter() - began < limit):
        row = {}
        for name in rng.permutation(list(kinds)):
            start = time.perf_counter()
            for _ in range(block):
                kinds[name]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            row[name] = (time.perf_counter() - start) / block
        rows.append(row)
    return {name: np.array([row[name] for row in rows]) for name in kinds}


def report(size: Size, seconds: dict[str, np.ndarray], least: float) -> dict[str, float]:
    """Prints medians and ratios with 95 % bootstrap intervals, and returns the ratios.

    Args:
        size: shapes of the steps.
        seconds: seconds of every step, by kind.
        least: seconds that the matrix products of an update take at the peak rate of the machine.
    """
    seconds = seconds | {"a3c run": (seconds["a3c"] + seconds["a3c late"]) / 2}
    print(f"\n{size.name}, batch {size.batch}, {len(seconds['bare'])} times each, interleaved")
    for name, values in seconds.items():
        low, high = interval(np.median, values)
        print(
            f"  {name:9s} {1e3 * np.median(values):8.1f} ms  [{1e3 * low:.1f}, {1e3 * high:.1f}]  "
            f"{size.batch / np.median(values):6.0f} images/s, {least / np.median(values):.2f} of the limit"
        )
    pairs = {
        "env_over_bare": ("random", "bare"),
        "a3c_over_random": ("a3c", "random"),
        "a3c_run_over_random": ("a3c run", "random"),
        "bare_over_plain": ("bare", "plain"),
        "progress_over_random": ("progress", "random"),
        "advantage_over_random": ("advantage", "random"),
    }
    ratios = {}
    for key, (above, below) in pairs.items():
        if not {above, below} <= seconds.keys():
            continue
        ratios[key] = round(float(np.median(seconds[above]) / np.median(seconds[below])), 3)
        low, high = interval(lambda a, b: np.median(a) / np.median(b), seconds[above], seconds[below])
        print(f"  {key:21s} {ratios[key]:.3f}  [{low:.3f}, {high:.3f}]")
    return ratios


def interval(statistic: Callable[..., float], *samples: np.ndarray) -> tuple[float, float]:
    """The 95 % bootstrap interval of a statistic; samples are paired by round."""
    result = bootstrap(
        samples, statistic, paired=True, vectorized=False, method="percentile", n_resamples=2000,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    return result.confidence_interval.low, result.confidence_interval.high


if __name__ == "__main__":
    main()
