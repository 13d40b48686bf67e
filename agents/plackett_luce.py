"""The Plackett-Luce distribution as one of torch's: ordered draws of patches without replacement."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributions import Distribution, constraints

from ahm_gym.agents.ordering import (
    complete_order,
    draw_order,
    order_statistics,
    scores_of_order,
)
from ahm_gym.errors import InputError


class PlackettLuce(Distribution):
    """Ordered draws of `num_draws` of L patches without replacement, for any library that uses torch's distributions.

    Each draw is from the softmax over the patches that are left (Luce, 1959; Plackett, 1975). A value is an order: the
    indices (..., K) of the patches in the order in which they were drawn, as 64-bit integers. Probabilities are
    computed in double precision, so that logits may differ by hundreds of nats.

    Where fewer than K patches are available, the unavailable ones come last, in any order: these draws are certain,
    with log-probability 0.

    Args:
        logits: logits (..., L) of the patches; -inf is the same as unavailable.
        num_draws: number of draws K, 1 to L; None draws all patches.
        available: False for patches that cannot be drawn (..., L); None allows all.
        validate_args: whether values are checked, for which a GPU must be waited for; None means torch's default.

    Raises:
        InputError: if there are no logits, the number of draws is not from 1 to L, or `available` has another shape.
    """

    arg_constraints: dict[str, constraints.Constraint] = {  # noqa: RUF012  # pyright: ignore
        "logits": constraints.independent(constraints.real, 1)
    }
    has_rsample: bool = False

    def __init__(
        self,
        logits: Tensor,
        num_draws: int | None = None,
        available: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if not logits.ndim or not logits.shape[-1]:
            raise InputError("`logits` has no patches: expected one logit per patch in its last dimension.")
        length = logits.shape[-1]
        self.num_draws: int = length if num_draws is None else num_draws
        if not 1 <= self.num_draws <= length:
            raise InputError(f"`num_draws` is {num_draws}: choose from 1 to the number of patches, {length}.")
        if available is None:
            available = torch.ones_like(logits, dtype=torch.bool)
        if available.shape != logits.shape:
            raise InputError(
                f"`available` has shape {tuple(available.shape)}: expected that of the logits, {tuple(logits.shape)}."
            )
        self.available: Tensor = available.bool() & (logits != -torch.inf)
        lowest = logits.detach().masked_fill(~self.available, 0.0).amin(dim=-1, keepdim=True)
        self.logits: Tensor = torch.where(self.available, logits, lowest)
        super().__init__(logits.shape[:-1], torch.Size([self.num_draws]), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Orders of different patches, none of them unavailable while an available one is left."""
        return _Orders(self.available)

    @property
    def mode(self) -> Int[Tensor, "*shape K"]:
        """The most probable order: the patches from the highest logit to the lowest, equal ones by their index."""
        logits = self.logits.detach().masked_fill(~self.available, -torch.inf)
        return logits.argsort(dim=-1, descending=True, stable=True)[..., : self.num_draws]

    def expand(self, batch_shape: Any, _instance: Any = None) -> PlackettLuce:
        shape = torch.Size(batch_shape) + self.logits.shape[-1:]
        return type(self)(
            self.logits.expand(shape), self.num_draws, self.available.expand(shape), validate_args=False
        )

    @torch.no_grad()
    def sample(
        self, sample_shape: Any = (), generator: torch.Generator | None = None
    ) -> Int[Tensor, "*shape K"]:
        """Orders (*sample_shape, ..., K).

        Args:
            sample_shape: shape of independent samples.
            generator: generator of the draws; None means torch's global one, as in all of its distributions.
        """
        return self.sample_all(sample_shape, generator)[..., : self.num_draws]

    @torch.no_grad()
    def sample_all(
        self, sample_shape: Any = (), generator: torch.Generator | None = None
    ) -> Int[Tensor, "*shape L"]:
        """The same, continued until no patch is left: the first K entries are a sample."""
        shape = torch.Size(sample_shape) + self.logits.shape
        place = self.logits.device if generator is None else generator.device
        uniform = torch.rand(shape, generator=generator, device=place).to(self.logits.device)
        order = draw_order(*self._rows(shape), uniform.reshape(-1, shape[-1]))
        return order.reshape(shape)

    def log_prob(self, value: Int[Tensor, "*shape K"]) -> Float[Tensor, "*batch"]:
        """Log-probability of each whole order."""
        return self.log_probs_of_draws(value).sum(dim=-1)

    def log_probs_of_draws(self, value: Int[Tensor, "*shape K"]) -> Float[Tensor, "*batch K"]:
        """Log-probability of each draw, given the draws before it."""
        return self._draws(value, "log_prob")

    def entropy_of_draws(self, value: Int[Tensor, "*shape K"]) -> Float[Tensor, "*batch K"]:
        """Exact entropy of each draw in nats, given the draws before it."""
        return self._draws(value, "entropy")

    def entropy(
        self, num_samples: int = 1, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*batch"]:
        """Entropy of the order in nats: exact for one draw, otherwise an unbiased estimate.

        By the chain rule it is the expected sum of the entropies of the draws, each given those before it, which are
        sampled. Its gradient is that of these entropies: how the logits change which draws come before is left out.

        Args:
            num_samples: orders over which the estimate is averaged.
            generator: as for `sample`.
        """
        if self.num_draws == 1:
            return self.entropy_of_draws(self.mode)[..., 0]
        return self.entropy_of_draws(self.sample((num_samples,), generator)).sum(dim=-1).mean(dim=0)

    def scores(self, order: Int[Tensor, "*shape K"]) -> Float[Tensor, "*shape L"]:
        """Scores (..., L) from 1 down to -1 for `AHM/Masking-v0`, which masks the patches in this order.

        Patches that were not drawn share the lowest score, so the environment orders them at random.
        """
        shape = order.shape[:-1] + self.logits.shape[-1:]
        rows = order.reshape(-1, order.shape[-1])
        scores = scores_of_order(complete_order(rows, self._rows(shape)[1]))
        drawn = torch.zeros_like(scores, dtype=torch.bool).scatter(1, rows, True)
        return torch.where(drawn, scores, -1.0).reshape(shape)

    def _rows(self, shape: torch.Size) -> tuple[Float[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Logits and available patches as rows, for values whose shape up to the patches is `shape`."""
        return tuple(value.expand(shape).reshape(-1, shape[-1]) for value in (self.logits, self.available))  # pyright: ignore[reportReturnType]

    def _draws(self, value: Int[Tensor, "*shape K"], statistic: str) -> Float[Tensor, "*batch K"]:
        """A field of `OrderStatistics` for each draw of these values."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape) + self.logits.shape[-1:]
        logits, available = self._rows(shape)
        count = value.shape[-1]
        draws = value.expand((*shape[:-1], count)).reshape(-1, count)
        order = complete_order(draws, available)
        left = available.gather(1, order)
        found = order_statistics(logits.gather(1, order), torch.zeros_like(logits), left)
        return getattr(found, statistic)[:, :count].reshape((*shape[:-1], count))


class PlackettLuceScores(Distribution):
    """The same distribution over scores (..., L) from 1 to -1, the actions of `AHM/Masking-v0`: a drop-in policy.

    Only the order of scores counts. The probability of a vector of scores is that of its `num_draws` highest, so choose
    as many draws as the environment guides patches (`info["num_guided"]`): later draws would only add noise.

    Args:
        logits: logits (..., L) of the patches.
        num_draws: as for `PlackettLuce`, which checks the arguments.
        available: as for `PlackettLuce`.
        validate_args: as for `PlackettLuce`.
    """

    arg_constraints: dict[str, constraints.Constraint] = {  # noqa: RUF012  # pyright: ignore
        "logits": constraints.independent(constraints.real, 1)
    }
    support: constraints.Constraint = constraints.independent(constraints.real, 1)  # pyright: ignore
    has_rsample: bool = False

    def __init__(
        self,
        logits: Tensor,
        num_draws: int | None = None,
        available: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.orders: PlackettLuce = PlackettLuce(logits, num_draws, available, validate_args)
        self.logits: Tensor = self.orders.logits
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    @property
    def mode(self) -> Float[Tensor, "*shape L"]:
        """Scores of the most probable order."""
        full = PlackettLuce(self.logits, None, self.orders.available, validate_args=False)
        return full.scores(full.mode)

    @property
    def deterministic_sample(self) -> Float[Tensor, "*shape L"]:
        """The mode, by the name that TorchRL uses."""
        return self.mode

    def expand(self, batch_shape: Any, _instance: Any = None) -> PlackettLuceScores:
        orders = self.orders.expand(batch_shape)
        return type(self)(orders.logits, orders.num_draws, orders.available, validate_args=False)

    @torch.no_grad()
    def sample(
        self, sample_shape: Any = (), generator: torch.Generator | None = None
    ) -> Float[Tensor, "*shape L"]:
        """Scores of sampled orders of all patches; the arguments are those of `PlackettLuce.sample`."""
        order = self.orders.sample_all(sample_shape, generator)
        return scores_of_order(order.reshape(-1, order.shape[-1])).reshape(order.shape)

    def log_prob(self, value: Float[Tensor, "*shape L"]) -> Float[Tensor, "*batch"]:
        """Log-probability of the `num_draws` highest scores in their order."""
        if self._validate_args:
            self._validate_sample(value)
        return self.orders.log_prob(self.order(value))

    def entropy(
        self, num_samples: int = 1, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*batch"]:
        """Entropy of the draws; see `PlackettLuce.entropy`."""
        return self.orders.entropy(num_samples, generator)

    def order(self, scores: Float[Tensor, "*shape L"]) -> Int[Tensor, "*shape K"]:
        """The draws of these scores: the available patches from the highest score to the lowest."""
        return PlackettLuce(
            scores, self.orders.num_draws, self.orders.available.expand(scores.shape), False
        ).mode


class _Orders(constraints.Constraint):
    """Orders of different patches, with the unavailable ones last."""

    is_discrete = True
    event_dim = 1

    def __init__(self, available: Tensor) -> None:
        self.available: Tensor = available
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        length, count = self.available.shape[-1], value.shape[-1]
        inside = (value >= 0) & (value < length) & (value == value.long())
        index = value.long().clamp(0, length - 1)
        found = torch.zeros((*value.shape[:-1], length), dtype=torch.bool, device=value.device)
        different = found.scatter(-1, index, True).sum(dim=-1) == count
        available = self.available.expand(found.shape)
        left = available.gather(-1, index)
        ended = torch.arange(count, device=value.device) >= available.sum(dim=-1, keepdim=True)
        return (inside & (left | ended)).all(dim=-1) & different
