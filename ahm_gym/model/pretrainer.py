"""The pretrainer: the only class that updates an autoencoder."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from timm.optim import param_groups_weight_decay
from torch import Tensor

from ahm_gym.device import ranks
from ahm_gym.device.cuda_graphs import Gradients
from ahm_gym.device.sharing import gradients_of, held, load, read, share, use_gradients, weights_of
from ahm_gym.device.transfers import Fetch
from ahm_gym.errors import InputError, RunError
from ahm_gym.masking.masks import Masks, as_masks
from ahm_gym.model.autoencoder import Autoencoder, Reconstruction
from ahm_gym.model.moving_average import MovingAverage
from ahm_gym.model.vit import build_autoencoder

if TYPE_CHECKING:
    from ahm_gym.model.joint import JointTask

WEIGHT_DECAY: float = 0.05
"""Weight decay of the matrices; other parameters have none."""
WARMUP: float = 0.05
"""Share of the updates during which the learning rate rises."""
MAX_GRAD_NORM: float = 1.0
"""Gradients with a larger norm are scaled down to this norm."""


@dataclass(frozen=True)
class _Unchecked:
    """An update whose loss and gradient norm have not been checked for finite numbers yet."""

    numbers: Fetch
    """The loss that was minimised, the norm of its gradient, and the joint loss if there is one."""
    images: Tensor
    number: int
    """Number of updates before this one."""


class Pretrainer:
    """Updates a masked autoencoder with AdamW, warm-up, cosine decay and clipped gradients.

    If torchrun started several processes (`ahm_gym.device.ranks`), each is given the whole batch and computes its own
    rows. Losses are those of the whole batch, and gradients are averaged. Predictions are those of the rows.

    Args:
        autoencoder: autoencoder to update; it is moved to `device`.
        num_steps: length of the learning-rate schedule in updates.
        learning_rate: peak learning rate, at the end of the warm-up.
        device: device to train on. On a GPU the passes run in bfloat16 and are recorded as CUDA graphs, so do
            not replace the weights after the first step; change them in place.
        frozen: never update the autoencoder; steps only reconstruct and are counted.
        average: decay of an exponential moving average (EMA) of the weights, `trained`; None keeps none.
        joint: segmentation that every update also learns (`ahm_gym.model.joint`); None learns the reconstruction alone.

    Raises:
        InputError: if the number of steps is below 1, the learning rate is not positive and finite, the decay is
            not between 0 and 1, or a frozen autoencoder has a joint task.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        *,
        num_steps: int,
        learning_rate: float = 1e-3,
        device: torch.device | str = "cpu",
        frozen: bool = False,
        average: float | None = None,
        joint: JointTask | None = None,
    ) -> None:
        if average is not None and not 0.0 < average < 1.0:
            raise InputError(f"`average` is {average}: choose a decay between 0 and 1, such as 0.999.")
        if num_steps < 1:
            raise InputError(f"the number of steps is {num_steps}: choose at least 1.")
        if not (learning_rate > 0 and math.isfinite(learning_rate)):
            raise InputError(f"the learning rate is {learning_rate}: choose a positive value such as 0.001.")
        if frozen and joint is not None:
            raise InputError("a frozen autoencoder learns nothing from `joint`: leave it out, or `frozen`.")
        self.device: torch.device = torch.device(device)
        self.autoencoder: Autoencoder = autoencoder.to(self.device)
        self.num_steps: int = num_steps
        self.learning_rate: float = learning_rate
        self.frozen: bool = frozen
        self.joint: JointTask | None = None if joint is None else joint.to(self.device)
        self.joint_loss: float | None = None
        """The loss of the joint task in the last update that was checked, without its weight."""
        groups = param_groups_weight_decay(self.autoencoder, WEIGHT_DECAY)[::-1]  # matrices first
        if self.joint is not None:
            groups += param_groups_weight_decay(self.joint, WEIGHT_DECAY)[::-1]
        self.optimizer: torch.optim.AdamW = torch.optim.AdamW(
            groups, lr=learning_rate, betas=(0.9, 0.95), fused=True
        )
        self._average = (
            None if average is None else MovingAverage(self.autoencoder, start=average, end=average)
        )
        self._updates = torch.zeros((), dtype=torch.int64)
        self._lock: Any = None
        self._process = os.getpid()
        self._local: Autoencoder | None = None
        self._sent: list[list[Tensor | None]] | None = None
        self._unchecked: _Unchecked | None = None
        self._passes = self._gradients()
        self.checks_late: bool = self.device.type == "cuda"
        """Whether `step` leaves the check for finite numbers to `check`, so that it never waits for the GPU."""

    @property
    def updates(self) -> int:
        """Number of steps so far, in all processes that share this pretrainer."""
        return int(self._updates)

    @property
    def progress(self) -> float:
        """Share of the schedule that is done, 0 to 1."""
        return min(self.updates / self.num_steps, 1.0)

    @property
    def model(self) -> Autoencoder:
        """The autoencoder that this process computes with: its own snapshot, or else the shared one."""
        return self.autoencoder if self._local is None else self._local

    @property
    def trained(self) -> Autoencoder:
        """The autoencoder whose encoder is exported: the average of the weights if there is one."""
        return self.autoencoder if self._average is None else self._average.network

    def step(self, images: Float[Tensor, "B C *S"], masks: Masks | Bool[Tensor, "B L"]) -> Reconstruction:
        """Makes one update, unless frozen; returns the reconstruction from before the update, detached.

        In a plain mask (True = masked) every masked patch has weight 1. Gradients are enabled here even if the
        caller has disabled them. If the masks are in main memory, a step does not wait for the GPU.

        Raises:
            RunError: if the loss or its gradient is not finite; the weights then stay unchanged. On a GPU, `check`
                or the next step raises it.
        """
        with torch.inference_mode(False), torch.enable_grad():
            self._refresh()
            images, masks = _outside_inference(images), as_masks(masks)
            result = self.forward(images, masks) if self.frozen else self._backward(images, masks)
            if self._sent is None:
                self._finish(gradients_of(self.model))
            else:
                self._sent.append([] if self.frozen else gradients_of(self.model))
                self._updates += 1
        return result

    def check(self) -> None:
        """Waits for the GPU; raises RunError if the last update was not finite and was therefore skipped."""
        update, self._unchecked = self._unchecked, None
        if update is None:
            return
        loss, norm, *joint = update.numbers.wait().tolist()
        if math.isfinite(loss) and math.isfinite(norm):
            self.joint_loss = joint[0] if joint else None
            return
        if self.checks_late:
            self._updates.fill_(update.number)
        place = f"at update {update.number + 1} (batch {update.number}"
        if math.isfinite(loss):
            raise RunError(
                f"the gradient is not finite {place}): lower `learning_rate`; the last checkpoint is good."
            )
        what = "reconstruction loss" if self.joint is None else "sum of reconstruction and joint loss"
        low, high = update.images.amin().item(), update.images.amax().item()
        raise RunError(
            f"the {what} is {loss} {place}, pixel values {low:.3g} to {high:.3g}): lower "
            "`learning_rate`, or look at the images of this batch; the last checkpoint is good."
        )

    def forward(self, images: Float[Tensor, "B C *S"], masks: Masks | Bool[Tensor, "B L"]) -> Reconstruction:
        """Reconstructs images without an update."""
        with torch.no_grad(), self.autocast():
            if ranks.world_size() == 1:
                return self.model(images, masks)
            return self._reconstruct(
                ranks.own(images), *map(ranks.own, self.model.mask_inputs(as_masks(masks)))
            )

    def embed(self, images: Float[Tensor, "B C *S"]) -> Float[Tensor, "B L D"]:
        """The embedding of every patch by the current autoencoder; see `Autoencoder.embed`."""
        with torch.no_grad():
            self._refresh()
            return self.model.embed(images)

    def share_memory(self, lock: Any) -> Pretrainer:
        """Lets several processes update this autoencoder.

        Each process computes gradients on its own snapshot. It applies them to the shared weights and the shared
        state of the optimiser while it holds `lock`, a lock between processes.

        Raises:
            InputError: if there is a joint task, whose head belongs to one process.
        """
        if self.joint is not None:
            raise InputError("several processes cannot share `joint`: leave it out, or use one process.")
        share(self.autoencoder, self.optimizer)
        if self._average is not None:
            self._average.network.share_memory()
        self._updates.share_memory_()
        self._lock = lock
        return self

    def published(self) -> tuple[list[Tensor], int]:
        """The weights and the number of updates, which a copy in another process can `receive`."""
        return [value.detach() for value in weights_of(self.autoencoder)], self.updates

    def receive(self, published: tuple[list[Tensor], int]) -> None:
        """Takes over what the owner of the weights has `published`."""
        weights, updates = published
        load(self.autoencoder, weights)
        self._updates.fill_(updates)

    def send_gradients(self) -> None:
        """Turns this copy into one that never updates its weights: steps keep their gradients for the owner."""
        self._sent = []
        self.optimizer.state.clear()

    def sent(self) -> list[list[Tensor | None]]:
        """The clipped gradients of every step since the last call, in the order of the parameters."""
        sent, self._sent = self._sent or [], []
        return sent

    def apply(self, gradients: Sequence[Tensor | None]) -> None:
        """Makes one update, unless frozen, with gradients that a copy has `sent`."""
        self._finish(gradients)

    @property
    def is_copy(self) -> bool:
        """Whether this is a copy in another process than the original, which learns nothing from it."""
        return self._lock is None and self._sent is None and os.getpid() != self._process

    @property
    def is_detached(self) -> bool:
        """Whether the weights are shared, and this process has no snapshot of them yet; see `attach`."""
        return self._lock is not None and self._local is None and os.getpid() != self._process

    def attach(self) -> Pretrainer:
        """Gives this process its own snapshot of the weights; call it once in each worker process."""
        self._local = copy.deepcopy(self.autoencoder)
        self._passes = self._gradients()
        return self

    def state_dict(self) -> dict[str, Any]:
        """The state of the autoencoder and the optimiser, and the number of updates."""
        self.check()
        with self.locked():
            state = {
                "autoencoder": self.autoencoder.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "updates": self.updates,
            }
            if self._average is not None:
                state["average"] = self._average.state_dict()
            if self.joint is not None:
                state["joint"] = self.joint.state_dict()
            return copy.deepcopy(state) if self._lock else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.autoencoder.load_state_dict(state["autoencoder"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        if self.joint is not None:
            self.joint.load_state_dict(state["joint"])
        self._updates.fill_(state["updates"])
        self._unchecked = None

    def _refresh(self) -> None:
        if self._local is not None and not self.frozen:
            with self.locked():
                read(self._local, self.autoencoder)

    def locked(self) -> AbstractContextManager[None]:
        """A context in which no other process changes the shared weights; empty if they are not shared."""
        return held(self._lock) if self._lock else nullcontext()

    def _backward(self, images: Tensor, masks: Masks) -> Reconstruction:
        if not self.model.training:
            self.model.train()
        mask_inputs = (_outside_inference(ranks.own(tensor)) for tensor in self.model.mask_inputs(masks))
        labelled = () if self.joint is None else self.joint.labelled(self.updates, self.device)
        passed = self._passes(ranks.own(images), *mask_inputs, *labelled)
        loss, result, joint, norm = passed[0], Reconstruction(*passed[1:4]), passed[4:-1], passed[-1]
        self.check()  # of the previous update: its numbers arrived while this one was prepared
        numbers = torch.stack((loss, norm, *joint))
        self._unchecked = _Unchecked(Fetch(numbers), images, self.updates)
        if self.checks_late:
            # The fused optimiser reads this flag on the GPU, as with a GradScaler, and skips the update.
            failed = (~numbers.isfinite().all()).float()
            self.optimizer.found_inf = failed  # pyright: ignore[reportAttributeAccessIssue]
        else:
            self.check()
        return result

    def _gradients(self) -> Gradients:
        parameters = [*self.model.parameters(), *(self.joint.parameters() if self.joint else ())]
        return Gradients(self._run, parameters, MAX_GRAD_NORM, records=self.model.records, over_ranks=True)

    def _run(self, images: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The loss to minimise, the reconstruction, and the joint loss if there is one.

        `inputs` are what `mask_inputs` returned, and with a joint task labelled images and their labels.
        """
        with self.autocast():
            if self.joint is None:
                result = self._reconstruct(images, *inputs)
                return (result.loss, *result)
            result = self._reconstruct(images, *inputs[:-2])
            joint_loss = self.joint(self.model.encoder, *inputs[-2:])
            return (result.loss + self.joint.weight * joint_loss, *result, joint_loss)

    def _finish(self, gradients: Sequence[Tensor | None]) -> None:
        """Counts an update of the shared weights, and makes it unless frozen."""
        with self.locked():
            if not self.frozen:
                use_gradients(self.autoencoder, gradients)
                self._apply()
            self._updates += 1

    def _reconstruct(self, images: Tensor, *mask_inputs: Tensor) -> Reconstruction:
        """The reconstruction of the rows of this rank, with the losses of the whole batch."""
        result = self.model.run(images, *mask_inputs)
        if ranks.world_size() == 1:
            return result
        whole = ranks.gathered(torch.stack((result.patch_loss, mask_inputs[-1]), dim=1))
        patch_loss, weight = whole.unbind(dim=1)
        return Reconstruction((patch_loss * weight).sum() / weight.sum(), patch_loss, result.prediction)

    def _apply(self) -> None:
        rate = self.learning_rate * cosine_schedule(self.updates, self.num_steps, WARMUP)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        latent = self.autoencoder.latent
        for average in (None if latent is None else latent.average, self._average):
            if average is not None:
                average.follow(self.progress, self.updates)

    def metrics(self) -> dict[str, float]:
        """What the last checked update measured beside the reconstruction: `joint_loss`, with a joint task."""
        return {} if self.joint_loss is None else {"joint_loss": self.joint_loss}

    def autocast(self) -> torch.autocast:
        """The precision of the forward pass; see `Autoencoder.autocast`."""
        return self.autoencoder.autocast()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_local": None, "_unchecked": None, "_passes": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._passes = self._gradients()


def build_pretrainer(
    model: str,
    image_size: tuple[int, ...],
    patch_size: int,
    channels: int,
    num_steps: int,
    *,
    seed: int,
    learning_rate: float = 1e-3,
    target: str = "pixels",
    device: torch.device | str = "cpu",
) -> Pretrainer:
    """A pretrainer for a newly initialised autoencoder; see `Pretrainer` and `build_autoencoder`."""
    shape = {"image_size": image_size, "patch_size": patch_size, "channels": channels}
    autoencoder = build_autoencoder(model, seed=seed, target=target, **shape)
    return Pretrainer(autoencoder, num_steps=num_steps, learning_rate=learning_rate, device=device)


def cosine_schedule(step: int, num_steps: int, warmup: float) -> float:
    """Factor of the learning rate: a linear warm-up for a share `warmup` of the steps, then a cosine decay to 0."""
    warm = max(round(warmup * num_steps), 1)
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(num_steps - warm, 1)
    return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def _outside_inference(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor
