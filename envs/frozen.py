"""Evaluation in the middle of training: an environment that for a while updates nothing."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ahm_gym.envs.batches import ImageBatches

if TYPE_CHECKING:
    from ahm_gym.envs.masking import MaskingVectorEnv

SEED: int = 0
"""Seed of the images and draws while an environment is frozen, if no reset gives another."""


@contextlib.contextmanager
def frozen(env: MaskingVectorEnv) -> Iterator[None]:
    """Inside, episodes end without an update, on images of their own; afterwards everything is as it was."""
    kept, generator = dict(vars(env)), env.generator.get_state()
    env._np_random = copy.deepcopy(env._np_random)
    shown = kept["_batches"]
    env._batches = ImageBatches(shown.data, env.num_envs, env.image_size, 0, crop=shown.crop)
    env.learns = False
    try:
        env._start(SEED)
        env._next_batch()
        env._valid, env._restored = True, False
        yield
    finally:
        env._batches.close()
        vars(env).clear()
        vars(env).update(kept)
        env.generator.set_state(generator)
