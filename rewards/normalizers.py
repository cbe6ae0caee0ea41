r"""Normalizers: reward units to a common scale, by statistics that are stated and stored.

Rewards come in their own units: PickScore in hundredths, ImageReward in standard deviations of its
training prompts. Before they are added, or compared over prompts, they can be brought to one scale:

.. math::
    \text{Affine:} \quad a \, r + b, \qquad
    \text{ZScore:} \quad \frac{r - \mu(y)}{s(y)}, \qquad
    \text{Rank:} \quad \hat F(r) \in (0, 1),

with mean and standard deviation of one prompt's images or of all, and the empirical distribution
function of a bank. Statistics belong to a reward, a pretrained model and a prompt set; `source`
says which, and files keep it. They are numbers, not tensors: no `.to(dtype)` rounds them.

A value of -inf, which stands for a zero weight, stays -inf.
"""

import dataclasses
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from rwguidance.schedules import working_dtype
from rwguidance.support import checks
from rwguidance.support.conditions import describe_keys
from rwguidance.support.files import replacing

from .base import as_strings
from .fitting import Moments, as_bank, fit_moments, fit_ranks

__all__ = ["Affine", "Moments", "Normalizer", "Rank", "ZScore"]

_FORMAT = "rwguidance.normalizer"
_VERSION = 1

N = TypeVar("N", bound="Normalizer")


@dataclass(frozen=True, kw_only=True)
class Normalizer(ABC):
    """A map of rewards to a common scale, differentiable almost everywhere.

    A subclass is a frozen dataclass of numbers and strings, and checks them when it is made.

    Arguments:
        source: Origin of the statistics, such as "pickscore, 500 images of 20 prompts of
            SDXL-Turbo".
        n: Number of values that the statistics were fitted to; None if they were not fitted.
    """

    source: str = ""
    n: int | None = None

    def __post_init__(self) -> None:
        checks.instance("source", self.source, str, "a string")
        checks.optional(checks.integer, "n", self.n, 0)

    @abstractmethod
    def __call__(self, values: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        r"""Normalized rewards, float32 or wider, with the shape of `values`.

        Arguments:
            values: Rewards in reward units, with shape (\*A, B). May hold -inf.
            prompts: B prompts, one per entry of the last axis; ignored if the normalizer is the
                same for all prompts.
        """

    @property
    def needs_prompt(self) -> bool:
        """True if the map depends on the prompt."""

        return False

    def interval(self, low: float, high: float) -> tuple[float, float]:
        """The range of the normalized rewards, for a monotone map.

        Arguments:
            low: Smallest reward, in reward units.
            high: Largest reward, in reward units.
        """

        ends = self(torch.tensor([low, high], dtype=torch.float64)).tolist()
        return min(ends), max(ends)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one JSON file, atomically: a write that fails changes nothing.

        Raises:
            FileNotFoundError: If there is no such directory.
        """

        path = checks.path("path", path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"no directory {path.parent} to save a normalizer in")
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "kind": type(self).__name__,
            "statistics": dataclasses.asdict(self),
        }
        with replacing(path) as partial:
            partial.write_bytes(json.dumps(content, allow_nan=False).encode())

    @classmethod
    def load(cls: type[N], path: str | os.PathLike[str]) -> N:
        """Reads what :meth:`save` wrote; ``Normalizer.load`` reads any of this module's kinds.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file holds something else, is damaged, or comes from a newer version.
        """

        path = checks.path("path", path)
        if not path.is_file():
            raise FileNotFoundError(f"no normalizer at {path}")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # not text, or not JSON
            raise ValueError(f"{path} is no saved normalizer, or is cut off: {error}") from None
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f'{path} is no saved normalizer: it has no "format": "{_FORMAT}"')
        if content.get("version") != _VERSION:
            raise ValueError(
                f"{path} has version {content.get('version')} of the format, but this is a reader "
                f"of version {_VERSION}"
            )
        kinds: dict[Any, Any] = {kind.__name__: kind for kind in (Affine, ZScore, Rank, cls)}
        kind = kinds.get(content.get("kind"))
        if kind is None or not issubclass(kind, cls):
            raise ValueError(f"{path} holds a {content.get('kind')}, not a {cls.__name__}")
        try:
            normalizer: N = kind(**content["statistics"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        return normalizer


@dataclass(frozen=True)
class Affine(Normalizer):
    r"""Change of units, :math:`a \, r + b`.

    Arguments:
        scale: a, not 0, in new units per reward unit. A negative scale turns a zero weight, -inf,
            into +inf, which no reward may return.
        shift: b, in new units.
        source: Origin of scale and shift.
        n: Number of values they were fitted to; None if they were not fitted.

    Raises:
        TypeError: If scale or shift is not a number.
        ValueError: If scale or shift is not finite, or the scale is 0.
    """

    scale: float
    shift: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scale", checks.number("scale", self.scale))
        object.__setattr__(self, "shift", checks.number("shift", self.shift))
        if self.scale == 0:
            raise ValueError("scale must not be 0: it would make all rewards equal")

    def __call__(self, values: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        r"""The rewards in new units, with the shape of `values`, (\*A, B)."""

        return self.scale * _wide(values) + self.shift


@dataclass(frozen=True)
class ZScore(Normalizer):
    r"""Standard deviations above the mean, :math:`(r - \mu(y)) / s(y)`, dimensionless.

    Arguments:
        mean: Mean of all rewards, in reward units.
        std: Standard deviation of all rewards, positive, in reward units.
        prompts: Moments of single prompts; empty uses those of all rewards for every prompt.
        pool_unseen: Whether prompts that are not among `prompts` use the moments of all rewards;
            False raises. These are on another scale: the standard deviation over prompts is that of
            images plus that of prompt means.
        source: Origin of the statistics.
        n: Number of all rewards.

    Raises:
        TypeError: If a moment is not a number, or a prompt not a string.
        ValueError: If a moment is not finite, or a standard deviation not positive.
    """

    mean: float
    std: float
    prompts: Mapping[str, Moments] = field(default_factory=dict, hash=False)
    pool_unseen: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "mean", checks.number("mean", self.mean))
        object.__setattr__(self, "std", checks.number("std", self.std, above=0))
        checks.flag("pool_unseen", self.pool_unseen)
        checks.instance("prompts", self.prompts, Mapping, "a mapping of prompts to moments")
        prompts = {}
        for prompt, row in self.prompts.items():
            if not isinstance(prompt, str):
                raise TypeError(f"prompts must be strings, got {type(prompt).__name__}")
            prompts[prompt] = _checked(row, f"for prompt {prompt!r}")
        object.__setattr__(self, "prompts", prompts)

    @classmethod
    def fit(
        cls,
        values: Tensor | Sequence[float],
        prompts: Any = None,
        source: str = "",
        pool_unseen: bool = False,
    ) -> "ZScore":
        """Takes the moments from a bank of rewards, with the unbiased (n - 1) standard deviation.

        Arguments:
            values: Rewards in reward units, finite, with shape (n,).
            prompts: The prompt of each reward, for moments per prompt; None takes only the moments
                of all rewards.
            source: Origin of the values.
            pool_unseen: Whether unseen prompts use the moments of all rewards, see
                :class:`ZScore`.

        Raises:
            TypeError: If the prompts are not strings.
            ValueError: If a value is not finite, or if there are fewer than two values, or only
                equal ones, for a prompt or in all; names the prompt.
        """

        rewards = as_bank(values, prompts)
        texts = None if prompts is None else as_strings(prompts, len(rewards))
        of_prompt: dict[str, list[int]] = {}
        for i, text in enumerate(texts or ()):
            of_prompt.setdefault(text, []).append(i)
        moments = {
            text: fit_moments(rewards[rows], f" for prompt {text!r}")
            for text, rows in of_prompt.items()
        }
        mean, std, n = fit_moments(rewards)
        return cls(mean, std, moments, pool_unseen, source=source, n=n)

    @property
    def needs_prompt(self) -> bool:
        """True if there are moments of single prompts."""

        return bool(self.prompts)

    def __call__(self, values: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        r"""Dimensionless scores, with the shape of `values`, (\*A, B).

        Raises:
            ValueError: If a prompt has no moments and `pool_unseen` is False; names it.
        """

        values = _wide(values)
        if not self.prompts:
            return (values - self.mean) / self.std
        if prompts is None:
            raise ValueError("prompts must be given to a ZScore per prompt, got None")
        texts = as_strings(prompts, values.shape[-1])
        unseen = [text for text in dict.fromkeys(texts) if text not in self.prompts]
        if unseen and not self.pool_unseen:
            raise ValueError(
                f"no statistics for {describe_keys(unseen)}; fit them too, or pass pool_unseen="
                f"True to use those of all {len(self.prompts)} fitted prompts together"
            )
        pooled = Moments(self.mean, self.std, self.n)
        rows = [self.prompts.get(text, pooled) for text in texts]
        return (values - values.new_tensor([row.mean for row in rows])) / values.new_tensor(
            [row.std for row in rows]
        )

    def interval(self, low: float, high: float) -> tuple[float, float]:
        """The union of the ranges for all the moments."""

        pooled = [] if self.prompts and not self.pool_unseen else [Moments(self.mean, self.std)]
        rows = [*self.prompts.values(), *pooled]
        lows, highs = ([(end - row.mean) / row.std for row in rows] for end in (low, high))
        return min(lows), max(highs)


@dataclass(frozen=True)
class Rank(Normalizer):
    r"""The share of a bank's rewards that a reward exceeds, :math:`\hat F(r) \in (0, 1)`.

    The distribution function of the fitted rewards, with a mid-rank (the share that is smaller plus
    half the share that is equal) at each of them and straight lines between. Below the smallest and
    above the largest it is constant and its gradient zero: the rank knows nothing better than the
    best value it was fitted to, so it bounds what over-optimizing a reward can gain.

    Arguments:
        values: Distinct rewards, at least two, ascending, in reward units.
        ranks: Mid-ranks of the values, ascending, in (0, 1).
        source: Origin of the values.
        n: Number of values before equal ones were joined.

    Raises:
        TypeError: If a value or rank is not a number.
        ValueError: If values or ranks are not ascending and finite, or their lengths differ.
    """

    values: tuple[float, ...]
    ranks: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("values", "ranks"):
            given = checks.real_tensor(name, getattr(self, name), "a sequence of numbers")
            numbers = tuple(checks.number(name, value) for value in given.reshape(-1).tolist())
            if given.ndim != 1 or len(numbers) < 2 or any(a >= b for a, b in pairwise(numbers)):
                raise ValueError(f"{name} must be ascending, and at least two")
            object.__setattr__(self, name, numbers)
        if len(self.values) != len(self.ranks):
            raise ValueError(
                f"there must be one rank per value, {len(self.values)}, got {len(self.ranks)}"
            )
        if not (self.ranks[0] > 0 and self.ranks[-1] < 1):
            raise ValueError(f"ranks must lie in (0, 1), got {self.ranks[0]} to {self.ranks[-1]}")

    @classmethod
    def fit(cls, values: Tensor | Sequence[float], source: str = "") -> "Rank":
        """Takes the distribution from a bank of rewards, of all prompts together.

        Arguments:
            values: Rewards in reward units, finite, with shape (n,).
            source: Origin of the rewards.

        Raises:
            ValueError: If a value is not finite, or there are not two different ones.
        """

        rewards = as_bank(values)
        return cls(*fit_ranks(rewards), source=source, n=len(rewards))

    def __call__(self, values: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        r"""Ranks in (0, 1), dimensionless, with the shape of `values`, (\*A, B).

        Interpolated in float64: close rewards that float32 cannot tell apart have different ranks.
        """

        values = _wide(values)
        x, y = (torch.from_numpy(knots).to(values.device) for knots in self._knots)
        inside = values.double().clamp(self.values[0], self.values[-1])
        right = torch.searchsorted(x, inside.detach()).clamp(1, len(x) - 1)
        share = (inside - x[right - 1]) / (x[right] - x[right - 1])
        ranks = (y[right - 1] + share * (y[right] - y[right - 1])).to(values.dtype)
        return torch.where(values == -math.inf, -math.inf, ranks)

    @cached_property
    def _knots(self) -> tuple[Any, Any]:
        # Not tensors: one that is made in inference mode would be of no use for gradients.
        import numpy

        return numpy.asarray(self.values), numpy.asarray(self.ranks)

    def interval(self, low: float, high: float) -> tuple[float, float]:
        """The interval (0, 1), whatever the rewards."""

        return 0.0, 1.0


def _checked(row: Any, where: str) -> Moments:
    """Moments of one prompt, which may come as a list from a file."""

    checks.instance(f"the moments {where}", row, Sequence, "(mean, std) or (mean, std, n)")
    moments = Moments(*row)
    mean = checks.number(f"the mean {where}", moments.mean)
    return Moments(mean, checks.number(f"the std {where}", moments.std, above=0), moments.n)


def _wide(values: Tensor) -> Tensor:
    checks.tensor("values", values)
    return values.to(working_dtype(values.dtype))
