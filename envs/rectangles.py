"""Masking one rectangle of patches per step, or one box of a volume."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ahm_gym.envs.actions import StepwiseMaskingVectorEnv, whole_numbers
from ahm_gym.envs.masking import MaskingVectorEnv
from ahm_gym.envs.plans import check_count, equal_parts
from ahm_gym.envs.single import MaskingEnv


class RectangleMaskingVectorEnv(StepwiseMaskingVectorEnv):
    """One rectangle per step, `MultiDiscrete([rows, columns, rows, columns])`: top, left, height - 1, width - 1.

    In a volume it is a box: front, top, left, and then the three extents. The unit is the patch, and the part of a
    rectangle outside the image is cut off. The images of a batch share one update and end together, so a mask takes
    `num_rectangles` steps however large the rectangles are. Each step masks an equal part of the guided patches,
    `num_guided`, from the visible patches of the rectangle: of too many, a random subset; to too few, the nearest
    visible patches around it are added, ring by ring, and count as guided. `info["repaired"]` (B,) is True if the
    masked patches are not exactly the visible patches of the rectangle, for example because windows must keep some of
    them. If there are fewer guided patches than rectangles, each takes one step. Accepts the arguments of
    `MaskingVectorEnv` except masking_steps; the last step also masks the random rest.

    After the occluded rectangle of Bahrami et al. (Intelligent Masking, MLMI 2022) and the position and
    size of Xu et al. (Adaptive-Masking Policy, ICME 2023).

    Args:
        num_rectangles: rectangles per mask, at most the smallest number of masked patches during training.
    """

    def __init__(self, num_envs: int = 16, *, num_rectangles: int = 4, **options: Any) -> None:
        self.num_rectangles = num_rectangles
        super().__init__(num_envs, **options)

    def _action_space(self) -> gym.Space[Any]:
        check_count("num_rectangles", self.num_rectangles, self._least_masked)
        return gym.spaces.MultiDiscrete([*self.grid, *self.grid])

    def _parts(self, num_guided: int) -> list[int]:
        return equal_parts(num_guided, self.num_rectangles)

    def _scores(self, actions: Any) -> Tensor:
        limits = np.tile([*self.grid, *self.grid], (self.num_envs, 1))
        named = {
            2: "top, left, height - 1 and width - 1 of a rectangle",
            3: "front, top, left, depth - 1, height - 1 and width - 1 of a box",
        }
        expected = f"{named[len(self.grid)]} in {' x '.join(map(str, self.grid))} patches"
        return -rectangle_distance(whole_numbers(actions, limits, expected), self.grid).float()

    def _choice_info(self, scores: Tensor, guided: Tensor) -> dict[str, np.ndarray]:
        return {"repaired": (guided != ((scores == 0) & ~self._mask.masks.masked)).any(dim=1).numpy()}


class RectangleMaskingEnv(MaskingEnv):
    """One image, one rectangle per step; see `RectangleMaskingVectorEnv`."""

    vector_class: type[MaskingVectorEnv] = RectangleMaskingVectorEnv


def rectangle_distance(rectangles: Int[Tensor, "B _"], grid: tuple[int, ...]) -> Int[Tensor, "B L"]:
    """Distance of each patch from the rectangle or box in rings of patches, 0 inside.

    Args:
        rectangles: for each axis where it begins, then for each axis how much farther it extends, in patches: top,
            left, height - 1 and width - 1. It may extend beyond the edge.
        grid: number of patches along each axis.
    """
    begins, extents = rectangles.chunk(2, dim=1)
    distance = torch.zeros(len(rectangles), 1, dtype=rectangles.dtype)
    for axis, length in enumerate(grid):
        along = _distance(torch.arange(length), begins[:, axis : axis + 1], extents[:, axis : axis + 1])
        distance = torch.maximum(distance[:, :, None], along[:, None, :]).flatten(1)
    return distance


def _distance(
    place: Int[Tensor, " N"], first: Int[Tensor, "B 1"], extent: Int[Tensor, "B 1"]
) -> Int[Tensor, "B N"]:
    """Distance of each place from the interval from `first` to `first + extent`."""
    return torch.maximum(first - place, place - first - extent).clamp(min=0)
