"""A whole training run as one episode: actions choose how the next updates are masked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from torch import Tensor

from ahm_gym.data import ImageDataset
from ahm_gym.envs.batches import axes_of, open_images, split_held_out
from ahm_gym.envs.curriculum_actions import ActionForm, make_action
from ahm_gym.envs.masking import MaskingVectorEnv
from ahm_gym.errors import InputError, check_numbers, unknown_name
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.selection import PatchBatch
from ahm_gym.mixing.battery import BATTERY, LEAST_LOSS, Battery, BatteryResult
from ahm_gym.mixing.strategies import STRATEGIES, Strategy, check_strategies
from ahm_gym.model.patches import image_size_of
from ahm_gym.model.pretrainer import Pretrainer

Score = Callable[[Pretrainer], float]
"""Returns a score of what has been pretrained so far; larger is better. It must change nothing."""
RANGE: float = 20.0
"""Observed logarithms of losses, and their changes, are clipped to this absolute value."""


class CurriculumEnv(gym.Env[np.ndarray, Any]):
    """Pretraining as an episode: a step makes `updates_per_step` updates, masked as the action says.

    The updates are those of a `MaskingVectorEnv`, with an autoencoder of its own. A reset starts a new run: it draws
    the weights, the order of the images and all masks anew, by its seed or else by the generator that the last seed
    set. The same seed and actions give the same episode.

    - Action, by `action`: `strategies` is `Discrete(n)`, the strategy of all updates of the step. `mixture` is
      `Box(-1, 1, (n,))`, a mixture from which every update draws its strategy. `controller` is `Box(-1, 1, (2,))`, mask
      ratio and guided share. See `ahm_gym.envs.curriculum_actions`.
    - Observation, a vector of float32 with the names in `observation_names`: the progress of the schedule, 0 to 1; for
      each kind of mask of the battery the natural logarithm of its loss, relative to that at the start, and how far it
      changed in the last step; the shares of the strategies among the updates so far (of a controller the mean ratio
      and the mean guided share); and how far difficulty lies together (`ahm_gym.mixing.battery.clustering`).
    - Reward, by `reward`: `battery` is how far the natural logarithm of the battery's mean loss fell in the step. It is
      positive if the autoencoder has learned, and the rewards of an episode sum up to the whole fall. `probe` is how
      far `score` rose; they sum up to its whole rise.
    - Episode: `terminated` after `num_steps` updates, the end of the learning-rate schedule. The last step makes fewer
      updates if `updates_per_step` does not divide them. It is never truncated.
    - `info` of a step and of a reset: `updates`, `progress`, `battery_loss` (the mean), `battery_losses` (one for each
      kind of mask), `shares` so far, and with `score` the `score`. That of a step also has `train_loss`, the mean loss
      of its updates.

    The battery is a fixed set of masks at several ratios and of several kinds (`ahm_gym.mixing.battery`) on images that
    are held out: they are never trained on. It is measured without an update or a random draw, so training goes on as
    if it had not been.

    This is not the mask policy `curriculum`, which follows CL-MAE and scores patches.

    Args:
        data: anything that `open_data` accepts, an opened dataset, or a tensor (N, C, H, W) of normalised images.
        data_root: folder in which relative names are looked up.
        num_steps: updates of an episode, and length of the learning-rate schedule.
        updates_per_step: updates of a step.
        batch_size: images in an update.
        action: form of the action: strategies, mixture or controller.
        strategies: what is mixed; at least two with different names.
        guide: what the guided patches of a controller follow, a name in `ahm_gym.mixing.strategies.KINDS`.
        reward: battery or probe.
        score: score of the reward probe, such as `ahm_gym.segmentation.probe_score.ProbeScore`; with another reward it
            is only reported.
        held_out: number of images of the battery: evenly spaced ones of the validation split, or the last ones of a
            tensor.
        model: preset or timm name of the autoencoder.
        image_size: side, or height and width, in pixels.
        patch_size: side of a patch in pixels.
        learning_rate: peak learning rate.
        target: what the autoencoder predicts: pixels, normalised or hog.
        device: where it computes: auto, cpu or cuda.
        data_workers: processes that load images; 0 loads in this process.
        crop: which random crops of a dataset to use, a name in `ahm_gym.data.crops.CROPS`.
        render_mode: None: there is nothing to render.

    Raises:
        InputError: if an argument is out of range, the data is unreadable or has too few images, or the reward is
            probe without a `score`.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        *,
        data: str | Path | ImageDataset | Tensor | None = None,
        data_root: Path | None = None,
        num_steps: int = 2000,
        updates_per_step: int = 50,
        batch_size: int = 16,
        action: str = "strategies",
        strategies: Sequence[Strategy] = STRATEGIES,
        guide: str = "hard",
        reward: str = "battery",
        score: Score | None = None,
        held_out: int = 16,
        model: str = "tiny",
        image_size: int | tuple[int, ...] = 64,
        patch_size: int = 8,
        learning_rate: float = 1e-3,
        target: str = "pixels",
        device: str = "auto",
        data_workers: int = 0,
        crop: str = "uniform",
        render_mode: str | None = None,
    ) -> None:
        check_numbers(
            "count",
            num_steps=num_steps,
            updates_per_step=updates_per_step,
            batch_size=batch_size,
            held_out=held_out,
        )
        check_reward(reward, score)
        self.render_mode: str | None = check_unrendered(render_mode)
        size = image_size_of(image_size, axes_of(data))
        trained, images = split_held_out(open_images(data, data_root, size), held_out, size)
        self.strategy: Strategy = check_strategies(strategies)[0]
        """The strategy of the next update."""
        self.vector: MaskingVectorEnv = MaskingVectorEnv(
            batch_size,
            data=trained,
            model=model,
            image_size=size,
            patch_size=patch_size,
            num_steps=num_steps,
            learning_rate=learning_rate,
            target=target,
            device=device,
            mask_ratio=lambda progress: self.strategy.mask_ratio,
            guided_fraction=lambda progress: self.strategy.guided_fraction,
            spread_fraction=lambda progress: self.strategy.spread_fraction,
            weigh=self._weigh,
            reward="loss",
            data_workers=data_workers,
            crop=crop,
            tensors=True,
        )
        self.battery: Battery = Battery(images, self.pretrainer.autoencoder)
        self.form: ActionForm = make_action(action, strategies, guide)
        self.updates_per_step: int = updates_per_step
        self.reward: str = reward
        self.score: Score | None = score
        self.action_space: gym.Space[Any] = self.form.space
        self.observation_names: list[str] = observation_names(self.form)
        """What each entry of the observation is."""
        self.observation_space: gym.Space[np.ndarray] = observation_space(len(self.form.share_names))
        self.generator: torch.Generator = torch.Generator()
        self._running = False

    @property
    def pretrainer(self) -> Pretrainer:
        """What updates the autoencoder."""
        return self.vector.pretrainer

    @property
    def shares(self) -> np.ndarray:
        """Shares of the strategies among the updates of this episode, in the order of `form.share_names`."""
        return self._counts / max(self.pretrainer.updates, 1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts a new training run; options are not used."""
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(2**31))
        self.vector.reset(seed=drawn, options={"restart": True})
        self.generator.manual_seed(drawn)
        self._counts = np.zeros(len(self.form.share_names))
        self._first = self._last = self._found = self.battery.measure(self.pretrainer.model)
        self._scored = None if self.score is None else float(self.score(self.pretrainer))
        self._running = True
        return self._observation(), self._info()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Makes the updates of a step.

        Raises:
            InputError: if the action is not in the action space.
            ResetNeeded: if no episode is running.
            RunError: if the loss of an update is not finite.
        """
        if not self._running:
            raise ResetNeeded("no episode is running: call reset() before step().")
        mixture = self.form.mixture(action)
        pretrainer = self.pretrainer
        count = min(self.updates_per_step, pretrainer.num_steps - pretrainer.updates)
        self._running = False  # until all updates have been made
        losses = [self._update(self._draw(mixture)) for _ in range(count)]
        self._last, self._found = self._found, self.battery.measure(pretrainer.model)
        reward, before = self._last.log_loss - self._found.log_loss, self._scored
        if self.score is not None:
            self._scored = float(self.score(pretrainer))
            reward = self._scored - (before or 0.0) if self.reward == "probe" else reward
        terminated = pretrainer.updates >= pretrainer.num_steps
        self._running = not terminated
        info = self._info() | {"train_loss": float(np.mean(losses))}
        return self._observation(), float(reward), terminated, False, info

    def close(self) -> None:
        self.vector.close()

    def _draw(self, mixture: list[tuple[Strategy, float]]) -> Strategy:
        probabilities = torch.tensor([probability for _, probability in mixture], dtype=torch.float64)
        return mixture[int(torch.multinomial(probabilities, 1, generator=self.generator))][0]

    def _update(self, strategy: Strategy) -> float:
        """Makes one update with masks of this strategy; returns its loss."""
        self.strategy = strategy
        self.vector.plan_masks()
        self._scores = strategy.score(self.vector.patches, self.pretrainer.model, self.generator)
        self._counts += self.form.counted(strategy)
        *_, info = self.vector.step(self._scores)
        return float((info["patch_loss"] * info["weight"]).sum() / info["weight"].sum())

    def _weigh(self, patches: PatchBatch, masks: Masks, generator: torch.Generator) -> Tensor:
        return self.strategy.weigh(masks, self._scores, generator).weight

    def _observation(self) -> np.ndarray:
        first, last, found = (logarithms(one) for one in (self._first, self._last, self._found))
        parts = (
            [self.pretrainer.progress],
            (found - first).clip(-RANGE, RANGE),
            (found - last).clip(-RANGE, RANGE),
            self.shares,
            [np.clip(self._found.clustering, -1.0, 1.0)],
        )
        return np.concatenate(parts).astype(np.float32)

    def _info(self) -> dict[str, Any]:
        return {
            "updates": self.pretrainer.updates,
            "progress": self.pretrainer.progress,
            "battery_loss": self._found.loss,
            "battery_losses": self._found.losses.numpy(),
            "shares": self.shares,
            **({} if self._scored is None else {"score": self._scored}),
        }


def observation_names(form: ActionForm) -> list[str]:
    """What each entry of the observation is, for this form of the action."""
    return [
        "progress",
        *(f"log_loss_{strategy.name}" for strategy in BATTERY),
        *(f"change_{strategy.name}" for strategy in BATTERY),
        *(f"share_{name}" for name in form.share_names),
        "clustering",
    ]


def observation_space(num_shares: int) -> gym.spaces.Box:
    """The space of the observation with this number of shares."""
    low = [0.0] + [-RANGE] * 2 * len(BATTERY) + [0.0] * num_shares + [-1.0]
    high = [1.0] + [RANGE] * 2 * len(BATTERY) + [1.0] * num_shares + [1.0]
    return gym.spaces.Box(np.array(low, np.float32), np.array(high, np.float32))


def logarithms(result: BatteryResult) -> np.ndarray:
    """The natural logarithms of the losses of a battery."""
    return result.losses.double().clamp(min=LEAST_LOSS).log().numpy()


def check_reward(reward: str, score: Score | None) -> None:
    """Raises InputError if the reward is unknown, or is that of a probe without one."""
    if reward not in ("battery", "probe"):
        raise unknown_name("reward of a curriculum", reward, ("battery", "probe"))
    if reward == "probe" and score is None:
        raise InputError(
            "`reward=probe` needs labels: pass `score=ProbeScore(dataset, labels=10)` of "
            "ahm_gym.segmentation.probe_score, with a labelled dataset, or choose `reward=battery`."
        )


def check_unrendered(render_mode: str | None) -> None:
    """Raises InputError for any mode of rendering, because there is none."""
    if render_mode is not None:
        raise InputError(f"`render_mode` is {render_mode}: a curriculum has nothing to render; leave it out.")
