r"""Rewards that keep toy laws closed: their weights are sums of exponentials of quadratics.

.. math:: \exp(r(x) / \beta) = \sum_j \exp\big( c_j + b_j^\top x - \tfrac12 x^\top H_j x \big)

and, in one dimension, a step. All are ordinary reward callables (x, condition) -> (N,).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import reduce
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..support import checks
from ..tilt import Tilt

__all__ = ["Bumps", "ClosedReward", "Exponents", "Linear", "NoClosedForm", "Quadratic", "Step"]

Numbers = Tensor | Sequence[Any] | float


class NoClosedForm(ValueError):
    """The law, the tilt or their combination has no closed form here."""


class Exponents(NamedTuple):
    """The terms of a weight: constants (J,), linear (J, D) and precisions (J, D, D), in nats."""

    constant: Tensor
    linear: Tensor
    precision: Tensor

    def times(self, other: "Exponents") -> "Exponents":
        """The terms of the product of two weights, one for every pair."""

        pairs = [a[:, None] + b[None, :] for a, b in zip(self, other, strict=True)]
        return Exponents(*(pair.flatten(0, 1) for pair in pairs))


class ClosedReward(ABC):
    """A reward whose weight is a sum of exponentials of quadratics."""

    depends_on: ClassVar[tuple[str, ...]]
    """Names of the attributes that decide results, see :mod:`rwguidance.support.fingerprint`."""

    @abstractmethod
    def __call__(self, x: Tensor, condition: Any = None) -> Tensor:
        """Rewards of states of shape (N, D) (other event shapes are flattened), shape (N,)."""

    @abstractmethod
    def exponents(self, beta: float) -> Exponents:
        """The terms of exp(r / beta), in float64."""


def numbers_of(name: str, values: Numbers) -> Tensor:
    """Returns parameters as a float64 tensor.

    Raises:
        TypeError: If they are no numbers.
        ValueError: If they are ragged or not finite; log-weights may be -inf.
    """

    tensor = checks.real_tensor(name, values, "a number, or a tensor or nested lists of them")
    zero = (tensor == -math.inf) if name.startswith("log_") else torch.zeros_like(tensor).bool()
    if not bool((tensor.isfinite() | zero).all()):
        raise ValueError(f"{name} must be finite, got {tensor.tolist()}")
    return tensor


def _tensor(values: Numbers, ndim: int, name: str) -> Tensor:
    tensor = numbers_of(name, values)
    if tensor.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes, got shape {tuple(tensor.shape)}")
    return tensor


def _matrices(values: Numbers, ndim: int, d: int, name: str) -> Tensor:
    tensor = _tensor(values, ndim, name)
    if tensor.shape[-2:] != (d, d):
        raise ValueError(f"{name} must be {d} x {d} matrices, got shape {tuple(tensor.shape)}")
    if not torch.allclose(tensor, tensor.mT, rtol=1e-9, atol=1e-12):
        raise ValueError(f"{name} must be symmetric")
    return tensor


class Linear(ClosedReward):
    r"""Linear reward :math:`r(x) = b^\top x + c`.

    Arguments:
        b: Slope, in reward units per data unit, with shape (D,).
        c: Offset, in reward units.
    """

    depends_on = ("b", "c")

    def __init__(self, b: Numbers, c: float = 0.0) -> None:
        self.b = _tensor(b, 1, "b")
        self.c = checks.number("c", c)

    def __call__(self, x: Tensor, condition: Any = None) -> Tensor:
        checks.states("x", x)
        return x.flatten(1) @ self.b.to(x) + self.c

    def exponents(self, beta: float) -> Exponents:
        d = len(self.b)
        return Exponents(
            self.b.new_tensor([self.c / beta]), self.b[None] / beta, self.b.new_zeros(1, d, d)
        )


class Quadratic(ClosedReward):
    r"""Quadratic reward :math:`r(x) = -\tfrac12 (x - m)^\top H (x - m) + b^\top x`.

    Arguments:
        center: The center m, in data units, with shape (D,).
        precision: The symmetric matrix H, in reward units per squared data unit, shape (D, D). May
            be indefinite, as long as the tilted law exists.
        b: Optional slope, in reward units per data unit, with shape (D,).
    """

    depends_on = ("center", "precision", "b")

    def __init__(self, center: Numbers, precision: Numbers, b: Numbers | None = None) -> None:
        self.center = _tensor(center, 1, "center")
        self.precision = _matrices(precision, 2, len(self.center), "precision")
        self.b = torch.zeros_like(self.center) if b is None else _tensor(b, 1, "b")

    def __call__(self, x: Tensor, condition: Any = None) -> Tensor:
        checks.states("x", x)
        x = x.flatten(1)
        z = x - self.center.to(x)
        return -0.5 * ((z @ self.precision.to(x)) * z).sum(1) + x @ self.b.to(x)

    def exponents(self, beta: float) -> Exponents:
        pull = self.precision @ self.center
        constant = -0.5 * (self.center @ pull) / beta
        return Exponents(constant[None], (pull + self.b)[None] / beta, self.precision[None] / beta)


class Bumps(ClosedReward):
    r"""Logarithm of a sum of Gaussian bumps.

    .. math:: r(x) = \log \sum_j \exp\big( a_j - \tfrac12 (x - m_j)^\top H_j (x - m_j) \big)

    Closed for beta = 1 only.

    Arguments:
        log_heights: Log-heights a, with shape (J,).
        centers: Centers m, in data units, with shape (J, D).
        precisions: Symmetric matrices H, with shape (J, D, D).
    """

    depends_on = ("log_heights", "centers", "precisions")

    def __init__(self, log_heights: Numbers, centers: Numbers, precisions: Numbers) -> None:
        self.log_heights = _tensor(log_heights, 1, "log_heights")
        self.centers = _tensor(centers, 2, "centers")
        self.precisions = _matrices(precisions, 3, self.centers.shape[1], "precisions")
        if not len(self.log_heights) == len(self.centers) == len(self.precisions):
            raise ValueError(
                "log_heights, centers and precisions must have the same length, got "
                f"{len(self.log_heights)}, {len(self.centers)}, {len(self.precisions)}"
            )

    def __call__(self, x: Tensor, condition: Any = None) -> Tensor:
        checks.states("x", x)
        z = x.flatten(1)[:, None] - self.centers.to(x)
        squares = torch.einsum("nji,jik,njk->nj", z, self.precisions.to(x), z)
        return (self.log_heights.to(x) - 0.5 * squares).logsumexp(1)

    def exponents(self, beta: float) -> Exponents:
        if beta != 1:
            raise NoClosedForm(f"Bumps are closed for beta = 1 only, got beta={beta}")
        pull = torch.einsum("jik,jk->ji", self.precisions, self.centers)
        constant = self.log_heights - 0.5 * (self.centers * pull).sum(1)
        return Exponents(constant, pull, self.precisions)


class Step:
    r"""Step reward in one dimension, :math:`r(x) = R \, 1\{x \geq x_0\}`.

    Its gradient is zero almost everywhere, which separates the estimators that need one from those
    that do not.

    Arguments:
        threshold: The place of the step, in data units.
        height: The height R of the step, in reward units, which may be negative.
    """

    depends_on = ("threshold", "height")

    def __init__(self, threshold: float, height: float) -> None:
        self.threshold = checks.number("threshold", threshold)
        self.height = checks.number("height", height)

    def __call__(self, x: Tensor, condition: Any = None) -> Tensor:
        checks.states("x", x)
        flat = x.flatten(1)
        if flat.shape[1] != 1:
            raise ValueError(f"Step is for one dimension, got states of size {flat.shape[1]}")
        return self.height * (flat.squeeze(1) >= self.threshold).to(x.dtype)


def exponents_of(tilt: Tilt, d: int) -> Exponents:
    """The terms of a tilt's weight on states of size `d`.

    Raises:
        NoClosedForm: If the tilt decodes, or a reward is none of the closed ones.
    """

    if tilt.decode is not None:
        raise NoClosedForm("a tilt with a decoder has no closed form")
    terms = []
    for reward, beta in zip(tilt.rewards, tilt.betas, strict=True):
        if not isinstance(reward, ClosedReward):
            raise NoClosedForm(
                f"{type(reward).__name__} has no closed form with this law; it has for Linear, "
                "Quadratic, Bumps and, alone and in one dimension, Step. In one dimension "
                "toy.quadrature takes any reward, and so does Empirical with bandwidth 0"
            )
        term = reward.exponents(beta)
        if term.linear.shape[1] != d:
            raise ValueError(f"the reward is for states of size {term.linear.shape[1]}, got {d}")
        terms.append(term)
    return reduce(Exponents.times, terms)
