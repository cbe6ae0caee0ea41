"""What a method of alignment is, and what the methods that guide the sampler share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..estimators import ConditionalExpectation
from ..guidance import GuidedModel, check_strength
from ..prediction import Prediction
from .run import Run

__all__ = ["Aligned", "Guided", "Method"]


@dataclass(frozen=True)
class Aligned:
    r"""Aligned samples of one prompt.

    Arguments:
        x_0: Clean states, with shape (B, \*event).
        facts: What to know about all of them, such as beta, in values that JSON can hold.
        each: The same by sample.
    """

    x_0: Tensor
    facts: dict[str, Any] = field(default_factory=dict)
    each: Sequence[dict[str, Any]] = ()


class Method(ABC):
    """Makes aligned samples of a prompt."""

    name: ClassVar[str]

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything that changes the result, in values that JSON can hold."""

    def check(self, times: Tensor) -> None:  # noqa: B027
        """Raises ValueError if the method makes no sense at these times, before any work."""

    @abstractmethod
    def align(
        self, run: Run, prompt: str, numbers: Sequence[int], base: Tensor, rewards: Tensor
    ) -> Aligned:
        r"""Aligned samples, of one batch of a prompt's images.

        Arguments:
            run: The run.
            prompt: The prompt.
            numbers: The numbers of the images, of which there are at most `run.batch_size`.
            base: Their unguided samples, from the same noise, with shape (B, \*event).
            rewards: Those of the unguided samples, with shape (B,); NaN where the reward failed.
        """


class Guided(Method):
    """Samples the guided model, from the same noise as the base model."""

    scale: float
    window: tuple[float, float]

    def __post_init__(self) -> None:
        check_strength(self.scale, self.window)

    def check(self, times: Tensor) -> None:
        low, high = self.window
        steps = [float(t) for t in times[:-1]]
        if not any(low <= t <= high for t in steps):
            raise ValueError(
                f"window must hold the time of a step, {', '.join(f'{t:.3g}' for t in steps)}, "
                f"got {self.window}"
            )

    @abstractmethod
    def estimator(self, run: Run, prompt: str) -> tuple[ConditionalExpectation, dict[str, Any]]:
        """The estimator for a prompt, and facts about it."""

    def align(
        self, run: Run, prompt: str, numbers: Sequence[int], base: Tensor, rewards: Tensor
    ) -> Aligned:
        make = lambda: self.estimator(run, prompt)
        estimator, facts = run.keep("estimator", (self, prompt), make)
        guided = GuidedModel(run.backbone, estimator, self.scale, self.window)
        names = [("image", prompt, i) for i in numbers]
        effective: list[Tensor] = []
        trace = lambda t, prediction: _note(effective, prediction)
        x_0 = run.sample(guided, prompt, names, trace)
        return Aligned(x_0, facts, _effective_draws(effective, len(names)))


def _note(seen: list[Tensor], prediction: Prediction) -> None:
    diagnostics = prediction.diagnostics or {}
    if "ess_tilted" in diagnostics:
        seen.append(diagnostics["ess_tilted"].double().cpu())


def _effective_draws(seen: list[Tensor], n: int) -> list[dict[str, Any]]:
    if not seen:
        return [{} for _ in range(n)]
    table = torch.stack(seen, dim=1)
    return [{"effective draws": [round(float(v), 2) for v in row]} for row in table]
