"""Work that a GPU plays back is the work that it was asked for."""

import numpy as np
import pytest
import torch
from episodes import IMAGES, B

from ahm_gym.autoencoder import build_autoencoder
from ahm_gym.envs import MaskingVectorEnv
from ahm_gym.errors import RunError
from ahm_gym.graphs import Replay
from ahm_gym.masking import mask_top_k
from ahm_gym.pretraining import Pretrainer

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def pretrainer_on_gpu():
    return Pretrainer(build_autoencoder("tiny", image_size=(32, 32)), num_steps=20, device="cuda")


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(B, 1, 32, 32, generator=generator)
    return images, mask_top_k(torch.rand(B, 16, generator=generator), 12, generator=generator)


def weights_of(pretrainer):
    return torch.cat([value.flatten() for value in pretrainer.autoencoder.state_dict().values()]).cpu()


def curve(settled, monkeypatch, **options):
    """Losses and rewards of a run, and the weights at its end."""
    monkeypatch.setattr(Replay, "settled", settled)
    env = MaskingVectorEnv(B, data=IMAGES, pretrainer=pretrainer_on_gpu(), guided_fraction=0.5, **options)
    env.reset(seed=0)
    scores = np.random.default_rng(0).uniform(-1, 1, (16, B, 16)).astype(np.float32)
    rows = [env.step(action)[-1] for action in scores]
    return np.array([[row["patch_loss"], row["patch_reward"]] for row in rows]), weights_of(env.pretrainer)


@needs_gpu
@pytest.mark.parametrize("reward", ["loss", "progress"])
@pytest.mark.parametrize("mask_ratio", [0.75, lambda progress: 0.5 if progress < 0.5 else 0.75])
def test_updates_that_are_played_back_are_the_same_updates(mask_ratio, reward, monkeypatch):
    options = {"reward": reward, "mask_ratio": mask_ratio, "tensors": True}
    eager, played = (curve(settled, monkeypatch, **options) for settled in (1000, 2))
    for one, two in zip(eager, played, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-2, rtol=2e-2)


@needs_gpu
def test_a_recorded_update_that_is_not_finite_changes_nothing(monkeypatch):
    monkeypatch.setattr(Replay, "settled", 2)
    pretrainer = pretrainer_on_gpu()
    for seed in range(5):
        images, mask = batch(seed)
        pretrainer.step(images.cuda(), mask)
    pretrainer.check()
    before = weights_of(pretrainer)
    images[2, 0, 5, 5] = float("inf")
    pretrainer.step(images.cuda(), mask)
    with pytest.raises(RunError, match="loss.* at update 6"):
        pretrainer.check()
    assert torch.equal(before, weights_of(pretrainer))
    pretrainer.load_state_dict(pretrainer.state_dict())
    images, mask = batch(9)
    assert np.isfinite(float(pretrainer.step(images.cuda(), mask).loss))
    pretrainer.check()


def test_in_main_memory_nothing_is_recorded():
    calls = []
    replay = Replay(lambda value: (calls.append(1) or value + 1,))
    for number in range(replay.settled + 5):
        assert replay(torch.tensor([number]))[0] == number + 1
    assert len(calls) == replay.settled + 5
