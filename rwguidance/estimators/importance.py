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
from collections.abc import Hashable, Sequence
from typing import Any

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
from .draws import Draws, centered
from .kernels import Kernel, ess

__all__ = ["ImportanceSampling"]

_MEANINGFUL_ESS = 5
"""With fewer effective draws than this, a difference of two weighted means is mostly noise."""

_ROWS_BYTES = 2**26
"""Bound on two float32 (rows, N) blocks of log-weights; larger batches are split."""


_CACHE_BYTES = 2**19
"""Size of a float32 (rows, N) block that a CPU keeps at hand from pass to pass."""

_LEAST_ROWS, _MOST_ROWS = 64, 256
"""Rows that a product takes at once, where fewer would be slow: the more, the more dimensions."""


class ImportanceSampling(ConditionalExpectation):
    r"""Self-normalized importance sampling on a bank of prior draws; needs no gradient.

    One call costs one network call and two matrix products, of size (B, D, N) and (B, N, D).
    Exact for the empirical law of the bank. For a continuous law the error falls as
    :math:`1 / \sqrt N` once N exceeds about :math:`\exp I(x_0; x_t)`, which holds near the noise
    end and, in high dimension, fails soon after; the diagnostics say where. They are, per sample,

    - ``ess``, ``ess_tilted``: effective draws of :math:`\omega` and :math:`\tilde\omega`,
    - ``max_weight``: the largest :math:`\tilde\omega_i`,
    - ``pareto_k``: tail shape of :math:`\tilde\omega` (see :func:`rwguidance.weights.pareto_k`),
      if it is asked for,
    - ``temper``: the factor :math:`\kappa`, if the kernel is not exact,
    - ``shift_norm``: length of the shift, in data units,
    - ``reliable``: false where ``ess_tilted`` < 5: there the estimate means nothing.

    Arguments:
        bank: Draws for every condition that will be asked for, scored here if they are not yet.
        tilt: The tilt, applied to the bank's rewards.
        kernel: None for the exact kernel, or one that trades bias for effective draws.
        pareto_k: Whether to report the tail shape, which takes longer than all the rest where
            states have few dimensions. Warnings do without it.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If every draw of a condition has zero weight, or, when it is called, if
            log-weights overflow the precision of the states.

    References:
        | Reward-weighted guidance, arXiv:2602.00413 (the estimator for flow models)
        | On the Guidance of Flow Matching (Feng et al., 2025), arXiv:2502.02150
    """

    depends_on = ("kernel", "rows", "conditional", "event")

    def __init__(
        self, bank: Bank, tilt: Tilt, kernel: Kernel | None = None, pareto_k: bool = False
    ) -> None:
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
        self.pareto_k = checks.flag("pareto_k", pareto_k)
        self.origin = bank.origin
        self.rows = bank.rows
        self._kept: list[dict[Hashable, float]] = [{} for _ in bank.rows]
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
        self.along: Tensor
        centers, half_norm, along = centered(self.x_0, list(self.rows.values()))
        self.register_buffer("center", centers, persistent=False)
        self.register_buffer("half_norm", half_norm, persistent=False)
        self.register_buffer("along", along, persistent=False)

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

    def check_conditions(self, keys: Sequence[Hashable]) -> None:
        """Checks that the bank serves some conditions, before anything is computed.

        Arguments:
            keys: The conditions, as the bank has them.

        Raises:
            ValueError: If it holds no draws for one of them; names those that it holds.
        """

        missing = [key for key in dict.fromkeys(keys) if key not in self.rows]
        if self.conditional and missing:
            raise ValueError(
                f"the bank holds no draws for condition {describe_keys(missing)}; "
                f"it holds {describe_keys(list(self.rows))}"
            )

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
                f"got {tuple(x_t.shape[1:])}{_if_packed(self.event, tuple(x_t.shape[1:]))}"
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
            self.check_conditions(keys)
            numbers = {key: number for number, key in enumerate(self.rows)}
            group = torch.tensor([numbers[key] for key in keys], device=x_t.device)
            members = {number: index[group == number] for number in group.unique().tolist()}
        most = max(rows.stop - rows.start for rows in self.rows.values())
        size = max(1, _ROWS_BYTES // (8 * most))
        if index.device.type == "cpu":  # weights that fit its cache, and rows enough for products
            least = min(_MOST_ROWS, max(_LEAST_ROWS, self.x_0.shape[1] // 4))
            size = min(size, max(least, _CACHE_BYTES // (4 * most)))
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

        draws = self._draws(group)
        dtype = working_dtype(states.dtype, draws.x_0.dtype)
        self._check_range(dtype)
        whole = len(index) == len(states)
        mine = lambda value: value if whole or len(value) == 1 else value[index]
        alpha, sigma = (mine(v.flatten(1)).to(dtype) for v in (scales.alpha, scales.sigma))
        log_kernel = draws.log_kernel(mine(states).to(dtype), alpha, sigma)
        temper = log_kernel.new_ones(len(log_kernel), 1)
        if flat is not None:
            log_kernel = log_kernel.masked_fill_(mine(flat), 0)
        if self.kernel is not None and (flat is None or not bool(mine(flat).all())):
            temper = self.kernel.temper(log_kernel.detach(), draws, alpha, sigma)
            log_kernel = log_kernel.mul_(temper.clamp_min(torch.finfo(dtype).tiny))
        if draws.log_importance is not None:
            log_kernel = log_kernel.add_(draws.log_importance)

        part = _weighted(log_kernel, draws, self.pareto_k)
        if self.kernel is not None:
            temper = temper if flat is None else temper.masked_fill(mine(flat), 1)
            part["temper"] = temper.squeeze(1)
        return part

    def _draws(self, group: int) -> Draws:
        rows = list(self.rows.values())[group]
        log_importance = None if self.log_importance is None else self.log_importance[rows]
        return Draws(
            self.x_0[rows],
            self.center[group],
            self.half_norm[rows],
            self.along[rows],
            self.log_w[rows],
            log_importance,
            self._kept[group],
        )


def _weighted(log_kernel: Tensor, draws: Draws, tail: bool) -> dict[str, Tensor]:
    """The estimate that a kernel makes of draws, and what tells how far to trust it."""

    log_w = draws.log_w
    top = log_w.amax()
    # At most three (B, N) blocks are alive at any time, and one exponential is taken of each entry.
    weight = log_kernel.softmax(1)
    tilted = weight * (log_w - top).exp().to(weight.dtype)
    mass = tilted.sum(1, keepdim=True)
    shape = pareto_k((log_kernel + log_w.to(weight.dtype)).detach()) if tail else None
    limits = torch.finfo(weight.dtype)
    if bool((mass > log_kernel.shape[1] * limits.tiny / limits.eps).all()):
        log_h = mass.squeeze(1).log() + top
        tilted = tilted.div_(mass)
    else:  # what was rounded to zero might count
        log_tilted = log_kernel + log_w.to(weight.dtype)
        log_h = log_tilted.logsumexp(1) - log_kernel.logsumexp(1)
        tilted = log_tilted.softmax(1)
        del log_tilted
    del log_kernel
    part = {
        "log_h": log_h,
        "ess": ess(weight),
        "ess_tilted": ess(tilted),
        "max_weight": tilted.amax(1),
    }
    if shape is not None:
        part["pareto_k"] = shape
    graph = tilted.requires_grad  # which keeps the weights
    difference = tilted - weight if graph else tilted.sub_(weight)
    part["shift"] = draws.difference(difference)
    return part


def _merge(parts: list[Tensor], indices: list[Tensor]) -> Tensor:
    """Puts the rows of every part where they belong."""

    if len(parts) == 1:
        (part,) = parts
        return part
    return torch.cat(parts)[torch.cat(indices).argsort()]


def _if_packed(draws: tuple[int, ...], states: tuple[int, ...]) -> str:
    """Advice for a bank of latents as pipelines of FLUX return them, tokens of 2 x 2 pixels."""

    if len(draws) != 2 or len(states) != 3 or math.prod(draws) != math.prod(states):
        return ""
    return (
        "; the bank holds packed latents, (tokens, channels): unpack them with "
        f"torch.nn.functional.pixel_shuffle(x_0.mT.unflatten(2, ({states[1] // 2}, "
        f"{states[2] // 2})), 2)"
    )
