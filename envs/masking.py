"""Masking as an environment: actions choose the masks of a batch, and the update that follows pays the reward."""

from __future__ import annotations

from contextlib import AbstractContextManager
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
from ahm_gym.device import ranks
from ahm_gym.device.choice import pick_device
from ahm_gym.device.transfers import to_device
from ahm_gym.envs.batches import (
    ImageBatches,
    axes_of,
    channels_of,
    check_channels,
    check_reset_mask,
    open_images,
)
from ahm_gym.envs.frozen import frozen
from ahm_gym.envs.observing import Observation, Observed, observation_space
from ahm_gym.envs.own_autoencoder import OwnAutoencoder
from ahm_gym.envs.plans import MaskRatio, check_count, least_masked_count, masked_count, proportional_plan
from ahm_gym.envs.rendering import Shown, checked_render_mode, render_batch, warn_without_mode
from ahm_gym.envs.reward_base import Reward
from ahm_gym.envs.rewards import make_reward
from ahm_gym.envs.updates import (
    Evaluation,
    Update,
    begin_update,
    check_guided,
    check_masks,
    evaluate_masks,
    rows_before_update,
)
from ahm_gym.envs.warnings import Warnings
from ahm_gym.errors import InputError, check_numbers, check_seed, unknown_name
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
      patches are "guided". The rest of the mask is drawn at random. Only the order of the scores counts.
    - Reward: mean reward of an image's guided patches of any weight, 0 if there are none; paid in the last step.
    - Episode: `masking_steps` steps, the same for all images of the batch. Each masks an equal part of the patches.
    - `info` of a step, one row per image: `mask`, `guided`, `weight` (how much a patch counts in the loss),
      `patch_loss` and `patch_reward` (these three are 0 on visible patches), `paid`, False if the reward was not
      measured, and `repaired`, True if the guided patches are not those with the highest scores, because spread masks
      keep some patches visible.
    - `info` of a step and of a reset, the same for every image: `updates` of the autoencoder so far, `progress` in
      its schedule (0 to 1), `mask_ratio` of the current images, and `num_guided`, how many patches the next action
      chooses.

    The autoencoder keeps learning from episode to episode. A reset never throws its updates away, unless its options
    hold `restart=True`: then, and with a seed before the first update, its weights are drawn anew by the seed. So
    `reset(seed=...)` fixes the images and the draws, and the rewards only for the same weights.

    Args:
        num_envs: images in a batch.
        data: anything that `open_data` accepts, an opened dataset, or a tensor (N, C, H, W) of normalised images.
        data_root: folder in which relative names are looked up.
        pretrainer: updates the autoencoder; None builds one from the settings below.
        model: preset or timm name of the autoencoder to build.
        image_size: side, or the length of each axis, in pixels.
        patch_size: side of a patch in pixels.
        num_steps: length of the learning-rate schedule of an autoencoder built here, in updates. Past it the rate is
            0; a warning says so.
        learning_rate: its peak learning rate.
        target: what it predicts: pixels, normalised, hog or latent.
        device: where it computes: auto, cpu or cuda.
        mask_ratio: share of masked patches, or a function of training progress, such as `RisingMaskRatio` or
            `MixedMaskRatio`.
        guided_fraction: share of the masked patches that the scores choose, or a function of training progress. The
            rest is random, and some rewards compare with it: with 1, relative and rank pay every policy alike.
        spread_fraction: share of the images whose visible patches are spread over the grid (`ahm_gym.masking.spread`),
            or a function of training progress.
        weigh: computes the weights (B, L) of finished masks from the batch, the masks and the environment's
            generator. Weight 0 hides a patch without reconstructing it. None: every masked patch has weight 1.
        target_fraction: share of an image's masked patches that count in the loss: those with the highest scores of
            the last step, ties at random. The others have weight 0.
        reward: a name in `ahm_gym.envs.REWARDS`.
        masking_steps: steps per episode.
        frozen: never update the autoencoder: for evaluation, with the `pretrainer` of the environment that trains.
        observation: patches (L, D); flat, one vector (L * D,); or dict, `patches` and `action_mask`, which is 1 where
            a patch can still be masked.
        autoreset_mode: Gymnasium's SAME_STEP, NEXT_STEP or DISABLED. Gymnasium's own vector wrappers that change
            observations need NEXT_STEP.
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
        num_steps: int = 2000,
        learning_rate: float = 1e-3,
        target: str = "pixels",
        device: str = "auto",
        mask_ratio: MaskRatio = 0.75,
        guided_fraction: Share = 0.5,
        spread_fraction: Share = 0.0,
        weigh: Weigh | None = None,
        target_fraction: float = 1.0,
        reward: str = "relative",
        masking_steps: int = 1,
        frozen: bool = False,
        observation: str = "patches",
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        data_workers: int = 0,
        crop: str = "uniform",
        tensors: bool = False,
        render_mode: str | None = None,
    ) -> None:
        check_numbers("count", num_envs=num_envs)
        own = None if pretrainer is None else pretrainer.autoencoder.image_size
        self.image_size: tuple[int, ...] = own or image_size_of(image_size, axes_of(data))
        grid_of(self.image_size, patch_size if pretrainer is None else pretrainer.autoencoder.patch_size)
        self.data: ImageDataset | Tensor = open_images(data, data_root, self.image_size)
        channels = channels_of(self.data)
        self._own: OwnAutoencoder | None = None
        if pretrainer is None:
            settings = {"learning_rate": learning_rate, "target": target, "device": pick_device(device)}
            shape = (model, self.image_size, patch_size, channels, num_steps)
            self._own = OwnAutoencoder(lambda seed: build_pretrainer(*shape, seed=seed, **settings))
        self.pretrainer: Pretrainer = pretrainer or self._own.pretrainer  # pyright: ignore
        if self.pretrainer.is_detached:
            self.pretrainer.attach()
        autoencoder = self.pretrainer.autoencoder
        check_channels(channels, autoencoder.channels)
        self.grid: tuple[int, ...] = autoencoder.grid
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
        self.autoreset_mode: AutoresetMode = _checked_mode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.learns: bool = not frozen
        """Whether an episode ends with an update of the autoencoder."""
        if frozen and reward.startswith("progress"):
            raise InputError(
                "reward progress measures what the autoencoder learns: with `frozen` choose another."
            )
        self._define_spaces(observation, autoencoder.dim)
        self.generator: torch.Generator = torch.Generator()
        self.reward: Reward = make_reward(reward, self.pretrainer, self.generator)
        pin = self.pretrainer.device.type == "cuda"
        self._batches = ImageBatches(self.data, num_envs, self.image_size, data_workers, pin, crop)
        self._masking_steps, self._tensors, self._form = masking_steps, tensors, observation
        self._reward_name, self._warnings = reward, Warnings()
        self._mask = self._no_mask(self._plan(self.num_masked))
        self._shown: Shown | None = None
        self._needs_reset, self._restored, self._valid = True, False, False

    @torch.inference_mode(False)
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts a new batch of images.

        A seed fixes the order of the images and every draw. `options={"restart": True}` throws the updates of an
        autoencoder away that the environment built itself. The first reset without a seed after `load_state_dict`
        continues with the batch of that state.

        Raises:
            InputError: if the seed is not one number, or the options leave out some images of the batch, or ask to
                restart an autoencoder that was passed in.
        """
        if seed is not None:
            check_seed(seed)
        super().reset(seed=seed, options=options)
        check_reset_mask(options)
        if seed is None and self._valid:
            self._warnings.before_reset(self._mask)
        continues, self._restored, self._valid = self._restored and seed is None, False, False
        restart = bool((options or {}).get("restart"))
        if seed is not None or restart or not self._batches.opened:
            drawn = int(self.np_random.integers(2**31)) if seed is None else seed
            self._initialise(drawn, restart, seeded=seed is not None)
            self._start(drawn)
        if not continues:
            self._next_batch()
        self._valid = True
        return self._observation(), self._with_rows({})

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
            rest = self._outcome(np.zeros(self.num_envs), ended=False)
            return self._observation(), *rest, self._with_rows({})
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
                info |= {"final_obs": last, "final_info": info | self._state_rows()}
        return observation, *self._outcome(reward, ended), self._with_rows(info)

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One picture per image: image | masked image | reconstruction | scores of the last update."""
        if self.render_mode is None:
            return warn_without_mode()
        if not self._batches.opened:
            raise ResetNeeded("there is nothing to show yet: call reset() before render().")
        shown = self._shown or Shown(self._images, self._mask.masks)
        return render_batch(shown, self.pretrainer.model, self.data)

    def frozen(self) -> AbstractContextManager[None]:
        """A context in which nothing is updated, for evaluation in the middle of training.

        Inside, the environment shows batches of their own, in an order that `reset(seed=...)` can set, and pays what
        it would pay; afterwards the images, the draws and the reward continue as if nothing had happened. What was
        observed before is still current then.
        """
        return frozen(self)

    @torch.inference_mode(False)
    def evaluate(self, masks: Any, guided: Any = None) -> Evaluation:
        """What several masks of the current images would lose and be paid, in one pass and without an update.

        Feedback for leave-one-out and group-relative baselines, evolution and off-policy evaluation: its cost is one
        forward pass of K * B images, and one more for the rewards progress and advantage. Every image is paid.

        Args:
            masks: (K, B, L), True where a patch is masked, the same number in every image.
            guided: (K, B, L), True for the patches whose reward is averaged; default: all masked ones.

        Raises:
            InputError: if the shape is another one, images differ in their number of masked patches, or a guided
                patch is not masked.
            ResetNeeded: if no episode is running.
        """
        if not self._valid or self._needs_reset:
            raise ResetNeeded("there are no images to mask: call reset() before evaluate().")
        masked = ranks.of_first(check_masks(masks, (self.num_envs, self.num_patches)))
        chosen = masked if guided is None else ranks.of_first(check_guided(guided, masked))
        return evaluate_masks(self.pretrainer, self.reward, self._images, masked, chosen)

    def plan_masks(self) -> None:
        """Reads the mask ratio and the shares again, for images whose episode has not begun.

        For ratios and shares that depend on more than the progress of training: the images of an episode are loaded
        before the outcome of the last update is known.

        Raises:
            ResetNeeded: if no episode is running, or it has begun.
        """
        if not self._valid or self._needs_reset or self._mask.num_done:
            raise ResetNeeded("plan_masks() comes before the first step of an episode: call reset() first.")
        self._plan_masks()

    @torch.inference_mode(False)
    def observe_again(self) -> Observation:
        """The observation of images whose episode has not begun, by the autoencoder's present weights.

        For weights that another process owns: they arrive after the images of the next episode were embedded.

        Raises:
            ResetNeeded: if no episode is running, or it has begun.
        """
        if not self._valid or self._needs_reset or self._mask.num_done:
            raise ResetNeeded(
                "observe_again() comes before the first step of an episode: call reset() first."
            )
        self._embed()
        return self._observation()

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

    def _define_spaces(self, form: str, dim: int) -> None:
        self.single_observation_space: gym.Space[Any] = observation_space(form, self.num_patches, dim)
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
        left = self._mask.available & ~guided
        lowest = scores.masked_fill(~guided, torch.inf).amin(dim=1)
        return {"repaired": (lowest < scores.masked_fill(~left, -torch.inf).amax(dim=1)).numpy()}

    def _state_rows(self) -> dict[str, np.ndarray]:
        """Rows of `info` about the autoencoder and the current mask, the same for every image."""
        values = {
            "updates": self.pretrainer.updates,
            "progress": self.pretrainer.progress,
            "mask_ratio": self.num_masked / self.num_patches,
            "num_guided": self.num_guided,
        }
        return {name: np.full(self.num_envs, value) for name, value in values.items()}

    def _with_rows(self, info: dict[str, Any]) -> dict[str, Any]:
        """`info` with the rows about the state, and for every key the images that have a row of it: all."""
        info = info | self._state_rows()
        return info | {f"_{key}": np.ones(self.num_envs, dtype=bool) for key in info}

    def _no_mask(self, steps: list[tuple[int, int]], spread_fraction: float = 0.0) -> GrowingMask:
        return GrowingMask(self.num_envs, self.grid, steps, spread_fraction, self.generator)

    def _mask_patches(self, actions: Any) -> dict[str, Any]:
        scores = ranks.of_first(self._scores(actions))
        new = self._mask.choose(scores)
        info = self._choice_info(scores, new.guided)
        self._mask.grow(new)
        self._last_scores, masks = scores, self._mask.masks
        if self._mask.complete and self.weigh is not None:
            weight = self.weigh(self.patches, masks, self.generator)
            masks = self._mask.masks = masks.weighted(ranks.of_first(weight))
        elif self._mask.complete and self.target_fraction < 1.0:
            masks = self._mask.masks = choose_targets(masks, scores, self.target_fraction, self.generator)
        return info | rows_before_update(masks)

    def _update(self) -> Update:
        if self.learns:
            self._warnings.before_update(self.pretrainer)
        update = begin_update(self.pretrainer, self.reward, self._images, self._mask.masks, self.learns)
        if self.render_mode is not None:
            self._shown = Shown(self._images, update.masks, self._last_scores, update.result.prediction)
        return update

    def _outcome(self, reward: np.ndarray, ended: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return reward, np.full(self.num_envs, ended), np.zeros(self.num_envs, dtype=bool)

    def _start(self, seed: int) -> None:
        self._batches.open(seed)
        self.generator.manual_seed(seed)
        self._shown = None

    def _initialise(self, seed: int, restart: bool, seeded: bool) -> None:
        """Draws the weights of an autoencoder of its own by the seed, if that is asked for or harms nothing."""
        if self._own is None:
            if restart:
                raise InputError("`pretrainer` was passed in, so a reset cannot restart it: build another.")
        elif self.learns and (restart or (seeded and self._own.untouched)):
            self._own.restart(seed)
            self.reward = make_reward(self._reward_name, self.pretrainer, self.generator)

    def _next_batch(self) -> None:
        self._images = ranks.gathered(to_device(self._batches.next(), self.pretrainer.device))
        self._embed()
        self._plan_masks()

    def _embed(self) -> None:
        self._embeddings = self.pretrainer.embed(self._images)
        self._observed = Observed(self._embeddings, self._tensors, self._form)

    def _plan_masks(self) -> None:
        progress = self.pretrainer.progress
        self.num_masked = masked_count(self.mask_ratio, self.num_patches, progress)
        share = share_at(self.guided_fraction, progress, "guided fraction")
        steps = self._plan(round(share * self.num_masked))
        self._mask = self._no_mask(steps, share_at(self.spread_fraction, progress, "spread fraction"))
        self._needs_reset = False

    def _observation(self) -> Observation:
        return self._observed.show(self._mask)


def _checked_mode(mode: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError as error:
        raise unknown_name("autoreset mode", str(mode), [known.value for known in AutoresetMode]) from error
