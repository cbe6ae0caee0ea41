"""The objective for shifts that takes the bank's own estimate where it is good."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..estimators.draws import Draws, centered, weighted_sum
from ..estimators.kernels import ess
from ..schedules import working_dtype
from ..support import checks
from .objectives import OBJECTIVE, NoisedBatch, Objective

__all__ = ["EstimatedShiftObjective", "ShiftTarget"]


@dataclass(frozen=True)
class ShiftTarget:
    r"""What a network for the shift is regressed on.

    Arguments:
        shift: The targets, in data units, with shape (B, \*event).
        log_weight: Logarithms of the weights of their squared errors, with shape (B,).
        ess: Effective draws of the bank at each state, the fewer of those under the law and under
            the tilted law, with shape (B,).
    """

    shift: Tensor
    log_weight: Tensor
    ess: Tensor


@dataclass(eq=False, repr=False)
class EstimatedShiftObjective(Objective):
    r"""Trains a network for the shift on what the whole bank says of it.

    A state :math:`x_t`, made of one draw, could as well be of another one: given the bank, it is of
    draw i with the probability :math:`\omega_i \propto \exp(-\|x_t - \alpha_t x^i\|^2 / 2
    \sigma_t^2)`. Weighted regression averaged over them all,

    .. math:: \sum_i \omega_i w_i \, \|G + D - x^i\|^2
        = \hat h \, \|G + D - \tilde m\|^2 + \mathrm{const}, \qquad
        \hat h = \sum_i \omega_i w_i, \quad \tilde m = \sum_i \omega_i w_i x^i / \hat h,

    has the same minimizer, the exact shift, whatever the size of the bank, and less noise
    (Rao-Blackwell); it is weighted regression where one draw has all the probability. Where the
    bank has draws enough, its own mean :math:`m = \sum_i \omega_i x^i` stands in for the model's
    mean D: both means are off by nearly the same, and in :math:`\tilde m - m` (the shift of
    :class:`rwguidance.ImportanceSampling`) most of that goes, as does what would draw samples to
    single draws of a bank. What remains is a bias of order 1 / ESS, so the switch is by ESS.

    A share of the states is of the tilted law, where the guided sampler goes; there regression
    needs no weights. Where the model has a :attr:`~rwguidance.Model.start`, the probabilities are
    those of the prior at that time.

    It takes the arguments of :class:`Objective`, and two more. In a bank with log-importances, such
    as an annealed one, the rest of the states is of the draws as they are there.

    Arguments:
        tilted: Share of the states that are noised draws of the tilted law, in [0, 1].
        effective: Number of effective draws from which on the bank's mean stands in for the
            model's, at least 1; more than there are in the bank for never.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range.
    """

    depends_on = (*OBJECTIVE, "tilted", "effective")

    tilted: float = 0.5
    effective: float = 2.0

    def __post_init__(self) -> None:
        self.tilted = checks.number("tilted", self.tilted, 0, 1)
        self.effective = checks.number("effective", self.effective, 1)
        super().__post_init__()
        self._ends = torch.tensor([rows.stop for rows in self.bank.rows.values()])
        self._draws = self._by_condition()

    def __call__(self, network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        index = self._index(generator)
        t = self.times(self.batch_size, generator)
        batch = self._noise(self.bank, self.log_w, index, t, generator)
        target = self.target(batch, index)
        shift = network(batch.x_t, batch.t, batch.condition)
        error = (shift - target.shift).square().flatten(1).mean(1)
        return {"loss": (target.log_weight.exp() * error).mean()}

    def target(self, batch: NoisedBatch, index: Tensor) -> ShiftTarget:
        """Returns what the bank says of the shift at states made of its draws.

        Arguments:
            batch: The noised draws, of which the last are of the tilted law.
            index: Their numbers in the bank, with shape (B,).
        """

        # In no less than single precision, since both means differ little.
        states = batch.x_t.flatten(1).to(working_dtype(batch.x_t.dtype))
        own, tilted = torch.empty_like(states), torch.empty_like(states)
        log_weight, effective = states.new_empty(2, len(states))
        group = torch.bucketize(index, self._ends, right=True)
        for number in group.unique().tolist():
            rows = (group == number).nonzero().flatten().to(states.device)
            parts = self._means(self._draws[number], batch, rows)
            own[rows], tilted[rows], log_weight[rows], effective[rows] = parts
        good = effective >= self.effective
        log_weight[len(index) - self._of_tilted :] = 0
        if not bool(good.all()):  # where the bank is good everywhere, the model is not asked
            own = torch.where(good[:, None], own, self.base(batch).mean.flatten(1))
        shift = tilted - own
        return ShiftTarget(shift.reshape(batch.x_t.shape), log_weight, effective)

    @property
    def _of_tilted(self) -> int:
        return round(self.tilted * self.batch_size)

    def _index(self, generator: torch.Generator) -> Tensor:
        """Numbers of draws: those taken as they are, then those of the tilted law."""

        plain = self.batch_size - self._of_tilted
        index = torch.randint(len(self.bank), (plain,), generator=generator)
        if not self._of_tilted:
            return index
        # Centered per condition, so that a condition comes as often as in the bank.
        log_all = self.log_w if self.log_importance is None else self.log_w + self.log_importance
        shares = log_all.double().cpu().softmax(0)
        return torch.cat((index, _draw(shares, self._of_tilted, generator)))

    def _by_condition(self) -> list[Draws]:
        x_0, groups = self.bank.x_0.flatten(1), list(self.bank.rows.values())
        centers, half_norms, along = centered(x_0, groups)
        part = lambda values, rows: None if values is None else values[rows].to(x_0.device)
        return [
            Draws(
                x_0[rows],
                center,
                half_norms[rows],
                along[rows],
                self.log_w[rows].to(x_0.device),
                part(self.log_importance, rows),
            )
            for rows, center in zip(groups, centers, strict=True)
        ]

    def _means(self, draws: Draws, batch: NoisedBatch, rows: Tensor) -> tuple[Tensor, ...]:
        """The bank's means under the law and its tilt, the log-weights and the effective draws."""

        x_t, t = batch.x_t.flatten(1)[rows], batch.t[rows]
        dtype = working_dtype(x_t.dtype, draws.x_0.dtype)
        scales = self.model.schedule.at(t, like=x_t)
        kernel = draws.log_kernel(x_t.to(dtype), scales.alpha, scales.sigma)
        if self.model.start is not None:  # the noise that a run begins from knows nothing of x_0
            kernel = kernel.masked_fill((t == self.model.start)[:, None], 0)
        log_b = draws.log_importance
        plain = kernel if log_b is None else kernel + log_b.to(dtype)
        own = plain.softmax(1)
        tilted = plain + draws.log_w.to(dtype)
        moved = tilted.softmax(1)
        effective = torch.minimum(ess(own), ess(moved))
        log_weight = torch.zeros_like(effective)
        few = effective < self.effective
        log_weight[few] = tilted[few].logsumexp(1) - kernel[few].logsumexp(1)
        means = (weighted_sum(share, draws.x_0) for share in (own, moved))
        dtype = working_dtype(x_t.dtype)
        return tuple(part.to(dtype) for part in (*means, log_weight, effective))


def _draw(shares: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Numbers drawn by their shares; unlike multinomial, of more than 2^24 as well."""

    uniform = torch.rand(n, generator=generator, dtype=torch.float64)
    ends = shares.cumsum(0)
    return torch.searchsorted(ends, uniform * ends[-1], right=True).clamp_max(len(shares) - 1)
