"""Replayed GPU work equals the work that was recorded."""

import pickle

import numpy as np
import pytest
import torch
from episodes import IMAGES, B

from ahm_gym.agents import make_agent
from ahm_gym.agents.learner import Learner
from ahm_gym.device import cuda_graphs as graphs
from ahm_gym.device.cuda_graphs import Replay
from ahm_gym.envs import MaskingVectorEnv
from ahm_gym.errors import RunError
from ahm_gym.masking.selection import mask_top_k
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.vit import build_autoencoder

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def pretrainer_on_gpu():
    return Pretrainer(build_autoencoder("tiny", image_size=(32, 32)), num_steps=20, device="cuda")


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(B, 1, 32, 32, generator=generator)
    return images, mask_top_k(torch.rand(B, 16, generator=generator), 12, generator=generator)


def weights_of(pretrainer):
    return torch.cat([value.flatten() for value in pretrainer.autoencoder.state_dict().values()]).cpu()


class Imitation:
    """Replays as a GPU does: into the tensors that existed during the recording."""

    def __init__(self, replay, gradients):
        self.owner, self.gradients = replay, gradients

    def replay(self):
        parameters, kept = self.gradients
        held = [parameter.grad for parameter in parameters]
        outputs = self.owner._function(*self.owner._inputs)
        for old, new in zip(self.owner._outputs, outputs, strict=True):
            old.copy_(new)
        for parameter, old, before in zip(parameters, kept, held, strict=True):
            if old is not None:
                old.copy_(parameter.grad)
            parameter.grad = before


def imitate(monkeypatch, parameters=(), buffers=tuple):
    """Makes work in main memory recordable; returns a list that collects the shapes of every recording."""
    recorded = []

    def record(replay, inputs):
        recorded.append([tuple(value.shape) for value in inputs])
        replay._inputs = tuple(value.clone() for value in inputs)
        before = [buffer.clone() for buffer in buffers()]
        replay._outputs = replay._function(*replay._inputs)
        for buffer, value in zip(buffers(), before, strict=True):
            buffer.copy_(value)  # a GPU records work without doing it
        return Imitation(replay, (list(parameters), [parameter.grad for parameter in parameters]))

    monkeypatch.setattr(Replay, "_record", record)
    monkeypatch.setattr(Replay, "settled", 2)
    monkeypatch.setattr(graphs, "on_gpu", lambda value: True)
    return recorded


def test_work_is_recorded_once_its_shapes_have_settled_and_again_with_other_shapes(monkeypatch):
    recorded = imitate(monkeypatch)
    replay = Replay(lambda value: (2 * value,))
    results = []
    for size in (3, 3, 3, 3, 4, 4, 4, 3):
        results.append((replay(torch.full((size,), float(len(results))))[0], len(recorded)))
    assert [count for _, count in results] == [0, 0, 1, 1, 1, 1, 2, 2]
    for number, (result, _) in enumerate(results):
        assert torch.equal(result, torch.full_like(result, 2.0 * number))
    copied = pickle.loads(pickle.dumps(Replay(torch.neg)))
    assert not copied.recorded and copied._function is torch.neg


def test_a_function_that_is_not_recorded_is_called_every_time(monkeypatch):
    recorded = imitate(monkeypatch)
    calls = []
    replay = Replay(lambda value: (calls.append(1) or value,), records=False)
    for _ in range(6):
        replay(torch.ones(2))
    assert len(calls) == 6 and not recorded


def test_gradients_that_were_cleared_are_put_back_before_a_replayed_update(monkeypatch):
    weights = []
    for settled in (1000, 2):
        pretrainer = Pretrainer(build_autoencoder("tiny", image_size=(32, 32)), num_steps=20)
        if settled == 2:
            recorded = imitate(monkeypatch, list(pretrainer.autoencoder.parameters()))
        for seed in range(6):
            images, mask = batch(seed)
            pretrainer.step(images, mask)
            pretrainer.autoencoder.zero_grad()
        weights.append(weights_of(pretrainer))
    assert len(recorded) == 1
    torch.testing.assert_close(*weights)


def curve(settled, monkeypatch, **options):
    """Losses and rewards of a run, the change of its weights, and whether its updates were recorded."""
    monkeypatch.setattr(Replay, "settled", settled)
    env = MaskingVectorEnv(B, data=IMAGES, pretrainer=pretrainer_on_gpu(), guided_fraction=0.5, **options)
    before = weights_of(env.pretrainer)
    env.reset(seed=0)
    scores = np.random.default_rng(0).uniform(-1, 1, (16, B, 16)).astype(np.float32)
    rows = [env.step(action)[-1] for action in scores]
    curves = np.array([[row["patch_loss"], row["patch_reward"]] for row in rows])
    return curves, weights_of(env.pretrainer) - before, env.pretrainer._passes.recorded


@needs_gpu
@pytest.mark.parametrize("reward", ["loss", "progress"])
@pytest.mark.parametrize("mask_ratio", [0.75, lambda progress: 0.5 if progress < 0.5 else 0.75])
def test_replayed_updates_equal_updates_without_recording(mask_ratio, reward, monkeypatch):
    options = {"reward": reward, "mask_ratio": mask_ratio, "tensors": True}
    eager, played = (curve(settled, monkeypatch, **options) for settled in (1000, 2))
    assert not eager[2] and played[2]
    np.testing.assert_allclose(eager[0], played[0], atol=2e-2, rtol=2e-2)
    assert (eager[1] - played[1]).norm() < 0.1 * eager[1].norm()


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


def episodes(device, *, num_episodes=8, **options):
    """A learner of A3C after some episodes, and what they reported."""
    pretrainer = Pretrainer(
        build_autoencoder("tiny", image_size=(32, 32)), num_steps=num_episodes, device=device
    )
    env = MaskingVectorEnv(B, data=IMAGES, pretrainer=pretrainer, guided_fraction=0.5, tensors=True)
    agent = make_agent("a3c", (16, 128), device=device, **options)
    learner = Learner(agent, agent.network, env, agent.generator, 0)
    return learner, [learner.episode() for _ in range(num_episodes)]


@pytest.mark.parametrize("options", [{}, {"network": "attention", "credit": "image"}], ids=str)
def test_an_agent_learns_the_same_from_replayed_episodes(options, monkeypatch):
    plain = episodes("cpu", **options)
    learners = []
    original = Learner.__init__

    def imitated(learner, *arguments):
        original(learner, *arguments)
        learners.append(learner)
        imitate(monkeypatch, list(learner.network.parameters()), learner.network.buffers)

    monkeypatch.setattr(Replay, "settled", 2)
    monkeypatch.setattr(Learner, "__init__", imitated)
    played = episodes("cpu", **options)
    assert learners[0]._passes.recorded and learners[0]._act.recorded and learners[0]._observe.recorded
    for one, two in zip(plain[1], played[1], strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-5)
    for one, two in zip(plain[0].network.parameters(), played[0].network.parameters(), strict=True):
        torch.testing.assert_close(one, two)


@needs_gpu
def test_an_agent_on_a_gpu_learns_the_same_from_replayed_episodes(monkeypatch):
    plain = episodes("cuda")
    monkeypatch.setattr(Replay, "settled", 2)
    played = episodes("cuda")
    assert played[0]._passes.recorded
    for one, two in zip(plain[0].network.parameters(), played[0].network.parameters(), strict=True):
        assert (one - two).norm() < 0.1 * one.norm() + 1e-3
