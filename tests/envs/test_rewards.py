import copy

import pytest
import torch

from ahm_gym.device.transfers import Fetch
from ahm_gym.envs.rewards import REWARDS, make_reward
from ahm_gym.errors import InputError
from ahm_gym.masking.drawing import draw_masks
from ahm_gym.masking.masks import Masks
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.vit import build_autoencoder


@pytest.fixture
def pretrainer():
    return Pretrainer(build_autoencoder("tiny", image_size=(32, 32), seed=0), num_steps=50)


def build(name, pretrainer):
    return make_reward(name, pretrainer, torch.Generator().manual_seed(0))


def draw(num_guided=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 1, 32, 32, generator=generator)
    scores = torch.rand(4, 16, generator=generator)
    masks = draw_masks(scores, (4, 4), 12, generator, guided_fraction=num_guided / 12)
    return images, masks, torch.rand(4, 16, generator=generator)


def test_loss_pays_the_loss(pretrainer):
    _, masks, patch_loss = draw()
    assert torch.equal(build("loss", pretrainer)(patch_loss, masks), patch_loss)


def test_relative_is_standardised_by_the_randomly_masked_patches(pretrainer):
    _, masks, patch_loss = draw()
    paid = build("relative", pretrainer)(patch_loss, masks)
    drawn = paid[masks.masked & ~masks.guided]
    assert float(drawn.mean()) == pytest.approx(0, abs=1e-5)
    assert float(drawn.std(unbiased=False)) == pytest.approx(1, abs=1e-4)
    assert float(paid[masks.guided].mean()) != pytest.approx(0, abs=1e-3)


def test_relative_uses_all_masked_patches_if_none_is_random(pretrainer):
    _, masks, patch_loss = draw()
    paid = build("relative", pretrainer)(patch_loss, Masks.of(masks.masked, masks.masked))
    assert float(paid[masks.masked].mean()) == pytest.approx(0, abs=1e-5)


def test_relative_follows_a_loss_that_falls_tenfold(pretrainer):
    reward = build("relative", pretrainer)
    _, masks, patch_loss = draw()
    for step in range(1000):
        paid = reward(patch_loss * (1.0 if step < 300 else 0.1), masks)
    assert float(paid[masks.masked & ~masks.guided].mean()) == pytest.approx(0, abs=0.1)
    assert float(paid[masks.masked & ~masks.guided].std()) == pytest.approx(1, abs=0.3)


def test_rank_pays_minus_one_to_one_in_the_order_of_the_loss(pretrainer):
    _, masks, patch_loss = draw()
    paid = build("rank", pretrainer)(patch_loss, masks)
    masked = masks.masked
    assert float(paid[masked].min()) == -1 and float(paid[masked].max()) == 1
    assert torch.equal(paid[masked].argsort(), patch_loss[masked].argsort())


def paid_for_progress(reward, pretrainer, num_steps):
    """The rewards of `num_steps` updates, and the patch losses before them."""
    images, masks, _ = draw()
    paid, losses = [], []
    for _ in range(num_steps):
        reward.before(images, masks)
        losses.append(pretrainer.step(images, masks).patch_loss)
        paid.append(reward(losses[-1], masks))
    return paid, losses


def test_progress_pays_for_patches_that_an_earlier_copy_reconstructs_worse(pretrainer):
    reward = build("progress", pretrainer)
    reward.lag = 10
    paid, losses = paid_for_progress(reward, pretrainer, 35)
    # The copy in use since update 30 was made after 20 updates.
    mask = draw()[1].masked
    floor = 0.05 * losses[34][mask].mean()
    expected = ((losses[20] + floor) / (losses[34] + floor)).log()
    rows = reward.paid(len(mask))
    assert rows.tolist() == [True, True, False, False] and not paid[34][~rows].any()
    assert torch.allclose(paid[34][rows][mask[rows]], expected[rows][mask[rows]], atol=1e-4)
    assert float(paid[34][rows][mask[rows]].mean()) > 0


def test_progress_around_a_trained_autoencoder_begins_with_it(pretrainer):
    images, masks, _ = draw()
    for _ in range(12):
        pretrainer.step(images, masks)
    reward = build("progress", pretrainer)
    reward.lag = 10
    paid, losses = paid_for_progress(reward, pretrainer, 15)
    mask = masks.masked
    floor = 0.05 * losses[14][mask].mean()
    expected = ((losses[0] + floor) / (losses[14] + floor)).log()
    assert torch.allclose(paid[14][:2][mask[:2]], expected[:2][mask[:2]], atol=1e-4)


def test_progress_skips_the_earlier_copy_if_no_patch_is_guided(pretrainer, monkeypatch):
    reward = build("progress", pretrainer)
    reward.lag = 1
    images, masks, _ = draw()
    calls = []
    fill_in = type(pretrainer.model).fill_in
    monkeypatch.setattr(
        type(pretrainer.model), "fill_in", lambda model, *batch: calls.append(model) or fill_in(model, *batch)
    )
    for guided in (masks.masked, torch.zeros_like(masks.masked)):
        masks = Masks.of(masks.masked, guided)
        reward.before(images, masks)
        paid = reward(pretrainer.step(images, masks).patch_loss, masks)
    assert [call is pretrainer.model for call in calls] == [False, True, True]
    assert paid.eq(0).all() and not reward.paid(len(images)).any() and reward.taken == 2


def test_progress_pays_the_same_for_halving_a_large_and_a_small_loss(pretrainer):
    reward = build("progress", pretrainer)
    mask = torch.ones(1, 4, dtype=torch.bool)
    now = torch.tensor([[0.1, 1.0, 1.0, 0.0]])
    reward.earlier_loss, reward.rows = Fetch(torch.tensor([[0.2, 2.0, 1.0, 0.0]])), slice(0, 1)
    paid = reward(now, Masks.of(mask, mask))[0]
    assert 0.4 < float(paid[0]) < float(paid[1]) < 0.7 and paid[2:].tolist() == [0.0, 0.0]


def test_progress_continues_from_its_state_with_both_copies(pretrainer):
    reward = build("progress", pretrainer)
    reward.lag = 2
    paid_for_progress(reward, pretrainer, 5)
    state, weights = copy.deepcopy(reward.state_dict()), copy.deepcopy(pretrainer.state_dict())
    name = next(name for name, value in state["next"].items() if value.is_floating_point())
    assert not torch.equal(state["earlier"][name], state["next"][name])
    expected, _ = paid_for_progress(reward, pretrainer, 4)
    again = build("progress", pretrainer)
    again.lag = 2
    again.load_state_dict(state)
    pretrainer.load_state_dict(weights)
    paid, _ = paid_for_progress(again, pretrainer, 4)
    assert all(map(torch.equal, paid, expected))


def test_progress_refuses_a_frozen_autoencoder():
    frozen = Pretrainer(build_autoencoder("tiny", image_size=(32, 32)), num_steps=50, frozen=True)
    with pytest.raises(InputError, match="reward progress measures what the autoencoder learns"):
        build("progress", frozen)


def test_advantage_pays_the_excess_over_a_random_mask_of_the_same_image(pretrainer):
    reward = build("advantage", pretrainer)
    images, masks, _ = draw()
    reward.before(images, masks)
    patch_loss = pretrainer.forward(images, masks).patch_loss
    excess = patch_loss - reward(patch_loss, masks)
    assert torch.allclose(excess, excess[:, :1].expand_as(excess))
    assert torch.equal(excess[:, 0], reward.random_loss.wait()[:, 0])
    again = build("advantage", pretrainer)
    again.before(images, masks)
    torch.testing.assert_close(again.random_loss.wait(), reward.random_loss.wait())


def reference_cells(images, filled, side):
    """The reward of AHM computed pixel by pixel: the reward of every cell of `side` pixels, row by row."""
    paid = torch.zeros(len(images), 4, 4)
    for i in range(len(images)):
        low, high = images[i].min(), images[i].max()
        original, rebuilt = (images[i, 0] - low) / (high - low), (filled[i, 0] - low) / (high - low)
        for row in range(32 // side):
            for column in range(32 // side):
                place = slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side)
                error = ((rebuilt[place] - original[place]) ** 2).mean()
                paid[i, row, column] = 255 * error + 0.5 * 255 * (rebuilt[place] ** 2).mean()
    return paid.flatten(1)


@pytest.mark.parametrize(("name", "side"), [("ahm2025", 8), ("ahm2025:8", 8), ("ahm2025:10", 10)])
@pytest.mark.parametrize("normalise", [False, True])
def test_ahm2025_pays_error_and_brightness_of_each_cell(name, side, normalise):
    autoencoder = build_autoencoder(
        "unet", image_size=(32, 32), target="normalised" if normalise else "pixels"
    )
    pretrainer = Pretrainer(autoencoder, num_steps=50)
    images, masks, patch_loss = draw()
    reward = build(name, pretrainer)
    result = pretrainer.forward(images, masks)
    reward.after(images, result)
    filled = autoencoder.reconstruct(images, torch.ones_like(masks.masked), result.prediction)
    expected = reference_cells(images, filled, side)
    torch.testing.assert_close(reward(patch_loss, masks), expected)
    assert int((expected == 0).sum()) == (0 if side == 8 else 4 * 7)


def test_ahm2025_does_not_depend_on_how_images_are_normalised(pretrainer):
    reward = build("ahm2025", pretrainer)
    images, masks, patch_loss = draw()
    result = pretrainer.forward(images, masks)
    reward.after(images, result)
    paid = reward(patch_loss, masks)
    reward.after(3 * images - 1, result._replace(prediction=3 * result.prediction - 1))
    torch.testing.assert_close(reward(patch_loss, masks), paid)


@pytest.mark.parametrize("name", ["ahm2025:", "ahm2025:0", "ahm2025:33", "ahm2025:x", "loss:20"])
def test_an_argument_that_a_reward_does_not_have_is_refused(name, pretrainer):
    with pytest.raises(InputError, match="ahm2025:"):
        build(name, pretrainer)


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_continuing_from_a_saved_state_pays_the_same(name, pretrainer):
    first = build(name, pretrainer)
    images, masks, patch_loss = draw()
    result = pretrainer.forward(images, masks)
    first.before(images, masks)
    first.after(images, result)
    first(patch_loss, masks)
    second = make_reward(name, pretrainer, torch.Generator())
    second.load_state_dict(first.state_dict())
    second.generator.set_state(first.generator.get_state())
    for reward in (first, second):
        reward.before(images, masks)
        reward.after(images, result)
    assert torch.equal(first(patch_loss, masks), second(patch_loss, masks))


def test_an_unknown_reward_is_refused_with_the_nearest_name(pretrainer):
    with pytest.raises(InputError, match="did you mean 'progress'"):
        build("progres", pretrainer)
