import pytest
import torch

from ahm_gym.device.sharing import held
from ahm_gym.errors import InputError, RunError
from ahm_gym.masking.selection import mask_top_k
from ahm_gym.model.pretrainer import Pretrainer, cosine_schedule
from ahm_gym.model.vit import build_autoencoder


def build(num_steps=20, **options):
    return Pretrainer(build_autoencoder("tiny", image_size=(32, 32), seed=0), num_steps=num_steps, **options)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 1, 32, 32, generator=generator)
    return images, mask_top_k(torch.rand(4, 16, generator=generator), 12, generator=generator)


def test_updates_on_one_batch_lower_its_loss():
    pretrainer = build(num_steps=40)
    losses = [float(pretrainer.step(*batch()).loss) for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]
    assert pretrainer.updates == 40 and pretrainer.progress == 1.0


def test_the_result_is_detached_and_from_before_the_update():
    pretrainer = build()
    expected = pretrainer.forward(*batch())
    result = pretrainer.step(*batch())
    assert not any(value.requires_grad for value in result)
    torch.testing.assert_close(result.loss, expected.loss)


def test_the_position_embedding_stays_fixed():
    pretrainer = build()
    before = pretrainer.autoencoder.encoder.pos_embed.clone()
    pretrainer.step(*batch())
    assert torch.equal(before, pretrainer.autoencoder.encoder.pos_embed)


def test_continuing_from_a_saved_state_is_exact():
    first, second = build(), build()
    for seed in range(3):
        first.step(*batch(seed))
    second.load_state_dict(first.state_dict())
    first.step(*batch(3))
    second.step(*batch(3))
    for one, two in zip(first.autoencoder.parameters(), second.autoencoder.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_loss_that_is_not_finite_names_the_step_and_the_batch_and_leaves_the_weights():
    pretrainer = build()
    pretrainer.step(*batch())
    before = pretrainer.autoencoder.decoder_pred.weight.clone()
    images, mask = batch(1)
    images[2, 0, 5, 5] = float("inf")
    with pytest.raises(RunError, match=r"at update 2 \(batch 1"):
        pretrainer.step(images, mask)
    assert torch.equal(before, pretrainer.autoencoder.decoder_pred.weight)
    assert pretrainer.updates == 1


def test_the_schedule_warms_up_and_falls_to_zero():
    factors = [cosine_schedule(step, 100, 0.1) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(0.0)


def test_weight_decay_leaves_biases_and_norms_alone():
    groups = build().optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    assert all(parameter.ndim > 1 for parameter in groups[0]["params"])
    assert all(parameter.ndim == 1 for parameter in groups[1]["params"])


@pytest.mark.parametrize(
    ("options", "message"), [({"num_steps": 0}, "steps"), ({"learning_rate": 0.0}, "learning rate")]
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)


def test_a_frozen_autoencoder_reconstructs_and_counts_steps_but_does_not_change():
    frozen, trained = build(frozen=True), build()
    expected = trained.forward(*batch())
    for _ in range(2):
        torch.testing.assert_close(frozen.step(*batch()).patch_loss, expected.patch_loss)
    for one, two in zip(frozen.autoencoder.parameters(), trained.autoencoder.parameters(), strict=True):
        assert torch.equal(one, two)
    assert frozen.updates == 2 and frozen.progress == 0.1


def test_a_snapshot_applies_its_gradients_to_the_shared_weights():
    alone, shared = build(), build()
    lock = torch.multiprocessing.get_context("spawn").Lock()
    shared.share_memory(lock).attach()
    for seed in range(3):
        alone.step(*batch(seed))
        shared.step(*batch(seed))
    for one, two in zip(alone.autoencoder.parameters(), shared.autoencoder.parameters(), strict=True):
        assert torch.equal(one, two)
        assert two.is_shared()


def averaged(decay):
    autoencoder = build().autoencoder
    return Pretrainer(autoencoder, num_steps=10, learning_rate=0.01, average=decay)


def test_the_average_of_the_weights_warms_up_then_has_its_decay():
    pretrainer = averaged(0.3)
    expected = [value.clone() for value in pretrainer.autoencoder.parameters()]
    for update in range(6):
        pretrainer.step(*batch(update))
        momentum = min(0.3, (1 + update) / (10 + update))
        now = pretrainer.autoencoder.parameters()
        expected = [
            momentum * old + (1 - momentum) * new.detach() for old, new in zip(expected, now, strict=True)
        ]
    for found, value in zip(pretrainer.trained.parameters(), expected, strict=True):
        torch.testing.assert_close(found, value)
    assert not any(value.requires_grad for value in pretrainer.trained.parameters())
    other = averaged(0.3)
    other.load_state_dict(pretrainer.state_dict())
    for found, value in zip(other.trained.parameters(), expected, strict=True):
        torch.testing.assert_close(found, value)


def test_without_an_average_the_weights_themselves_are_the_result():
    pretrainer = build()
    assert pretrainer.trained is pretrainer.autoencoder and "average" not in pretrainer.state_dict()


def test_the_average_is_shared_with_other_processes():
    alone, shared = averaged(0.9), averaged(0.9)
    shared.share_memory(torch.multiprocessing.get_context("spawn").Lock()).attach()
    for seed in range(3):
        alone.step(*batch(seed))
        shared.step(*batch(seed))
    for one, two in zip(alone.trained.parameters(), shared.trained.parameters(), strict=True):
        assert torch.equal(one, two) and two.is_shared()


@pytest.mark.parametrize("decay", [0.0, 1.0, float("nan")])
def test_a_decay_that_is_not_between_0_and_1_is_refused(decay):
    with pytest.raises(InputError, match="`average` is .*: choose a decay between 0 and 1"):
        averaged(decay)


def test_a_lock_that_is_never_released_ends_the_run():
    lock = torch.multiprocessing.get_context("spawn").Lock()
    lock.acquire()
    with pytest.raises(RunError, match="stayed locked"), held(lock, seconds=0.05):
        pass
