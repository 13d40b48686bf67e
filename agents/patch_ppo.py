"""Proximal policy optimisation (PPO) over patches."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ahm_gym.agents.base import Callback, MakeEnv, Metrics, paid_images, update_metrics
from ahm_gym.agents.losses import CREDITS, credit_draws, critic_loss, explained_variance, sizes
from ahm_gym.agents.ordering import order_statistics
from ahm_gym.agents.patch_agent import Network, PatchAgent
from ahm_gym.agents.player import Player, Transition
from ahm_gym.agents.returns import scaled_returns
from ahm_gym.device.cuda_graphs import Gradients
from ahm_gym.device.transfers import Fetch, to_device
from ahm_gym.errors import RunError, check_numbers, unknown_name


class Experience(NamedTuple):
    """Steps of images that were acted in, one a row; entries "in order" are in the order of the draws."""

    observation: Float[Tensor, "N L D"]
    order: Int[Tensor, "N L"]
    available: Bool[Tensor, "N L"]
    drawn: Bool[Tensor, "N L"]
    """True for draws, in order."""
    counted: Bool[Tensor, "N L"]
    """The draws over which the policy loss is averaged, in order."""
    log_prob: Float[Tensor, "N L"]
    """Log-probability of each draw when it was drawn, in order."""
    advantage: Float[Tensor, "N L"]
    """In order."""
    masked: Bool[Tensor, "N L"]
    """Patches on which the critic is fitted."""
    values: Float[Tensor, "N L"]
    """Values by the critic of that moment."""
    patch_return: Float[Tensor, "N L"]
    image_return: Float[Tensor, " N"]


class PatchPPO(PatchAgent):
    """PPO in which every draw has a probability ratio and a credit of its own.

    After "Proximal Policy Optimization Algorithms" (Schulman et al., 2017). Policy, network, credit and reward are
    those of `A3C`; it learns in several epochs from a rollout of several batches. The ratio of each draw, given the
    draws before it, is clipped by itself: that of a whole mask, a product of dozens, would leave the range at once.
    Advantages are those of the critic that acted; in episodes of several steps they follow from generalised advantage
    estimation. Metrics have the names of stable-baselines3 where they mean the same.

    Args:
        observation_shape: number of patches L and width of an embedding D.
        grid: rows and columns of patches; None means a square.
        credit: whose reward a draw is paid: own, local or image; see `A3C`.
        rollout_batches: batches of images, each an update of the autoencoder, from which it learns at a time.
        num_epochs: passes over a rollout.
        num_minibatches: parts of a rollout, one update of the weights each.
        clip_range: largest change of a draw's probability that is still rewarded, as a share of it.
        target_kl: ends the epochs of a rollout after one in which the policy has moved by more than 1.5 times this
            Kullback-Leibler divergence per draw, in nats; None never does.
        normalise_advantage: whether the advantages of a minibatch get mean 0 and standard deviation 1.
        gamma: discount per step.
        gae_lambda: lambda of generalised advantage estimation.
        entropy_coef: weight of the mean entropy of the draws.
        value_coef: weight of the critic's loss.
        logit_cost: weight of the mean square of the logits; see `A3C`.
        learning_rate: learning rate of Adam.
        max_grad_norm: largest norm of the gradient, which is clipped to it.
        width: width of the network's hidden layers.
        network: conv, attention, or a function that builds another network from the grid.
        seed: seed of the network's initial weights.
        device: device of the network.

    Raises:
        InputError: if credit or network is unknown, or a number is out of range.
    """

    title = "patch_ppo"

    def __init__(
        self,
        observation_shape: tuple[int, int],
        *,
        grid: tuple[int, ...] | None = None,
        credit: str = "own",
        rollout_batches: int = 4,
        num_epochs: int = 4,
        num_minibatches: int = 4,
        clip_range: float = 0.2,
        target_kl: float | None = None,
        normalise_advantage: bool = True,
        gamma: float = 1.0,
        gae_lambda: float = 1.0,
        entropy_coef: float = 0.02,
        value_coef: float = 0.5,
        logit_cost: float = 0.005,
        learning_rate: float = 3e-3,
        max_grad_norm: float = 1.0,
        width: int = 32,
        network: Network = "conv",
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if credit not in CREDITS:
            raise unknown_name("credit", credit, CREDITS)
        check_numbers(
            "count",
            rollout_batches=rollout_batches,
            num_epochs=num_epochs,
            num_minibatches=num_minibatches,
        )
        check_numbers("share", gamma=gamma, gae_lambda=gae_lambda)
        check_numbers("cost", value_coef=value_coef)
        check_numbers("size", clip_range=clip_range, target_kl=1.0 if target_kl is None else target_kl)
        self.credit: str = credit
        self.rollout_batches: int = rollout_batches
        self.num_epochs: int = num_epochs
        self.num_minibatches: int = num_minibatches
        self.clip_range: float = clip_range
        self.target_kl: float | None = target_kl
        self.normalise_advantage: bool = normalise_advantage
        self.gamma: float = gamma
        self.gae_lambda: float = gae_lambda
        self.value_coef: float = value_coef
        self.stored: list[Experience] = []
        """The batches of the rollout that is not complete yet."""
        super().__init__(
            observation_shape,
            grid=grid,
            entropy_coef=entropy_coef,
            logit_cost=logit_cost,
            learning_rate=learning_rate,
            max_grad_norm=max_grad_norm,
            width=width,
            network=network,
            seed=seed,
            device=device,
        )

    def learn(
        self, make_env: MakeEnv, num_steps: int, *, seed: int | None, callback: Callback | None = None
    ) -> None:
        player = Player(self, self.network, make_env(), self.generator, seed)
        parameters = list(self.network.parameters())
        passes = Gradients(self.minibatch_loss, parameters, self.max_grad_norm, records=self.network.records)
        for _ in range(num_steps):
            rollout, info, reward, _ = player.play()
            metrics = update_metrics(info, reward)
            if any(bool(step.guided.any()) for step in rollout):
                mask = torch.as_tensor(info["mask"]) & torch.as_tensor(paid_images(info))[:, None]
                self.stored.append(self._experience(rollout, mask, player.bootstrap(rollout)))
            if len(self.stored) >= self.rollout_batches:
                metrics |= self._improve(passes)
            if callback is not None and callback(metrics):
                return

    def _experience(
        self,
        rollout: list[Transition],
        mask: Bool[Tensor, "B L"],
        bootstrap: tuple[Float[Tensor, "B L"], Float[Tensor, " B"]],
    ) -> Experience:
        """What is learned from an episode.

        Args:
            rollout: its steps.
            mask: the patches masked at its end, in the images that were paid.
            bootstrap: values after it.

        Raises:
            RunError: if a reward is not finite.
        """
        if bool(mask.any()):
            mean_square = rollout[-1].patch_reward[mask].square().mean()
            if not math.isfinite(mean_square):
                raise RunError(
                    f"the rewards are not finite after {int(self.writes)} updates of the agent; the last checkpoint "
                    "is still good."
                )
            self.network.reward_scale.follow(to_device(mean_square, self.device))
        paid, mask = mask.any(dim=1), to_device(mask, self.device)
        patch_return, image_return = self._returns(rollout, bootstrap)
        rows, later = [], None
        for t in reversed(range(len(rollout))):
            step = rollout[t]
            left = step.available.gather(1, step.order)
            values = step.values.gather(1, step.order)
            draws = order_statistics(step.logits.gather(1, step.order), values, left)
            guided = to_device(step.guided & paid[:, None], self.device)
            chosen = (guided & step.available).gather(1, step.order)
            returns = (patch_return[t].gather(1, step.order), image_return[t] - step.image_value)
            advantage, drawn, later = credit_draws(draws, values, chosen, *returns, self.credit, later)
            later = later._replace(paid=self.gamma * later.paid)
            counted = chosen if self.credit == "local" else drawn
            acted = (step.observation, step.order, step.available, drawn, counted, draws.log_prob, advantage)
            rows.append(Experience(*acted, mask, step.values, patch_return[t], image_return[t]))
        return joined(rows[::-1])

    def _returns(
        self, rollout: list[Transition], bootstrap: tuple[Float[Tensor, "B L"], Float[Tensor, " B"]]
    ) -> tuple[Float[Tensor, "T B L"], Float[Tensor, "T B"]]:
        """Returns of every patch and of the whole masks, in units of the running scale of the rewards."""
        stacked = (
            to_device(torch.stack([getattr(step, name) for step in rollout]), self.device)
            for name in ("patch_reward", "image_reward", "ended", "values", "image_value")
        )
        scale = self.network.reward_scale.value()
        return scaled_returns(*stacked, bootstrap, scale, gamma=self.gamma, gae_lambda=self.gae_lambda)

    def _improve(self, passes: Gradients) -> Metrics:
        """Learns from the stored batches in several epochs, and forgets them; returns metrics.

        Raises:
            RunError: if a gradient is not finite.
        """
        stored, self.stored = joined(self.stored), []
        explained = explained_variance(stored.values, stored.patch_return, stored.masked)
        numbers: list[Tensor] = []
        for _ in range(self.num_epochs):
            shuffled = torch.randperm(len(stored.order), generator=self.generator)
            parts = [part for part in shuffled.chunk(self.num_minibatches) if len(part)]
            for part in parts:
                rows = to_device(part, self.device)
                loss, reported, norm = passes(*(value[rows] for value in stored))
                self.write()
                numbers.append(torch.cat((reported, torch.stack((loss, norm)))))
            if self.target_kl is not None:
                moved = Fetch(torch.stack(numbers[-len(parts) :])[:, 0].mean()).wait()
                if float(moved) > 1.5 * self.target_kl:
                    break
        mean = torch.cat((torch.stack(numbers).mean(dim=0), explained[None]))
        kl, clipped, policy, value, entropy, relative, total, norm, share = Fetch(mean).wait().tolist()
        if not math.isfinite(norm):
            raise RunError(
                f"the agent's gradient is not finite (loss {total}) by its update {int(self.writes)}: check the "
                "rewards; the last checkpoint is still good."
            )
        return {
            "train/approx_kl": kl,
            "train/clip_fraction": clipped,
            "train/policy_gradient_loss": policy,
            "train/value_loss": value,
            "train/entropy_loss": -entropy,
            "train/explained_variance": share,
            "train/grad_norm": norm,
            "train/n_updates": float(self.writes),
            "agent/draw_entropy": relative,
        }

    def minibatch_loss(self, *rows: Tensor) -> tuple[Tensor, Tensor]:
        """The loss for the fields of an `Experience`, and its parts that are reported: KL divergence per draw, share of
        the draws that were clipped, policy loss, value loss, entropy in nats and relative to the largest."""
        seen = Experience(*rows)
        output = self.network(seen.observation)
        left = seen.available.gather(1, seen.order)
        values = output.values.detach().gather(1, seen.order)
        draws = order_statistics(output.logits.gather(1, seen.order), values, left)
        advantage = seen.advantage
        if self.normalise_advantage:
            advantage = normalised(advantage, seen.drawn)
        log_ratio = (draws.log_prob - seen.log_prob) * seen.drawn
        ratio = log_ratio.exp()
        within = ratio.clamp(1.0 - self.clip_range, 1.0 + self.clip_range)
        gain = torch.minimum(ratio * advantage, within * advantage) * seen.drawn
        policy = -gain.sum() / seen.counted.sum().clamp(min=1)
        value = critic_loss(output, seen.masked, seen.patch_return, seen.image_return, self.credit)
        entropy, relative, logit_square = sizes(output.logits, draws, left, seen.available, seen.drawn)
        loss = policy + self.value_coef * value - self.entropy_coef * entropy + self.logit_cost * logit_square
        with torch.no_grad():
            count = seen.drawn.sum().clamp(min=1)
            kl = ((ratio - 1.0 - log_ratio) * seen.drawn).sum() / count
            clipped = (((ratio - 1.0).abs() > self.clip_range) & seen.drawn).sum() / count
        return loss, torch.stack((kl, clipped, policy, value, entropy, relative)).detach()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"stored": [batch._asdict() for batch in self.stored]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.stored = [
            Experience(**{name: value.to(self.device).clone() for name, value in batch.items()})
            for batch in state["stored"]
        ]


def joined(parts: list[Experience]) -> Experience:
    """The rows of all parts."""
    return Experience(*(torch.cat(values) for values in zip(*parts, strict=True)))


def normalised(advantage: Float[Tensor, "N L"], drawn: Bool[Tensor, "N L"]) -> Float[Tensor, "N L"]:
    """The advantages of the draws with mean 0 and standard deviation 1."""
    count = drawn.sum().clamp(min=1)
    centred = (advantage - (advantage * drawn).sum() / count) * drawn
    return centred / ((centred.square().sum() / count).sqrt() + 1e-8)
