"""Masking one rectangle of patches per step."""

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

    The unit is the patch, and the part of a rectangle outside the image is cut off. The images of a batch
    share one update and end together, so a mask takes `num_rectangles` steps however large the rectangles
    are. Each step masks an equal part of the guided patches, `num_guided`, from the visible patches of the
    rectangle: of too many, a random subset; to too few, the nearest visible patches around it are added,
    ring by ring, and count as guided. `info["repaired"]` (B,) is True if the masked patches are not exactly the
    visible patches of the rectangle, for example because windows must keep some of them. If there are fewer
    guided patches than rectangles, each takes one step. Accepts the arguments of `MaskingVectorEnv` except
    masking_steps; the last step also masks the random rest.

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
        rows, columns = self.grid
        limits = np.tile([rows, columns, rows, columns], (self.num_envs, 1))
        expected = f"top, left, height - 1 and width - 1 of a rectangle in {rows} x {columns} patches"
        return -rectangle_distance(whole_numbers(actions, limits, expected), self.grid).float()

    def _choice_info(self, scores: Tensor, guided: Tensor) -> dict[str, np.ndarray]:
        return {"repaired": (guided != ((scores == 0) & ~self._mask.masks.masked)).any(dim=1).numpy()}


class RectangleMaskingEnv(MaskingEnv):
    """One image, one rectangle per step; see `RectangleMaskingVectorEnv`."""

    vector_class: type[MaskingVectorEnv] = RectangleMaskingVectorEnv


def rectangle_distance(rectangles: Int[Tensor, "B 4"], grid: tuple[int, int]) -> Int[Tensor, "B L"]:
    """Distance of each patch from the rectangle in rings of patches, 0 inside.

    Args:
        rectangles: top, left, height - 1 and width - 1 in patches; it may extend beyond the edge.
        grid: rows and columns of patches.
    """
    top, left, height, width = rectangles[:, :, None].unbind(dim=1)
    down = _distance(torch.arange(grid[0]), top, height)
    across = _distance(torch.arange(grid[1]), left, width)
    return torch.maximum(down[:, :, None], across[:, None, :]).flatten(1)


def _distance(
    place: Int[Tensor, " N"], first: Int[Tensor, "B 1"], extent: Int[Tensor, "B 1"]
) -> Int[Tensor, "B N"]:
    """Distance of each place from the interval from `first` to `first + extent`."""
    return torch.maximum(first - place, place - first - extent).clamp(min=0)
