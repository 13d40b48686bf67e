"""What a masked patch pays: one class a reward, and the table of their names."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from ahm_gym.device.cuda_graphs import Replay
from ahm_gym.device.transfers import Fetch, to_device
from ahm_gym.envs.reward_base import LossReward, Reward
from ahm_gym.errors import InputError, unknown_name
from ahm_gym.masking.drawing import draw_masks
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.selection import random_scores
from ahm_gym.model.autoencoder import Reconstruction
from ahm_gym.model.pretrainer import Pretrainer


class RelativeReward(LossReward):
    """Squared error, standardised by running statistics of the randomly masked patches.

    The statistics follow the falling loss of the autoencoder. They are those of all masked patches
    where none is masked at random. Standardising within each image instead would fix the mean.
    """

    momentum = 0.02

    def __init__(self, pretrainer: Pretrainer, generator: torch.Generator) -> None:
        super().__init__(pretrainer, generator)
        self.count = 0
        self.mean = 0.0
        self.square = 0.0

    def __call__(self, patch_loss: Float[Tensor, "B L"], masks: Masks) -> Float[Tensor, "B L"]:
        drawn = masks.masked & ~masks.guided
        counted = drawn if bool(drawn.any()) else masks.masked
        mean, square = (
            (counted * value).sum() / counted.sum() for value in (patch_loss, patch_loss.square())
        )
        self.count += 1
        rate = max(1.0 / self.count, self.momentum)
        self.mean += rate * (float(mean) - self.mean)
        self.square += rate * (float(square) - self.square)
        deviation = max(self.square - self.mean**2, 1e-12) ** 0.5
        return (patch_loss - self.mean) / deviation

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "square": self.square}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.mean, self.square = state["count"], state["mean"], state["square"]


class RankReward(LossReward):
    """Rank of the patch's loss among all masked patches of the batch, from -1 to 1."""

    def __call__(self, patch_loss: Float[Tensor, "B L"], masks: Masks) -> Float[Tensor, "B L"]:
        order = patch_loss[masks.masked].argsort(stable=True)
        ranks = torch.empty_like(patch_loss[masks.masked])
        ranks[order] = torch.linspace(-1.0, 1.0, len(order), device=ranks.device)
        return torch.zeros_like(patch_loss).masked_scatter(masks.masked, ranks)


class Copy:
    """The autoencoder as it is now, and its losses later."""

    def __init__(self, pretrainer: Pretrainer) -> None:
        self.model = copy.deepcopy(pretrainer.model).requires_grad_(False)
        self._autocast = pretrainer.autocast
        self._passes = Replay(self._fill_in, records=self.model.records)

    def patch_loss(self, images: Float[Tensor, "B C H W"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        return self._passes(images, *self.model.places(Masks.of(mask)))[0]

    def _fill_in(self, images: Tensor, *places: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad(), self._autocast():
            return (self.model.fill_in(images, *places).patch_loss,)


class ProgressReward(LossReward):
    """Log of the loss under an earlier copy of the autoencoder over its present loss, with the same mask.

    What is being learned pays; noise, which is as bad under both, does not. After the learning progress
    of Oudeyer, Kaplan and Hafner (2007), as a share: a difference of losses is largest, in either direction,
    where losses are. To both losses goes `floor` of the mean loss, so that what is next to nothing counts
    for little. The copy is `lag` to two times `lag` updates old, 5 to 10 % of a
    run of up to 2,000 updates; before, it is the autoencoder as it was found. A slow average would not do: once the
    learning rate falls it is better than the autoencoder itself, and learning would cost. Takes two copies of
    the weights, and a forward pass of half of the images where the scores decided about any patch. The other
    images are not paid.

    Raises:
        InputError: against a frozen autoencoder, which makes no progress.
    """

    floor = 0.05
    share = 0.5
    """Of the images of a batch, that are paid."""

    def __init__(self, pretrainer: Pretrainer, generator: torch.Generator) -> None:
        super().__init__(pretrainer, generator)
        if pretrainer.frozen:
            raise InputError(
                "reward progress pays what the autoencoder has learned, and this one is frozen: choose loss or "
                "relative."
            )
        self.lag = min(100, max(1, pretrainer.num_steps // 20))
        self.earlier, self.next = Copy(pretrainer), Copy(pretrainer)
        self.taken = pretrainer.updates
        """Updates before the newest copy."""
        self.num_paid = 0
        self.earlier_loss: Fetch | None = None

    def before(self, images: Float[Tensor, "B C H W"], masks: Masks) -> None:
        self.num_paid = math.ceil(self.share * len(images)) if bool(masks.guided.any()) else 0
        if self.num_paid:
            paid = slice(self.num_paid)
            self.earlier_loss = Fetch(self.earlier.patch_loss(images[paid], masks.masked[paid]))

    def __call__(self, patch_loss: Float[Tensor, "B L"], masks: Masks) -> Float[Tensor, "B L"]:
        if self.pretrainer.updates >= self.taken + self.lag:
            self.taken = self.pretrainer.updates
            self.earlier, self.next = self.next, self.earlier
            self.next.model.load_state_dict(self.pretrainer.model.state_dict())
        paid = torch.zeros_like(patch_loss)
        if self.num_paid:
            assert self.earlier_loss is not None, "before() comes first"
            floor = self.floor * patch_loss[masks.masked].mean() + 1e-12
            earlier = self.earlier_loss.wait()
            paid[: self.num_paid] = ((earlier + floor) / (patch_loss[: self.num_paid] + floor)).log()
        return paid

    def paid(self, num_images: int) -> Bool[Tensor, " B"]:
        return torch.arange(num_images) < self.num_paid

    def state_dict(self) -> dict[str, Any]:
        copies = {"earlier": self.earlier.model.state_dict(), "next": self.next.model.state_dict()}
        return {"taken": self.taken, **copies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]
        self.earlier.model.load_state_dict(state["earlier"])
        self.next.model.load_state_dict(state["next"])


class AdvantageReward(LossReward):
    """Loss of the patch minus the mean loss of a random mask on the same image.

    Costs one more forward pass.
    """

    def __init__(self, pretrainer: Pretrainer, generator: torch.Generator) -> None:
        super().__init__(pretrainer, generator)
        self.random_loss: Fetch | None = None

    def before(self, images: Float[Tensor, "B C H W"], masks: Masks) -> None:
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

    The reward of AHM (Xu, Liu, Xu, Lukasiewicz, IEEE TMI 2025): bright reconstructions pay, so that black
    background does not. Both terms are on the paper's pixel scale, 0 to 1: images here are normalised, so
    0 and 1 are the darkest and the brightest value of each channel of each image.

    The cells of reward are the patches. In the authors' code they are squares of 20 px over patches of 16,
    laid out from the first patch on, and the patches that are left over get 0: `ahm2025:20` brings that back.
    """

    scale, brightness = 255.0, 0.5

    def __init__(self, pretrainer: Pretrainer, generator: torch.Generator) -> None:
        super().__init__(pretrainer, generator)
        self.cell_size = pretrainer.autoencoder.patch_size
        self.cells: Fetch | None = None

    def configure(self, argument: str) -> None:
        """Sets the side of a cell of reward in pixels."""
        longest = min(self.pretrainer.autoencoder.image_size)
        if not argument.isdecimal() or not 1 <= int(argument) <= longest:
            raise InputError(
                f"reward ahm2025:{argument}: after the colon goes the side of a cell in pixels, 1 to {longest}."
            )
        self.cell_size = int(argument)

    def after(self, images: Float[Tensor, "B C H W"], result: Reconstruction) -> None:
        everything = torch.ones_like(result.patch_loss, dtype=torch.bool)
        filled = self.pretrainer.model.reconstruct(images, everything, result.prediction)
        darkest = images.amin(dim=(2, 3), keepdim=True)
        contrast = (images.amax(dim=(2, 3), keepdim=True) - darkest).clamp(min=1e-6)
        error = ((filled - images) / contrast).square()
        bright = ((filled - darkest) / contrast).square()
        self.cells = Fetch(self._pool(self.scale * (error + self.brightness * bright)))

    def _pool(self, values: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L"]:
        """Means over the cells, in the places of the patches."""
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
    """The reward of that name; what follows a colon is its argument.

    Raises:
        InputError: for an unknown name, with the nearest one, or an argument that the reward does not take.
    """
    base, colon, argument = name.partition(":")
    if base not in REWARDS:
        raise unknown_name("reward", name, REWARDS)
    reward = REWARDS[base](pretrainer, generator)
    if colon:
        reward.configure(argument)
    return reward
