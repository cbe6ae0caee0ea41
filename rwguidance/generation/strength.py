"""The strength of a method: a temperature, or the divergence from which it follows."""

import math
from dataclasses import replace
from typing import Any, TypeVar, cast

from ..support import checks
from ..tilt import Tilt
from .base import Method, set_checked
from .run import Run
from .work import Streams

__all__ = ["OfStrength", "OfTilt", "check_one", "checked_strength", "tilt_of", "with_strength"]

M = TypeVar("M", bound="OfStrength")


class OfStrength(Method):
    """A method with the settings `beta` and `kl`, of which one is given, and one nat by default."""

    @classmethod
    def from_options(cls: type[M], **settings: Any) -> M:
        return cls(**with_strength(settings))

    def at(self: M, nats: float) -> M:
        return cast(M, replace(cast(Any, self), beta=None, kl=nats))


class OfTilt(OfStrength):
    """A method whose temperature, where it is not given, follows from draws of the prompt."""

    beta: float | None
    kl: float | None
    bank: int

    def check_tilt(self) -> None:
        """Checks the temperature, the divergence and the number of draws."""

        set_checked(
            self,
            bank=checks.integer("bank", self.bank, 2),
            **checked_strength(self.beta, self.kl, "bank", self.bank),
        )
        check_one(self.beta, self.kl)

    def streams(self, images: int) -> list[Streams]:
        return [] if self.kl is None else [Streams("bank", 1, self.bank)]

    def tilt(self, run: Run, prompt: str) -> Tilt:
        """Returns the tilt of a prompt."""

        return tilt_of(run, prompt, self.beta, self.kl, self.bank)


def checked_strength(
    beta: float | None, kl: float | None, name: str, draws: int
) -> dict[str, float | None]:
    """Returns a temperature and a divergence that so many draws may reach, of which one is used."""

    beta = checks.optional(checks.number, "beta", beta, above=0)
    kl = checks.optional(checks.number, "kl", kl, above=0)
    if kl is not None and kl >= math.log(draws):
        raise ValueError(f"kl must be less than log({name}) = {math.log(draws):.3g} nats, got {kl}")
    return {"beta": beta, "kl": kl}


def check_one(beta: float | None, kl: float | None) -> None:
    if (beta is None) == (kl is None):
        raise ValueError(f"give beta or kl, one of them, got {beta} and {kl}")


def with_strength(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns settings of the command line, where a strength that is not given is one nat."""

    return settings if {"beta", "kl"} & settings.keys() else {"kl": 1.0, **settings}


def tilt_of(run: Run, prompt: str, beta: float | None, kl: float | None, draws: int) -> Tilt:
    """Returns the tilt at a temperature, or at one that follows from draws of the prompt."""

    decode = run.backbone.decode
    if kl is None:
        assert beta is not None
        return Tilt(run.reward, beta, decode)
    return Tilt.for_kl(run.reward, run.bank(prompt, draws, "bank"), kl, decode)
