"""Methods of trained networks: guidance along a path, and changes of outputs or of noise."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn

from ..estimators import ConditionalExpectation, LearnedExpectation, LearnedShift
from ..networks import load
from ..noise_space import Generate, change_map, noise_map
from ..noise_space.networks import change_of
from ..support import checks
from .base import Aligned, Guided, Method, set_checked
from .run import Run
from .work import Work

__all__ = ["ChangeNetwork", "Network", "NoiseNetwork", "OutputNetwork"]

M = TypeVar("M", bound="OfNetwork")


@dataclass(frozen=True)
class OfNetwork(Method):
    """A method of a trained network, which may take the strength as an input.

    Arguments:
        network: Trained network; on the command line its name, the file that its method `save`
            wrote, or the folder that `save_pretrained` wrote.
        strength: Strength for a network that takes it, in the unit in which it was trained; nats
            where the method is evaluated at some.

    Raises:
        TypeError: If the network is no module, or the strength no number.
        ValueError: If the strength is not positive.
    """

    network: nn.Module = field(metadata={"read": load})
    strength: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        checks.instance("network", self.network, nn.Module, "a guidance network, an nn.Module")
        set_checked(
            self, strength=checks.optional(checks.number, "strength", self.strength, above=0)
        )

    @property
    def takes_strength(self) -> bool:
        """True if the network takes a strength."""

        return getattr(self.network, "strength", False) is True

    def at(self: M, nats: float) -> M | None:
        return replace(self, strength=nats) if self.takes_strength else None

    def check_run(self, run: Run, prompt: str) -> None:
        super().check_run(run, prompt)
        if self.takes_strength != (self.strength is not None):
            raise ValueError(
                f"{self.name}: give strength for a network that takes it, and for no other; this "
                f"one {'takes it' if self.takes_strength else 'does not'}"
            )

    def module(self, run: Run) -> nn.Module:
        """Returns the network, at its strength, on the device of a run."""

        network: Any = self.network.to(run.device)
        return cast(nn.Module, network if self.strength is None else network.at(self.strength))


@dataclass(frozen=True)
class Network(OfNetwork, Guided):
    """Guidance by a trained network: one small forward pass per step.

    Arguments:
        log_h: Whether the network gives log h, and not the shift; without it, what a
            :class:`~rwguidance.networks.GuidanceNetwork` says of its output.

    Raises:
        TypeError: If the network is no module, or `log_h` neither None nor a boolean.
        ValueError: If the scale is not finite or the window is not 0 <= low <= high <= 1.
    """

    name: ClassVar[str] = "network"

    log_h: bool | None = None

    def __post_init__(self) -> None:
        OfNetwork.__post_init__(self)
        Guided.__post_init__(self)
        checks.optional(checks.flag, "log_h", self.log_h)

    @property
    def gives_log_h(self) -> bool:
        """True if the network gives log h, False if it gives the shift."""

        return (
            getattr(self.network, "output", None) == "log_h" if self.log_h is None else self.log_h
        )

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "log_h": self.gives_log_h}

    def estimator(self, run: Run, prompt: str) -> tuple[ConditionalExpectation, dict[str, Any]]:
        kind = LearnedExpectation if self.gives_log_h else LearnedShift
        return kind(self.module(run)), {}


@dataclass(frozen=True)
class OutputNetwork(OfNetwork):
    """What a model made, changed by a trained network, as `OutputObjective` trains one."""

    name: ClassVar[str] = "output-network"
    chooses: ClassVar[bool] = True  # it begins from the unguided samples, whose cost is its

    def align(
        self, run: Run, prompt: str, numbers: Sequence[int], base: Tensor, rewards: Tensor
    ) -> Aligned:
        with torch.no_grad():
            condition = run.condition(prompt, len(base))
            return Aligned(base + change_of(self.module(run), base, 0.0, condition))


class OfNoise(OfNetwork):
    """A method whose network changes the noise, and so makes pictures of its own."""

    def check_run(self, run: Run, prompt: str) -> None:
        super().check_run(run, prompt)
        try:
            run.generator(prompt)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None

    def work(self, images: int, steps: int, batch_size: int) -> Work:
        return Work.of_samples(images, steps, batch_size)

    @abstractmethod
    def changed(self, generate: Generate, network: nn.Module) -> Generate:
        """Returns the generator with the network beside it."""

    def align(
        self, run: Run, prompt: str, numbers: Sequence[int], base: Tensor, rewards: Tensor
    ) -> Aligned:
        noise = run.noise([("image", prompt, i) for i in numbers])
        with torch.no_grad():
            changed = self.changed(run.generator(prompt), self.module(run))
            return Aligned(changed(noise, run.condition(prompt, len(noise))))


@dataclass(frozen=True)
class NoiseNetwork(OfNoise):
    """Noise changed by a trained network, as `NoiseObjective` trains one; no random samplers."""

    name: ClassVar[str] = "noise-network"

    def changed(self, generate: Generate, network: nn.Module) -> Generate:
        return noise_map(generate, network)


@dataclass(frozen=True)
class ChangeNetwork(OfNoise):
    """Noise and then what a model makes of it, both changed by one trained network."""

    name: ClassVar[str] = "change-network"

    def changed(self, generate: Generate, network: nn.Module) -> Generate:
        return change_map(generate, network)
