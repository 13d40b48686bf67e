"""The joint task: every update also learns to segment a few labelled images."""

import pytest
import torch
from programs import assert_same
from simulated_gpu import SimulatedGPU

from ahm_gym.data import open_data
from ahm_gym.data.labelled import choose_labelled
from ahm_gym.errors import InputError, RunError
from ahm_gym.model.decoders import PixelHead, PlainDecoder
from ahm_gym.model.encoder_base import as_encoder
from ahm_gym.model.joint import JointTask, build_joint_task
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.vit import build_autoencoder

MODELS = [
    ("tiny", {}), ("tiny_conv", {}), ("unet", {}), ("resenc", {}), ("unet", {"hiding": "masked"}),
    ("tiny", {"target": "latent"}),
]  # fmt: skip


@pytest.fixture(scope="module")
def dataset(discs):
    return open_data(str(discs), image_size=(32, 32))


def pretrainer_of(dataset, model="tiny", weight=1.0, options=None):
    autoencoder = build_autoencoder(model, image_size=(32, 32), seed=0, **(options or {}))
    joint = None
    if weight is not None:
        joint = build_joint_task(dataset, autoencoder.encoder, labels=6, batch_size=4, seed=3, weight=weight)
    return Pretrainer(autoencoder, num_steps=40, learning_rate=0.003, joint=joint)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 1, 32, 32, generator=generator)
    return images, torch.rand(4, 16, generator=generator).argsort(dim=1) < 12


def joint_loss(pretrainer, number=0):
    with torch.no_grad():
        return pretrainer.joint(pretrainer.autoencoder.encoder, *pretrainer.joint.batches[number])


@pytest.mark.parametrize("labels", [1, 6, 24])
def test_the_labelled_images_are_those_of_fine_tuning(dataset, labels):
    encoder = build_autoencoder("tiny", image_size=(32, 32)).encoder
    task = build_joint_task(dataset, encoder, labels=labels, batch_size=64, seed=3)
    assert task.batches.indices == choose_labelled(dataset, labels, 3)
    assert task.batches[0][0].shape == (8, 1, 32, 32)
    few = build_joint_task(dataset, encoder, labels=labels, batch_size=3, seed=3)
    assert few.batches[0][0].shape == (3, 1, 32, 32)


def test_a_task_is_a_function_of_the_seed_and_leaves_the_global_generator_alone(dataset):
    encoder = build_autoencoder("tiny", image_size=(32, 32)).encoder
    before = torch.get_rng_state()
    first, second, other = (
        build_joint_task(dataset, encoder, labels=6, batch_size=4, seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(dict(first.state_dict()), dict(second.state_dict()))
    assert not torch.equal(first.head.out.weight, other.head.out.weight)
    assert torch.equal(first.batches[2][0], second.batches[2][0])


@pytest.mark.parametrize(("model", "options"), MODELS)
def test_updates_lower_the_joint_loss_and_train_the_encoder_by_it(dataset, model, options):
    joint, alone = (pretrainer_of(dataset, model, weight, options) for weight in (1.0, None))
    result, other = joint.step(*batch()), alone.step(*batch())
    assert_same(tuple(result), tuple(other))  # the reconstruction is from before the update
    trained = [value.autoencoder.encoder.parameters() for value in (joint, alone)]
    assert any(not torch.equal(one, two) for one, two in zip(*trained, strict=True))
    before = joint_loss(joint)
    for seed in range(1, 16):
        joint.step(*batch(seed))
    assert joint_loss(joint) < before - 0.05


@pytest.mark.parametrize(("model", "head"), [("tiny", PlainDecoder), ("unet", PixelHead)])
def test_the_head_sees_the_whole_image_through_the_features_alone(dataset, model, head):
    joint = pretrainer_of(dataset, model).joint
    assert isinstance(joint.head, head)
    features = as_encoder(build_autoencoder(model, image_size=(32, 32)).encoder).feature_maps(batch()[0])
    images = [batch(seed)[0] for seed in (0, 1)]
    assert torch.equal(*(joint.head(image, features) for image in images))


def test_the_first_update_is_along_the_gradient_of_the_weighted_sum(dataset):
    pretrainer = pretrainer_of(dataset, weight=0.25)
    expected = pretrainer_of(dataset, weight=0.25)
    images, mask = batch()
    task, encoder = expected.joint, expected.autoencoder.encoder
    assert task is not None
    total = expected.autoencoder(images, mask).loss + 0.25 * task(encoder, *task.batches[0])
    parameters = [*expected.autoencoder.parameters(), *task.parameters()]
    total.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    pretrainer.step(images, mask)
    found = [*pretrainer.autoencoder.parameters(), *pretrainer.joint.parameters()]
    for one, two in zip(found, parameters, strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6)
    assert pretrainer.metrics() == {"joint_loss": pytest.approx(joint_loss(expected).item())}


def test_every_update_has_the_labelled_batch_of_its_number(dataset):
    pretrainer = pretrainer_of(dataset)
    seen = []
    with pretrainer.joint.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1])):
        for _ in range(3):
            pretrainer.step(*batch())
    assert all(torch.equal(one, pretrainer.joint.batches[number][0]) for number, one in enumerate(seen))
    assert len(seen) == 3


@pytest.mark.parametrize("model", ["tiny", "resenc"])
def test_a_restored_pretrainer_continues_exactly(dataset, model):
    first, second = pretrainer_of(dataset, model), pretrainer_of(dataset, model)
    for seed in range(3):
        first.step(*batch(seed))
    second.load_state_dict(first.state_dict())
    for pretrainer in (first, second):
        pretrainer.step(*batch(9))
    assert_same(first.state_dict(), second.state_dict())
    assert first.joint_loss == second.joint_loss
    moments = first.optimizer.state[first.joint.head.out.weight]
    assert moments["exp_avg"].any()


def test_an_update_with_a_joint_task_never_waits_for_a_gpu(dataset):
    pretrainer = pretrainer_of(dataset)
    pretrainer.checks_late = True
    images, mask = batch()
    gpu = SimulatedGPU()
    gpu.adopt(pretrainer.autoencoder, pretrainer.joint, images)
    with gpu.running():
        pretrainer.step(images, mask)
        assert gpu.blocked == 0
        pretrainer.check()
    assert gpu.blocked == 1 and pretrainer.joint_loss > 0


def test_a_joint_loss_that_is_not_finite_changes_nothing(dataset):
    pretrainer = pretrainer_of(dataset)
    pretrainer.joint.weight = float("inf")
    before = {name: value.clone() for name, value in pretrainer.autoencoder.state_dict().items()}
    with pytest.raises(RunError, match="the sum of reconstruction and joint loss is inf at update 1"):
        pretrainer.step(*batch())
    assert_same(dict(pretrainer.autoencoder.state_dict()), before)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_that_is_not_positive_is_refused(dataset, weight):
    with pytest.raises(InputError, match="`joint_weight` is .*: choose a positive number"):
        pretrainer_of(dataset, weight=weight)


def test_a_frozen_or_a_shared_autoencoder_is_refused(dataset):
    pretrainer = pretrainer_of(dataset)
    with pytest.raises(InputError, match="a frozen autoencoder learns nothing from `joint`"):
        Pretrainer(pretrainer.autoencoder, num_steps=1, frozen=True, joint=pretrainer.joint)
    with pytest.raises(InputError, match="several processes cannot share `joint`"):
        pretrainer.share_memory(None)


def test_a_head_of_your_own_can_be_given(dataset):
    pretrainer = pretrainer_of(dataset)
    task = JointTask(PlainDecoder(128, num_classes=2, feature_size=4), pretrainer.joint.batches, weight=2.0)
    own = Pretrainer(pretrainer.autoencoder, num_steps=4, joint=task)
    before = task.head.out.weight.clone()
    own.step(*batch())
    assert not torch.equal(task.head.out.weight, before)
