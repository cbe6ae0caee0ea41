r"""The tilt: from rewards to log-weights, :math:`\log w(x_0, y) = \sum_j r_j(x_0, y) / \beta_j`.

Tilting a law p by w gives :math:`p(x_0 | y) \, w(x_0, y) / Z(y)`, the law that maximizes
:math:`E[r] - \beta \, \mathrm{KL}(\cdot \,\|\, p)`. A smaller beta asks for more reward and pays
for it with a larger divergence from the pretrained model. How much is set by reward units, which
nobody has a feeling for; :meth:`Tilt.for_kl` and its siblings choose beta from quantities that one
does have a feeling for.
"""

import inspect
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .schedules import working_dtype
from .support import checks
from .support.conditions import condition_keys
from .support.describe import summary
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
        TypeError: If a beta is not a number, a reward or `decode` is not callable, or a reward does
            not take two arguments; says how to wrap it.
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
        self.betas = tuple(checks.number("beta", value, above=0) for value in betas)
        for function in self.rewards:
            checks.function("reward", function, classes=False)
        checks.optional(checks.function, "decode", decode)
        self.decode = decode
        for function in self.rewards:
            _check_takes_a_condition(function)
        for i, function in enumerate(self.rewards):
            if isinstance(function, nn.Module):  # so that .to(device) reaches it
                self.add_module(f"reward_{i}", function)

    def __repr__(self) -> str:
        decode = {} if self.decode is None else {"decode": self.decode}
        if len(self.rewards) != 1:
            return summary(self, reward=self.rewards, beta=self.betas, **decode)
        (reward,), (beta,) = self.rewards, self.betas
        return summary(self, reward=reward, beta=beta, **decode)

    def score(self, x_0: Tensor, condition: Any = None) -> Tensor:
        r"""Returns raw rewards in reward units, with shape (N,), or (N, R) for R > 1 rewards.

        Arguments:
            x_0: Clean states, with shape (N, \*event).
            condition: What the rewards are conditioned on.

        Raises:
            TypeError: If the states or what a reward returns are no floating-point tensor.
            ValueError: If a reward has the wrong shape or holds NaN or +inf; names the items.
        """

        checks.states("x_0", x_0, event=False)
        x = x_0 if self.decode is None else self.decode(x_0)
        columns = [
            check_rewards(reward(x, condition), len(x_0), condition) for reward in self.rewards
        ]
        if len(columns) == 1:
            (rewards,) = columns
            return rewards
        return torch.stack(columns, dim=-1)

    def weigh(self, rewards: Tensor) -> Tensor:
        r"""Returns log-weights in nats, with shape (N,), of rewards as :meth:`score` returns them.

        Raises:
            TypeError: If the rewards are no floating-point tensor.
            ValueError: If the rewards do not have the shape that :meth:`score` gives them, or a
                log-weight overflows; names the items.
        """

        checks.tensor("rewards", rewards)
        expected = 1 if len(self.betas) == 1 else 2
        if rewards.ndim != expected or (expected == 2 and rewards.shape[1] != len(self.betas)):
            shape = "(N,)" if expected == 1 else f"(N, {len(self.betas)})"
            raise ValueError(f"rewards must have shape {shape}, got {tuple(rewards.shape)}")
        rewards = rewards.to(working_dtype(rewards.dtype))
        if expected == 1:
            (beta,) = self.betas
            log_w = rewards / beta
        else:
            log_w = (rewards / rewards.new_tensor(self.betas)).sum(-1)
        self._check_overflow(rewards, log_w)
        return log_w

    def _check_overflow(self, rewards: Tensor, log_w: Tensor) -> None:
        """Raises where finite rewards give a log-weight that is not."""

        zero = (rewards == -math.inf).reshape(len(rewards), -1).any(1)
        bad = ~(log_w.isfinite() | zero)
        if bool(bad.any()):
            items = bad.nonzero().flatten().tolist()
            raise ValueError(
                f"log-weights must be finite where rewards are, but beta = {self.betas} makes them "
                f"overflow {log_w.dtype} for items {items[:5]}; use a larger beta"
            )

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

        With several conditions in the bank, the mean over conditions is `nats`. None as `decode`
        is the decoder of the bank, if it has one.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If the bank cannot reach the target; states the range that it can.
        """

        checks.number("nats", nats)
        decode = _decoder(bank, decode)
        rewards, log_importance = cls._by_condition(reward, bank, decode)
        beta = beta_for_kl(rewards, nats, log_importance)
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

        With several conditions in the bank, the mean over conditions is `fraction`. None as
        `decode` is the decoder of the bank, if it has one.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If the bank cannot reach the target; states the range that it can.
        """

        checks.number("fraction", fraction)
        decode = _decoder(bank, decode)
        rewards, log_importance = cls._by_condition(reward, bank, decode)
        beta = beta_for_ess(rewards, fraction, log_importance)
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

        With several conditions in the bank, the mean over conditions is `level`. None as `decode`
        is the decoder of the bank, if it has one.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If the bank cannot reach the target; states the range that it can.
        """

        checks.number("level", level)
        decode = _decoder(bank, decode)
        rewards, log_importance = cls._by_condition(reward, bank, decode)
        beta = beta_for_reward(rewards, level, log_importance)
        return cls(reward, beta, decode)

    @classmethod
    def _by_condition(
        cls,
        reward: RewardFunction,
        bank: "Draws",
        decode: Callable[[Tensor], Tensor] | None,
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        """The rewards of a bank and its log-importance, a tensor of shape (N,) per condition.

        The bank is scored here if need be.
        """

        checks.function("reward", reward, "one callable", classes=False)
        checks.instance("bank", bank, Draws, "a Bank")
        if bank.rewards is None:
            bank = bank.scored(cls(reward, 1.0, decode))
        assert bank.rewards is not None
        if bank.rewards.ndim != 1:
            raise ValueError(
                "choosing beta needs a bank scored by one reward, shape (N,), "
                f"got rewards of shape {tuple(bank.rewards.shape)}"
            )
        rewards, log_q = bank.rewards, bank.log_importance
        groups = bank.rows.values()
        return (
            [rewards[rows] for rows in groups],
            None if log_q is None else [log_q[rows] for rows in groups],
        )


def _decoder(
    bank: Any, decode: Callable[[Tensor], Tensor] | None
) -> Callable[[Tensor], Tensor] | None:
    """The decoder that is asked for, or that of the bank, if it has one."""

    return getattr(bank, "decode", None) if decode is None else decode


@runtime_checkable
class Draws(Protocol):
    """The part of a :class:`rwguidance.Bank` that :class:`Tilt` needs to choose beta."""

    @property
    def rewards(self) -> Tensor | None:
        """Rewards in reward units, with shape (N,), or (N, R) for R rewards; None if not scored."""

    @property
    def log_importance(self) -> Tensor | None:
        """Log-importances in nats, with shape (N,); None if they are draws of the model."""

    @property
    def rows(self) -> Mapping[Hashable, slice]:
        """Rows of the draws of each condition."""

    def scored(self, tilt: Tilt) -> "Draws":
        """Returns the same draws with the rewards of `tilt`."""


def check_rewards(values: Tensor, n: int, condition: Any = None, name: str = "a reward") -> Tensor:
    """Returns `values` if they are usable rewards of `n` items, and explains why not otherwise.

    Arguments:
        values: The rewards.
        n: Number of items.
        condition: Conditions of the items, for messages.
        name: What messages are about: a reward that returned the values, or an argument.

    Raises:
        TypeError: If they are not a floating-point tensor.
        ValueError: If the shape is not (n,), or a value is NaN or +inf; names items and conditions.
    """

    rule = "a reward must return" if name == "a reward" else f"{name} must be"
    if not isinstance(values, Tensor) or not values.is_floating_point():
        call = "reward(x, condition)"
        wrapped = call if isinstance(values, Tensor) else f"torch.as_tensor({call})"
        raise TypeError(
            f"{rule} a floating-point tensor, got {checks.described(values)}"
            + (f"; wrap it: lambda x, condition: {wrapped}.float()" if name == "a reward" else "")
        )
    if values.shape != (n,):
        raise ValueError(
            f"{rule} one value per item, shape ({n},), got {tuple(values.shape)}; "
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
        raise ValueError(f"{name} must not be NaN or +inf, got {names}{more}")
    return values


def _check_takes_a_condition(reward: RewardFunction) -> None:
    """Checks that a reward can be called with two arguments, if that can be known."""

    function: Callable[..., Any] = reward
    if isinstance(reward, nn.Module) and type(reward).__call__ is nn.Module.__call__:
        function = reward.forward
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C do not tell
        return
    try:
        signature.bind(None, None)
    except TypeError:
        raise TypeError(
            f"a reward takes (x, condition), but this one takes {signature}; wrap it: "
            "lambda x, condition: reward(x)"
        ) from None


def _keys_if_any(condition: Any, n: int) -> tuple[Hashable, ...] | None:
    """Keys for a message, which must not fail on a condition that only the reward understands."""

    try:
        return condition_keys(condition, n)
    except (TypeError, ValueError):
        return None
