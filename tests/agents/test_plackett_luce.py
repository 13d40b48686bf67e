"""The Plackett-Luce distribution, against every order written out, and as a policy of other libraries."""

import copy
import itertools
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from torch import nn

from ahm_gym.agents.ordering import complete_order, draw_order
from ahm_gym.agents.plackett_luce import PlackettLuce, PlackettLuceScores
from ahm_gym.agents.sb3_env import MaskingVecEnv
from ahm_gym.agents.sb3_plackett_luce import PatchPlackettLucePolicy
from ahm_gym.envs import SequentialMaskingVectorEnv
from ahm_gym.errors import InputError
from ahm_gym.testing import IdentityTask, solved

CASES = [(length, count) for length in range(1, 7) for count in range(1, length + 1)]


def every_order(length, count):
    return torch.tensor(list(itertools.permutations(range(length), count)))


def by_hand(logits, order):
    """Probability of each draw of one order, and its entropy."""
    left, probabilities, entropies = list(range(len(logits))), [], []
    for patch in order:
        weights = [math.exp(float(logits[i])) for i in left]
        shares = [weight / sum(weights) for weight in weights]
        probabilities.append(shares[left.index(patch)])
        entropies.append(-sum(share * math.log(share) for share in shares))
        left.remove(patch)
    return probabilities, entropies


@pytest.mark.parametrize(("length", "count"), CASES)
def test_probabilities_and_entropies_are_those_of_every_order_written_out(length, count):
    logits = 2 * torch.randn(length, generator=torch.Generator().manual_seed(length))
    orders = every_order(length, count)
    found = PlackettLuce(logits, count)
    draws, entropies = (
        torch.tensor(part) for part in zip(*(by_hand(logits, o) for o in orders.tolist()), strict=True)
    )
    torch.testing.assert_close(found.log_probs_of_draws(orders).exp(), draws)
    torch.testing.assert_close(found.entropy_of_draws(orders), entropies, atol=1e-5, rtol=1e-4)
    whole = draws.prod(dim=1)
    torch.testing.assert_close(found.log_prob(orders).exp(), whole)
    assert float(whole.sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(found.log_prob(found.mode).exp()) == pytest.approx(float(whole.max()), rel=1e-4)
    # The chain rule: the entropy of the orders is the expected sum of the entropies of the draws.
    joint = -(whole * whole.log()).sum()
    torch.testing.assert_close(
        (whole * found.entropy_of_draws(orders).sum(dim=1)).sum(), joint, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("count", [1, 2, 4])
def test_samples_come_as_often_as_their_probability_says(count):
    found = PlackettLuce(torch.tensor([1.0, 0.0, -1.0, 0.5]), count)
    drawn = found.sample((20_000,), torch.Generator().manual_seed(0))
    for order in every_order(4, count):
        share = (drawn == order).all(dim=1).float().mean()
        assert float(share) == pytest.approx(float(found.log_prob(order).exp()), abs=0.012)


def test_without_a_generator_the_global_one_is_used_as_in_every_distribution_of_torch():
    found = PlackettLuce(torch.zeros(3, 8))
    with torch.random.fork_rng():
        first, second = (torch.manual_seed(seed) and found.sample() for seed in (0, 0))
        assert torch.equal(first, second) and not torch.equal(first, found.sample())


def test_the_entropy_is_exact_for_one_draw_and_an_unbiased_estimate_for_more():
    logits = torch.tensor([2.0, 0.0, -1.0, 0.5, 0.5])
    one = PlackettLuce(logits, 1)
    torch.testing.assert_close(one.entropy(), torch.distributions.Categorical(logits=logits).entropy())
    two, orders = PlackettLuce(logits, 2), every_order(5, 2)
    exact = -(two.log_prob(orders).exp() * two.log_prob(orders)).sum()
    estimate = two.entropy(20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(estimate, exact, atol=0.01, rtol=0)


def test_unavailable_patches_are_never_drawn_before_the_available_ones_and_are_certain_then():
    available = torch.tensor([False, True, True, False, True])
    logits = torch.tensor([9.0, 0.0, 1.0, 9.0, -1.0])
    for found in (
        PlackettLuce(logits, 4, available),
        PlackettLuce(logits.masked_fill(~available, -torch.inf), 4),
    ):
        drawn = found.sample((200,), torch.Generator().manual_seed(0))
        assert set(drawn[:, :3].unique().tolist()) == {1, 2, 4} and set(drawn[:, 3].tolist()) <= {0, 3}
        inner = PlackettLuce(logits[available], 3)
        inside = torch.tensor([0, 0, 1, 0, 2])[drawn[:, :3]]
        torch.testing.assert_close(found.log_prob(drawn), inner.log_prob(inside))
        assert (
            not found.log_probs_of_draws(drawn)[:, 3].any() and not found.entropy_of_draws(drawn)[:, 3].any()
        )
        assert found.mode.tolist()[:3] == [2, 1, 4]


def test_logits_hundreds_of_nats_apart_keep_their_probabilities():
    logits = torch.tensor([0.0, -50.0, -90.0, -400.0])
    found = PlackettLuce(logits)
    torch.testing.assert_close(found.log_probs_of_draws(torch.arange(4)), torch.zeros(4))
    swapped = found.log_probs_of_draws(torch.tensor([0, 1, 3, 2]))
    torch.testing.assert_close(swapped, torch.tensor([0.0, 0.0, -310.0, 0.0]))


def test_the_gradient_reaches_the_logits_and_is_that_of_the_written_out_probability():
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    order = torch.tensor([[3, 1], [0, 4]])
    (gradient,) = torch.autograd.grad(PlackettLuce(logits, 2).log_prob(order).sum(), logits)
    rows = logits.log_softmax(dim=1)
    rest = logits.scatter(1, order[:, :1], -torch.inf).log_softmax(dim=1)
    written = rows.gather(1, order[:, :1]) + rest.gather(1, order[:, 1:])
    torch.testing.assert_close(gradient, torch.autograd.grad(written.sum(), logits)[0])


def test_shapes_follow_the_rules_of_torch():
    found = PlackettLuce(torch.randn(3, 2, 6), 4)
    assert (found.batch_shape, found.event_shape) == ((3, 2), (4,))
    drawn = found.sample((7,))
    assert drawn.shape == (7, 3, 2, 4) and drawn.dtype == torch.int64
    assert found.log_prob(drawn).shape == (7, 3, 2) and found.entropy().shape == (3, 2)
    assert found.scores(drawn).shape == (7, 3, 2, 6)
    assert found.expand((5, 3, 2)).sample().shape == (5, 3, 2, 4)
    scores = PlackettLuceScores(torch.randn(3, 6), 4)
    assert (scores.batch_shape, scores.event_shape) == ((3,), (6,))
    assert scores.expand((5, 3)).sample((2,)).shape == (2, 5, 3, 6)
    independent = torch.distributions.Independent(found, 2)
    assert independent.log_prob(drawn).shape == (7,)


def test_scores_put_the_draws_first_and_leave_the_rest_equal():
    found = PlackettLuce(torch.zeros(5), 2)
    scores = found.scores(torch.tensor([3, 1]))
    assert scores.argsort(descending=True)[:2].tolist() == [3, 1]
    assert scores[[0, 2, 4]].tolist() == [-1.0] * 3 and scores.max() == 1
    assert PlackettLuce(torch.zeros(3)).scores(torch.tensor([2, 0, 1])).tolist() == [0.0, -1.0, 1.0]


def test_the_distribution_over_scores_has_the_probabilities_of_their_orders():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    available = torch.arange(6).expand(4, 6) != 2
    found = PlackettLuceScores(logits, 3, available)
    scores = found.sample((50,), torch.Generator().manual_seed(1))
    order = found.order(scores)
    assert float(scores.min()) == -1 and float(scores.max()) == 1 and (scores[..., 2] == -1).all()
    torch.testing.assert_close(found.log_prob(scores), PlackettLuce(logits, 3, available).log_prob(order))
    assert torch.equal(found.order(found.mode), PlackettLuce(logits, 3, available).mode)
    uniform = torch.rand(1, 6, generator=torch.Generator().manual_seed(1))
    expected = draw_order(logits[:1], available[:1], uniform)
    one = PlackettLuceScores(logits[:1], 3, available[:1]).sample((), torch.Generator().manual_seed(1))
    assert torch.equal(one.argsort(dim=1, descending=True), expected)


def test_an_order_is_completed_by_the_patches_that_are_left():
    available = torch.tensor([[True, False, True, True, True], [True, True, True, True, False]])
    order = torch.tensor([[3, 0], [2, 1]])
    assert complete_order(order, available).tolist() == [[3, 0, 2, 4, 1], [2, 1, 0, 3, 4]]


@pytest.mark.parametrize("order", [[1, 1], [0, 5], [-1, 0], [0, 3]])
def test_values_that_are_no_orders_are_refused(order):
    found = PlackettLuce(torch.zeros(5), 2, torch.arange(5) != 3, validate_args=True)
    with pytest.raises(ValueError, match="within the support"):
        found.log_prob(torch.tensor(order))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 0),), "has no patches"),
        ((torch.zeros(3, 4), 5), "`num_draws` is 5: choose from 1 to the number of patches, 4"),
        ((torch.zeros(3, 4), 0), "`num_draws` is 0"),
        ((torch.zeros(3, 4), 2, torch.ones(4, dtype=torch.bool)), r"`available` has shape \(4,\)"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        PlackettLuce(*arguments)


def trained(env, updates):
    options = {"n_steps": 4, "batch_size": 32, "n_epochs": 4, "gamma": 1.0, "learning_rate": 1e-3, "seed": 0}
    policy = {"num_draws": 4}
    return PPO(PatchPlackettLucePolicy, env, device="cpu", policy_kwargs=policy, **options).learn(
        updates * 32
    )


def test_ppo_of_sb3_learns_with_ordered_draws_and_is_saved(tmp_path):
    env = MaskingVecEnv(IdentityTask())
    model = trained(env, 100)
    observation = env.reset()
    scores, _ = model.predict(observation, deterministic=True)
    env.step_async(scores)
    assert solved(IdentityTask(), float(env.step_wait()[1].mean())) >= 0.9
    assert not hasattr(model.policy, "log_std")
    model.save(tmp_path / "model")
    again = PPO.load(tmp_path / "model")
    assert again.policy.num_draws == 4
    assert np.array_equal(again.predict(observation, deterministic=True)[0], scores)


def test_a_policy_of_scores_refuses_one_patch_a_step():
    images = torch.rand(4, 1, 32, 32)
    env = MaskingVecEnv(SequentialMaskingVectorEnv(4, data=images, image_size=32))
    with pytest.raises(InputError, match="use it with AHM/Masking-v0"):
        PPO(PatchPlackettLucePolicy, env, device="cpu")


@pytest.mark.filterwarnings("ignore:Creating .*WeightUpdater:DeprecationWarning")  # within TorchRL
def test_torchrl_s_ppo_learns_with_ordered_draws():
    pytest.importorskip("torchrl", reason="TorchRL comes with the extra `contrib`")
    from tensordict.nn import TensorDictModule
    from torchrl.collectors import Collector
    from torchrl.envs import ExplorationType, GymWrapper, InitTracker, TransformedEnv, set_exploration_type
    from torchrl.modules import ProbabilisticActor, ValueOperator
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE

    images = torch.randn(12, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    made = gym.make("ahm_gym:AHM/Masking-v0", data=images, image_size=32, disable_env_checker=True)
    env = TransformedEnv(GymWrapper(made), InitTracker())
    num_patches, dim = made.observation_space.shape
    logits = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 1), nn.Flatten(-2))
    actor = ProbabilisticActor(
        TensorDictModule(logits, in_keys=["observation"], out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=PlackettLuceScores,
        distribution_kwargs={"num_draws": 6},
        return_log_prob=True,
        spec=env.action_spec,
    )
    critic = ValueOperator(nn.Sequential(nn.Flatten(-2), nn.Linear(num_patches * dim, 1)))
    estimate = GAE(gamma=1.0, lmbda=1.0, value_network=critic)
    loss = ClipPPOLoss(actor, critic)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    before = copy.deepcopy(logits.state_dict())
    for batch in Collector(env, actor, frames_per_batch=8, total_frames=16):
        expected = PlackettLuceScores(batch["logits"], 6).log_prob(batch["action"])
        torch.testing.assert_close(batch["action_log_prob"], expected)
        estimate(batch)
        losses = loss(batch)
        optimizer.zero_grad()
        sum(losses[key] for key in ("loss_objective", "loss_critic", "loss_entropy")).backward()
        optimizer.step()
    assert any(not torch.equal(value, before[name]) for name, value in logits.state_dict().items())
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        shown = actor(env.reset())
    assert torch.equal(shown["action"], PlackettLuceScores(shown["logits"], 6).mode)
