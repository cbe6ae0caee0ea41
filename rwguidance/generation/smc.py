"""Twisted sequential Monte Carlo, as a method."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..estimators import LookAhead
from ..guidance import check_strength
from ..particles import TwistedSMC
from ..samplers import DDIM
from ..support import checks
from ..support.randomness import generator_for
from .base import set_checked
from .pooled import Group, Together
from .run import Run
from .strength import OfTilt
from .work import Work

__all__ = ["SMC"]


@dataclass(frozen=True)
class SMC(Together, OfTilt):
    r"""Pictures on the way, resampled by the rewards of what they are predicted to become.

    Particles of a prompt take the noisy steps of :class:`~rwguidance.DDIM` together, and those with
    bad prospects give way to copies of others (:class:`~rwguidance.TwistedSMC`). What is tilted is
    the law of these steps, which is not that of the model's own sampler, and with few steps far
    from it.

    Arguments:
        particles: Number of pictures on the way, per prompt and group of `pictures`.
        beta: Temperature, in reward units.
        kl: Divergence by which to move the law of each prompt, in nats, instead of `beta`, which
            follows from it; 1 on the command line if neither is given.
        bank: Number of draws per prompt from which `beta` follows, if `kl` is given.
        eta: Amount of noise of the steps, in (0, 1].
        threshold: Share of effective particles below which they are resampled, in [0, 1].
        window: Times (low, high) in [0, 1] between which to look at what is predicted.

    Raises:
        TypeError: If a value is of the wrong kind.
        ValueError: If not one of `beta` and `kl` is given, or a value is out of its range, which
            for `kl` ends at log(bank).
    """

    name: ClassVar[str] = "smc"

    particles: int = 64
    beta: float | None = None
    kl: float | None = None
    bank: int = 64
    eta: float = 1.0
    threshold: float = 0.5
    window: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        set_checked(
            self,
            particles=checks.integer("particles", self.particles, 2),
            eta=checks.number("eta", self.eta, above=0, high=1),
            threshold=checks.number("threshold", self.threshold, 0, 1),
        )
        self.check_tilt()
        check_strength(1.0, self.window)

    def check(self, times: Tensor) -> None:
        super().check(times)
        low, high = self.window
        looks = [float(t) for t in times[:-2]]
        if not any(low <= t <= high for t in looks):
            shown = ", ".join(f"{t:.3g}" for t in looks) or "none: smc needs two steps at least"
            raise ValueError(
                f"window must hold the time of a step before the last, {shown}; got {self.window}"
            )

    def check_run(self, run: Run, prompt: str) -> None:
        _ = run.model  # raises where there is no path

    def work(self, images: int, steps: int, batch_size: int) -> Work:
        particles = Work.of_samples(self.particles, steps, batch_size)
        looks = Work(decoded=self.particles, scored=self.particles) * (steps - 1)
        made = (particles + looks) * self._groups(images) + self._moves(images, steps, batch_size)
        return super().work(images, steps, batch_size) + made

    def group(self, run: Run, prompt: str, number: int) -> Group:
        tilt = self.tilt(run, prompt)
        # The look at the last step, which draws no noise, is that at its picture.
        low = max(self.window[0], math.nextafter(float(run.times[-2]), 1.0))
        smc = TwistedSMC(
            tilt, LookAhead(tilt), threshold=self.threshold, window=(low, self.window[1])
        )
        names = [("particle", prompt, number, i) for i in range(self.particles)]
        generators = [generator_for(run.seed, *name) for name in names]
        made = smc.sample(
            run.model.starting(float(run.times[0])),
            DDIM(self.eta),
            run.fresh_noise(self.particles, generators),
            run.times,
            run.condition(prompt, self.particles),
            generators,
            batch_size=run.batch_size,
        )
        if not bool(made.log_z.isfinite()):
            raise ValueError(f"no particle of {prompt!r} has a finite reward; give it more of them")
        picks = made.draw(self.pictures, generator_for(run.seed, "smc", prompt, number))[0].tolist()
        facts = {
            "beta": tilt.betas[0],
            "effective particles": round(float(made.ess[-1]), 2),
            "ancestors": int(made.distinct),
            "distinct": len(set(picks)),
            "log z": float(made.log_z),
        }
        group = Group(made.x_0[picks], facts, [{"chosen": pick} for pick in picks])
        return self._renewed(group, run, prompt, number, tilt.betas[0])
