r"""Rewards made of rewards: weighted sums, lower confidence bounds, normalized rewards.

.. math::
    \text{WeightedSum:} \quad \sum_k w_k \, r_k, \qquad
    \text{LowerConfidenceBound:} \quad \bar r - \kappa \, s(r_1, \dots, r_K), \qquad
    \text{Normalized:} \quad f(r, y).

A composition is a :class:`rewards.Reward` like its parts, so it can be scored, tilted by, and
composed again. Every part is called once with all the images, and batches images of several sizes
as it does alone. Gradients reach the images through every part that has them.

As log-weights, :math:`\sum_k w_k r_k / \beta` is a :class:`rwguidance.Tilt` of several rewards with
the temperatures :math:`\beta / w_k`. Use the tilt if the raw rewards are wanted afterwards, and a
composition where one reward is asked for.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rwguidance.schedules import working_dtype
from rwguidance.support.checks import number
from rwguidance.tilt import check_rewards

from .base import Reward, RewardSpec, as_strings
from .images import Images
from .joint_spec import joint_spec
from .normalizers import Normalizer

__all__ = ["Composite", "LowerConfidenceBound", "Normalized", "WeightedSum"]


class Composite(Reward):
    r"""A reward that is a function of other rewards. A subclass implements :meth:`combine`.

    Its `spec` is that of an instance and follows from the parts: it is differentiable if all parts
    are, needs prompts if one does, and its licenses are those of all parts together.

    Arguments:
        parts: The rewards, at least one.
        spec: The facts; :func:`rewards.joint_spec.joint_spec` derives what can be derived.

    Attributes:
        parts: The rewards, as a `torch.nn.ModuleList`.
        straight_through: Whether one of the parts has such a gradient.

    Raises:
        TypeError: If a part is not a :class:`rewards.Reward`.
        ValueError: If there is none.
    """

    def __init__(self, parts: Sequence[Reward], spec: RewardSpec) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.spec = spec
        self.straight_through = any(part.straight_through for part in parts)

    @abstractmethod
    def combine(self, values: Sequence[Tensor], prompts: Sequence[str] | None) -> Tensor:
        r"""The value of the composition, float32 or wider, entry by entry.

        Arguments:
            values: One tensor per part, in its reward units, all with the same shape, (B,) or
                (n, B). Entries are not NaN or +inf, but may be -inf.
            prompts: The prompt of each entry of the last axis; None if the composition needs none.
        """

    def __call__(self, images: Images, prompts: Any = None) -> Tensor:
        """Calls every part with all images and prompts, and combines the values.

        Arguments:
            images: Images as :class:`rewards.Reward` takes them; each part checks and preprocesses
                them.
            prompts: One prompt per image; ignored by the parts that need none.

        Returns:
            Values in the composition's reward units, float32 or wider, with shape (B,).

        Raises:
            TypeError: If a part refuses the images or prompts.
            ValueError: If a part refuses the images or prompts, or returns NaN or +inf; names part,
                items and prompts.
        """

        values: Tensor = nn.Module.__call__(self, images, prompts)
        return values

    def forward(self, images: Images, prompts: Any = None) -> Tensor:
        """Values of the composition, see :meth:`__call__`."""

        values = [
            _checked(self._part(k), part(images, prompts), _count(images), prompts)
            for k, part in enumerate(self._rewards())
        ]
        n = _count(images)
        texts = self._prompts(prompts, n) or None
        return _checked(self.spec.name, self._combine(values, texts), n, prompts)

    def score_matrix(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """Rewards of every image with every prompt, with shape (n, m).

        Arguments:
            images: n images, as in :meth:`__call__`.
            prompts: m prompts.

        Raises:
            TypeError: If a part refuses the images or prompts.
            ValueError: If a part refuses them, or returns NaN or +inf; names part, items and
                prompts.
        """

        texts = as_strings(prompts)
        values = [
            _checked_matrix(self._part(k), part.score_matrix(images, texts), texts)
            for k, part in enumerate(self._rewards())
        ]
        return _checked_matrix(self.spec.name, self._combine(values, texts), texts)

    def _combine(self, values: list[Tensor], texts: Sequence[str] | None) -> Tensor:
        # Parts without tensors leave PIL images on the CPU.
        first, *_ = values
        device = first.device if self.device is None else self.device
        wide = [value.to(device, working_dtype(value.dtype)) for value in values]
        return self.combine(wide, texts)

    def _rewards(self) -> list[Reward]:
        return [part for part in self.parts if isinstance(part, Reward)]

    def _part(self, k: int) -> str:
        name = self._rewards()[k].spec.name
        return name if len(self.parts) == 1 else f"part {k} ({name})"


class WeightedSum(Composite):
    r"""A weighted sum of rewards, :math:`\sum_k w_k \, r_k`.

    With rewards in different units the weights are in units, too. Give them a common scale first
    (:class:`Normalized`), or choose levels instead of weights
    (:func:`rewards.constraints.constrained_tilt`).

    Arguments:
        rewards: The rewards. One with the weight 0 is evaluated, and changes nothing.
        weights: One finite weight per reward, in units of the sum per reward unit. May be negative.

    Raises:
        TypeError: If something is not a :class:`rewards.Reward`, or a weight not a number.
        ValueError: If there is not one finite weight per reward, or all of them are 0. When called:
            if a reward with a negative weight is -inf, which would make the sum +inf.
    """

    depends_on = ("weights",)

    def __init__(self, rewards: Sequence[Reward], weights: Sequence[float]) -> None:
        parts = _as_rewards(rewards)
        if not isinstance(weights, Sequence) or isinstance(weights, str):
            raise TypeError(f"weights must be a list of numbers, got {type(weights).__name__}")
        if len(weights) != len(parts):
            raise ValueError(
                f"weights must hold one number per reward, {len(parts)}, got {len(weights)}"
            )
        numbers = tuple(number(f"weights[{i}]", weight) for i, weight in enumerate(weights))
        if not any(numbers):
            raise ValueError("weights must not all be 0: the sum would not depend on the images")

        ranges = [
            sorted(w * end for end in part.spec.typical_range)
            for w, part in zip(numbers, parts, strict=True)
            if w
        ]
        name = _weighted(numbers, parts, [part.spec.name for part in parts])
        spec = joint_spec(
            parts,
            name=name,
            title=_weighted(numbers, parts, [part.spec.title for part in parts]),
            formula=name,
            typical_range=(sum(r[0] for r in ranges), sum(r[1] for r in ranges)),
        )
        super().__init__(parts, spec)
        self.weights = numbers

    def combine(self, values: Sequence[Tensor], prompts: Sequence[str] | None) -> Tensor:
        """The weighted sum, with the shape of the values."""

        for k, (weight, value) in enumerate(zip(self.weights, values, strict=True)):
            if weight < 0 and bool((value == -math.inf).any()):
                items = (value == -math.inf).nonzero()[:, 0].unique().tolist()
                raise ValueError(
                    f"{self._part(k)} has the negative weight {weight:g}, so it must not be -inf, "
                    f"a zero weight, but it is for items {items[:5]}"
                )
        pairs = zip(self.weights, values, strict=True)
        terms = [weight * value for weight, value in pairs if weight]  # 0 * -inf is NaN
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total


class LowerConfidenceBound(Composite):
    r"""A pessimistic reward from an ensemble, :math:`\bar r - \kappa \, s`.

    Mean and standard deviation are over the members, for each pair of an image and a prompt,

    .. math::
        \bar r = \tfrac1K \sum_k r_k, \qquad s^2 = \tfrac1{K-1} \sum_k (r_k - \bar r)^2.

    A reward model is trained on some images, and optimizing it leads to others, where it errs and
    where its errors are what is optimized. BRAID fine-tunes on a conservative reward instead, the
    prediction minus a penalty for uncertainty that is large outside of the training data, beside
    the KL term that keeps to the pretrained model. Here the spread of the ensemble is the
    uncertainty, as in the bootstrapped version there, and the KL term is the tilt. It only knows
    about errors in which the members differ: an error that they share, from the same training data
    or backbone, costs nothing. Members must be in one unit, or the spread is that of the units.

    Where the members agree exactly, s = 0, its gradient is taken to be 0. A member that is -inf, a
    zero weight, makes the bound -inf.

    Arguments:
        rewards: The members, at least two unless kappa is 0.
        kappa: Number of standard deviations to subtract, at least 0.

    Raises:
        TypeError: If something is not a :class:`rewards.Reward`, or kappa not a number.
        ValueError: If kappa is negative or not finite, or there are too few members.

    References:
        | Bridging Model-Based Optimization and Generative Modeling via Conservative Fine-Tuning of
          Diffusion Models (Uehara et al., 2024), arXiv:2405.19673
    """

    depends_on = ("kappa",)

    def __init__(self, rewards: Sequence[Reward], kappa: float) -> None:
        parts = _as_rewards(rewards)
        kappa = number("kappa", kappa, 0)
        if len(parts) < 2 and kappa:
            raise ValueError(
                f"a standard deviation needs at least two rewards, got {len(parts)}; "
                "a single reward has no spread to be careful about"
            )

        lows, highs = zip(*(part.spec.typical_range for part in parts), strict=True)
        low, n = sum(lows) / len(parts), len(parts)
        if kappa:  # Popoviciu's bound of the standard deviation of n values in an interval
            low -= kappa * (max(highs) - min(lows)) / 2 * math.sqrt(n / (n - 1))
        suffix = f"; kappa={kappa:g})"
        name = "lcb(" + ", ".join(part.spec.name for part in parts) + suffix
        spec = joint_spec(
            parts,
            name=name,
            title="Lower confidence bound (" + ", ".join(p.spec.title for p in parts) + suffix,
            formula=f"mean - {kappa:g} * unbiased standard deviation over the rewards",
            typical_range=(low, sum(highs) / n),
        )
        super().__init__(parts, spec)
        self.kappa = kappa

    def combine(self, values: Sequence[Tensor], prompts: Sequence[str] | None) -> Tensor:
        """Mean minus kappa standard deviations, with the shape of the values."""

        members = torch.stack(tuple(values))
        rejected = (members == -math.inf).any(0)
        members = torch.where(rejected, 0, members)
        bound = members.mean(0)
        if self.kappa:
            # Not sqrt of a variance: the derivative of this norm at 0 is 0, not infinite.
            spread = torch.linalg.vector_norm(members - bound, dim=0)
            bound = bound - self.kappa / math.sqrt(len(values) - 1) * spread
        return torch.where(rejected, -math.inf, bound)


class Normalized(Composite):
    """A reward on another scale, such as standard deviations above a prompt's mean.

    Arguments:
        reward: The reward.
        normalizer: Map to a common scale, one of :mod:`rewards.normalizers`. With statistics per
            prompt, the result needs prompts even if the reward does not.

    Raises:
        TypeError: If the reward is not a :class:`rewards.Reward`, or the normalizer is not a
            :class:`rewards.normalizers.Normalizer`.
    """

    depends_on = ("normalizer",)

    def __init__(self, reward: Reward, normalizer: Normalizer) -> None:
        parts = _as_rewards([reward])
        if not isinstance(normalizer, Normalizer):
            raise TypeError(f"normalizer must be a Normalizer, got {type(normalizer).__name__}")
        kind = type(normalizer).__name__.lower()
        source = normalizer.source or "an unknown source"
        statistics = f"; statistics of {source}" + (f", n = {normalizer.n}" if normalizer.n else "")
        spec = joint_spec(
            parts,
            name=f"{kind}({reward.spec.name})",
            title=f"{type(normalizer).__name__} ({reward.spec.title})",
            formula=f"{kind} of {reward.spec.name}{statistics}",
            typical_range=normalizer.interval(*reward.spec.typical_range),
            needs_prompt=normalizer.needs_prompt,
        )
        super().__init__(parts, spec)
        self.normalizer = normalizer

    def combine(self, values: Sequence[Tensor], prompts: Sequence[str] | None) -> Tensor:
        """The normalized values, with the shape of the values."""

        (value,) = values
        return self.normalizer(value, prompts)


def _as_rewards(rewards: Any) -> list[Reward]:
    if isinstance(rewards, Reward) or not isinstance(rewards, Iterable):
        raise TypeError(f"rewards must be a list of rewards, got {type(rewards).__name__}")
    parts = list(rewards)
    for k, part in enumerate(parts):
        if not isinstance(part, Reward):
            raise TypeError(
                f"reward {k} must be a rewards.Reward, got {type(part).__name__}; subclass "
                "rewards.Reward, or give plain functions to rwguidance.Tilt, one beta each"
            )
    if not parts:
        raise ValueError("rewards must hold at least one reward, got none")
    return parts


def _count(images: Images) -> int:
    """Number of images, once a part has found them to be images."""

    return len(images) if isinstance(images, Tensor | Sequence) else 1


def _checked(name: str, values: Tensor, n: int, prompts: Any) -> Tensor:
    try:
        return check_rewards(values, n, prompts)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


def _checked_matrix(name: str, values: Tensor, prompts: list[str]) -> Tensor:
    if bool(values.isfinite().all()):
        return values
    for column, prompt in zip(values.unbind(1), prompts, strict=True):
        _checked(name, column, len(column), [prompt] * len(column))
    return values


def _weighted(weights: Sequence[float], parts: Sequence[Reward], names: Sequence[str]) -> str:
    """A sum as text, such as "0.7*a - 0.3*b"; a sum within a sum is put in parentheses."""

    terms = ""
    for weight, part, name in zip(weights, parts, names, strict=True):
        name = f"({name})" if isinstance(part, WeightedSum) else name
        sign = ("-" if weight < 0 else "") if not terms else (" - " if weight < 0 else " + ")
        terms += sign + (name if abs(weight) == 1 else f"{abs(weight):g}*{name}")
    return terms
