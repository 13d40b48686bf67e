"""Masking as an environment: actions choose the masks of a batch, and the update that follows pays the reward."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from ahm_gym.data import ImageDataset
from ahm_gym.device.transfers import to_device
from ahm_gym.envs.batches import ImageBatches, channels_of, check_channels, check_reset_mask, open_images
from ahm_gym.envs.observing import Observation, Observed
from ahm_gym.envs.plans import MaskRatio, check_count, least_masked_count, masked_count, proportional_plan
from ahm_gym.envs.rendering import Shown, checked_render_mode, render_batch, warn_without_mode
from ahm_gym.envs.reward_base import Reward
from ahm_gym.envs.rewards import make_reward
from ahm_gym.envs.updates import Update, begin_update, rows_before_update
from ahm_gym.errors import check_numbers, check_seed
from ahm_gym.masking.drawing import GrowingMask
from ahm_gym.masking.schedules import Share, check_target_fraction, share_at
from ahm_gym.masking.selection import PatchBatch, Weigh, choose_targets
from ahm_gym.model.patches import grid_of, image_size_of
from ahm_gym.model.pretrainer import Pretrainer, build_pretrainer


class MaskingVectorEnv(VectorEnv[Any, Any, Any]):
    """A batch of images to mask; each episode ends with one update of the autoencoder inside.

    - Observation, `Box(-inf, inf, (L, D))`: patch plus position embedding of every patch; all zeros once the
      patch can no longer be masked.
    - Action, `Box(-1, 1, (L,))`: one score per patch. The highest-scored patches are masked, ties at random; these
      patches are "guided". The rest of the mask is drawn at random.
    - Reward: mean reward of an image's guided patches of any weight, 0 if there are none; paid in the last step.
    - Episode: `masking_steps` steps, the same for all images of the batch. Each masks an equal part of the patches.
    - `info`, one row per image: `mask`, `guided`, `weight` (how much a patch counts in the loss), `patch_loss` and
      `patch_reward` (these three are 0 on visible patches), and `paid`, False if the reward was not measured.

    Args:
        num_envs: images in a batch.
        data: anything that `open_data` accepts, an opened dataset, or a tensor (N, C, H, W) of normalised images.
        data_root: folder in which relative names are looked up.
        pretrainer: updates the autoencoder; None builds one from `model`, and `reset(seed=...)` rebuilds it.
        model: preset or timm name of the autoencoder to build.
        image_size: side, or height and width, in pixels.
        patch_size: side of a patch in pixels.
        mask_ratio: share of masked patches, or a function of training progress, such as `RisingMaskRatio` or
            `MixedMaskRatio`.
        guided_fraction: share of the masked patches that the scores choose, or a function of training progress.
        spread_fraction: share of the images whose visible patches are spread over the grid (`ahm_gym.masking.spread`),
            or a function of training progress.
        weigh: computes the weights (B, L) of finished masks from the batch, the masks and the environment's
            generator. Weight 0 hides a patch without reconstructing it. None: every masked patch has weight 1.
        target_fraction: share of an image's masked patches that count in the loss: those with the highest scores of
            the last step, ties at random. The others have weight 0.
        reward: a name in `ahm_gym.envs.REWARDS`.
        masking_steps: steps per episode.
        num_steps: length of the training schedule, in updates, of an autoencoder built here.
        autoreset_mode: Gymnasium's SAME_STEP, NEXT_STEP or DISABLED.
        data_workers: processes that load images; 0 loads in this process.
        crop: which random crops of a dataset to use, a name in `ahm_gym.data.crops.CROPS`.
        tensors: whether observations are read-only tensors on the pretrainer's device instead of arrays.
        render_mode: None or "rgb_array".

    Raises:
        InputError: if an argument is out of range, or the data is unreadable or does not fit the autoencoder.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 1,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 16,
        *,
        data: str | Path | ImageDataset | Tensor | None = None,
        data_root: Path | None = None,
        pretrainer: Pretrainer | None = None,
        model: str = "tiny",
        image_size: int | tuple[int, ...] = 64,
        patch_size: int = 8,
        mask_ratio: MaskRatio = 0.75,
        guided_fraction: Share = 1.0,
        spread_fraction: Share = 0.0,
        weigh: Weigh | None = None,
        target_fraction: float = 1.0,
        reward: str = "relative",
        masking_steps: int = 1,
        num_steps: int = 2000,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        data_workers: int = 0,
        crop: str = "uniform",
        tensors: bool = False,
        render_mode: str | None = None,
    ) -> None:
        check_numbers("count", num_envs=num_envs)
        own = None if pretrainer is None else pretrainer.autoencoder.image_size
        self.image_size: tuple[int, int] = own or image_size_of(image_size)
        grid_of(self.image_size, patch_size if pretrainer is None else pretrainer.autoencoder.patch_size)
        self.data: ImageDataset | Tensor = open_images(data, data_root, self.image_size)
        channels = channels_of(self.data)
        self._owned = pretrainer is None
        self._build = partial(build_pretrainer, model, self.image_size, patch_size, channels, num_steps)
        self.pretrainer: Pretrainer = pretrainer or self._build(seed=0)
        autoencoder = self.pretrainer.autoencoder
        check_channels(channels, autoencoder.channels)
        self.grid: tuple[int, int] = autoencoder.grid
        self.num_patches: int = autoencoder.num_patches
        self.mask_ratio: MaskRatio = mask_ratio
        self.num_masked: int = masked_count(mask_ratio, self.num_patches, self.pretrainer.progress)
        self._least_masked = least_masked_count(mask_ratio, self.num_patches)
        check_count("masking_steps", masking_steps, self._least_masked)
        self.guided_fraction: Share = guided_fraction
        self.spread_fraction: Share = spread_fraction
        self.weigh: Weigh | None = weigh
        self.target_fraction: float = check_target_fraction(target_fraction, weighs=weigh is not None)
        self.num_envs: int = num_envs
        self.render_mode: str | None = checked_render_mode(render_mode)
        self.autoreset_mode: AutoresetMode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self._define_spaces((self.num_patches, autoencoder.dim))
        self.generator: torch.Generator = torch.Generator()
        self.reward: Reward = make_reward(reward, self.pretrainer, self.generator)
        pin = self.pretrainer.device.type == "cuda"
        self._batches = ImageBatches(self.data, num_envs, self.image_size, data_workers, pin, crop)
        self._masking_steps, self._tensors, self._reward_name = masking_steps, tensors, reward
        self._mask = self._no_mask(self._plan(self.num_masked))
        self._shown: Shown | None = None
        self._needs_reset, self._restored, self._valid = True, False, False

    @torch.inference_mode(False)
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts a new batch of images.

        A seed fixes the order of the images and every draw, and rebuilds an autoencoder that the environment built
        itself. The first reset without a seed after `load_state_dict` continues with the batch of that state.
        """
        if seed is not None:
            check_seed(seed)
        super().reset(seed=seed, options=options)
        check_reset_mask(options)
        continues, self._restored, self._valid = self._restored and seed is None, False, False
        if seed is not None or not self._batches.opened:
            self._start(int(self.np_random.integers(2**31)) if seed is None else seed)
        if not continues:
            self._next_batch()
        self._valid = True
        return self._observation(), {}

    @torch.inference_mode(False)
    def step(self, actions: Any) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Masks the patches that the scores choose; the last step of an episode updates the autoencoder.

        Raises:
            InputError: if the actions have the wrong shape or contain NaN, or if `Masks` rejects the weights.
            RunError: if the loss is not finite.
        """
        if not self._valid or (self._needs_reset and self.autoreset_mode != AutoresetMode.NEXT_STEP):
            raise ResetNeeded("no episode is running, or its update failed: call reset() before step().")
        if self._needs_reset:
            self._next_batch()
            return self._observation(), *self._outcome(np.zeros(self.num_envs), ended=False), {}
        info = self._mask_patches(actions.detach().cpu() if isinstance(actions, Tensor) else actions)
        ended = self._mask.complete
        observation, reward = self._observation(), np.zeros(self.num_envs)
        if ended:
            self._needs_reset, self._valid = True, False  # until the next batch and the outcome are here
            update, last = self._update(), observation
            if self.autoreset_mode == AutoresetMode.SAME_STEP:
                # Load and send the next images while a GPU computes the update, before waiting for its outcome.
                self._next_batch()
                observation = self._observation()
            rows, reward = update.outcome()
            info, self._valid = info | rows, True
            if self.autoreset_mode == AutoresetMode.SAME_STEP:
                info |= {"final_obs": last, "final_info": dict(info)}
        has_row = {f"_{key}": np.ones(self.num_envs, dtype=bool) for key in info}
        return observation, *self._outcome(reward, ended), info | has_row

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One picture per image: image | masked image | reconstruction | scores of the last update."""
        if self.render_mode is None:
            return warn_without_mode()
        if not self._batches.opened:
            raise ResetNeeded("there is nothing to show yet: call reset() before render().")
        shown = self._shown or Shown(self._images, self._mask.masks)
        return render_batch(shown, self.pretrainer.model, self.data)

    @property
    def masking_steps(self) -> int:
        """Steps of the current episode."""
        return len(self._mask.steps)

    @property
    def num_guided(self) -> int:
        """Patches per image that the next action chooses; 0 once the episode is over."""
        return self._mask.num_guided

    @property
    def patches(self) -> PatchBatch:
        """The current batch, as a mask policy sees it."""
        mask_ratio = self.num_masked / self.num_patches
        return PatchBatch(self._images, self._embeddings, self.grid, self.pretrainer.progress, mask_ratio)

    def state_dict(self) -> dict[str, Any]:
        """State between two episodes, without the pretrainer, which has its own state."""
        return self._batches.state_dict() | {
            "generator": self.generator.get_state(),
            "reward": self.reward.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state`, with the batch that was current then."""
        self._restored = self._valid = False
        self._batches.load_state_dict(state)
        self._next_batch()
        self.generator.set_state(state["generator"])
        self.reward.load_state_dict(state["reward"])
        self._restored = self._valid = True

    def close_extras(self, **kwargs: Any) -> None:
        if hasattr(self, "_batches"):  # Gymnasium 1.2 also closes an environment whose __init__ failed
            self._batches.close()

    def _define_spaces(self, shape: tuple[int, int]) -> None:
        self.single_observation_space: gym.Space[Any] = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.single_action_space: gym.Space[Any] = self._action_space()
        self.observation_space: gym.Space[Any] = batch_space(self.single_observation_space, self.num_envs)
        self.action_space: gym.Space[Any] = batch_space(self.single_action_space, self.num_envs)

    def _action_space(self) -> gym.Space[Any]:
        return gym.spaces.Box(-1.0, 1.0, (self.num_patches,), np.float32)

    def _plan(self, num_guided: int) -> list[tuple[int, int]]:
        """(num_new, num_guided) of every step of an episode with `num_guided` chosen patches in total."""
        return proportional_plan(self.num_masked, num_guided, self._masking_steps)

    def _scores(self, actions: Any) -> Tensor:
        """Scores (B, L) of the actions."""
        return torch.as_tensor(np.asarray(actions), dtype=torch.float32)

    def _choice_info(self, scores: Tensor, guided: Tensor) -> dict[str, np.ndarray]:
        """Rows of `info` about the scores of a step and the patches that they chose."""
        return {}

    def _no_mask(self, steps: list[tuple[int, int]], spread_fraction: float = 0.0) -> GrowingMask:
        return GrowingMask(self.num_envs, self.grid, steps, spread_fraction, self.generator)

    def _mask_patches(self, actions: Any) -> dict[str, Any]:
        scores = self._scores(actions)
        new = self._mask.choose(scores)
        info = self._choice_info(scores, new.guided)
        self._mask.grow(new)
        self._last_scores, masks = scores, self._mask.masks
        if self._mask.complete and self.weigh is not None:
            masks = self._mask.masks = masks.weighted(self.weigh(self.patches, masks, self.generator))
        elif self._mask.complete and self.target_fraction < 1.0:
            masks = self._mask.masks = choose_targets(masks, scores, self.target_fraction, self.generator)
        return info | rows_before_update(masks)

    def _update(self) -> Update:
        update = begin_update(self.pretrainer, self.reward, self._images, self._mask.masks)
        if self.render_mode is not None:
            self._shown = Shown(self._images, update.masks, self._last_scores, update.result.prediction)
        return update

    def _outcome(self, reward: np.ndarray, ended: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return reward, np.full(self.num_envs, ended), np.zeros(self.num_envs, dtype=bool)

    def _start(self, seed: int) -> None:
        self._batches.open(seed)
        self.generator.manual_seed(seed)
        self._shown = None
        if self._owned:
            self.pretrainer = self._build(seed=seed)
            self.reward = make_reward(self._reward_name, self.pretrainer, self.generator)

    def _next_batch(self) -> None:
        self._images = to_device(self._batches.next(), self.pretrainer.device)
        self._embeddings = self.pretrainer.embed(self._images)
        self._observed = Observed(self._embeddings, self._tensors)
        progress = self.pretrainer.progress
        self.num_masked = masked_count(self.mask_ratio, self.num_patches, progress)
        share = share_at(self.guided_fraction, progress, "guided fraction")
        steps = self._plan(round(share * self.num_masked))
        self._mask = self._no_mask(steps, share_at(self.spread_fraction, progress, "spread fraction"))
        self._needs_reset = False

    def _observation(self) -> Observation:
        return self._observed.show(self._mask.available if self._mask.num_done else None)
