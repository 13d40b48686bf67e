"""The rewards of masked patches: one class per reward, and the table of their names."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from ahm_gym.device import ranks
from ahm_gym.device.cuda_graphs import Replay
from ahm_gym.device.transfers import Fetch, to_device
from ahm_gym.envs.reward_base import LossReward, Reward
from ahm_gym.errors import InputError, unknown_name
from ahm_gym.masking.drawing import draw_masks
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.selection import random_scores
from ahm_gym.model.autoencoder import Autoencoder, Reconstruction
from ahm_gym.model.pretrainer import Pretrainer


class RelativeReward(LossReward):
    """The loss of the patch, standardised by running statistics of the randomly masked patches.

    The statistics follow the falling loss of the autoencoder. If no patch is masked at random, they cover all
    masked patches, and then no policy is paid more than another for long: keep `guided_fraction` below 1.
    Standardising within each image instead would give every image the same mean reward.
    """

    momentum: float = 0.02
    """Smallest weight of a new batch in the running statistics."""

    def __init__(self, pretrainer: Pretrainer, generator: torch.Generator) -> None:
        super().__init__(pretrainer, generator)
        self.count: int = 0
        self.mean: float = 0.0
        self.square: float = 0.0

    def __call__(self, patch_loss: Float[Tensor, "B L"], masks: Masks) -> Float[Tensor, "B L"]:
        random = masks.masked & ~masks.guided
        counted = random if bool(random.any()) else masks.masked
        mean, square = (
            (counted * value).sum() / counted.sum() for value in (patch_loss, patch_loss.square())
        )
        rate = max(1.0 / (self.count + 1), self.momentum) if self.advances or not self.count else 0.0
        mean = self.mean + rate * (float(mean) - self.mean)
        square = self.square + rate * (float(square) - self.square)
        if self.advances:
            self.count, self.mean, self.square = self.count + 1, mean, square
        return (patch_loss - mean) / max(square - mean**2, 1e-12) ** 0.5

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "square": self.square}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.mean, self.square = state["count"], state["mean"], state["square"]


class RankReward(LossReward):
    """Rank of the patch's loss among all masked patches of the batch, from -1 (lowest) to 1 (highest).

    The mean over all masked patches is 0: with `guided_fraction=1`, every policy is paid the same.
    """

    def __call__(self, patch_loss: Float[Tensor, "B L"], masks: Masks) -> Float[Tensor, "B L"]:
        order = patch_loss[masks.masked].argsort(stable=True)
        ranks = torch.empty_like(patch_loss[masks.masked])
        ranks[order] = torch.linspace(-1.0, 1.0, len(order), device=ranks.device)
        return torch.zeros_like(patch_loss).masked_scatter(masks.masked, ranks)


class Copy:
    """A frozen copy of the autoencoder, whose losses can be measured later."""

    def __init__(self, pretrainer: Pretrainer) -> None:
        self.model: Autoencoder = pretrainer.model.frozen_copy()
        self._autocast = pretrainer.autocast
        self._passes = Replay(self._fill_in, records=self.model.records)

    def patch_loss(self, images: Float[Tensor, "B C *S"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        return self._passes(images, *self.model.mask_inputs(Masks.of(mask)))[0]

    def _fill_in(self, images: Tensor, *mask_inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad(), self._autocast():
            return (self.model.run(images, *mask_inputs).patch_loss,)


class ProgressReward(LossReward):
    """Learning progress: log of a patch's loss under an earlier copy of the autoencoder over its loss now.

    Both losses use the same mask. Patches that are being learned pay; noise, which is equally bad under both, does
    not. This is the learning progress of Oudeyer, Kaplan and Hafner (2007), but as a ratio: differences of losses
    are largest, in either direction, where losses are large. `floor` times the mean loss is added to both losses,
    so that patches with almost no loss count little.

    The copy is `lag` to 2 * `lag` updates old, which is 5 to 10 % of a run of up to 2,000 updates; until there is
    one, it is the initial autoencoder. A slow average of the weights would not do: once the learning rate falls, the
    average is better than the autoencoder itself, so learning would be punished.

    The cost is two copies of the weights, and a forward pass over half of the images of a batch in which the scores
    chose any patch. The images take turns, and the others are not paid. `progress:0.25` pays a quarter of them,
    `progress:1` all.

    Raises:
        InputError: if the autoencoder is frozen and so makes no progress.
    """

    floor: float = 0.05
    """Part of the mean loss that is added to both losses."""
    share: float = 0.5
    """Share of the images of a batch that are paid."""

    def __init__(self, pretrainer: Pretrainer, generator: torch.Generator) -> None:
        super().__init__(pretrainer, generator)
        if pretrainer.frozen:
            raise InputError(
                "reward progress measures what the autoencoder learns, and this one is frozen: choose loss or "
                "relative."
            )
        self.lag: int = min(100, max(1, pretrainer.num_steps // 20))
        self.earlier: Copy = Copy(pretrainer)
        self.next: Copy = Copy(pretrainer)
        """The newer copy, which replaces `earlier` once it is `lag` updates old."""
        self.taken: int = pretrainer.updates
        """Number of updates when the newest copy was made."""
        self.rows: slice = slice(0, 0)
        """The images of the current batch that are paid."""
        self.earlier_loss: Fetch | None = None

    def configure(self, argument: str) -> None:
        """Sets the share of the images that are paid.

        Raises:
            InputError: if it is not above 0 and at most 1.
        """
        try:
            self.share = float(argument)
        except ValueError:
            self.share = 0.0
        if not 0.0 < self.share <= 1.0:
            raise InputError(
                f"reward progress:{argument} is invalid: after the colon, give the share of the images that are paid, "
                "above 0 and at most 1."
            )

    def before(self, images: Float[Tensor, "B C *S"], masks: Masks) -> None:
        count = math.ceil((self.share if self.advances else 1.0) * len(images))
        if not bool(masks.guided.any()):
            self.rows = slice(0, 0)
            return
        first = min(self.pretrainer.updates * count % len(images), len(images) - count)
        self.rows = slice(first, first + count)
        paid = images[self.rows], masks.masked[self.rows]
        self.earlier_loss = Fetch(ranks.mapped(self.earlier.patch_loss, *paid))

    def __call__(self, patch_loss: Float[Tensor, "B L"], masks: Masks) -> Float[Tensor, "B L"]:
        if self.advances and self.pretrainer.updates >= self.taken + self.lag:
            self.taken = self.pretrainer.updates
            self.earlier, self.next = self.next, self.earlier
            self.next.model.load_state_dict(self.pretrainer.model.state_dict())
        progress = torch.zeros_like(patch_loss)
        if self.rows.stop:
            assert self.earlier_loss is not None, "before() comes first"
            floor = self.floor * patch_loss[masks.masked].mean() + 1e-12
            earlier = self.earlier_loss.wait()
            progress[self.rows] = ((earlier + floor) / (patch_loss[self.rows] + floor)).log()
        return progress

    def paid(self, num_images: int) -> Bool[Tensor, " B"]:
        paid = torch.zeros(num_images, dtype=torch.bool)
        paid[self.rows] = True
        return paid

    def state_dict(self) -> dict[str, Any]:
        copies = {"earlier": self.earlier.model.state_dict(), "next": self.next.model.state_dict()}
        return {"taken": self.taken, **copies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]
        self.earlier.model.load_state_dict(state["earlier"])
        self.next.model.load_state_dict(state["next"])


class AdvantageReward(LossReward):
    """Loss of the patch minus the mean loss under a random mask of the same image.

    Costs an extra forward pass.
    """

    def __init__(self, pretrainer: Pretrainer, generator: torch.Generator) -> None:
        super().__init__(pretrainer, generator)
        self.random_loss: Fetch | None = None

    def before(self, images: Float[Tensor, "B C *S"], masks: Masks) -> None:
        count = int(masks.masked[0].sum())
        scores = random_scores((masks.masked.shape[0], masks.masked.shape[1]), self.generator)
        drawn = draw_masks(scores, self.pretrainer.autoencoder.grid, count, self.generator)
        patch_loss = self.pretrainer.forward(images, drawn).patch_loss
        masked = to_device(drawn.masked, patch_loss.device)
        self.random_loss = Fetch((patch_loss * masked).sum(dim=1, keepdim=True) / count)

    def __call__(self, patch_loss: Float[Tensor, "B L"], masks: Masks) -> Float[Tensor, "B L"]:
        assert self.random_loss is not None, "before() comes first"
        return patch_loss - self.random_loss.wait()


class AHMReward(LossReward):
    """255 times the squared error of the patch, plus 127.5 times the mean square of its reconstruction.

    The reward of AHM (Xu, Liu, Xu, Lukasiewicz, IEEE TMI 2025). The second term pays for bright reconstructions, so
    that black background is not attractive. Both terms use the paper's pixel scale, 0 to 1. As images are normalised
    here, 0 and 1 are the darkest and the brightest value of each channel of each image.

    The reward is averaged over cells, which are the patches. In the authors' code cells are squares of 20 px, patches
    of 16 px; cell (i, j) is the reward of patch (i, j), and patches without a cell get 0: `ahm2025:20` restores this.
    """

    scale: float = 255.0
    brightness: float = 0.5
    """Weight of the second term, relative to the first."""

    def __init__(self, pretrainer: Pretrainer, generator: torch.Generator) -> None:
        super().__init__(pretrainer, generator)
        target = self.pretrainer.autoencoder.target
        if not target.shows_pixels:
            raise InputError(
                f"reward ahm2025 compares pixels, and `target={target.name}` predicts none: choose another reward or "
                "`target=pixels`."
            )
        if len(pretrainer.autoencoder.grid) != 2:
            raise InputError("reward ahm2025 knows images and no volumes: choose another reward.")
        self.cell_size: int = pretrainer.autoencoder.patch_size
        self.cells: Fetch | None = None

    def configure(self, argument: str) -> None:
        """Sets the side of a cell in pixels.

        Raises:
            InputError: if it is not a whole number from 1 to the shorter side of the image.
        """
        longest = min(self.pretrainer.autoencoder.image_size)
        if not argument.isdecimal() or not 1 <= int(argument) <= longest:
            raise InputError(
                f"reward ahm2025:{argument} is invalid: after the colon, give the side of a cell in pixels, from 1 to "
                f"{longest}."
            )
        self.cell_size = int(argument)

    def after(self, images: Float[Tensor, "B C *S"], result: Reconstruction) -> None:
        images = ranks.own(images)
        everything = torch.ones_like(ranks.own(result.patch_loss), dtype=torch.bool)
        filled = self.pretrainer.model.reconstruct(images, everything, result.prediction)
        darkest = images.amin(dim=(2, 3), keepdim=True)
        contrast = (images.amax(dim=(2, 3), keepdim=True) - darkest).clamp(min=1e-6)
        error = ((filled - images) / contrast).square()
        bright = ((filled - darkest) / contrast).square()
        self.cells = Fetch(ranks.gathered(self._pool(self.scale * (error + self.brightness * bright))))

    def _pool(self, values: Float[Tensor, "B C *S"]) -> Float[Tensor, "B L"]:
        """Means over the cells, each at the patch in the same row and column."""
        rows, columns = self.pretrainer.autoencoder.grid
        means = avg_pool2d(values.mean(dim=1, keepdim=True), self.cell_size)[:, 0, :rows, :columns]
        return pad(means, (0, columns - means.shape[2], 0, rows - means.shape[1])).flatten(1)

    def __call__(self, patch_loss: Float[Tensor, "B L"], masks: Masks) -> Float[Tensor, "B L"]:
        assert self.cells is not None, "after() comes first"
        return self.cells.wait()


REWARDS: dict[str, type[LossReward]] = {
    "loss": LossReward,
    "relative": RelativeReward,
    "rank": RankReward,
    "progress": ProgressReward,
    "advantage": AdvantageReward,
    "ahm2025": AHMReward,
}


def make_reward(name: str, pretrainer: Pretrainer, generator: torch.Generator) -> Reward:
    """The reward of that name; the part after a colon is its argument.

    Raises:
        InputError: if the name is unknown, or the reward rejects the argument.
    """
    base, colon, argument = name.partition(":")
    if base not in REWARDS:
        raise unknown_name("reward", name, REWARDS)
    reward = REWARDS[base](pretrainer, generator)
    if colon:
        reward.configure(argument)
    return reward
