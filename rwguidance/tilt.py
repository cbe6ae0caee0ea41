r"""The tilt: from rewards to log-weights, :math:`\log w(x_0, y) = \sum_j r_j(x_0, y) / \beta_j`.

Tilting a law p by w gives :math:`p(x_0 | y) \, w(x_0, y) / Z(y)`, the law that maximizes
:math:`E[r] - \beta \, \mathrm{KL}(\cdot \,\|\, p)`. A smaller beta asks for more reward and pays
for it with a larger divergence from the pretrained model. How much is set by reward units, which
nobody has a feeling for; :meth:`Tilt.for_kl` and its siblings choose beta from quantities that one
does have a feeling for.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, SupportsFloat

import torch
from torch import Tensor, nn

from .schedules import working_dtype
from .support.conditions import condition_keys
from .temperature import beta_for_ess, beta_for_kl, beta_for_reward

__all__ = ["Draws", "RewardFunction", "Tilt", "check_rewards"]

RewardFunction = Callable[[Tensor, Any], Tensor]
"""Anything that maps (x, condition) to one reward per item, with shape (N,)."""


class Tilt(nn.Module):
    r"""A log-weight in nats, :math:`\log w = r / \beta`.

    Arguments:
        reward: A callable (x, condition) -> (N,) in reward units, or several of them. A value of
            -inf is a legitimate zero weight.
        beta: The temperature of each reward, positive, in reward units.
        decode: A function from states to what the rewards look at (latents to images), which runs
            once for all rewards.

    Raises:
        ValueError: If a beta is not positive and finite, or there is not one for each reward.
        TypeError: If a beta is not a number, or a reward or `decode` is not callable.
    """

    depends_on = ("rewards", "betas", "decode")

    def __init__(
        self,
        reward: RewardFunction | Sequence[RewardFunction],
        beta: float | Sequence[float],
        decode: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.rewards = tuple(reward) if isinstance(reward, Sequence) else (reward,)
        betas = tuple(beta) if isinstance(beta, Sequence) and not isinstance(beta, str) else (beta,)
        if len(betas) != len(self.rewards) or not betas:
            raise ValueError(
                f"beta must hold one temperature per reward, {len(self.rewards)}, got {len(betas)}"
            )
        for value in betas:
            if not isinstance(value, SupportsFloat):
                raise TypeError(f"beta must be a number, got {type(value).__name__}")
            if not 0 < float(value) < math.inf:
                raise ValueError(f"beta must be positive and finite, got {value}")
        for function in (*self.rewards, *(() if decode is None else (decode,))):
            if not callable(function):
                raise TypeError(
                    f"reward and decode must be callable, got {type(function).__name__}"
                )
        self.betas = tuple(float(value) for value in betas)
        self.decode = decode
        for i, function in enumerate(self.rewards):
            if isinstance(function, nn.Module):  # so that .to(device) reaches it
                self.add_module(f"reward_{i}", function)

    def score(self, x_0: Tensor, condition: Any = None) -> Tensor:
        r"""Returns raw rewards in reward units, with shape (N,), or (N, R) for R > 1 rewards.

        Arguments:
            x_0: Clean states, with shape (N, \*event).
            condition: What the rewards are conditioned on.

        Raises:
            ValueError: If a reward has the wrong shape or holds NaN or +inf; names the items.
        """

        x = x_0 if self.decode is None else self.decode(x_0)
        columns = [
            check_rewards(reward(x, condition), len(x_0), condition) for reward in self.rewards
        ]
        return columns[0] if len(columns) == 1 else torch.stack(columns, dim=-1)

    def weigh(self, rewards: Tensor) -> Tensor:
        r"""Returns log-weights in nats, with shape (N,), of rewards as :meth:`score` returns them.

        Raises:
            ValueError: If the rewards do not have the shape that :meth:`score` gives them.
        """

        expected = 1 if len(self.betas) == 1 else 2
        if rewards.ndim != expected or (expected == 2 and rewards.shape[1] != len(self.betas)):
            shape = "(N,)" if expected == 1 else f"(N, {len(self.betas)})"
            raise ValueError(f"rewards must have shape {shape}, got {tuple(rewards.shape)}")
        rewards = rewards.to(working_dtype(rewards.dtype))
        if expected == 1:
            return rewards / self.betas[0]
        return (rewards / rewards.new_tensor(self.betas)).sum(-1)

    def forward(self, x_0: Tensor, condition: Any = None) -> Tensor:
        r"""Returns log-weights :math:`\log w` in nats, float32 or wider, with shape (N,).

        Arguments:
            x_0: Clean states, with shape (N, \*event).
            condition: What the rewards are conditioned on.
        """

        return self.weigh(self.score(x_0, condition))

    @classmethod
    def for_kl(
        cls,
        reward: RewardFunction,
        bank: "Draws",
        nats: float,
        decode: Callable[[Tensor], Tensor] | None = None,
    ) -> "Tilt":
        r"""Chooses beta such that :math:`\mathrm{KL}(\tilde p \,\|\, p)` on the bank is `nats`.

        With several conditions in the bank, the mean over conditions is `nats`.

        Raises:
            ValueError: If the bank cannot reach the target; states the range that it can.
        """

        beta = beta_for_kl(cls._rewards_by_condition(reward, bank, decode), nats)
        return cls(reward, beta, decode)

    @classmethod
    def for_ess(
        cls,
        reward: RewardFunction,
        bank: "Draws",
        fraction: float,
        decode: Callable[[Tensor], Tensor] | None = None,
    ) -> "Tilt":
        r"""Chooses beta such that the weights keep a `fraction` of the bank as effective draws.

        With several conditions in the bank, the mean over conditions is `fraction`.

        Raises:
            ValueError: If the bank cannot reach the target; states the range that it can.
        """

        beta = beta_for_ess(cls._rewards_by_condition(reward, bank, decode), fraction)
        return cls(reward, beta, decode)

    @classmethod
    def for_reward(
        cls,
        reward: RewardFunction,
        bank: "Draws",
        level: float,
        decode: Callable[[Tensor], Tensor] | None = None,
    ) -> "Tilt":
        r"""Chooses beta such that the mean reward of the tilted bank is `level`, in reward units.

        With several conditions in the bank, the mean over conditions is `level`.

        Raises:
            ValueError: If the bank cannot reach the target; states the range that it can.
        """

        beta = beta_for_reward(cls._rewards_by_condition(reward, bank, decode), level)
        return cls(reward, beta, decode)

    @classmethod
    def _rewards_by_condition(
        cls,
        reward: RewardFunction,
        bank: "Draws",
        decode: Callable[[Tensor], Tensor] | None,
    ) -> list[Tensor]:
        """The rewards of a bank, one tensor of shape (N,) per condition; scored here if need be."""

        if bank.rewards is None:
            bank = bank.scored(cls(reward, 1.0, decode))
        assert bank.rewards is not None
        if bank.rewards.ndim != 1:
            raise ValueError(
                "choosing beta needs a bank scored by one reward, shape (N,), "
                f"got rewards of shape {tuple(bank.rewards.shape)}"
            )
        return [bank.rewards[rows] for rows in bank.rows.values()]


class Draws(Protocol):
    """The part of a :class:`rwguidance.Bank` that :class:`Tilt` needs to choose beta."""

    @property
    def rewards(self) -> Tensor | None:
        """Rewards in reward units, with shape (N,), or (N, R) for R rewards; None if not scored."""

    @property
    def rows(self) -> Mapping[Hashable, slice]:
        """Rows of the draws of each condition."""

    def scored(self, tilt: Tilt) -> "Draws":
        """Returns the same draws with the rewards of `tilt`."""


def check_rewards(values: Tensor, n: int, condition: Any = None) -> Tensor:
    """Returns `values` if they are usable rewards of `n` items, and explains why not otherwise.

    Raises:
        TypeError: If they are not a floating-point tensor.
        ValueError: If the shape is not (n,), or a value is NaN or +inf; names items and conditions.
    """

    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = str(values.dtype) if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"a reward must return a floating-point tensor, got {kind}")
    if values.shape != (n,):
        raise ValueError(
            f"a reward must return one value per item, shape ({n},), got {tuple(values.shape)}; "
            "reduce over the other axes, e.g. .flatten(1).mean(1)"
        )
    bad = values.isnan() | (values == math.inf)
    if bool(bad.any()):
        items = bad.nonzero().flatten().tolist()
        keys = _keys_if_any(condition, n)
        names = ", ".join(
            f"item {i} ({values[i].item()}" + (f", condition {keys[i]!r})" if keys else ")")
            for i in items[:5]
        )
        more = f" and {len(items) - 5} more" if len(items) > 5 else ""
        raise ValueError(f"a reward must not be NaN or +inf, got {names}{more}")
    return values


def _keys_if_any(condition: Any, n: int) -> tuple[Hashable, ...] | None:
    """Keys for a message, which must not fail on a condition that only the reward understands."""

    try:
        return condition_keys(condition, n)
    except (TypeError, ValueError):
        return None
