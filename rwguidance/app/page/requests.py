"""What a visitor of the page asks for, the most that is allowed, and the method that it means."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...generation import Importance, Method, NoiseGradient, Resample
from ...generation.choice import AUTO, Situation
from ...generation.job import check_text
from ...generation.methods import METHODS
from ...generation.settings import build, method_settings
from ...generation.strength import OfStrength
from ...support.checks import choice, integer, number, optional

__all__ = ["LEAST_NATS", "OFFERED", "Limits", "Request", "method_for"]

OFFERED = [AUTO, *(name for name, kind in METHODS.items() if issubclass(kind, OfStrength))]
"""Names of the methods that a page offers: those whose strength can be chosen in nats."""

LEAST_NATS = 0.05
"""The weakest strength, in nats."""

_BANK = 64
"""Number of draws per prompt, the default of most methods."""


@dataclass(frozen=True)
class Limits:
    """The most that a visitor may ask for at once.

    Arguments:
        letters: Number of characters of a prompt.
        pictures: Number of pictures.
        steps: Number of steps of the sampler.
        nats: Strength, in nats; less than the logarithm of 64, the number of draws of a bank.
        calls: Number of calls of the network, one picture each; a pass back counts as two.
        waiting: Number of visitors who wait for their turn.
        kept: Number of prompts whose draws are kept, so that another strength takes less time.

    Raises:
        TypeError: If a value is of the wrong kind.
        ValueError: If a value is out of its range.
    """

    letters: int = 300
    pictures: int = 8
    steps: int = 50
    nats: float = 3.0
    calls: int = 4000
    waiting: int = 16
    kept: int = 32

    def __post_init__(self) -> None:
        for name in ("letters", "pictures", "steps", "calls", "waiting", "kept"):
            integer(name, getattr(self, name), 1)
        number("nats", self.nats, LEAST_NATS, 4.0)


@dataclass(frozen=True)
class Request:
    """What a visitor asks for.

    Arguments:
        prompt: The prompt.
        backbone: Name of the model.
        weights: Weights of rewards by name, in [-1, 1]. A weight is in units of the reward's
            typical range, so that equal weights are of like influence.
        nats: Strength, in nats.
        method: Name of the method, or "auto" for what suits the model and the reward.
        images: Number of pictures.
        steps: Number of steps of the sampler; None is what the model recommends.
        seed: Seed of everything.
    """

    prompt: str
    backbone: str
    weights: Mapping[str, float] = field(default_factory=dict)
    nats: float = 1.0
    method: str = AUTO
    images: int = 4
    steps: int | None = None
    seed: int = 0

    def check(self, limits: Limits) -> None:
        """Raises TypeError or ValueError, in words for a visitor, if it is not to be made.

        A browser can be made to send anything, so that what the page bounds is checked again.
        """

        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise ValueError("write a prompt: it is empty")
        if len(self.prompt) > limits.letters:
            raise ValueError(
                f"the prompt has {len(self.prompt)} characters; make it {limits.letters} at most"
            )
        check_text(self.prompt)
        integer("pictures", self.images, 1, limits.pictures)
        optional(integer, "steps", self.steps, 1, limits.steps)
        integer("seed", self.seed, 0, 2**32 - 1)
        number("strength", self.nats, LEAST_NATS, limits.nats)
        choice("method", self.method, OFFERED)
        for name, weight in self.weights.items():
            number(f"the weight of {name}", weight, -1, 1)
        if not any(self.weights.values()):
            raise ValueError("give a reward some weight: all of them are 0")


def method_for(name: str, nats: float, situation: Situation) -> Method:
    """Returns a method of a strength, with the settings that `rwguidance demo` gives it.

    Among the methods that begin with the noise of the picture beside, "auto" takes guidance where
    there are steps to guide, and else the move of the noise along the gradient. Without a gradient
    either it resamples a bank.

    Arguments:
        name: Name of the method, or "auto".
        nats: Strength, in nats.
        situation: The situation.
    """

    kind: type[Method]
    if name != AUTO:
        kind = METHODS[name]
    elif situation.path and situation.steps > 1:
        kind = Importance
    else:
        kind = NoiseGradient if situation.gradient else Resample
    wanted = {
        "kl": nats,
        "bank": _BANK,
        "leave_one_out": True,
        "pictures": situation.images,
    }
    taken = {setting.option for setting in method_settings(kind)}
    return build(kind, {option: value for option, value in wanted.items() if option in taken})
