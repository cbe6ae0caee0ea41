r"""Handwritten digits: an exact text-to-image model of real pictures, aligned with two rewards.

The pictures are scikit-learn's 1,797 digits (8 x 8 pixels, bundled with it), scaled to [-1, 1]. The
law of a prompt ("zero", ..., "nine") is the empirical law of its pictures, each blurred by a small
Gaussian, so the denoiser is known exactly and every deviation below is guidance's own.
"""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...bank import Bank
from ...diagnostics import sliced_wasserstein
from ...estimators import (
    ConditionalExpectation,
    ImportanceSampling,
    LearnedExpectation,
    LearnedShift,
)
from ...guidance import GuidedModel
from ...models import DenoiserModel, Model
from ...networks import ExpectationMLP, ShiftMLP
from ...prediction import Prediction
from ...samplers import DDIM, UnreliableEstimate, sample
from ...schedules import RectifiedSchedule, Schedule, VPSchedule
from ...statistics import mean_and_error, ratio_and_error
from ...tilt import Tilt
from ...toy import Empirical
from ...training import ExpectationObjective, Objective, ShiftObjective, train

__all__ = ["PROMPTS", "Digits", "Pictures", "Row", "align_digits", "lightness", "thickness"]

PROMPTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_BANDWIDTH = 0.05


def thickness(x: Tensor, condition: Any = None) -> Tensor:
    """Number of inked pixels, 0 to 64. A black box: its gradient is zero almost everywhere."""

    return (x > 0.06).flatten(1).sum(1).to(x.dtype)


def lightness(x: Tensor, condition: Any = None) -> Tensor:
    """Mean brightness of the paper, 0 (black) to 100 (white). Differentiable."""

    return 50 * (1 - x.flatten(1).mean(1))


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
    depends_on = ("schedule", "laws")

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
    """One line of the table. `ess` holds the median effective draws at the first and last step."""

    reward: str
    method: str
    steps: int
    calls: int
    mean: float
    standard_error: float
    distance: float
    ess: tuple[float, float] | None
    seconds: float


@dataclass(frozen=True)
class Pictures:
    """Base and aligned pictures from the same noise, with shape (samples, prompts, 8, 8)."""

    title: str
    base: Tensor
    aligned: Tensor


def align_digits(
    samples: int = 120,
    bank_size: int = 4096,
    training_steps: int = 1400,
    seed: int = 0,
    say: Callable[[str], None] = lambda message: None,
) -> tuple[list[Row], list[Pictures]]:
    """Runs every alignment of the demo.

    Arguments:
        samples: Pictures per prompt and method.
        bank_size: Draws of the base law per prompt.
        training_steps: Of each guidance network.
        seed: Of everything.
        say: Told what is being done.

    Returns:
        The table and the pictures.
    """

    generator = torch.Generator().manual_seed(seed)
    digits = Digits()
    run = _Run(digits, samples, generator)
    say("thickness, a black box: training-free, rectified path")
    rows, pictures = _thicker(run, digits.sample(bank_size, generator))
    say("lightness, differentiable: guidance networks, VP path")
    bank = digits.sample(bank_size, generator)
    more, others = _lighter(run, bank, training_steps, seed)
    return rows + more, pictures + others


def _thicker(run: "_Run", bank: Bank) -> tuple[list[Row], list[Pictures]]:
    """Alignment to a black box, by importance sampling."""

    bank = bank.scored(Tilt(thickness, 1.0))
    tilt = Tilt.for_kl(thickness, bank, nats=2.5)
    target = run.target("thickness", tilt)
    started = time.perf_counter()
    estimator = ImportanceSampling(bank, tilt)
    setup = time.perf_counter() - started
    base = run.digits.model(RectifiedSchedule())
    rows, pictures = [], []
    for steps in (4, 25):
        plain = run.draw(base, None, steps, target)
        guided = run.draw(base, estimator, steps, target, setup)
        rows += [plain.row("base"), guided.row("importance")]
        title = f"thicker: black-box reward, training-free,\nrectified path, {steps} steps"
        pictures.append(Pictures(title, plain.shown(), guided.shown()))
    return [*rows, target.row()], pictures


def _lighter(
    run: "_Run", bank: Bank, training_steps: int, seed: int
) -> tuple[list[Row], list[Pictures]]:
    """Alignment to a differentiable reward, by trained networks."""

    base = run.digits.model(VPSchedule())
    bank = bank.scored(Tilt(lightness, 1.0))
    tilt = Tilt.for_kl(lightness, bank, nats=1.5)
    target = run.target("lightness", tilt)
    started = time.perf_counter()
    scalar = ExpectationMLP((8, 8), PROMPTS, seed=seed)
    objective: Objective = ExpectationObjective(base, bank, tilt, batch_size=512)
    train(scalar, objective, training_steps, 2e-3, seed, max_norm=1.0, progress=True)
    scalar_setup = time.perf_counter() - started
    vector = ShiftMLP((8, 8), base.schedule, PROMPTS, seed=seed)
    objective = ShiftObjective(base, bank, tilt, scalar)
    train(vector, objective, training_steps * 3 // 5, 2e-3, seed, max_norm=1.0, progress=True)
    vector_setup = time.perf_counter() - started
    rows, pictures = [], []
    for steps in (1, 25):
        plain = run.draw(base, None, steps, target)
        by_scalar = run.draw(base, LearnedExpectation(scalar), steps, target, scalar_setup)
        by_vector = run.draw(base, LearnedShift(vector), steps, target, vector_setup)
        rows += [
            plain.row("base"),
            by_scalar.row("network, log h"),
            by_vector.row("network, shift"),
        ]
        path = "VP path, one step" if steps == 1 else f"VP path, {steps} steps"
        for network, result in (("shift", by_vector), ("log h", by_scalar)):
            title = f"lighter: trained network ({network}),\n{path}"
            if steps == 1 and result is by_scalar:
                title += ": errors grow 150-fold"
            pictures.append(Pictures(title, plain.shown(), result.shown()))
    return [*rows, target.row()], pictures


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
            self.name, "exact target", 0, 0, self.mean, self.standard_error, self.distance, None, 0
        )


@dataclass(frozen=True)
class _Result:
    """Samples of one method, with shape (samples, prompts, 8, 8)."""

    target: _Target
    steps: int
    calls: int
    draws: Tensor
    ess: tuple[float, float] | None
    seconds: float

    def row(self, method: str) -> Row:
        rewards = self.target.tilt.score(self.draws.flatten(0, 1)).reshape(self.draws.shape[:2])
        return Row(
            self.target.name,
            method,
            self.steps,
            self.calls,
            *_over_prompts([mean_and_error(values) for values in rewards.T]),
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
        """The tilted law by self-normalized weights."""

        shown = len(self.noise) // len(PROMPTS)
        means, resampled = [], []
        for law in self.digits.laws.values():
            x = law.sample(draws, self.generator).float()
            rewards = tilt.score(x).double()
            weights = tilt.weigh(rewards).softmax(0)
            means.append(ratio_and_error(weights * rewards, weights))
            picks = torch.multinomial(weights, 2 * shown, generator=self.generator)
            resampled.append(x[picks])
        first, second = torch.stack(resampled, dim=1).chunk(2)
        return _Target(
            name,
            tilt,
            *_over_prompts(means),
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
    ) -> _Result:
        model = base if estimator is None else GuidedModel(base, estimator)
        effective: list[float] = []
        times: list[float] = []

        def trace(t: float, prediction: Prediction) -> None:
            times.append(t)
            if prediction.diagnostics and "ess_tilted" in prediction.diagnostics:
                effective.append(float(prediction.diagnostics["ess_tilted"].median()))

        started = time.perf_counter()
        grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        # Expected near the data end, where the exact shift is short; the table shows the draws.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnreliableEstimate)
            x = sample(model, DDIM(), self.noise, grid, self.prompts, trace=trace)
        seconds = time.perf_counter() - started + setup
        ess = (effective[0], effective[-1]) if effective else None
        shape = (-1, len(PROMPTS), 8, 8)
        return _Result(target, steps, len(times), x.reshape(shape), ess, seconds)


def _over_prompts(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The mean over a fixed set of prompts, with the error that follows from those of its parts."""

    means, errors = zip(*parts, strict=True)
    return math.fsum(means) / len(parts), math.hypot(*errors) / len(parts)


def _distance(x: Tensor, y: Tensor) -> float:
    """Sliced Wasserstein distance, mean over prompts."""

    generator = torch.Generator().manual_seed(0)
    pairs = zip(x.unbind(1), y.unbind(1), strict=True)
    distances = [sliced_wasserstein(a, b, 128, generator) for a, b in pairs]
    return sum(distances) / len(distances)
