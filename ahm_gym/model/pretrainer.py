"""The optimiser of the autoencoder: the only place where an autoencoder is updated."""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from ahm_gym.device.cuda_graphs import Replay
from ahm_gym.device.sharing import hand_over_gradients, held, read, share
from ahm_gym.device.transfers import Fetch
from ahm_gym.errors import InputError, RunError
from ahm_gym.masking.masks import Masks, as_masks
from ahm_gym.model.autoencoder import Autoencoder, Reconstruction
from ahm_gym.model.vit import build_autoencoder

WEIGHT_DECAY = 0.05
"""Of matrices only."""
WARMUP = 0.05
"""Share of the updates in which the learning rate rises."""
MAX_GRAD_NORM = 1.0
"""The gradient is scaled down to it."""


@dataclass(frozen=True)
class Unchecked:
    """An update that has not been checked for finite numbers yet."""

    loss_and_norm: Fetch
    images: Tensor
    number: int
    """Updates before it."""


class Pretrainer:
    """Updates a masked autoencoder: AdamW, warm-up, cosine decay, clipped gradients.

    Args:
        autoencoder: the one to update.
        num_steps: length of the schedule in updates.
        learning_rate: at the end of the warm-up.
        device: where the autoencoder lives; autocast to bfloat16 on a GPU, where its weights must stay the same
            tensors from then on, and its passes are recorded.
        frozen: never update the autoencoder; a step only reconstructs, and counts.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        *,
        num_steps: int,
        learning_rate: float = 1e-3,
        device: torch.device | str = "cpu",
        frozen: bool = False,
    ) -> None:
        if num_steps < 1:
            raise InputError(f"the number of steps is {num_steps}: choose at least 1.")
        if not (learning_rate > 0 and math.isfinite(learning_rate)):
            raise InputError(f"the learning rate is {learning_rate}: choose a positive value such as 0.001.")
        self.device = torch.device(device)
        self.autoencoder = autoencoder.to(self.device)
        self.num_steps = num_steps
        self.learning_rate = learning_rate
        self.frozen = frozen
        groups = param_groups_weight_decay(self.autoencoder, WEIGHT_DECAY)[::-1]  # matrices first
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)
        self._updates = torch.zeros((), dtype=torch.int64)
        self._lock: Any = None
        self._local: Autoencoder | None = None
        self._unchecked: Unchecked | None = None
        self._passes = Replay(self._forward_and_backward, records=autoencoder.records)
        self._parameters = list(self.autoencoder.parameters())
        """Of `model`; to find them in it anew would take an update some time."""
        self._gradients: list[Tensor | None] = []
        self.checks_late = self.device.type == "cuda"
        """Whether `step` leaves the check of its numbers to `check`: then it never waits for the GPU."""

    @property
    def updates(self) -> int:
        """Number of steps so far, over all processes that share this pretrainer."""
        return int(self._updates)

    @property
    def progress(self) -> float:
        """Share of the schedule that is done, 0 to 1."""
        return min(self.updates / self.num_steps, 1.0)

    @property
    def model(self) -> Autoencoder:
        """The autoencoder as this process last read it."""
        return self.autoencoder if self._local is None else self._local

    def step(self, images: Float[Tensor, "B C H W"], masks: Masks | Bool[Tensor, "B L"]) -> Reconstruction:
        """One update, unless frozen; returns the reconstruction before it, detached.

        A plain mask (True = masked) counts every masked patch 1. Gradients are switched on here, whatever the
        caller has switched off. On a GPU nothing is waited for where the masks are in main memory.

        Raises:
            RunError: where the loss or its gradient is not finite; the weights stay as they were. On a GPU it
                is `check` that raises it, or else the next step.
        """
        with torch.inference_mode(False), torch.enable_grad():
            self._refresh()
            images, masks = _outside_inference(images), as_masks(masks)
            result = self.forward(images, masks) if self.frozen else self._backward(images, masks)
            with self.locked():
                if not self.frozen:
                    self._apply()
                self._updates += 1
        return result

    def check(self) -> None:
        """Raises RunError if the last update was not finite, in which case it changed nothing. Waits for the GPU."""
        update, self._unchecked = self._unchecked, None
        if update is None:
            return
        loss, norm = update.loss_and_norm.wait().tolist()
        if math.isfinite(loss) and math.isfinite(norm):
            return
        if self.checks_late:
            self._updates.fill_(update.number)
        place = f"at update {update.number + 1} (batch {update.number}"
        if math.isfinite(loss):
            raise RunError(
                f"the gradient is not finite {place}): lower `learning_rate`; the last checkpoint is good."
            )
        low, high = update.images.amin().item(), update.images.amax().item()
        raise RunError(
            f"the reconstruction loss is {loss} {place}, pixel values {low:.3g} to {high:.3g}): lower "
            "`learning_rate`, or look at the images of this batch; the last checkpoint is good."
        )

    def forward(self, images: Float[Tensor, "B C H W"], masks: Masks | Bool[Tensor, "B L"]) -> Reconstruction:
        """The reconstruction without an update."""
        with torch.no_grad(), self.autocast():
            return self.model(images, masks)

    def embed(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L D"]:
        """Patch plus position embedding by the current autoencoder."""
        with torch.no_grad():
            self._refresh()
            return self.model.embed(images)

    def share_memory(self, lock: Any) -> Pretrainer:
        """Lets several processes update this autoencoder.

        Every process computes its gradients on a snapshot and applies them to the shared weights and
        optimiser state under `lock` (a process-shared lock).
        """
        share(self.autoencoder, self.optimizer)
        self._updates.share_memory_()
        self._lock = lock
        return self

    def attach(self) -> Pretrainer:
        """Gives this process a snapshot of its own; called once in each worker process."""
        self._local = copy.deepcopy(self.autoencoder)
        self._parameters = list(self._local.parameters())
        return self

    def state_dict(self) -> dict[str, Any]:
        self.check()
        with self.locked():
            state = {
                "autoencoder": self.autoencoder.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "updates": self.updates,
            }
            return copy.deepcopy(state) if self._lock else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.autoencoder.load_state_dict(state["autoencoder"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._updates.fill_(state["updates"])
        self._unchecked = None

    def _refresh(self) -> None:
        if self._local is not None and not self.frozen:
            with self.locked():
                read(self._local, self.autoencoder)

    def locked(self) -> AbstractContextManager[None]:
        """Holds the shared weights still; does nothing where they are not shared."""
        return held(self._lock) if self._lock else nullcontext()

    def _backward(self, images: Tensor, masks: Masks) -> Reconstruction:
        if not self.model.training:
            self.model.train()
        places = (_outside_inference(place) for place in self.model.places(masks))
        *result, norm = self._passes(images, *places)
        result = Reconstruction(*result)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient  # where a recording writes it, even if another was assigned since
        self.check()  # the update before: its numbers have come while this one was prepared
        loss_and_norm = torch.stack((result.loss, norm))
        self._unchecked = Unchecked(Fetch(loss_and_norm), images, self.updates)
        if self.checks_late:
            # The fused optimiser looks at it on the GPU, as it does for a GradScaler, and skips the update.
            failed = (~loss_and_norm.isfinite().all()).float()
            self.optimizer.found_inf = failed  # pyright: ignore[reportAttributeAccessIssue]
        else:
            self.check()
        return result

    def _forward_and_backward(self, images: Tensor, *places: Tensor) -> tuple[Tensor, ...]:
        """Leaves clipped gradients; returns the reconstruction and the norm of the gradient before clipping."""
        for parameter in self._parameters:
            parameter.grad = None
        with self.autocast():
            result = self.model.fill_in(images, *places)
        result.loss.backward()
        norm = nn.utils.clip_grad_norm_(self._parameters, MAX_GRAD_NORM)
        self._gradients = [parameter.grad for parameter in self._parameters]
        return *(value.detach() for value in result), norm

    def _apply(self) -> None:
        if self._local is not None:
            hand_over_gradients(self._local, self.autoencoder)
        rate = self.learning_rate * cosine_schedule(self.updates, self.num_steps, WARMUP)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    def autocast(self) -> torch.autocast:
        """The precision of the forward pass."""
        return self.autoencoder.autocast()

    def __getstate__(self) -> dict[str, Any]:
        parameters = list(self.autoencoder.parameters())
        return self.__dict__ | {
            "_local": None,
            "_parameters": parameters,
            "_unchecked": None,
            "_gradients": [],
        }


def build_pretrainer(
    model: str,
    image_size: tuple[int, int],
    patch_size: int,
    channels: int,
    num_steps: int,
    *,
    seed: int,
) -> Pretrainer:
    """One with the default settings, of a freshly initialised autoencoder; see `build_autoencoder`."""
    autoencoder = build_autoencoder(
        model, image_size=image_size, patch_size=patch_size, channels=channels, seed=seed
    )
    return Pretrainer(autoencoder, num_steps=num_steps)


def cosine_schedule(step: int, num_steps: int, warmup: float) -> float:
    """Factor on the learning rate: a linear warm-up over a share `warmup` of the steps, then a cosine to 0."""
    warm = max(round(warmup * num_steps), 1)
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(num_steps - warm, 1)
    return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def _outside_inference(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor
