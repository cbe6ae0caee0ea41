r"""The training-free estimator: draws of the prior, reweighted by the noising kernel.

With draws :math:`x^1, \dots, x^N \sim p(x_0 | y)` and their log-weights :math:`\log w_i`,

.. math:: \ell_i = -\frac{\|x_t - \alpha_t x^i\|^2}{2 \sigma_t^2}, \qquad
    \log \hat h_t = \mathrm{LSE}(\ell + \log w) - \mathrm{LSE}(\ell), \qquad
    \hat \Delta = \sum_i (\tilde\omega_i - \omega_i) \, x^i

where :math:`\omega` and :math:`\tilde\omega` are the softmaxes of :math:`\ell` and of
:math:`\ell + \log w`. Draws of another law than p have a log-importance, which is added to
:math:`\ell`. At the time :attr:`Model.start <rwguidance.Model.start>`, where a run began from noise
drawn without :math:`x_0`, the kernel is flat: :math:`\ell = 0`. Two softmaxes over *one* bank:
after the kernel has collapsed onto the nearest draw both agree and the shift vanishes, whereas
subtracting the model's own mean would pull the sample onto that draw.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..bank import Bank
from ..models import Model
from ..schedules import Scales, working_dtype
from ..support import checks, memory
from ..support.conditions import condition_keys, describe_keys
from ..support.describe import summary
from ..tilt import Tilt
from ..weights import pareto_k
from .base import ConditionalExpectation, Estimate, shift_norm

__all__ = ["ImportanceSampling", "Kernel", "TargetESS", "Tempered"]

_MEANINGFUL_ESS = 5
"""With fewer effective draws than this, a difference of two weighted means is mostly noise."""

_ROWS_BYTES = 2**26
"""Bound on two float32 (rows, N) blocks of log-weights; larger batches are split."""

_CAST_BYTES = 2**22
"""Bound on one block of draws that is widened to the working dtype (but 16 draws at least)."""


class Kernel(ABC):
    r"""Trades bias for effective draws by flattening the noising kernel, :math:`\kappa \ell`."""

    depends_on: ClassVar[tuple[str, ...]]
    """Names of the attributes that decide results, see :mod:`rwguidance.support.fingerprint`."""

    def __repr__(self) -> str:
        return summary(self, **vars(self))

    @abstractmethod
    def temper(self, log_kernel: Tensor) -> Tensor:
        r"""The factor :math:`\kappa \in (0, 1]` of each row, with shape (B, 1).

        Arguments:
            log_kernel: :math:`\ell` up to a constant, at most 0, in nats, with shape (B, N).
        """


class Tempered(Kernel):
    r"""Flattens the kernel by a fixed factor, the same at every time.

    Arguments:
        factor: :math:`\kappa` in (0, 1]; 1 is exact.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is out of range.
    """

    depends_on = ("factor",)

    def __init__(self, factor: float) -> None:
        self.factor = checks.number("factor", factor, above=0, high=1)

    def temper(self, log_kernel: Tensor) -> Tensor:
        return log_kernel.new_full((len(log_kernel), 1), self.factor)


class TargetESS(Kernel):
    r"""Flattens the kernel of each sample just enough to keep a share of the bank effective.

    The factor is the largest :math:`\kappa \leq 1` with ESS of :math:`\kappa \ell` at least
    `fraction` N. Where the bank is good enough the kernel stays exact. Where it is not, the
    estimate is that of a noisier state, whose noise has variance :math:`\sigma_t^2 / \kappa`: it
    points the right way, where the exact kernel returns noise, but it is too long. For a Gaussian
    law of variance c and a linear reward the factor is :math:`(\sigma_t^2 + \alpha_t^2 c) /
    (\sigma_t^2 + \kappa \alpha_t^2 c) \leq 1 / \kappa`. Near the data end this grows large: combine
    it with a window there.

    Arguments:
        fraction: Share of the bank to keep, in (0, 1).

    Raises:
        TypeError: If it is no number.
        ValueError: If it is out of range.
    """

    depends_on = ("fraction",)

    def __init__(self, fraction: float) -> None:
        self.fraction = checks.number("fraction", fraction, above=0, below=1)

    def temper(self, log_kernel: Tensor) -> Tensor:
        target = self.fraction * log_kernel.shape[1]
        enough = lambda factor: _ess((factor * log_kernel).softmax(1))[:, None] >= target
        # Weights within a ratio e^c of each other have ESS / N >= 1 / cosh(c / 2)^2, so that:
        spread = 2 * math.acosh(self.fraction**-0.5)
        width = -log_kernel.masked_fill(log_kernel == -math.inf, 0).amin(1, keepdim=True)
        low = torch.log(spread / width.clamp_min(spread))
        high = torch.zeros_like(low)
        low = torch.where(enough(high.exp()), high, low)
        for _ in range(30):
            middle = (low + high) / 2
            passed = enough(middle.exp())
            low, high = torch.where(passed, middle, low), torch.where(passed, high, middle)
        return low.exp()


class ImportanceSampling(ConditionalExpectation):
    r"""Self-normalized importance sampling on a bank of prior draws; needs no gradient.

    One call costs one network call and two matrix products, of size (B, D, N) and (B, N, D).
    Exact for the empirical law of the bank. For a continuous law the error falls as
    :math:`1 / \sqrt N` once N exceeds about :math:`\exp I(x_0; x_t)`, which holds near the noise
    end and, in high dimension, fails soon after; the diagnostics say where. They are, per sample,

    - ``ess``, ``ess_tilted``: effective draws of :math:`\omega` and :math:`\tilde\omega`,
    - ``max_weight``: the largest :math:`\tilde\omega_i`,
    - ``pareto_k``: tail shape of :math:`\tilde\omega` (see :func:`rwguidance.weights.pareto_k`),
    - ``temper``: the factor :math:`\kappa`, if the kernel is not exact,
    - ``shift_norm``: length of the shift, in data units,
    - ``reliable``: false where ``ess_tilted`` < 5: there the estimate means nothing.

    Arguments:
        bank: Draws for every condition that will be asked for, scored here if they are not yet.
        tilt: The tilt, applied to the bank's rewards.
        kernel: None for the exact kernel, or one that trades bias for effective draws.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If every draw of a condition has zero weight, or, when it is called, if
            log-weights overflow the precision of the states.

    References:
        | Reward-weighted guidance, arXiv:2602.00413 (the estimator for flow models)
        | On the Guidance of Flow Matching (Feng et al., 2025), arXiv:2502.02150
    """

    depends_on = ("kernel", "rows", "conditional", "event")

    def __init__(self, bank: Bank, tilt: Tilt, kernel: Kernel | None = None) -> None:
        super().__init__()
        checks.instance("bank", bank, Bank, "a Bank")
        checks.instance("tilt", tilt, Tilt, "a Tilt")
        checks.instance("kernel", kernel, (Kernel, type(None)), "a Kernel or None")
        if bank.rewards is None:
            bank = bank.scored(tilt)
        assert bank.rewards is not None
        log_w = tilt.weigh(bank.rewards).to(bank.x_0.device)
        device = bank.x_0.device
        log_importance = None if bank.log_importance is None else bank.log_importance.to(device)
        log_all = log_w if log_importance is None else log_w + log_importance
        for key, rows in bank.rows.items():
            if bool((log_all[rows] == -math.inf).all()):
                raise ValueError(f"every draw of condition {key!r} has zero weight (reward -inf)")

        self.kernel = kernel
        self.origin = bank.origin
        self.rows = bank.rows
        self._largest = float(log_all[log_all.isfinite()].abs().max())
        options = {} if kernel is None else {"kernel": kernel}
        self._line = summary(self, bank=bank, tilt=tilt, **options)
        self.conditional = bank.condition is not None
        self.event = tuple(bank.x_0.shape[1:])
        self.x_0: Tensor
        self.log_w: Tensor
        self.log_importance: Tensor | None
        self.center: Tensor
        self.half_norm: Tensor
        self.register_buffer("x_0", bank.x_0.flatten(1), persistent=False)
        self.register_buffer("log_w", log_w, persistent=False)
        self.register_buffer("log_importance", log_importance, persistent=False)
        centers, half_norm = _center(self.x_0, self.rows)
        self.register_buffer("center", centers, persistent=False)
        self.register_buffer("half_norm", half_norm, persistent=False)

    def __repr__(self) -> str:
        return self._line

    def forward(self, model: Model, x_t: Tensor, t: Tensor, condition: Any = None) -> Estimate:
        groups = self._groups(x_t, condition)
        scales = model.schedule.at(t, like=x_t)
        # Where a run began from noise that knows nothing of x_0, the posterior is the prior.
        flat = None if model.start is None else (t == model.start).to(x_t.device).reshape(-1, 1)
        states = x_t.flatten(1)
        hint = (
            f"Importance sampling had {len(x_t)} samples and {len(self.x_0)} draws: use a smaller "
            "bank, bank.to(dtype=torch.bfloat16), or a smaller batch"
        )
        with torch.autocast(x_t.device.type, enabled=False), memory.advice(hint):
            parts = [self._estimate(states, index, group, scales, flat) for index, group in groups]
        indices = [index for index, _ in groups]
        merged = {name: _merge([part[name] for part in parts], indices) for name in parts[0]}

        prediction = model(x_t, t, condition)  # only now that the weights are gone from memory
        shift = merged.pop("shift").reshape(x_t.shape).to(prediction.mean.dtype)
        log_h = merged.pop("log_h")
        diagnostics = {
            **merged,
            "shift_norm": shift_norm(shift),
            "reliable": merged["ess_tilted"] >= _MEANINGFUL_ESS,
        }
        return Estimate(prediction, log_h, shift, diagnostics)

    def _groups(self, x_t: Tensor, condition: Any) -> list[tuple[Tensor, int]]:
        """Batch rows that share a condition, in blocks of bounded size, with the group's number."""

        if self.log_w.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                "ImportanceSampling was cast to half precision, which ruins its log-weights; "
                "build it from bank.to(dtype=...) instead, which keeps them"
            )
        if tuple(x_t.shape[1:]) != self.event:
            raise ValueError(
                f"x_t must hold states of shape {self.event}, as the bank does, "
                f"got {tuple(x_t.shape[1:])}"
            )
        if x_t.device != self.x_0.device:
            raise ValueError(
                f"x_t is on {x_t.device}, but the bank is on {self.x_0.device}; "
                "move the estimator with .to(device)"
            )
        index = torch.arange(len(x_t), device=x_t.device)
        if not self.conditional:
            members = {0: index}
        else:
            keys = condition_keys(condition, len(x_t))
            if keys is None:
                raise ValueError(
                    "condition is required, since the bank holds several: "
                    + describe_keys(list(self.rows))
                )
            missing = [key for key in dict.fromkeys(keys) if key not in self.rows]
            if missing:
                raise ValueError(
                    f"the bank holds no draws for condition {describe_keys(missing)}; "
                    f"it holds {describe_keys(list(self.rows))}"
                )
            numbers = {key: number for number, key in enumerate(self.rows)}
            group = torch.tensor([numbers[key] for key in keys], device=x_t.device)
            members = {number: index[group == number] for number in group.unique().tolist()}
        most = max(rows.stop - rows.start for rows in self.rows.values())
        size = max(1, _ROWS_BYTES // (8 * most))
        return [(part, number) for number, rows in members.items() for part in rows.split(size)]

    def _check_range(self, dtype: torch.dtype) -> None:
        """Raises ValueError if the log-weights leave the range in which states are weighed."""

        if self._largest > torch.finfo(dtype).max:
            raise ValueError(
                f"the log-weights of the tilt reach {self._largest:.3g} nats, beyond {dtype}, in "
                "which states are weighed; use a larger beta"
            )

    def _estimate(
        self, states: Tensor, index: Tensor, group: int, scales: Scales, flat: Tensor | None
    ) -> dict[str, Tensor]:
        """The estimate for the rows `index` of a batch, which share one condition."""

        rows = list(self.rows.values())[group]
        draws = self.x_0[rows]
        dtype = working_dtype(states.dtype, draws.dtype)
        self._check_range(dtype)
        whole = len(index) == len(states)
        mine = lambda value: value if whole or len(value) == 1 else value[index]
        alpha, sigma = (mine(v.flatten(1)).to(dtype) for v in (scales.alpha, scales.sigma))
        center, half_norm, log_w = (
            value.to(dtype)
            for value in (self.center[group], self.half_norm[rows], self.log_w[rows])
        )
        x_t = (states if whole else states[index]).to(dtype)

        # -|x_t - alpha x|^2 / 2 up to what is constant in x; centering keeps the products small.
        log_kernel = _dot(torch.addcmul(x_t, alpha, center, value=-1).mul_(alpha), draws)
        log_kernel = log_kernel.addcmul_(alpha**2, half_norm, value=-1)
        log_kernel = log_kernel.sub_(log_kernel.detach().amax(1, keepdim=True))
        # Divided twice: sigma_t = 0 then leaves the nearest draw at 0 and sends others to -inf.
        tiny = torch.finfo(dtype).tiny
        log_kernel = log_kernel.div_(sigma.clamp_min(tiny)).div_(sigma.clamp_min(tiny))
        if flat is not None:
            log_kernel = log_kernel.masked_fill_(mine(flat), 0)
        temper = None if self.kernel is None else self.kernel.temper(log_kernel.detach())
        if temper is not None:
            log_kernel = log_kernel.mul_(temper.clamp_min(tiny))
        if self.log_importance is not None:
            log_kernel = log_kernel.add_(self.log_importance[rows].to(dtype))

        # At most three (B, N) blocks are alive at any time.
        log_sum, weight = log_kernel.logsumexp(1), log_kernel.softmax(1)
        log_tilted = log_kernel + log_w
        del log_kernel
        log_h = log_tilted.logsumexp(1) - log_sum
        shape = pareto_k(log_tilted.detach())
        tilted = log_tilted.softmax(1)
        del log_tilted
        part = {
            "log_h": log_h,
            "ess": _ess(weight),
            "ess_tilted": _ess(tilted),
            "max_weight": tilted.amax(1),
            "pareto_k": shape,
        }
        difference = tilted - weight
        del weight, tilted
        part["shift"] = _weighted_sum(difference, draws)
        if temper is not None:
            part["temper"] = temper.squeeze(1)
        return part


def _center(draws: Tensor, groups: dict[Any, slice]) -> tuple[Tensor, Tensor]:
    """Mean of every group, (G, D), and half the squared distance of every draw to it, (N,)."""

    dtype = working_dtype(draws.dtype)
    centers, half_norms = [], []
    for rows in groups.values():
        total = sum(block.sum(0) for block in _blocks(draws[rows], dtype))
        center = total / (rows.stop - rows.start)
        for block in _blocks(draws[rows], dtype):
            half_norms.append(0.5 * (block - center).square().sum(1))
        centers.append(center)
    return torch.stack(centers), torch.cat(half_norms)


def _blocks(draws: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """The draws in `dtype`, in blocks small enough that no second bank is ever held."""

    # Blocks that fit the cache of a CPU are fastest there; elsewhere every launch costs.
    most = _CAST_BYTES if draws.device.type == "cpu" else 16 * _CAST_BYTES
    size = max(16, most // (draws.shape[1] * dtype.itemsize))
    return (block.to(dtype) for block in draws.split(size))


def _dot(states: Tensor, draws: Tensor) -> Tensor:
    if draws.dtype == states.dtype:
        return states @ draws.T
    products = states.new_empty(len(states), len(draws))
    start = 0
    for block in _blocks(draws, states.dtype):
        products[:, start : start + len(block)] = states @ block.T
        start += len(block)
    return products


def _weighted_sum(weights: Tensor, draws: Tensor) -> Tensor:
    if draws.dtype == weights.dtype:
        return weights @ draws
    total = weights.new_zeros(len(weights), draws.shape[1])
    start = 0
    for block in _blocks(draws, weights.dtype):
        total.addmm_(weights[:, start : start + len(block)], block)
        start += len(block)
    return total


def _ess(weight: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight, dim=1) ** -2


def _merge(parts: list[Tensor], indices: list[Tensor]) -> Tensor:
    """Puts the rows of every part where they belong."""

    if len(parts) == 1:
        return parts[0]
    merged = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    for part, index in zip(parts, indices, strict=True):
        merged[index] = part
    return merged
