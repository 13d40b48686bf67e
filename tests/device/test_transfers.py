"""Code waits for a GPU only where it must: on a simulated GPU, and on a real one if there is one."""

import itertools
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from episodes import IMAGES, B, L
from simulated_gpu import SimulatedGPU, Waited

from ahm_gym.agents import make_agent
from ahm_gym.agents.learner import Learner
from ahm_gym.device.cuda_graphs import Replay
from ahm_gym.device.transfers import Fetch, to_device
from ahm_gym.envs import REWARDS, MaskingVectorEnv, SequentialMaskingVectorEnv
from ahm_gym.errors import RunError
from ahm_gym.masking.selection import mask_top_k
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.vit import build_autoencoder

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
MODELS = [
    ("tiny", "pixels"), ("tiny", "normalised"), ("unet", "pixels"), ("resenc", "pixels"),
    ("tiny", "latent"), ("unet", "latent"),
]  # fmt: skip


def pretrainer_of(model="tiny", target="pixels", **options):
    autoencoder = build_autoencoder(model, image_size=(32, 32), target=target, seed=0)
    return Pretrainer(autoencoder, num_steps=20, **options)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, 1, 32, 32, generator=generator), mask_top_k(
        torch.rand(B, L, generator=generator), 12, generator=generator
    )


def env_of(pretrainer, cls=MaskingVectorEnv, **options):
    return cls(B, data=IMAGES, pretrainer=pretrainer, guided_fraction=0.5, **options)


def simulate(pretrainer, *modules):
    pretrainer.checks_late = True
    gpu = SimulatedGPU()
    gpu.adopt(pretrainer.autoencoder, *modules)
    return gpu


def scores():
    return np.random.default_rng(0).uniform(-1, 1, (B, L)).astype(np.float32)


@pytest.mark.parametrize(
    "read",
    [float, bool, torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist, lambda value: value.to("cpu"),
     lambda value: np.asarray(value), lambda value: value[value > 0], torch.nonzero,
     lambda value: float((2 * value).sum())],
)  # fmt: skip
def test_the_simulated_gpu_notices_code_that_waits_for_it(read):
    gpu, value = SimulatedGPU(), torch.ones(1)
    gpu.adopt(value)
    with gpu.running(), pytest.raises(Waited):
        read(value)
    with gpu.running():
        assert Fetch(value).wait().tolist() == [1.0]
    assert gpu.blocked == 1


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("model", "target"), MODELS)
def test_an_update_never_waits_and_its_check_waits_once(model, target, frozen):
    pretrainer = pretrainer_of(model, target, frozen=frozen)
    images, mask = batch()
    gpu = simulate(pretrainer)
    gpu.adopt(images)
    with gpu.running():
        for update in range(3):
            result = pretrainer.step(images, mask)
            assert gpu.blocked == (0 if frozen else update)
            pretrainer.check()
        assert all(gpu.holds(value) for value in result)
    assert gpu.blocked == (0 if frozen else 3)


def test_an_update_with_a_mask_on_the_gpu_waits_for_it():
    pretrainer = pretrainer_of()
    images, mask = batch()
    gpu = simulate(pretrainer)
    gpu.adopt(images, mask)
    with gpu.running(), pytest.raises(Waited):
        pretrainer.step(images, mask)


@pytest.mark.parametrize("reward", sorted(REWARDS))
@pytest.mark.parametrize(("model", "target"), MODELS)
def test_a_step_of_the_environment_waits_once_with_any_reward(model, target, reward):
    pretrainer = pretrainer_of(model, target)
    env = env_of(pretrainer, reward=reward)
    copies = [env.reward.earlier.model, env.reward.next.model] if reward == "progress" else []
    env.reward.lag = 2  # so that the reward progress renews its copies during the test
    gpu = simulate(pretrainer, *copies)
    with gpu.running():
        env.reset(seed=0)
        for _ in range(3):
            before = gpu.blocked
            *_, info = env.step(scores())
            assert gpu.blocked == before + 1
            assert not np.array_equal(info["final_obs"], _[0])


def test_the_steps_that_build_up_a_mask_never_wait():
    pretrainer = pretrainer_of()
    env = env_of(pretrainer, SequentialMaskingVectorEnv)
    gpu = simulate(pretrainer)
    with gpu.running():
        env.reset(seed=0)
        before = gpu.blocked
        for patch in range(5):
            env.step(np.full(B, patch))
        assert gpu.blocked == before and env.pretrainer.updates == 0
        env.step(np.full(B, 5))
        assert gpu.blocked == before + 1 and env.pretrainer.updates == 1


def test_observations_as_tensors_stay_on_the_gpu():
    pretrainer = pretrainer_of()
    env = env_of(pretrainer, masking_steps=2, tensors=True)
    gpu = simulate(pretrainer)
    with gpu.running():
        observation, _ = env.reset(seed=0)
        assert gpu.blocked == 0 and gpu.holds(observation)
        for _ in range(4):
            observation, *_, info = env.step(scores())
            assert gpu.holds(observation) and ("final_obs" not in info or gpu.holds(info["final_obs"]))
    assert gpu.blocked == 2  # once in each update, for the reward


@pytest.mark.parametrize("options", [{}, {"network": "attention"}, {"credit": "image"}], ids=str)
@pytest.mark.parametrize("reward", ["relative", "progress"])
def test_an_episode_of_a3c_waits_three_times_for_action_update_and_check(reward, options):
    pretrainer = pretrainer_of()
    env = env_of(pretrainer, reward=reward)
    agent = make_agent("a3c", (L, 128), **options)
    copies = [env.reward.earlier.model, env.reward.next.model] if reward == "progress" else []
    gpu = simulate(pretrainer, agent.network, *copies)
    with gpu.running():
        learner = Learner(agent, agent.network, env, agent.generator, 0)
        for _ in range(3):
            before = gpu.blocked
            metrics = learner.episode()
            assert gpu.blocked == before + 3
    assert set(metrics) >= {"loss", "agent/policy_loss", "agent/value_loss", "agent/draw_entropy"}


@pytest.mark.parametrize(("name", "waits"), [("patch_ppo", (2, 3)), ("group", (7, 7))])
def test_agents_without_workers_wait_for_the_gpu_a_fixed_number_of_times(name, waits):
    """In an update without and with learning. Group waits for each of its four masks, too."""
    pretrainer = pretrainer_of()
    env = env_of(pretrainer, reward="relative")
    agent = make_agent(name, (L, 128), **({"rollout_batches": 2} if name == "patch_ppo" else {}))
    gpu, counts = simulate(pretrainer, agent.network), []

    def count(metrics):
        counts.append(gpu.blocked)
        return False

    with gpu.running():
        agent.learn(lambda: env, 5, seed=0, callback=count)
    assert [after - before for before, after in itertools.pairwise(counts)] == [waits[1], waits[0]] * 2


@pytest.mark.parametrize("reward", sorted(REWARDS))
def test_the_simulated_gpu_computes_the_same_as_main_memory(reward):
    traces = []
    for simulated in (False, True):
        pretrainer = pretrainer_of()
        env = env_of(pretrainer, reward=reward)
        if simulated:
            gpu = simulate(pretrainer)
            with gpu.running():
                traces.append([env.reset(seed=0)[0]] + [env.step(scores())[1] for _ in range(3)])
        else:
            traces.append([env.reset(seed=0)[0]] + [env.step(scores())[1] for _ in range(3)])
        traces[-1].append(pretrainer.autoencoder.decoder_pred.weight.detach().numpy())
    for one, two in zip(*traces, strict=True):
        assert np.array_equal(one, two)


def late():
    pretrainer = pretrainer_of()
    pretrainer.checks_late = True
    pretrainer.step(*batch())
    pretrainer.check()
    return pretrainer


def spoil(pretrainer, what):
    """A batch with a loss, or a gradient, that is not finite."""
    images, mask = batch(1)
    if what == "loss":
        images[2, 0, 5, 5] = float("inf")
    else:
        pretrainer.autoencoder.decoder_pred.weight.register_hook(lambda gradient: gradient * float("inf"))
    return images, mask


def copied(pretrainer):
    state = pretrainer.optimizer.state_dict()["state"]
    tensors = [
        *pretrainer.autoencoder.state_dict().values(),
        *(v for s in state.values() for v in s.values()),
    ]
    return [value.clone() for value in tensors]


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("ask", ["check", "step", "state_dict"])
def test_an_update_that_is_checked_late_changes_neither_weights_nor_moments_nor_counts(what, ask):
    pretrainer = late()
    before = copied(pretrainer)
    pretrainer.step(*spoil(pretrainer, what))
    assert all(torch.equal(one, two) for one, two in zip(before, copied(pretrainer), strict=True))
    with pytest.raises(RunError, match=rf"{what}.* at update 2 \(batch 1"):
        pretrainer.step(*batch()) if ask == "step" else getattr(pretrainer, ask)()
    assert all(torch.equal(one, two) for one, two in zip(before, copied(pretrainer), strict=True))
    assert pretrainer.updates == 1


def test_updates_that_are_checked_late_are_the_same_updates():
    prompt, late = pretrainer_of(), pretrainer_of()
    late.checks_late = True
    for seed in range(3):
        prompt.step(*batch(seed))
        late.step(*batch(seed))
    assert all(torch.equal(one, two) for one, two in zip(copied(prompt), copied(late), strict=True))
    assert late.state_dict()["updates"] == 3


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_the_environment_raises_in_the_step_of_the_update_that_is_not_finite(what):
    pretrainer = late()
    env = env_of(pretrainer)
    env.reset(seed=0)
    spoil(pretrainer, what)
    if what == "loss":
        env.patches.images[0, 0, 0, 0] = float("nan")
    before = copied(pretrainer)
    with pytest.raises(RunError, match=rf"{what}.* at update 2"):
        env.step(scores())
    assert pretrainer.updates == 1
    assert all(torch.equal(one, two) for one, two in zip(before, copied(pretrainer), strict=True))


def test_a_tensor_stays_the_same_one_in_main_memory():
    value = torch.ones(3)
    assert to_device(value, torch.device("cpu")) is value
    assert Fetch(value).wait().data_ptr() == value.data_ptr()


@pytest.mark.parametrize("reward", sorted(REWARDS))
@pytest.mark.parametrize("model", ["tiny", "unet"])
def test_observations_and_rewards_are_not_in_half_precision(model, reward, monkeypatch):
    monkeypatch.setattr(Pretrainer, "autocast", lambda self: torch.autocast("cpu", torch.bfloat16))
    pretrainer = pretrainer_of(model)
    env = env_of(pretrainer, reward=reward, render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    for _ in range(2):
        observation, paid, *_, info = env.step(scores())
        assert np.isfinite(paid).all() and np.isfinite(info["patch_reward"]).all()
    assert observation.dtype == info["patch_loss"].dtype == info["patch_reward"].dtype == np.float32
    assert env.render()[0].shape == (32, 4 * 32 + 6, 3)
    assert {value.dtype for value in pretrainer.autoencoder.parameters()} == {torch.float32}
    result = pretrainer.step(*batch())
    assert result.prediction.dtype == torch.bfloat16 and result.patch_loss.dtype == torch.float32


@contextmanager
def no_synchronisation():
    """Within it, whatever waits for the GPU raises an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it calls itself a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("settled", [1, 20])
@pytest.mark.parametrize(("model", "target"), MODELS)
def test_an_update_on_a_gpu_never_synchronises(model, target, settled, monkeypatch):
    monkeypatch.setattr(Replay, "settled", settled)
    pretrainer = pretrainer_of(model, target, device="cuda")
    images, mask = batch()
    images = images.cuda()
    pretrainer.step(images, mask)
    pretrainer.step(images, mask)
    pretrainer.check()
    with no_synchronisation():
        pretrainer.step(images, mask)
    pretrainer.check()


@needs_gpu
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_an_update_on_a_gpu_that_is_not_finite_changes_nothing(what):
    pretrainer = pretrainer_of(device="cuda")
    images, mask = batch()
    pretrainer.step(images.cuda(), mask)
    before = copied(pretrainer)
    images, mask = spoil(pretrainer, what)
    pretrainer.step(images.cuda(), mask)
    with pytest.raises(RunError, match=rf"{what}.* at update 2"):
        pretrainer.check()
    assert all(torch.equal(one, two) for one, two in zip(before, copied(pretrainer), strict=True))


@needs_gpu
def test_observations_and_rewards_on_a_gpu_equal_those_in_main_memory(monkeypatch):
    monkeypatch.setattr(Pretrainer, "autocast", lambda self: torch.autocast("cpu", enabled=False))
    outcomes = []
    for device in ("cpu", "cuda"):
        env = env_of(pretrainer_of(device=device))
        observation, _ = env.reset(seed=0)
        outcomes.append([observation, *env.step(scores())[:2]])
    for one, two in zip(*outcomes, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-3)
