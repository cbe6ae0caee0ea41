r"""Handwritten digits: an exact text-to-image model of real pictures, aligned with two rewards.

The pictures are scikit-learn's 1,797 digits (8 x 8 pixels, bundled with it), scaled to [-1, 1]. The
law of a prompt ("zero", ..., "nine") is the empirical law of its pictures, each blurred by a small
Gaussian, so the denoiser is known exactly and every deviation below is guidance's own.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..bank import Bank
from ..diagnostics import sliced_wasserstein
from ..estimators import (
    ConditionalExpectation,
    ImportanceSampling,
    LearnedExpectation,
    LearnedShift,
)
from ..guidance import GuidedModel
from ..models import DenoiserModel, Model
from ..networks import ExpectationMLP, ShiftMLP
from ..prediction import Prediction
from ..samplers import DDIM, sample
from ..schedules import RectifiedSchedule, Schedule, VPSchedule
from ..tilt import Tilt
from ..toy import Empirical
from ..training import ExpectationObjective, ShiftObjective, train

__all__ = ["PROMPTS", "Digits", "Pictures", "Row", "align_digits", "slant", "thickness"]

PROMPTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_BANDWIDTH = 0.05

_WINDOW = (0.3, 1.0)
"""Below it fewer than five draws of the bank are effective, and the exact shift is short."""


def thickness(x: Tensor, condition: Any = None) -> Tensor:
    """Number of inked pixels, 0 to 64. A black box: its gradient is zero almost everywhere."""

    return (x > 0.06).flatten(1).sum(1).to(x.dtype)


def slant(x: Tensor, condition: Any = None) -> Tensor:
    """Slope of the ink's axis to the right, in columns per row. Differentiable."""

    ink = (0.5 * (x + 1)).clamp_min(1e-3)  # a picture without ink has no slope
    ink = ink / ink.sum((-2, -1), keepdim=True)
    rows = torch.arange(x.shape[-2], 0, -1, device=x.device).to(x)[:, None]  # upwards
    columns = torch.arange(x.shape[-1], device=x.device).to(x)[None, :]
    mean = lambda values: (ink * values).sum((-2, -1), keepdim=True)
    up, right = rows - mean(rows), columns - mean(columns)
    return (mean(up * right) / mean(up**2)).flatten()


class Digits:
    """The law of pictures given a prompt, with its exact model along any path."""

    def __init__(self) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError(
                "the demo needs scikit-learn and matplotlib: pip install 'rwguidance[demo]'"
            ) from error

        data = load_digits()
        pictures = torch.as_tensor(data.images) / 8 - 1
        labels = torch.as_tensor(data.target)
        self.laws = {
            prompt: Empirical(pictures[labels == digit], _BANDWIDTH)
            for digit, prompt in enumerate(PROMPTS)
        }

    def sample(self, n: int, generator: torch.Generator) -> Bank:
        """Draws `n` pictures for every prompt, in float32."""

        draws = [law.sample(n, generator) for law in self.laws.values()]
        return Bank(torch.cat(draws).float(), [prompt for prompt in self.laws for _ in range(n)])

    def model(self, schedule: Schedule) -> Model:
        """The exact conditional model."""

        return _DigitsModel(self.laws, schedule)


class _DigitsModel(DenoiserModel):
    def __init__(self, laws: dict[str, Empirical], schedule: Schedule) -> None:
        super().__init__(schedule)
        self.laws = laws

    def denoise(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Tensor:
        prompts = list(condition)
        mean = torch.empty_like(x_t)
        for prompt in dict.fromkeys(prompts):
            rows = torch.tensor([i for i, other in enumerate(prompts) if other == prompt])
            times = t[rows] if isinstance(t, Tensor) and t.ndim else t
            mean[rows] = self.laws[prompt].denoise(x_t[rows], times, self.schedule).to(x_t.dtype)
        return mean


@dataclass(frozen=True)
class Row:
    """One line of the table. Standard errors follow their means."""

    reward: str
    method: str
    steps: int
    calls: int
    mean: float
    standard_error: float
    distance: float
    ess: float
    seconds: float


@dataclass(frozen=True)
class Pictures:
    """Base and aligned pictures from the same noise, with shape (samples, prompts, 8, 8)."""

    title: str
    base: Tensor
    aligned: Tensor


def align_digits(
    samples: int = 200,
    bank_size: int = 4096,
    training_steps: int = 2500,
    nats: float = 2.5,
    seed: int = 0,
    say: Callable[[str], None] = lambda message: None,
) -> tuple[list[Row], list[Pictures]]:
    """Runs every alignment of the demo.

    Arguments:
        samples: Pictures per prompt and method.
        bank_size: Draws of the base law per prompt.
        training_steps: Of each guidance network.
        nats: Strength of the tilt, as the divergence from the base law.
        seed: Of everything.
        say: Told what is being done.

    Returns:
        The table and the pictures.
    """

    generator = torch.Generator().manual_seed(seed)
    digits = Digits()
    run = _Run(digits, samples, generator)
    rows, pictures = [], []

    say("thickness, a black box: training-free, rectified path")
    bank = digits.sample(bank_size, generator).scored(Tilt(thickness, 1.0))
    tilt = Tilt.for_kl(thickness, bank, nats)
    target = run.target("thickness", tilt)
    started = time.perf_counter()
    estimator = ImportanceSampling(bank, tilt)
    setup = time.perf_counter() - started
    base = digits.model(RectifiedSchedule())
    for steps in (4, 50):
        plain = run.draw(base, None, steps, target)
        guided = run.draw(base, estimator, steps, target, setup, window=_WINDOW)
        rows += [plain.row("base"), guided.row("importance sampling")]
        if steps == 4:
            title = "thicker: black-box reward,\ntraining-free, rectified path, 4 steps"
            pictures.append(Pictures(title, plain.shown(), guided.shown()))
    rows += [target.row()]

    say("slant, differentiable: guidance networks, VP path")
    base = digits.model(VPSchedule())
    bank = digits.sample(bank_size, generator).scored(Tilt(slant, 1.0))
    tilt = Tilt.for_kl(slant, bank, nats)
    target = run.target("slant", tilt)
    started = time.perf_counter()
    scalar = ExpectationMLP((8, 8), PROMPTS, seed=seed)
    train(scalar, ExpectationObjective(base, bank, tilt), training_steps, seed=seed, progress=True)
    scalar_setup = time.perf_counter() - started
    vector = ShiftMLP((8, 8), base.schedule, PROMPTS, seed=seed)
    objective = ShiftObjective(base, bank, tilt, scalar)
    train(vector, objective, training_steps, seed=seed, progress=True)
    vector_setup = time.perf_counter() - started
    for steps in (1, 50):
        plain = run.draw(base, None, steps, target)
        by_scalar = run.draw(base, LearnedExpectation(scalar), steps, target, scalar_setup)
        by_vector = run.draw(base, LearnedShift(vector), steps, target, vector_setup)
        rows += [
            plain.row("base"),
            by_scalar.row("network for log h"),
            by_vector.row("network for the shift"),
        ]
        title = "slanted: trained network (shift),\nVP path, " + (
            "1 step (a tilted mean, not a sample)" if steps == 1 else f"{steps} steps"
        )
        pictures.append(Pictures(title, plain.shown(), by_vector.shown()))
    rows += [target.row()]
    return rows, pictures


@dataclass(frozen=True)
class _Target:
    """The exactly tilted law, through many draws of the base law and their weights."""

    name: str
    tilt: Tilt
    mean: float
    standard_error: float
    draws: Tensor
    distance: float

    def row(self) -> Row:
        return Row(
            self.name, "exact target", 0, 0, self.mean, self.standard_error, self.distance, 0, 0
        )


@dataclass(frozen=True)
class _Result:
    """Samples of one method, with shape (samples, prompts, 8, 8)."""

    target: _Target
    steps: int
    calls: int
    draws: Tensor
    ess: float
    seconds: float

    def row(self, method: str) -> Row:
        rewards = self.target.tilt.score(self.draws.flatten(0, 1)).reshape(self.draws.shape[:2])
        return Row(
            self.target.name,
            method,
            self.steps,
            self.calls,
            float(rewards.mean()),
            float(rewards.var(0).sum().sqrt() / rewards.shape[1] / rewards.shape[0] ** 0.5),
            _distance(self.draws, self.target.draws),
            self.ess,
            self.seconds,
        )

    def shown(self) -> Tensor:
        return self.draws[:3].cpu()


class _Run:
    """One noise for all methods, so that pictures can be compared one by one."""

    def __init__(self, digits: Digits, samples: int, generator: torch.Generator) -> None:
        self.digits = digits
        self.generator = generator
        self.prompts: Sequence[str] = [prompt for _ in range(samples) for prompt in PROMPTS]
        self.noise = torch.randn(len(self.prompts), 8, 8, generator=generator)

    def target(self, name: str, tilt: Tilt, draws: int = 20_000) -> _Target:
        """The tilted law by self-normalized weights; standard error by the delta method."""

        shape = (len(self.noise) // len(PROMPTS), 8, 8)
        means, variances, resampled = [], [], []
        for law in self.digits.laws.values():
            x = law.sample(draws, self.generator).float()
            rewards = tilt.score(x).double()
            weights = tilt.weigh(rewards).softmax(0)
            mean = (weights * rewards).sum()
            means.append(mean)
            variances.append((weights**2 * (rewards - mean) ** 2).sum())
            picks = torch.multinomial(weights, 2 * shape[0], generator=self.generator)
            resampled.append(x[picks])
        first, second = torch.stack(resampled, dim=1).chunk(2)
        return _Target(
            name,
            tilt,
            float(torch.stack(means).mean()),
            float(torch.stack(variances).sum().sqrt() / len(PROMPTS)),
            first,
            _distance(second, first),
        )

    def draw(
        self,
        base: Model,
        estimator: ConditionalExpectation | None,
        steps: int,
        target: _Target,
        setup: float = 0.0,
        window: tuple[float, float] = (0.0, 1.0),
    ) -> _Result:
        model = base if estimator is None else GuidedModel(base, estimator, window=window)
        effective: list[float] = []
        times: list[float] = []

        def trace(t: float, prediction: Prediction) -> None:
            times.append(t)
            if prediction.diagnostics and "ess_tilted" in prediction.diagnostics:
                effective.append(float(prediction.diagnostics["ess_tilted"].median()))

        started = time.perf_counter()
        grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        with torch.no_grad():
            x = sample(model, DDIM(), self.noise, grid, self.prompts, trace=trace)
        seconds = time.perf_counter() - started + setup
        ess = float(torch.tensor(effective).median()) if effective else 0.0
        shape = (-1, len(PROMPTS), 8, 8)
        return _Result(target, steps, len(times), x.reshape(shape), ess, seconds)


def _distance(x: Tensor, y: Tensor) -> float:
    """Sliced Wasserstein distance, mean over prompts."""

    generator = torch.Generator().manual_seed(0)
    pairs = zip(x.unbind(1), y.unbind(1), strict=True)
    distances = [sliced_wasserstein(a, b, 128, generator) for a, b in pairs]
    return sum(distances) / len(distances)
