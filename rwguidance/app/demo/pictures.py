r"""Pictures: small text-to-image models, aligned with a reward that was learned from preferences.

The reward is a proxy: preferences were drawn by a gold utility, and so one sees what alignment with
the one does to the other, and to the utility's prompt term alone, the match. A guided method is to
have the exactly tilted law, whose means follow from a bank of draws; what goes beyond is overshoot,
not success.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...backbone import Backbone
from ...bank import Bank
from ...estimators import ConditionalExpectation, ImportanceSampling, LearnedShift
from ...guidance import GuidedModel
from ...noise_space import best_of_n, flow_map
from ...prediction import Prediction
from ...samplers import UnreliableEstimate, sample
from ...statistics import mean_and_error
from ...support.randomness import generator_for
from ...tilt import RewardFunction, Tilt

__all__ = ["Case", "Mean", "Pairs", "Row", "Scorer", "Settings", "align", "verdict"]


@dataclass(frozen=True)
class Settings:
    """How much is drawn.

    Arguments:
        images: Per prompt and method.
        bank: Draws of the model per prompt, for the target and for importance sampling.
        candidates: Of best-of-n.
        nats: How far importance sampling is to move the law of a prompt, on average.
        batch: Pictures that are drawn at once.
    """

    images: int = 4
    bank: int = 64
    candidates: int = 4
    nats: float = 1.0
    batch: int = 64


@dataclass(frozen=True)
class Case:
    """A model and how it is guided.

    Arguments:
        name: Of the model.
        backbone: The model.
        steps: Of its sampler.
        network: For the shift; None is training-free, by importance sampling.
        beta: To which the network was trained.
    """

    name: str
    backbone: Backbone
    steps: int
    network: nn.Module | None = None
    beta: float | None = None


@dataclass(frozen=True)
class Mean:
    """A mean over prompts and its standard error; zero where there is none."""

    value: float
    error: float

    @classmethod
    def of(cls, values: Tensor) -> "Mean":
        """That of one number per prompt, with shape (P,)."""

        mean, error = mean_and_error(values)
        return cls(mean, error if len(values) > 1 else 0.0)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Arguments:
        model: Its name.
        method: What was done.
        proxy: The reward: of the base model its mean, of others the gain over it, picture by
            picture from the same noise; of the target, over the mean of the bank.
        gold: Likewise the gold utility.
        match: Likewise the prompt's term of the gold utility, without its weight.
        excess: Gain in proxy over that of the target, for guided methods.
        ess: Median effective draws at each step.
        calls: Of the network per picture.
        seconds: Per picture.
        setup_calls: Of the network per prompt, before the first picture.
        setup_seconds: Per prompt.
    """

    model: str
    method: str
    proxy: Mean
    gold: Mean
    match: Mean
    excess: Mean | None = None
    ess: tuple[float, ...] = ()
    calls: int = 0
    seconds: float = 0.0
    setup_calls: int = 0
    setup_seconds: float = 0.0


@dataclass(frozen=True)
class Pairs:
    """Pictures from the same noise, with shape (P, images, 3, H, W)."""

    model: str
    base: Tensor
    aligned: Tensor


class Scorer:
    """The three numbers that are said of a picture: proxy, gold and match.

    Arguments:
        reward: The proxy, to which the models are aligned.
        gold: The utility by which preferences were drawn.
        match: The prompt's term of it alone.
        prompts: The prompts of the run.
    """

    def __init__(
        self,
        reward: RewardFunction,
        gold: RewardFunction,
        match: RewardFunction,
        prompts: Sequence[str],
    ) -> None:
        self.reward, self.gold, self.match = reward, gold, match
        self.prompts = list(prompts)

    @torch.no_grad()
    def __call__(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """Returns proxy, gold and match of pictures in [0, 1], float64, with shape (B, 3)."""

        proxy = self.reward(pictures, list(prompts)).double()
        return torch.cat((proxy[:, None], self.truth(pictures, prompts)), dim=1)

    @torch.no_grad()
    def truth(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """Returns gold and match of pictures in [0, 1], float64, with shape (B, 2)."""

        values = [judge(pictures, list(prompts)).double() for judge in (self.gold, self.match)]
        return torch.stack(values, dim=1)


def align(
    case: Case,
    scorer: Scorer,
    settings: Settings,
    seed: int = 0,
    report: Callable[[str, int], None] = lambda stage, pictures: None,
) -> tuple[list[Row], Pairs]:
    """Aligns a model on the prompts of a scorer.

    Arguments:
        case: The model.
        scorer: Says what is good; its proxy is what the model is aligned to.
        settings: How much is drawn.
        seed: Of everything.
        report: Told what is being done, and how many pictures came since.

    Returns:
        The rows base, guided, best-of-n and target; and the pictures of the first two.
    """

    run = _Run(case, scorer, settings, seed, report)
    report(f"{case.name}: bank", 0)
    bank, drawn, bank_seconds = run.bank()
    if case.network is None:
        tilt = Tilt.for_kl(scorer.reward, bank, settings.nats, case.backbone.decode)
    else:
        assert case.beta is not None
        tilt = Tilt(scorer.reward, case.beta, case.backbone.decode)
    target = _tilted(tilt, drawn) - drawn.mean(1)

    report(f"{case.name}: base", 0)
    base, plain, seconds, _ = run.draw(case.backbone)
    rows = [run.row("base", plain.mean(1), case.steps, seconds)]
    if case.network is None:
        method, setup = "importance guidance", (settings.bank * case.steps, bank_seconds)
        estimator: ConditionalExpectation = ImportanceSampling(bank, tilt)
    else:
        method, setup = "guidance network", (0, 0.0)
        estimator = LearnedShift(case.network)
    report(f"{case.name}: {method}", 0)
    model: Any = case.backbone
    aligned, scores, seconds, ess = run.draw(GuidedModel(model, estimator))
    gains = (scores - plain).mean(1)
    rows.append(run.row(method, gains, case.steps, seconds, target, ess, setup))

    report(f"{case.name}: best of {settings.candidates}", 0)
    scores, seconds = run.best(tilt)
    gains = (scores - plain).mean(1)
    calls = settings.candidates * case.steps
    rows.append(run.row(f"best of {settings.candidates}", gains, calls, seconds))
    rows.append(run.row("target", target, 0, 0.0))
    return rows, Pairs(case.name, base, aligned)


def verdict(row: Row) -> str:
    """In words, whether a guided method reached the target, and what became of gold.

    Raises:
        ValueError: If the row was not held against a target.
    """

    if row.excess is None:
        raise ValueError(f"{row.method} was not held against a target")
    target = row.proxy.value - row.excess.value
    share = f"{row.proxy.value / target:.0%} of the target's gain" if target > 0 else "no target"
    if row.excess.value < -2 * row.excess.error:
        reached = f"stays short of the target, at {share}"
    elif row.excess.value > 2 * row.excess.error:
        reached = f"overshoots the target, at {share}"
    else:
        reached = f"meets the target within two standard errors, at {share}"
    if row.gold.value > 2 * row.gold.error:
        gold = "gold rises with it"
    elif row.gold.value < -2 * row.gold.error:
        gold = "gold falls: the proxy is being exploited"
    else:
        gold = "the change of gold is within two standard errors of none"
    draws = ", ".join(f"{value:.2g}" for value in row.ess)
    effective = f" Effective draws at its steps: {draws}." if draws else ""
    return f"{row.model}, {row.method}: {reached}; {gold}.{effective}"


def _tilted(tilt: Tilt, values: Tensor) -> Tensor:
    """Means under the tilted law, by self-normalized weights: (P, N, 3) to (P, 3)."""

    weights = (values[:, :, 0] / tilt.betas[0]).softmax(1)
    return (weights[:, :, None] * values).sum(1)


class _Run:
    """The prompts, and one noise for all methods, so that pictures can be compared one by one."""

    def __init__(
        self,
        case: Case,
        scorer: Scorer,
        settings: Settings,
        seed: int,
        report: Callable[[str, int], None],
    ) -> None:
        self.case, self.scorer, self.settings, self.seed = case, scorer, settings, seed
        self.report = report
        self.prompts = [prompt for prompt in scorer.prompts for _ in range(settings.images)]
        self.condition = case.backbone.condition(self.prompts)

    def generators(self) -> list[torch.Generator]:
        """Those of the pictures, fresh."""

        numbers = [i % self.settings.images for i in range(len(self.prompts))]
        named = zip(self.prompts, numbers, strict=True)
        return [generator_for(self.seed, "image", prompt, number) for prompt, number in named]

    def noise(self) -> Tensor:
        backbone: Any = self.case.backbone
        noise: Tensor = backbone.draw_noise(len(self.prompts), self.generators())
        return noise

    @torch.no_grad()
    def bank(self) -> tuple[Bank, Tensor, float]:
        """Draws of every prompt, what is said of them (P, N, 3), and seconds per prompt."""

        backbone, n = self.case.backbone, self.settings.bank
        x_0, rewards, truth, seconds = [], [], [], 0.0
        for prompt in self.scorer.prompts:
            every = backbone.draw_noise(n, generator_for(self.seed, "bank", prompt))
            for noise in every.split(self.settings.batch):
                started, size = time.perf_counter(), len(noise)
                condition = backbone.condition([prompt] * size)
                times = backbone.times(self.case.steps)
                model: Any = backbone
                draws = sample(model, backbone.sampler, noise, times, condition)
                pictures = backbone.decode(draws)
                x_0.append(draws)
                rewards.append(self.scorer.reward(pictures, [prompt] * size))
                seconds += time.perf_counter() - started
                truth.append(self.scorer.truth(pictures, [prompt] * size))
                self.report("", size)
        keys = [prompt for prompt in self.scorer.prompts for _ in range(n)]
        bank = Bank(torch.cat(x_0), keys, torch.cat(rewards))
        values = torch.cat((torch.cat(rewards).double()[:, None], torch.cat(truth)), dim=1)
        prompts = len(self.scorer.prompts)
        return bank, values.reshape(prompts, n, 3), seconds / prompts

    @torch.no_grad()
    def draw(self, model: Any) -> tuple[Tensor, Tensor, float, tuple[float, ...]]:
        """Pictures, what is said of them (P, images, 3), seconds each, and effective draws."""

        backbone, effective = self.case.backbone, list[float]()

        def trace(t: float, prediction: Prediction) -> None:
            if prediction.diagnostics and "ess_tilted" in prediction.diagnostics:
                effective.append(float(prediction.diagnostics["ess_tilted"].median()))

        started = time.perf_counter()
        times = backbone.times(self.case.steps)
        model = model.starting(float(times[0]))
        # Expected after the first step; the table shows the draws.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnreliableEstimate)
            x_0 = sample(model, backbone.sampler, self.noise(), times, self.condition, trace=trace)
        pictures = backbone.decode(x_0)
        seconds = (time.perf_counter() - started) / len(x_0)
        scores = self.scorer(pictures, self.prompts)
        self.report("", len(x_0))
        by_prompt = lambda values: values.unflatten(0, (-1, self.settings.images))
        return by_prompt(pictures), by_prompt(scores), seconds, tuple(effective)

    @torch.no_grad()
    def best(self, tilt: Tilt) -> tuple[Tensor, float]:
        """What is said of the best candidates, the base picture among them, and seconds each."""

        backbone, n = self.case.backbone, self.settings.candidates
        model: Any = backbone
        generate = flow_map(model, backbone.sampler, backbone.times(self.case.steps))
        started = time.perf_counter()
        chosen = best_of_n(
            generate,
            tilt,
            model.draw_noise,
            len(self.prompts),
            n,
            self.condition,
            self.generators(),
            self.settings.batch,
        )
        seconds = (time.perf_counter() - started) / len(self.prompts)
        scores = self.scorer(backbone.decode(chosen.x_0), self.prompts)
        self.report("", n * len(self.prompts))
        return scores.unflatten(0, (-1, self.settings.images)), seconds

    def row(
        self,
        method: str,
        values: Tensor,
        calls: int,
        seconds: float,
        target: Tensor | None = None,
        ess: tuple[float, ...] = (),
        setup: tuple[int, float] = (0, 0.0),
    ) -> Row:
        proxy, gold, match = (Mean.of(column) for column in values.unbind(1))
        excess = None if target is None else Mean.of((values - target)[:, 0])
        return Row(self.case.name, method, proxy, gold, match, excess, ess, calls, seconds, *setup)
