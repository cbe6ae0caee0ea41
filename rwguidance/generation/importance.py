"""Guidance by importance sampling, as a method."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ..estimators import (
    ConditionalExpectation,
    ImportanceSampling,
    Kernel,
    LeaveOneOut,
    TargetESS,
)
from ..support import checks
from .base import Guided, set_checked
from .run import Run
from .strength import OfStrength, check_one, checked_strength, tilt_of
from .work import Streams

__all__ = ["Importance"]


@dataclass(frozen=True)
class Importance(OfStrength, Guided):
    r"""Guidance by importance sampling from a bank of draws: no gradient, no training.

    The estimator is :class:`~rwguidance.ImportanceSampling`.

    Arguments:
        bank: Number of draws per prompt.
        beta: Temperature, in reward units.
        kl: Divergence by which to move the law of each prompt, in nats, instead of `beta`, which
            follows from it; 1 on the command line if neither is given.
        ess: Share of the bank to keep effective by flattening the kernel; without it and
            `leave_one_out` the kernel is exact.
        leave_one_out: Whether to flatten the kernel of each prompt and step as much as predicts the
            rewards of its bank best.

    Raises:
        ValueError: If not one of `beta` and `kl` is given, both `ess` and `leave_one_out` are, or a
            value is out of its range, which for `kl` ends at log(bank).
        TypeError: If a value is of the wrong kind.
    """

    name: ClassVar[str] = "importance"

    bank: int = 64
    beta: float | None = None
    kl: float | None = None
    ess: float | None = None
    leave_one_out: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        set_checked(
            self,
            bank=checks.integer("bank", self.bank, 2),
            **checked_strength(self.beta, self.kl, "bank", self.bank),
            ess=checks.optional(checks.number, "ess", self.ess, above=0, below=1),
        )
        check_one(self.beta, self.kl)
        if checks.flag("leave_one_out", self.leave_one_out) and self.ess is not None:
            raise ValueError(f"give ess or leave_one_out, not both, got ess = {self.ess}")

    def streams(self, images: int) -> list[Streams]:
        return [Streams("bank", 1, self.bank)]

    def estimator(self, run: Run, prompt: str) -> tuple[ConditionalExpectation, dict[str, Any]]:
        bank = run.bank(prompt, self.bank, "bank")
        assert bank.rewards is not None
        tilt = tilt_of(run, prompt, self.beta, self.kl, self.bank)
        kernel: Kernel | None = None if self.ess is None else TargetESS(self.ess)
        if self.leave_one_out:
            kernel = LeaveOneOut()
        log_w = tilt.weigh(bank.rewards).double()
        target = (log_w.softmax(0) * bank.rewards.double().nan_to_num(neginf=0.0)).sum()
        facts = {
            "beta": tilt.betas[0],
            "tilted mean": float(target),
        }
        return ImportanceSampling(bank, tilt, kernel), facts
