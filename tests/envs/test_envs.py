import pickle

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from ahm_gym.data import BatchStream
from ahm_gym.envs import (
    REWARDS,
    MaskingEnv,
    MaskingVectorEnv,
)
from ahm_gym.errors import InputError, RunError
from ahm_gym.masking.schedules import RisingMaskRatio
from ahm_gym.model.patches import patchify
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.testing import check_vector_env

L = 16
MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED]


@pytest.fixture(scope="module")
def images():
    return torch.randn(12, 1, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def make(images):
    def build(num_envs=4, cls=MaskingVectorEnv, **options):
        options = {"guided_fraction": 1.0} | options
        return cls(num_envs, data=images, image_size=32, patch_size=8, **options)

    return build


def scores(env, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (env.num_envs, L)).astype(np.float32)


@pytest.mark.parametrize("mode", MODES)
def test_the_vector_environment_passes_our_checker(make, mode):
    check_vector_env(lambda: make(autoreset_mode=mode))


@pytest.mark.parametrize("reward", sorted(REWARDS))
@pytest.mark.parametrize("masking_steps", [1, 3])
def test_every_reward_passes_our_checker(make, reward, masking_steps):
    check_vector_env(lambda: make(reward=reward, masking_steps=masking_steps, guided_fraction=0.5))


def test_a_u_net_shows_the_raw_image_and_passes_our_checker(make):
    env = make(model="unet")
    observation, _ = env.reset(seed=0)
    assert torch.equal(torch.from_numpy(observation), patchify(env.patches.images, 8))
    check_vector_env(lambda: make(model="unet", reward="ahm2025", masking_steps=2))


class Broken(MaskingVectorEnv):
    fault = ""

    def step(self, actions):
        observation, reward, terminated, truncated, info = super().step(actions)
        if self.fault == "dtype":
            observation = observation.astype(np.float64)
        elif self.fault == "reward":
            info["patch_reward"] = np.ones_like(info["patch_reward"])
        elif self.fault == "truncated":
            truncated = terminated
        elif self.fault == "unpaid":
            info["paid"] = np.zeros_like(info["paid"])
        elif self.fault == "integers":
            info["paid"] = info["paid"].astype(int)
        elif self.fault == "missing":
            del info["guided"]
        elif self.fault == "weights":
            info["weight"] = np.ones_like(info["weight"])
        elif self.fault == "negative":
            info["weight"] = -info["weight"]
        return observation, reward, terminated, truncated, info


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("dtype", "float64"),
        ("reward", "visible patch"),
        ("truncated", "truncated"),
        ("unpaid", "an unpaid image has a reward"),
        ("integers", "'paid'] is int64"),
        ("missing", "no 'guided'"),
        ("weights", "a visible patch has a weight"),
        ("negative", "a weight is negative"),
    ],
)
def test_our_checker_finds_what_is_broken(make, monkeypatch, fault, sentence):
    monkeypatch.setattr(Broken, "fault", fault)
    with pytest.raises(AssertionError, match=sentence):
        check_vector_env(lambda: make(cls=Broken))


def test_the_highest_scores_are_masked_and_the_update_reduces_nothing_but_the_loss(make):
    env = make()
    env.reset(seed=0)
    action = scores(env)
    _, _, _, _, info = env.step(action)
    best = np.argsort(-action, axis=1)[:, : env.num_masked]
    expected = np.zeros((4, L), dtype=bool)
    np.put_along_axis(expected, best, True, axis=1)
    assert np.array_equal(info["mask"], expected)
    assert np.array_equal(info["guided"], expected)


def hide_first(patches, masks, generator):
    """Random weights from 0 to 1, but 0 for the first patch of each image."""
    weight = masks.weight * torch.rand(masks.weight.shape, generator=generator)
    weight[:, 0] = 0.0
    return weight


@pytest.mark.parametrize("masking_steps", [1, 3])
def test_only_the_highest_scored_masked_patches_count_but_all_guided_ones_are_paid(make, masking_steps):
    options = {"masking_steps": masking_steps, "reward": "loss", "guided_fraction": 0.5}
    weights, paid = [], []
    for fraction in (1.0, 0.25):
        env = make(target_fraction=fraction, **options)
        env.reset(seed=0)
        for step in range(masking_steps):
            action = scores(env, step)
            *_, reward, _, _, info = env.step(action)
        ranked = np.where(info["mask"], action, -np.inf).argsort(axis=1)[:, ::-1]
        expected = np.zeros_like(info["weight"])
        np.put_along_axis(expected, ranked[:, : round(fraction * env.num_masked)], 1.0, axis=1)
        assert np.array_equal(info["weight"], expected)
        assert info["patch_loss"][info["mask"]].all() and info["patch_reward"][info["guided"]].all()
        weights.append(next(env.pretrainer.autoencoder.parameters()).detach().clone())
        paid.append(reward)
    assert np.array_equal(*paid) and not torch.equal(*weights)


def test_targets_with_equal_scores_are_drawn_by_the_environments_generator(make):
    drawn = []
    for seed in (0, 0, 1):
        env = make(target_fraction=0.5, num_envs=8)
        env.reset(seed=0)
        env.generator.manual_seed(seed)
        *_, info = env.step(np.zeros((8, L), dtype=np.float32))
        assert (info["weight"].sum(axis=1) == 6).all() and info["mask"][info["weight"] > 0].all()
        drawn.append(info["weight"][info["mask"]])
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


def test_two_sources_of_weights_are_refused(make):
    with pytest.raises(InputError, match="`target_fraction=0.5` sets the weights"):
        make(weigh=hide_first, target_fraction=0.5)


@pytest.mark.parametrize("model", ["tiny", "unet"])
def test_weights_reach_the_update_and_info_and_are_drawn_from_the_environments_generator(make, model):
    rows = []
    for weigh in (None, hide_first, hide_first):
        env = make(model=model, weigh=weigh, masking_steps=2, reward="loss")
        env.reset(seed=0)
        action = scores(env)
        action[:, 0] = 1.0  # always masked
        *_, building = env.step(action)
        *_, info = env.step(action)
        assert np.array_equal(building["weight"], building["mask"])
        assert (
            info["mask"][:, 0].all() and info["patch_loss"][:, 0].all() and info["patch_reward"][:, 0].all()
        )
        rows.append((info["weight"], next(env.pretrainer.autoencoder.parameters()).detach().clone()))
    (plain, unweighted), (first, weighted), (second, again) = rows
    assert np.array_equal(plain, info["mask"]) and plain.dtype == np.float32
    assert not first[:, 0].any() and np.array_equal(first > 0, info["mask"] & (np.arange(L) > 0))
    assert np.array_equal(first, second) and torch.equal(weighted, again)
    assert not torch.equal(unweighted, weighted)


@pytest.mark.parametrize("model", ["tiny", "unet"])
def test_the_pixels_of_a_patch_of_weight_0_do_not_change_the_update(make, model):
    weights = []
    for value in (0.0, 5.0):
        env = make(model=model, weigh=hide_first)
        env.reset(seed=0)
        env.patches.images[:, :, :8, :8] = value
        action = scores(env)
        action[:, 0] = 1.0
        *_, info = env.step(action)
        weights.append([value.detach().clone() for value in env.pretrainer.autoencoder.parameters()])
    assert info["mask"][:, 0].all() and all(map(torch.equal, *weights))


def test_invalid_weights_are_refused_by_the_environment(make):
    env = make(weigh=lambda patches, masks, generator: torch.zeros_like(masks.weight))
    env.reset(seed=0)
    with pytest.raises(InputError, match="every masked patch has weight 0"):
        env.step(scores(env))


def test_the_observation_is_the_embedding_by_the_current_encoder(make):
    env = make()
    env.reset(seed=0)
    observation, *_ = env.step(scores(env))
    expected = env.pretrainer.autoencoder.embed(env.patches.images).detach().numpy()
    assert np.array_equal(observation, expected)
    assert env.pretrainer.updates == 1


def test_the_reported_patch_loss_is_the_one_from_before_the_update(make):
    env = make(reward="loss")
    env.reset(seed=0)
    images, before = env.patches.images, build_autoencoder("tiny", image_size=(32, 32), seed=0)
    _, reward, _, _, info = env.step(scores(env))
    with torch.no_grad():
        expected = before(images, torch.from_numpy(info["mask"])).patch_loss.numpy()
    np.testing.assert_allclose(info["patch_loss"][info["mask"]], expected[info["mask"]], rtol=1e-5)
    np.testing.assert_allclose(reward, expected.mean(axis=1, where=info["mask"]), rtol=1e-5)


def test_the_scalar_reward_is_the_mean_over_guided_patches_and_zero_without_any(make):
    env = make(guided_fraction=0.5)
    env.reset(seed=0)
    _, reward, _, _, info = env.step(scores(env))
    assert (info["guided"].sum(axis=1) == 6).all()
    np.testing.assert_allclose(reward, info["patch_reward"].mean(axis=1, where=info["guided"]), rtol=1e-5)
    env.guided_fraction = 0.0
    env.reset(seed=0)
    _, reward, _, _, info = env.step(scores(env))
    assert not reward.any() and not info["guided"].any() and info["patch_reward"].any()


def test_an_episode_of_several_steps_masks_its_parts_and_updates_once_at_its_end(make):
    env = make(masking_steps=4, guided_fraction=0.5, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0)
    before = np.zeros((4, L), dtype=bool)
    for step in range(1, 5):
        observation, reward, terminated, _, info = env.step(scores(env, step))
        assert (before <= info["mask"]).all()
        assert (info["mask"].sum(axis=1) == 3 * step).all()
        assert not observation[info["mask"]].any() and observation[~info["mask"]].any(axis=-1).all()
        assert terminated.all() == (step == 4)
        assert env.pretrainer.updates == (step == 4)
        assert reward.any() == (step == 4)
        before = info["mask"]
    assert (info["guided"].sum(axis=1) == 6).all()


@pytest.mark.parametrize("masking_steps", [2, 5, 7, 12])
@pytest.mark.parametrize("guided_fraction", [0.1, 0.5, 0.9, 1.0])
def test_the_guided_share_holds_however_many_steps_build_up_the_mask(make, masking_steps, guided_fraction):
    env = make(masking_steps=masking_steps, guided_fraction=guided_fraction)
    env.reset(seed=0)
    for step in range(masking_steps):
        *_, info = env.step(scores(env, step))
    assert (info["mask"].sum(axis=1) == 12).all()
    assert (info["guided"].sum(axis=1) == round(guided_fraction * 12)).all()


def test_what_is_returned_can_be_changed_without_harm(make):
    env = make()
    observation, _ = env.reset(seed=0)
    observation *= 0
    assert env.patches.embeddings.any()
    *_, info = env.step(scores(env))
    info["guided"][:] = False
    assert info["mask"].any()


@pytest.mark.parametrize("masking_steps", [1, 3])
def test_tensors_hold_what_arrays_would(make, masking_steps):
    traces = []
    for tensors in (False, True):
        env = make(masking_steps=masking_steps, tensors=tensors)
        trace = [env.reset(seed=0)[0]]
        for step in range(4):
            observation, *_, info = env.step(scores(env, step))
            trace += [observation, info["final_obs"]] if "final_obs" in info else [observation]
        traces.append(trace)
    assert len(traces[0]) == len(traces[1]) > 5
    for array, tensor in zip(*traces, strict=True):
        assert isinstance(array, np.ndarray) and isinstance(tensor, torch.Tensor)
        assert np.array_equal(array, tensor.numpy())


def test_a_tensor_of_images_is_never_cropped(images):
    with pytest.raises(InputError, match="`crop=centre` chooses among random crops"):
        MaskingVectorEnv(4, data=images, image_size=32, crop="centre")


def test_a_reset_to_the_current_batch_keeps_the_loading_processes(images, monkeypatch):
    started, loader = [], BatchStream._loader
    monkeypatch.setattr(BatchStream, "_loader", lambda stream: started.append(1) or loader(stream))
    env = MaskingVectorEnv(4, data=images, image_size=32, data_workers=1)
    first, _ = env.reset(seed=3)
    again, _ = env.reset(seed=3)
    assert np.array_equal(first, again) and len(started) == 1
    after = [env.step(scores(env))[0] for _ in range(2)]
    restarted, _ = env.reset(seed=3, options={"restart": True})
    assert np.array_equal(restarted, first) and len(started) == 2
    alone = MaskingVectorEnv(4, data=images, image_size=32)
    alone.reset(seed=3)
    assert all(np.array_equal(observation, alone.step(scores(alone))[0]) for observation in after)
    env.close()


def test_rendering_before_the_first_reset_is_refused(make):
    with pytest.raises(ResetNeeded):
        make(render_mode="rgb_array").render()


def test_disabled_autoreset_refuses_to_step_past_the_end(make):
    env = make(autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(ResetNeeded):
        env.step(scores(env))
    env.reset(seed=0)
    env.step(scores(env))
    with pytest.raises(ResetNeeded):
        env.step(scores(env))


def test_a_next_step_reset_row_ignores_its_action_and_updates_nothing(make):
    env = make(autoreset_mode=AutoresetMode.NEXT_STEP)
    env.reset(seed=0)
    env.step(scores(env))
    observation, reward, terminated, _, _ = env.step(np.full((4, L), np.nan))
    assert env.pretrainer.updates == 1
    assert not reward.any() and not terminated.any() and observation.any()


def test_a_reset_never_touches_an_autoencoder_that_was_passed_in(make):
    pretrainer = Pretrainer(build_autoencoder("tiny", image_size=(32, 32), seed=5), num_steps=10)
    env = make(pretrainer=pretrainer)
    env.reset(seed=0)
    env.step(scores(env))
    weights = pretrainer.autoencoder.decoder_pred.weight.clone()
    env.reset(seed=1)
    assert env.pretrainer is pretrainer and pretrainer.updates == 1
    assert torch.equal(weights, pretrainer.autoencoder.decoder_pred.weight)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_update_works_if_the_caller_has_switched_gradients_off(make, context):
    env = make()
    with context():
        env.reset(seed=0)
        before = env.pretrainer.autoencoder.decoder_pred.weight.clone()
        env.step(scores(env))
        env.step(scores(env))
    assert not torch.equal(before, env.pretrainer.autoencoder.decoder_pred.weight)


@pytest.mark.parametrize("mask_ratio", [0.75, RisingMaskRatio(0.25, 0.75)], ids=["constant", "rising"])
def test_continuing_from_a_saved_state_is_exact(make, mask_ratio):
    def trace(env, count):
        return [env.step(scores(env, i))[1] for i in range(count)]

    options = {"reward": "relative", "guided_fraction": 0.5, "mask_ratio": mask_ratio, "num_steps": 6}
    env = make(**options)
    env.reset(seed=0)
    trace(env, 3)
    state, weights = pickle.loads(pickle.dumps((env.state_dict(), env.pretrainer.state_dict())))
    expected = trace(env, 3)
    other = make(**options)
    other.pretrainer.load_state_dict(weights)
    other.load_state_dict(state)
    other.reset()
    assert other.num_masked == (8 if callable(mask_ratio) else 12)
    assert np.array_equal(trace(other, 3), expected)


def test_the_single_environment_gives_one_image(images):
    env = MaskingEnv(data=images, image_size=32, patch_size=8, render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    assert observation.shape == (L, 128)
    picture = env.render()
    observation, reward, terminated, truncated, info = env.step(np.linspace(-1, 1, L, dtype=np.float32))
    assert isinstance(reward, float) and terminated and not truncated
    assert info["mask"].shape == (L,) and info["mask"].sum() == 12
    assert env.render().shape == picture.shape == (32, 4 * 32 + 6, 3)
    assert not np.array_equal(env.render(), picture)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 1.5}, "mask ratio 1.5"),
        ({"reward": "losss"}, "did you mean 'loss'"),
        ({"masking_steps": 13}, "`masking_steps` is 13: choose from 1 to the 12"),
        ({"num_envs": 0}, "`num_envs` is 0"),
        ({"render_mode": "human"}, "render mode 'human'"),
        ({"model": "tinyy"}, "did you mean 'tiny'"),
    ],
)
def test_arguments_out_of_range_are_refused(make, options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


@pytest.mark.parametrize("cls", [MaskingVectorEnv, MaskingEnv])
def test_actions_may_be_tensors_that_carry_gradients(images, cls):
    env = cls(data=images, image_size=32, **({"num_envs": 2} if cls is MaskingVectorEnv else {}))
    env.reset(seed=0)
    action = torch.zeros(env.action_space.shape, requires_grad=True)
    assert "mask" in env.step(action)[-1]


@pytest.mark.parametrize("checks_late", [False, True])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_failed_update_requires_a_reset(make, mode, checks_late):
    env = make(autoreset_mode=mode)
    env.pretrainer.checks_late = checks_late  # as on a GPU
    env.reset(seed=0)
    weight = env.pretrainer.autoencoder.decoder_pred.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(torch.nan)
    with pytest.raises(RunError, match="the reconstruction loss is nan"):
        env.step(scores(env))
    with torch.no_grad():
        weight.copy_(kept)
    with pytest.raises(ResetNeeded):
        env.step(scores(env))
    env.reset()
    env.step(scores(env))
    assert env.pretrainer.updates == 1


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_failed_reset_requires_another(make, mode, monkeypatch):
    env = make(autoreset_mode=mode, masking_steps=2)
    env.reset(seed=0)
    env.step(scores(env))
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(env._batches, "next", lambda: 1 / 0)
        env.reset()
    with pytest.raises(ResetNeeded):
        env.step(scores(env))
    env.reset()
    env.step(scores(env))


def test_three_numbers_are_not_an_image_size(images):
    with pytest.raises(InputError, match="image size 32 32 32: give one number"):
        MaskingVectorEnv(2, data=images, image_size=(32, 32, 32))


def test_a_patch_size_that_does_not_divide_is_refused(images):
    with pytest.raises(InputError, match="patch size 5 does not divide"):
        MaskingVectorEnv(2, data=images, image_size=32, patch_size=5)


def test_data_of_another_channel_count_than_the_autoencoder_is_refused(images):
    pretrainer = Pretrainer(build_autoencoder("tiny", image_size=(32, 32), channels=3), num_steps=1)
    with pytest.raises(InputError, match="1 channels and the autoencoder expects 3"):
        MaskingVectorEnv(2, data=images, pretrainer=pretrainer)


def test_actions_of_another_shape_and_nan_are_refused(make):
    env = make()
    env.reset(seed=0)
    with pytest.raises(InputError, match="one score per patch"):
        env.step(np.zeros((4, L + 1)))
    with pytest.raises(InputError, match="NaN"):
        env.step(np.full((4, L), np.nan))


def test_resetting_only_some_images_is_refused(make):
    env = make(autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0)
    with pytest.raises(InputError, match="reset_mask"):
        env.reset(options={"reset_mask": np.array([True, False, True, True])})


def test_a_plan_is_read_again_before_the_first_step_and_not_later(make):
    settings = {"mask_ratio": 0.25}
    env = make(mask_ratio=lambda progress: settings["mask_ratio"], masking_steps=2)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.plan_masks()
    env.reset(seed=0)
    settings["mask_ratio"] = 0.5
    assert env.num_masked == 4
    env.plan_masks()
    assert env.num_masked == 8
    env.step(scores(env))
    with pytest.raises(ResetNeeded, match="before the first step"):
        env.plan_masks()
    assert env.step(scores(env))[-1]["mask"].sum() == 4 * 8
