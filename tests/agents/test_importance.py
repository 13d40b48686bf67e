"""Rollouts of an earlier policy, corrected by importance weights: checked by writing out every order."""

import copy
import itertools
import math
import threading

import pytest
import torch

from ahm_gym.agents import make_agent
from ahm_gym.agents.importance import importance
from ahm_gym.agents.learner import Learner
from ahm_gym.agents.losses import step_loss
from ahm_gym.agents.networks import ActorCriticOutput
from ahm_gym.errors import InputError
from ahm_gym.testing import IdentityTask

SHAPE = IdentityTask().single_observation_space.shape


def draw(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def log_probability(logits, draws, taken=()):
    """Log-probability of these draws from the patches that are not taken, by hand."""
    total = torch.zeros((), dtype=logits.dtype)
    for j, patch in enumerate(draws):
        left = [k for k in range(len(logits)) if k not in taken and k not in draws[:j]]
        total = total + logits[patch] - logits[left].logsumexp(0)
    return total


def gradient(loss, *leaves):
    total = loss.policy + 0.5 * loss.value - 0.1 * loss.entropy
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return torch.cat(
        [torch.zeros_like(leaf) if part is None else part for leaf, part in zip(leaves, found, strict=True)]
    )


def one_step(length, count, credit, drawn_by, corrected, *, skips=False):
    """The expected gradient of one step in which every set of patches has rewards of its own.

    Args:
        drawn_by: "present" or "earlier", the policy that draws.
        corrected: whether importance weights correct for it.
        skips: whether the environment masks only the last `count` - 1 of the draws.
    """
    generator = torch.Generator().manual_seed(length)
    present, values = draw(generator, 2, length)
    earlier = present + draw(generator, length)
    rewards = draw(generator, 2**length, length)
    total = 0.0
    for order in itertools.permutations(range(length)):
        draws = order[:count]
        chosen = torch.tensor([[skips <= j < count for j in range(length)]])
        reward = rewards[sum(2**patch for patch in draws[skips:])]
        logits, critic = present.clone().requires_grad_(), values.clone().requires_grad_()
        everything, indices = torch.ones(1, length, dtype=torch.bool), torch.tensor([order])
        masked = torch.zeros_like(everything).scatter(1, indices, chosen)
        weight = importance(
            logits[None, None], earlier[None, None], indices[None], everything[None], chosen[None], math.inf
        ).weight
        loss, _ = step_loss(
            ActorCriticOutput(logits[None], critic[None], critic.mean()[None]), indices, everything, chosen, masked,
            reward[None], reward[list(draws[skips:])].mean()[None], credit, None, weight if corrected else None,
        )  # fmt: skip
        by = {"present": present, "earlier": earlier}[drawn_by]
        total = total + log_probability(by, order).exp() * gradient(loss, logits, critic)
    return total


def agreement(found, true):
    return float(torch.cosine_similarity(found, true, dim=0)), float(found.norm() / true.norm())


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("credit", ["own", "local", "image"])
def test_corrected_draws_of_an_earlier_policy_have_the_gradient_of_the_present_one(credit, skips):
    true = one_step(4, 3, credit, "present", False, skips=skips)
    corrected = agreement(one_step(4, 3, credit, "earlier", True, skips=skips), true)
    assert corrected == pytest.approx((1.0, 1.0), abs=1e-4)
    stale = one_step(4, 3, credit, "earlier", False, skips=skips)
    cosine, ratio = agreement(stale[:4], true[:4])  # of the logits
    assert cosine < 0.99 or abs(ratio - 1.0) > 0.05


def two_steps(credit, drawn_by, corrected):
    """The same for an episode of two steps with one draw each, of four patches; it is paid at its end."""
    generator = torch.Generator().manual_seed(1)
    present, values = draw(generator, 2, 5, 4)
    earlier = present + draw(generator, 5, 4)
    rewards = draw(generator, 16, 4)
    total = 0.0
    for first, second in itertools.permutations(range(4), 2):
        states = (0, 1 + first)  # the second state is what the first step has led to
        rest = [k for k in range(4) if k not in (first, second)]
        order = torch.tensor([[[first, second, *rest]], [[second, *rest, first]]])
        available = torch.tensor([[[True] * 4], [[k != first for k in range(4)]]])
        chosen = (torch.arange(4) < 1).expand(2, 1, 4)
        logits = [present[state].clone().requires_grad_() for state in states]
        critics = [values[state].clone().requires_grad_() for state in states]
        weight = importance(
            torch.stack(logits)[:, None], earlier[list(states)][:, None], order, available, chosen, math.inf
        ).weight
        reward, later = rewards[2**first + 2**second], None
        masked = torch.tensor([[k in (first, second) for k in range(4)]])
        by = {"present": present, "earlier": earlier}[drawn_by]
        probability = (
            log_probability(by[0], [first]) + log_probability(by[1 + first], [second], [first])
        ).exp()
        place = torch.zeros(5, 2, 4, dtype=torch.float64)
        for t in (1, 0):
            loss, later = step_loss(
                ActorCriticOutput(logits[t][None], critics[t][None], critics[t].mean()[None]), order[t],
                available[t], chosen[t], masked, reward[None], reward[[first, second]].mean()[None], credit, later,
                weight if corrected else None,
            )  # fmt: skip
            place[states[t]] = gradient(loss, logits[t], critics[t]).reshape(2, 4)
        total = total + probability * place.flatten()
    return total


@pytest.mark.parametrize("credit", ["own", "local", "image"])
def test_the_draws_of_all_steps_of_an_episode_are_corrected(credit):
    true = two_steps(credit, "present", False)
    assert agreement(two_steps(credit, "earlier", True), true) == pytest.approx((1.0, 1.0), abs=1e-4)
    cosine, ratio = agreement(two_steps(credit, "earlier", False), true)
    assert cosine < 0.99 or abs(ratio - 1.0) > 0.05


def test_weights_are_clipped_from_above_and_images_without_draws_weigh_one():
    generator = torch.Generator().manual_seed(3)
    now, before = draw(generator, 2, 1, 6, 5)
    order = draw(generator, 6, 5).argsort(dim=1)[None]
    everything, chosen = torch.ones(1, 6, 5, dtype=torch.bool), (torch.arange(5) < 2).expand(1, 6, 5).clone()
    chosen[0, 5] = False
    free = importance(now, before, order, everything, chosen, math.inf)
    by_hand = [
        (log_probability(new, draws[:2]) - log_probability(old, draws[:2])).exp()
        for new, old, draws in zip(now[0], before[0], order[0].tolist(), strict=True)
    ]
    assert free.weight.tolist() == pytest.approx([*map(float, by_hand[:5]), 1.0]) and float(free.clipped) == 0
    clipped = importance(now, before, order, everything, chosen, 1.0)
    torch.testing.assert_close(clipped.weight, free.weight.clamp(max=1.0))
    assert float(clipped.clipped) == pytest.approx(sum(float(w) > 1 for w in by_hand[:5]) / 5)
    assert float(free.approx_kl) > 0
    near = importance((before + 1e-4 * now).float(), before.float(), order, everything, chosen, 1.0)
    assert 0 < float(near.approx_kl) < 1e-7


def stale_learner(**options):
    """A worker, whose weights others change while it plays."""
    agent = make_agent("a3c", SHAPE, **options)
    agent.lock = threading.Lock()
    learner = Learner(agent, copy.deepcopy(agent.network), IdentityTask(), torch.Generator(), 0)
    play, passes, seen = learner.play, learner._passes, []

    def while_others_write(n_steps):
        with torch.no_grad():
            agent.network.heads.weight.normal_(std=0.05, generator=torch.Generator().manual_seed(5))
        agent.writes += 1
        return play(n_steps)

    learner.play = while_others_write
    learner._passes = lambda *inputs: (seen.append(inputs), passes(*inputs))[1]
    return learner, seen


def test_a_worker_learns_from_its_stale_draws_with_the_weights_that_others_have_written_meanwhile():
    learner, seen = stale_learner(importance_clip=math.inf)
    written = learner.agent.network.heads.weight
    metrics = learner.episode()
    assert metrics["train/approx_kl"] > 1e-3 and metrics["agent/staleness"] == 1
    (inputs,) = seen
    assert not inputs[7].any()  # the logits of the draws: those of a new network, all 0
    assert float((learner.network.heads.weight - written).detach().abs().max()) < 0.01  # one step of Adam
    losses = {}
    for clip in (1e-3, 1e-2):
        learner.agent.importance_clip = clip
        losses[clip] = learner._loss(*inputs)[1]
    torch.testing.assert_close(losses[1e-2][:2], 10 * losses[1e-3][:2], rtol=1e-4, atol=0)  # all are clipped
    assert losses[1e-2][6].item() == 1.0


def test_without_the_correction_a_worker_learns_with_the_weights_that_drew():
    learner, _ = stale_learner()
    metrics = learner.episode()
    assert "train/approx_kl" not in metrics and metrics["agent/staleness"] == 1
    assert not learner.network.heads.weight.any()


def test_one_worker_is_never_stale_and_learns_the_same_bit_by_bit():
    states = []
    for options in ({}, {"importance_clip": 1.0}):
        agent, heard = make_agent("a3c", SHAPE, **options), []
        agent.learn(
            IdentityTask, 5, seed=0, callback=lambda metrics, heard=heard: bool(heard.append(metrics))
        )
        states.append(agent.network.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert heard[-1]["train/approx_kl"] == heard[-1]["train/clip_fraction"] == 0


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan])
def test_a_clip_that_is_not_positive_is_refused(clip):
    with pytest.raises(InputError, match="`importance_clip` is .*: choose a positive number"):
        make_agent("a3c", SHAPE, importance_clip=clip)
