"""The masking environment with random scores, in 30 lines: run it, then replace the scores with your own."""

import gymnasium as gym
import numpy as np

NUM_ENVS = 16

env = gym.make_vec("ahm_gym:AHM/Masking-v0", num_envs=NUM_ENVS, reward="relative")
observation, info = env.reset(seed=0)
print(f"observation {observation.shape}: images, patches, embedding width")
print(f"action      {env.action_space.shape}: one score per patch; the highest are masked")

rng = np.random.default_rng(0)
for update in range(1, 101):
    scores = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
    observation, reward, terminated, truncated, info = env.step(scores)
    if update % 20 == 0:
        loss = info["patch_loss"][info["mask"]].mean()
        print(f"update {update:3d}: reconstruction loss {loss:.3f}, mean reward {reward.mean():+.3f}")
env.close()
