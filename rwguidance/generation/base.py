"""Methods of alignment: their interface, and the part that those share which guide the sampler."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..backbone import Generator
from ..estimators import ConditionalExpectation
from ..guidance import GuidedModel, check_strength
from ..prediction import Prediction
from ..support.checks import number
from ..support.fingerprint import fingerprint
from .run import Run
from .work import Streams, Work

__all__ = ["Aligned", "Guided", "Method", "set_checked"]


@dataclass(frozen=True)
class Aligned:
    r"""Aligned samples of one prompt.

    Arguments:
        x_0: Clean states, with shape (B, \*event).
        facts: Facts about all of them, such as beta, in values that JSON can hold.
        each: Facts about each of them, B in number; empty where there are none.
    """

    x_0: Tensor
    facts: dict[str, Any] = field(default_factory=dict)
    each: Sequence[dict[str, Any]] = ()


class Method(ABC):
    """Makes aligned samples of a prompt.

    A method is a frozen dataclass whose fields are its settings, with a line for each in the
    section Arguments of its docstring. Once it stands in
    :data:`rwguidance.generation.methods.METHODS`, they are options of ``rwguidance generate``.
    """

    name: ClassVar[str]
    """Name of the method on the command line and in metadata."""

    chooses: ClassVar[bool] = False
    """True if the unguided samples are among those it chooses from, so that their costs are its."""

    @classmethod
    def from_options(cls, **settings: Any) -> "Method":
        """Returns the method with the settings that the command line was given.

        A method whose defaults there are not those of its constructor overrides this.
        """

        return cls(**settings)

    def at(self, nats: float) -> "Method | None":
        """Returns the method that moves the law of each prompt by a divergence.

        By default it is None: the method has no strength that could be chosen.

        Arguments:
            nats: The divergence, in nats.

        Raises:
            ValueError: If the method cannot go that far.
        """

        return None

    def settings(self) -> dict[str, Any]:
        """Returns everything that changes the result, in values that JSON can hold.

        These are the dataclass's fields, with fingerprints for those that JSON cannot hold.

        Raises:
            Undescribed: If one of them does not say what it depends on.
        """

        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {
            name: value if _is_plain(value) else fingerprint(value)
            for name, value in values.items()
        }

    def check(self, times: Tensor) -> None:  # noqa: B027
        """Raises ValueError if the method makes no sense at these times, before any work."""

    def check_run(self, run: Run, prompt: str) -> None:  # noqa: B027
        """Raises ValueError if the method cannot work with model, sampler and reward, before work.

        Arguments:
            run: The run.
            prompt: One of its prompts, for a reward that has to be asked.
        """

    def streams(self, images: int) -> list[Streams]:
        """Returns the draws of a prompt that the method asks its run for, in this order.

        Arguments:
            images: Number of pictures of the prompt.
        """

        return []

    def work(self, images: int, steps: int, batch_size: int) -> Work:
        """Returns the work on the aligned pictures of one prompt, for the forecast.

        It counts neither the unguided pictures nor :meth:`streams`. By default the aligned pictures
        are decoded and scored. A backward pass counts as two calls.

        Arguments:
            images: Number of pictures.
            steps: Number of steps of the sampler.
            batch_size: Number of samples in a batch.
        """

        return Work(decoded=images, scored=images)

    @abstractmethod
    def align(
        self, run: Run, prompt: str, numbers: Sequence[int], base: Tensor, rewards: Tensor
    ) -> Aligned:
        r"""Returns aligned samples, of one batch of a prompt's images.

        Arguments:
            run: The run.
            prompt: The prompt.
            numbers: Numbers of the images, at most `run.batch_size` of them.
            base: Their unguided samples, from the same noise, with shape (B, \*event).
            rewards: Rewards of the unguided samples, with shape (B,); NaN where the reward failed.
        """


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


@dataclass(frozen=True, kw_only=True)
class Guided(Method):
    """Samples the guided model, from the same noise as the base model.

    Arguments:
        scale: Factor of the shift; 1 is exact.
        window: Times (low, high) in [0, 1] between which to guide.

    Raises:
        TypeError: If the scale is no number or the window not two of them.
        ValueError: If the scale is not finite or the window is not 0 <= low <= high <= 1.
    """

    scale: float = 1.0
    window: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        set_checked(self, scale=number("scale", self.scale))
        check_strength(self.scale, self.window)

    def check(self, times: Tensor) -> None:
        low, high = self.window
        steps = [float(t) for t in times[:-1]]
        if not any(low <= t <= high for t in steps):
            raise ValueError(
                f"window must hold the time of a step, {', '.join(f'{t:.3g}' for t in steps)}, "
                f"got {self.window}"
            )

    def check_run(self, run: Run, prompt: str) -> None:
        if isinstance(run.backbone, Generator):
            raise ValueError(
                f"{self.name} needs a model with a path to guide along, which "
                f"{type(run.backbone).__name__}, a Generator, does not have; resample, "
                "best-of-n, pcn and noise-gradient need none"
            )

    @abstractmethod
    def estimator(self, run: Run, prompt: str) -> tuple[ConditionalExpectation, dict[str, Any]]:
        """Returns the estimator for a prompt, and facts about it."""

    def work(self, images: int, steps: int, batch_size: int) -> Work:
        return Work.of_samples(images, steps, batch_size)

    def align(
        self, run: Run, prompt: str, numbers: Sequence[int], base: Tensor, rewards: Tensor
    ) -> Aligned:
        make = lambda: self.estimator(run, prompt)
        estimator, facts = run.keep("estimator", (self, prompt), make)
        guided = GuidedModel(run.model, estimator, self.scale, self.window)
        names = [("image", prompt, i) for i in numbers]
        effective: list[Tensor] = []
        trace = lambda t, prediction: _note(effective, prediction)
        x_0 = run.sample(guided, prompt, names, trace)
        return Aligned(x_0, facts, _effective_draws(effective, len(names)))


def set_checked(settings: Any, **values: Any) -> None:
    """Sets fields of a frozen dataclass, while it is made, to the numbers that checks return."""

    for name, value in values.items():
        object.__setattr__(settings, name, value)


def _note(seen: list[Tensor], prediction: Prediction) -> None:
    diagnostics = prediction.diagnostics or {}
    if "ess_tilted" in diagnostics:
        seen.append(diagnostics["ess_tilted"].cpu())


def _effective_draws(seen: list[Tensor], n: int) -> list[dict[str, Any]]:
    if not seen:
        return [{} for _ in range(n)]
    table = torch.stack(seen, dim=1)
    return [{"effective draws": [round(float(v), 2) for v in row]} for row in table]
