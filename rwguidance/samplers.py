r"""Samplers: one step each, and the only loop.

Every step is written in terms of the pair (mean, noise) of a prediction, so the same code runs VP,
VE, cosine and rectified paths. Dividing a state by :math:`\alpha_t + \sigma_t` maps each of them to
the rectified path at time :math:`\tau = \sigma / (\alpha + \sigma)`, where the probability flow is
:math:`dy / d\tau = \mathrm{noise} - \mathrm{mean}`. Its Euler step is DDIM.
"""

import itertools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .models import Model, check_is_model
from .prediction import Prediction
from .schedules import Scales, Schedule
from .support import checks
from .support.describe import summary
from .support.randomness import Generators, normal

__all__ = [
    "DDIM",
    "AncestralSampler",
    "Heun",
    "Sampler",
    "Transition",
    "UnreliableEstimate",
    "sample",
]

Trace = Callable[[float, Prediction], None]
"""A function that is called at every step with the time and the (guided) prediction there."""


class UnreliableEstimate(UserWarning):
    """The guidance of a run rests on too few effective draws to mean anything."""


@dataclass(frozen=True)
class Transition:
    r"""A Gaussian step :math:`x_s \sim N(\mathrm{mean}, \mathrm{std}^2 I)`.

    Arguments:
        mean: Mean of the new state, in data units, with shape (B, \*event).
        std: Standard deviation, in data units, broadcastable to `mean`.
    """

    mean: Tensor
    std: Tensor


class Sampler(ABC):
    """One step along a path, from time t to a smaller time s."""

    depends_on: ClassVar[tuple[str, ...]]
    """Names of the attributes that decide results, see :mod:`rwguidance.support.fingerprint`."""

    def __repr__(self) -> str:
        return summary(self, **vars(self))

    @abstractmethod
    def step(
        self,
        model: Model,
        x_t: Tensor,
        t: Tensor,
        s: Tensor,
        condition: Any = None,
        generator: Generators = None,
    ) -> tuple[Tensor, Prediction]:
        r"""Returns the state at time s, in the dtype of `x_t`, and the prediction at `x_t`.

        Arguments:
            model: The model, guided or not.
            x_t: States, with shape (B, \*event).
            t: Time of the states, a float64 scalar.
            s: Next time, smaller than `t`, a float64 scalar.
            condition: What the model is conditioned on.
            generator: Source of randomness, for stochastic samplers: one, or one per sample.
        """


class AncestralSampler(Sampler):
    """A sampler whose step is one Gaussian transition computed from one prediction."""

    @abstractmethod
    def transition(self, prediction: Prediction, scales: Scales) -> Transition:
        """Returns the law of the state at the new `scales`, given the prediction at the present."""

    def step(
        self,
        model: Model,
        x_t: Tensor,
        t: Tensor,
        s: Tensor,
        condition: Any = None,
        generator: Generators = None,
    ) -> tuple[Tensor, Prediction]:
        prediction = model(x_t, t, condition)
        transition = self.transition(prediction, model.schedule.at(s, like=x_t))
        x_s = transition.mean
        if bool((transition.std > 0).any()):
            noise = normal(x_t.shape, generator, x_t.device, x_s.dtype)
            x_s = x_s + transition.std * noise
        return x_s.to(x_t.dtype), prediction


def draws_noise(sampler: AncestralSampler, schedule: Schedule, t: Tensor, s: Tensor) -> bool:
    """Whether the sampler's step from time t to s is random."""

    like = torch.zeros(1, 1, dtype=torch.float64, device=t.device)
    prediction = Prediction(like, like, schedule.at(t, like=like))
    return bool((sampler.transition(prediction, schedule.at(s, like=like)).std > 0).any())


class DDIM(AncestralSampler):
    r"""First-order steps that keep the marginals for any amount of injected noise.

    .. math:: x_s = \alpha_s \, \mathrm{mean} + \sqrt{\sigma_s^2 - \mathrm{std}^2} \, \mathrm{noise}
        + \mathrm{std} \, z, \qquad \mathrm{std} = \eta \, \sigma_s
        \sqrt{1 - \frac{\alpha_t^2 \sigma_s^2}{\alpha_s^2 \sigma_t^2}}

    With eta = 0 this is DDIM, which is the Euler method on VE and rectified paths; with eta = 1 it
    is the ancestral (DDPM) sampler. Both share one network call per step.

    Arguments:
        eta: Amount of noise, in [0, 1].

    Raises:
        TypeError: If it is no number.
        ValueError: If it is out of range.

    References:
        | Denoising Diffusion Implicit Models (Song et al., 2021), arXiv:2010.02502
    """

    depends_on = ("eta",)

    def __init__(self, eta: float = 0.0) -> None:
        self.eta = checks.number("eta", eta, 0, 1)

    def transition(self, prediction: Prediction, scales: Scales) -> Transition:
        now = prediction.scales
        ratio = now.alpha * scales.sigma / (scales.alpha * now.sigma)
        # (1 - ratio)(1 + ratio) keeps its sign under rounding up to the last bit
        std = self.eta * scales.sigma * ((1 - ratio) * (1 + ratio)).clamp_min(0).sqrt()
        # sigma_s^2 - std^2, without the subtraction: it would lose a small ratio
        spread = scales.sigma * (1 - self.eta**2 + (self.eta * ratio) ** 2).sqrt()
        return Transition(scales.alpha * prediction.mean + spread * prediction.noise, std)


class Heun(Sampler):
    r"""Second-order steps (the trapezoidal rule) on the rectified form of the path.

    With :math:`y = x / (\alpha + \sigma)` and :math:`\tau = \sigma / (\alpha + \sigma)`,

    .. math:: y_s = y_t + \tfrac12 (\tau_s - \tau_t) \big( v_t + v_s \big),
        \qquad v = \mathrm{noise} - \mathrm{mean},

    where :math:`v_s` is evaluated at the DDIM step. On rectified paths this is Heun's method on the
    velocity. A step that ends at :math:`\sigma_s = 0` is left at first order, as is usual, which
    saves the evaluation on clean data: K steps cost 2K - 1 network calls.

    References:
        | Elucidating the Design Space of Diffusion Models (Karras et al., 2022), arXiv:2206.00364
    """

    depends_on = ()

    def step(
        self,
        model: Model,
        x_t: Tensor,
        t: Tensor,
        s: Tensor,
        condition: Any = None,
        generator: Generators = None,
    ) -> tuple[Tensor, Prediction]:
        prediction = model(x_t, t, condition)
        now, scales = prediction.scales, model.schedule.at(s, like=x_t)
        x_s = scales.alpha * prediction.mean + scales.sigma * prediction.noise
        if bool(scales.sigma == 0):
            return x_s.to(x_t.dtype), prediction

        ahead = model(x_s.to(x_t.dtype), s, condition)
        size, new_size = now.alpha + now.sigma, scales.alpha + scales.sigma
        delta = scales.sigma / new_size - now.sigma / size
        slope = (prediction.noise - prediction.mean + ahead.noise - ahead.mean) / 2
        return (new_size * (x_t / size + delta * slope)).to(x_t.dtype), prediction


def sample(
    model: Model,
    sampler: Sampler,
    x_1: Tensor,
    times: Tensor | Sequence[float],
    condition: Any = None,
    generator: Generators = None,
    progress: bool = False,
    trace: Trace | None = None,
    gradient: bool = False,
) -> Tensor:
    r"""Carries states from the first of `times` to the last. One-step sampling is times (1, 0).

    Arguments:
        model: The model, guided or not.
        sampler: The sampler, which makes one step.
        x_1: States at `times[0]` (at t = 1, noise of scale :math:`\sigma_1`), with shape
            (B, \*event). The states keep its dtype; predictions are float32 or wider.
        times: Times of the run, at least two, strictly decreasing in [0, 1].
        condition: What the model is conditioned on.
        generator: Source of randomness, for stochastic samplers: one, or one per sample, with
            which a sample does not depend on its batch.
        progress: Whether to show a progress bar.
        trace: A function that is called with (t, prediction) at every step.
        gradient: Whether the result carries gradients, in `x_1` and in what the model holds. False
            keeps no graph, whatever the surroundings: the memory of one step is enough.

    Returns:
        States at `times[-1]`, with shape (B, \*event) and the dtype of `x_1`.

    Raises:
        ValueError: If the times are fewer than two, not decreasing or outside [0, 1], or the states
            have no event or are not finite.
        TypeError: If `x_1` is not a floating-point tensor, `model` is not a Model, `sampler` is
            not a Sampler, or another argument is of the wrong kind.
        FloatingPointError: If NaN or inf appears on the way; names step, items and source.

    Warns:
        UnreliableEstimate: Once per run, if an estimator reports at some step that most of its
            shifts rest on too few effective draws.
    """

    check_is_model("model", model)
    checks.instance("sampler", sampler, Sampler, "a Sampler such as DDIM()")
    grid = check_times(times)
    checks.states("x_1", x_1, finite=True)
    checks.generator("generator", generator)
    checks.optional(checks.function, "trace", trace)
    checks.flag("gradient", gradient)

    steps: Iterable[tuple[Tensor, Tensor]] = list(itertools.pairwise(grid))
    if checks.flag("progress", progress):
        from rich.progress import track

        steps = track(steps, description="sampling", total=len(grid) - 1)
    x_t, doubts = x_1, []
    with torch.set_grad_enabled(gradient):
        for number, (t, s) in enumerate(steps, start=1):
            with _naming(f"step {number} of {len(grid) - 1}"):
                x_t, prediction = sampler.step(model, x_t, t, s, condition, generator)
                _check_finite(x_t, prediction, model, t)
            if trace is not None:
                trace(float(t), prediction)
            doubts += doubts_of(float(t), prediction)
    if doubts:
        text = explain_doubts(doubts, float(grid[0]), model.start, known=False)
        warnings.warn(text, UnreliableEstimate, stacklevel=2)
    return x_t


@contextmanager
def _naming(step: str) -> Iterator[None]:
    """Puts the step before the message of a FloatingPointError."""

    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(f"{step}: {error}") from error


def _check_finite(x_s: Tensor, prediction: Prediction, model: Model, t: Tensor) -> None:
    """Raises if a new state is not finite; says whether the model or the step is to blame."""

    if bool(x_s.isfinite().all()):
        return
    source, values = "the step", x_s
    for part in (prediction.mean, prediction.noise):
        if not bool(part.isfinite().all()):
            source, values = f"the prediction of {type(model).__name__}", part
    raise FloatingPointError(
        f"{source} must be finite, got NaN or inf in {checks.bad_items(values)} at t = {float(t)}"
    )


def check_times(times: Tensor | Sequence[float]) -> Tensor:
    """Returns the times of a run as a float64 tensor on the CPU.

    Raises:
        TypeError: If they are no numbers.
        ValueError: If they are fewer than two, not decreasing or outside [0, 1].
    """

    grid = checks.real_tensor("times", times, "a sequence or a tensor of times").detach().cpu()
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"times must hold at least two times, got shape {tuple(grid.shape)}")
    if not bool(((grid >= 0) & (grid <= 1)).all()):
        raise ValueError(
            f"times must lie in [0, 1] (0 is data, 1 is noise), got {grid.tolist()}; network "
            "timesteps such as 999 belong inside the backbone's adapter"
        )
    if not bool((grid.diff() < 0).all()):
        raise ValueError(
            f"times must decrease strictly, from noise (1) to data (0), got {grid.tolist()}"
        )
    return grid


def doubts_of(t: float, prediction: Prediction) -> list[tuple[float, float]]:
    """Returns (time, median effective sample size) if most shifts of a step mean nothing, or []."""

    diagnostics = prediction.diagnostics or {}
    if "reliable" not in diagnostics or float(diagnostics["reliable"].double().mean()) >= 0.5:
        return []
    return [(t, float(diagnostics["ess_tilted"].median()))]


ADVICE = {
    "window": "guide only at higher noise, window=(t, 1.0)",
    "start": "begin with model.starting(t) if the first states are noise drawn without x_0",
    "kernel": "flatten the kernel, ImportanceSampling(..., kernel=LeaveOneOut()), at the price of "
    "bias",
    "beta": "tilt less, with a larger beta",
    "bank": "use a larger bank",
}
"""What to do about doubts; a command that has options for it says it in their names."""


def explain_doubts(
    doubts: list[tuple[float, float]], first: float, start: float | None, known: bool = True
) -> str:
    """Returns the warning about the steps that :func:`doubts_of` collected, with what can be done.

    Arguments:
        doubts: The steps, at least one.
        first: First time of the run.
        start: Time at which the run began from pure noise, as :attr:`rwguidance.Model.start`.
        known: Whether a start that is None says that it did not.
    """

    steps = ", ".join(f"t={t:.3g} ({ess:.1f} effective draws)" for t, ess in doubts[:6])
    more = f" and {len(doubts) - 6} more steps" if len(doubts) > 6 else ""
    times = [t for t, _ in doubts]
    helps = {
        "window": first not in times,  # no noise is higher than that of the first step
        "start": first in times and start is None and not known,
        "kernel": any(t != start for t in times),  # at the start it is flat
        "beta": start in times,
        "bank": True,
    }
    *others, last = (advice for name, advice in ADVICE.items() if helps[name])
    return (
        f"most importance-sampling estimates are meaningless at {steps}{more}. "
        f"You can {'; '.join(others)}; or {last}."
    )
