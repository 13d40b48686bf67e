"""The masks of a batch: which patches are hidden, and how much each of them counts in the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ahm_gym.errors import InputError


@dataclass(frozen=True, eq=False)
class Masks:
    """Which patches of a batch are hidden, which of them the scores chose, and how much each counts in the loss.

    Keep masks in main memory: the constructor checks the weights, and on a GPU the check would have to wait.

    Raises:
        InputError: if a weight is negative, not finite or on a visible patch, or no masked patch has a positive one;
            for shapes that differ, masks that are not boolean, or weights that are not floating-point numbers.
    """

    masked: Bool[Tensor, "B L"]
    """True where a patch is hidden from the encoder."""
    guided: Bool[Tensor, "B L"]
    """True if the scores chose the patch; the other masked patches were drawn at random."""
    weight: Float[Tensor, "B L"]
    """How much each patch counts in the loss, the weighted mean of the patch losses.

    A masked patch with weight 0 is hidden but not reconstructed: it adds nothing to the loss or the gradient.
    """

    def __post_init__(self) -> None:
        weight = self.weight
        if (
            self.masked.dtype != torch.bool
            or self.guided.dtype != torch.bool
            or not weight.is_floating_point()
        ):
            raise InputError("masks are boolean, and weights floating-point numbers: convert them first.")
        _check_shape(weight, self.masked)
        if bool((weight.isfinite() & (weight >= 0) & (self.masked | (weight == 0))).all()):
            total = float(weight.sum())
            if not math.isfinite(total):
                raise InputError("the sum of the weights is not finite: choose smaller weights.")
            if total > 0 or not bool(self.masked.any()):
                return
            raise InputError("every masked patch has weight 0: give at least one a positive weight.")
        if not bool(weight.isfinite().all()):
            raise InputError("the weights contain NaN or infinity: every patch needs a finite weight.")
        if bool((weight < 0).any()):
            raise InputError(f"a patch has weight {float(weight.min()):g}: choose 0 or a positive number.")
        raise InputError("a visible patch has a weight: only masked patches count in the loss; set it to 0.")

    @classmethod
    def of(cls, masked: Bool[Tensor, "B L"], guided: Bool[Tensor, "B L"] | None = None) -> Masks:
        """Masks in which every masked patch has weight 1; if `guided` is None, the scores chose none of them."""
        return cls(masked, torch.zeros_like(masked) if guided is None else guided, masked.float())

    def weighted(self, weight: Float[Tensor, "B L"]) -> Masks:
        """The same masks with other weights.

        Raises:
            InputError: if the weights have another shape, or `Masks` refuses them.
        """
        _check_shape(weight, self.masked)
        return Masks(self.masked, self.guided, weight.detach().to(self.masked.device, torch.float32))


def _check_shape(weight: Tensor, masked: Tensor) -> None:
    if weight.shape != masked.shape:
        raise InputError(
            f"the weights have shape {tuple(weight.shape)}: expected one per patch, {tuple(masked.shape)}."
        )


def as_masks(masks: Masks | Bool[Tensor, "B L"]) -> Masks:
    """The masks themselves, or those of a plain mask (True = masked) in which every masked patch has weight 1."""
    return masks if isinstance(masks, Masks) else Masks.of(masks)
