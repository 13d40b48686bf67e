"""Local credit is the gradient of the mean return of the guided patches: checked by writing out every order."""

import itertools

import pytest
import torch

from ahm_gym.agents.losses import step_loss
from ahm_gym.agents.networks import ActorCriticOutput
from ahm_gym.agents.ordering import draw_order, order_statistics
from ahm_gym.masking.drawing import draw_masks
from ahm_gym.masking.spread import spread_over


def every_order(length):
    return torch.tensor(list(itertools.permutations(range(length))))


def log_probabilities(logits, orders):
    """Log-probability of each whole order: draws from the softmax over what is left."""
    drawn = logits[orders]
    return (drawn - drawn.flip(1).logcumsumexp(dim=1).flip(1)).sum(dim=1)


def expected_gradient(logits, rewards, values, orders, chosen, credit):
    """The expectation of the policy gradient over all orders, with the sign of an ascent."""
    rows = logits.expand(orders.shape).clone().requires_grad_()
    everything = torch.ones_like(chosen)
    output = ActorCriticOutput(rows, values.expand(orders.shape), values.mean().expand(len(orders)))
    in_order = rewards[orders] * chosen
    loss, _ = step_loss(
        output, orders, everything, chosen, everything, rewards.expand(orders.shape).contiguous(),
        in_order.sum(dim=1) / chosen.sum(dim=1), credit,
    )  # fmt: skip
    loss.policy.backward()
    weights = log_probabilities(logits, orders).exp()
    return -(weights[:, None] * rows.grad).sum(dim=0) * len(orders)


def true_gradient(logits, rewards, orders, chosen):
    z = logits.clone().requires_grad_()
    means = (rewards[orders] * chosen).sum(dim=1) / chosen.sum(dim=1)
    (log_probabilities(z, orders).exp() * means).sum().backward()
    return z.grad


def agreement(found, true):
    return float(torch.cosine_similarity(found, true, dim=0)), float(found.norm() / true.norm())


CASES = [(length, count) for length in (2, 3, 4, 5, 6, 7, 8) for count in range(1, length)]


@pytest.mark.parametrize("critic", ["exact", "none", "wrong"])
@pytest.mark.parametrize(("length", "count"), CASES)
def test_local_credit_is_the_gradient_whatever_the_critic_says(length, count, critic):
    generator = torch.Generator().manual_seed(length)
    logits, rewards, wrong = torch.randn(3, length, generator=generator, dtype=torch.float64)
    values = {"exact": rewards, "none": torch.zeros_like(rewards), "wrong": 3 * wrong}[critic]
    orders = every_order(length)
    chosen = (torch.arange(length) < count).expand(orders.shape)
    found = expected_gradient(logits, rewards, values, orders, chosen, "local")
    assert agreement(found, true_gradient(logits, rewards, orders, chosen)) == pytest.approx(
        (1.0, 1.0), abs=1e-4
    )


def test_the_whole_image_masked_leaves_nothing_to_learn():
    logits, rewards = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    orders = every_order(5)
    everything = torch.ones(orders.shape, dtype=torch.bool)
    found = expected_gradient(logits, rewards, rewards, orders, everything, "local")
    assert float(found.abs().max()) < 1e-6


@pytest.mark.parametrize(("num_masked", "count"), [(12, 12), (12, 6), (8, 5)])
def test_local_credit_is_the_gradient_if_spread_masks_skip_draws(num_masked, count):
    """A grid of 2 x 4 patches; what an order masks is what the environment's own drawing makes of it."""
    grid, length = (2, 4), 8
    num_masked = num_masked * length // 16
    count = count * length // 16
    orders = every_order(length)
    scores = torch.linspace(1, -1, length).expand(orders.shape)
    scores = torch.empty_like(scores).scatter(1, orders, scores)
    masks = draw_masks(
        scores, grid, num_masked, torch.Generator().manual_seed(0),
        guided_fraction=count / num_masked, spread_fraction=1.0,
    )  # fmt: skip
    chosen = masks.guided.gather(1, orders)
    assert (chosen.sum(dim=1) == count).all() and len(spread_over(grid, num_masked).window.unique()) > 1
    logits, rewards, values = torch.randn(
        3, length, generator=torch.Generator().manual_seed(num_masked), dtype=torch.float64
    )
    found = expected_gradient(logits, rewards, values, orders, chosen, "local")
    assert agreement(found, true_gradient(logits, rewards, orders, chosen)) == pytest.approx(
        (1.0, 1.0), abs=1e-4
    )


def test_the_own_patch_alone_is_not_the_gradient():
    logits, rewards = torch.randn(2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    orders = every_order(4)
    chosen = (torch.arange(4) < 3).expand(orders.shape)
    true = true_gradient(logits, rewards, orders, chosen)
    cosine, ratio = agreement(expected_gradient(logits, rewards, rewards, orders, chosen, "own"), true)
    assert cosine < 0.95 or abs(ratio - 1) > 0.5


def test_credit_reaches_over_the_steps_of_an_episode():
    """Two steps choose two patches each; the second sees what the first has masked, and has logits of its own."""
    generator = torch.Generator().manual_seed(2)
    first, second, rewards, values = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    z, y = first.clone().requires_grad_(), second.clone().requires_grad_()
    expected, gradients = 0.0, [torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)]
    for order in itertools.permutations(range(5), 4):
        one, two = order[:2], order[2:]
        rest = [patch for patch in range(5) if patch not in order]
        left = [patch for patch in range(5) if patch not in one]
        log_prob = sum(
            z[i] - z[[k for k in range(5) if k not in one[:j]]].logsumexp(0) for j, i in enumerate(one)
        )
        log_prob = log_prob + sum(
            y[i] - y[[k for k in left if k not in two[:j]]].logsumexp(0) for j, i in enumerate(two)
        )
        expected = expected + log_prob.exp() * rewards[list(order)].mean()
        steps = [
            (first, [*one, *two, *rest], torch.ones(1, 5, dtype=torch.bool)),
            (second, [*two, *rest, *one], torch.tensor([[k not in one for k in range(5)]])),
        ]
        later = None
        for number in (1, 0):
            logits, indices, available = steps[number]
            own = logits[None].clone().requires_grad_()
            loss, later = step_loss(
                ActorCriticOutput(own, values[None], values.mean()[None]), torch.tensor([indices]), available,
                torch.arange(5)[None] < 2, available, rewards[None], rewards.mean()[None], "local", later,
            )  # fmt: skip
            loss.policy.backward()
            gradients[number] -= log_prob.exp().detach() * own.grad[0] / 2  # a mean over half of the draws
    expected.backward()
    assert agreement(gradients[0], z.grad) == pytest.approx((1.0, 1.0), abs=1e-4)
    assert agreement(gradients[1], y.grad) == pytest.approx((1.0, 1.0), abs=1e-4)


def test_an_exact_critic_takes_most_of_the_luck_out_of_local_credit():
    generator = torch.Generator().manual_seed(0)
    logits, rewards = 0.3 * torch.randn(64, generator=generator), torch.randn(64, generator=generator)
    everything = torch.ones(400, 64, dtype=torch.bool)
    orders = draw_order(logits.expand(400, 64), everything, torch.rand(400, 64, generator=generator))
    chosen = (torch.arange(64) < 24).expand(400, 64)
    norms = {}
    for name, values in (("exact", rewards), ("none", torch.zeros(64))):
        rows = logits.expand(400, 64).clone().requires_grad_()
        output = ActorCriticOutput(rows, values.expand(400, 64), torch.zeros(400))
        loss, _ = step_loss(
            output, orders, everything, chosen, everything, rewards.expand(400, 64).contiguous(),
            torch.zeros(400), "local",
        )  # fmt: skip
        loss.policy.backward()
        norms[name] = float((rows.grad - rows.grad.mean(dim=0)).square().sum(dim=1).mean())
    assert norms["exact"] < 0.2 * norms["none"]


def test_logits_far_apart_keep_their_probabilities():
    logits = torch.tensor([[0.0, -50.0, -90.0, -120.0]])
    draws = order_statistics(logits, torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(draws.log_prob, torch.zeros(1, 4))
    torch.testing.assert_close(draws.entropy, torch.zeros(1, 4))
