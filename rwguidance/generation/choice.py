"""Which method a run takes that was not told one: the first that suits it, within its calls."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..backbone import Backbone, TextToImage
from ..noise_space import flow_map
from ..noise_space.slopes import check_differentiable
from ..tilt import RewardFunction, Tilt
from .base import Method
from .extensions import sampling_times
from .noise import NoiseGradient
from .pooled import Pool, Resample
from .settings import build, flag, method_settings
from .work import Work, work_on_draws

__all__ = ["AUTO", "Choice", "Situation", "calls_of", "check_calls", "choose", "situation_of"]

AUTO = "auto"
"""Name under which the command line leaves the choice to :func:`choose`."""

_SHARED = 4
"""Pictures of a prompt from which on guided ones are worth their calls."""

_PER_WEIGHT = 4
"""Draws of a bank over exp(KL), at least.

With four, resampling makes .83 to .92 of the tilted law's gain where rewards are normal, from 1/4
to 4 nats; with twice as many .92 to .94.
"""

_LEAST = 16
"""Draws of a bank, at least, for a temperature whose divergence is not known."""


@dataclass(frozen=True)
class Situation:
    """What the choice of a method depends on.

    Arguments:
        images: Number of pictures per prompt.
        steps: Number of steps of a run.
        path: Whether the model has a path to guide along, as a Generator has not.
        gradient: Whether a reward has gradients in the noise.
        calls: Number of calls of the network for a picture, at most, with its part of those on
            the bank of its prompt; None for any number.
    """

    images: int
    steps: int
    path: bool
    gradient: bool
    calls: float | None = None


@dataclass(frozen=True)
class Choice:
    """A method for a situation.

    Arguments:
        kind: Class of the method.
        settings: Settings that are not the user's, by names of options with underscores.
        why: The reason, a sentence.
        calls: Number of calls of the network for a picture, at most.
    """

    kind: type[Method]
    settings: Mapping[str, Any]
    why: str
    calls: float


def situation_of(
    backbone: TextToImage,
    reward: RewardFunction,
    images: int,
    steps: int | None,
    calls: float | None = None,
) -> Situation:
    """Returns the situation of a run.

    A reward counts as differentiable if it says so: of a plain function nobody knows before it is
    asked. Through a sampler that draws random numbers no gradient reaches the noise.

    Arguments:
        backbone: The model.
        reward: The reward.
        images: Number of pictures per prompt.
        steps: Number of steps of the sampler; None is what the model recommends.
        calls: Number of calls of the network for a picture, at most; None for any number.

    Raises:
        ValueError: If `steps` is not given and the model recommends none.
    """

    times, path, gradient = sampling_times(backbone, steps), isinstance(backbone, Backbone), True
    try:
        check_differentiable(Tilt(reward, 1.0))
        if isinstance(backbone, Backbone):
            flow_map(backbone, backbone.sampler, times)
    except ValueError:
        gradient = False
    gradient = gradient and hasattr(reward, "spec")
    return Situation(images, len(times) - 1, path, gradient, calls)


def choose(situation: Situation, given: Mapping[str, Any]) -> Choice:
    """Returns a method for a situation, of those that take what was given.

    Pictures of a prompt that share a bank come from one pool, in which guided pictures and the bank
    are weighed together. A few pictures are drawn from the bank by weight: as it is needed to find
    the temperature of a strength in nats, no method takes fewer calls for them. Where `beta` is
    given and no bank fits into the calls, the noise of a picture moves along the gradient.

    Banks are as large as the calls allow up to the default of the method, and no smaller than the
    strength needs.

    Arguments:
        situation: The situation.
        given: Settings that the user gave, by names of options with underscores.

    Raises:
        TypeError: If a setting is of the wrong kind.
        ValueError: If a setting makes no sense, no method of the choice takes all that was given,
            or none is possible within the calls: names what would be.
    """

    cheapest: dict[str, float] = {}
    for kind, settings, why in _candidates(situation, given):
        calls = calls_of(build(kind, {**settings, **given}), situation)
        if situation.calls is None or calls <= situation.calls:
            sentence = f"method {kind.name}, at most {calls:.3g} calls a picture: {why}"
            return Choice(kind, settings, f"{sentence}; --method chooses another", calls)
        cheapest[kind.name] = min(calls, cheapest.get(kind.name, math.inf))
    if cheapest:
        raise ValueError(_refusal(situation, given, cheapest))
    stray = ", ".join(map(flag, sorted(given)))
    names = f"{Pool.name}, {Resample.name} and {NoiseGradient.name}"
    raise ValueError(
        f"--method is needed with {stray}: without it the choice is among {names}, and none of "
        "them takes all of these here"
    )


def check_calls(method: Method, situation: Situation) -> None:
    """Raises ValueError if a method may take more calls of the network than a situation allows."""

    calls = calls_of(method, situation)
    if situation.calls is not None and calls > situation.calls:
        raise ValueError(
            f"{method.name} takes up to {calls:.3g} calls of the network a picture, more than "
            f"--calls {situation.calls:g}; make its bank smaller or more pictures of a prompt, or "
            "leave --method out"
        )


def calls_of(method: Method, situation: Situation) -> float:
    """Returns the calls of the network for an aligned picture, at most, with its part of the bank.

    A pass back counts as two. Unguided pictures count for methods that choose among them.
    """

    work = method.work(situation.images, situation.steps, 1)
    work += work_on_draws(method.streams(situation.images), situation.steps, 1)
    if method.chooses:
        work += Work.of_samples(situation.images, situation.steps, 1)
    return work.calls / situation.images


def _candidates(
    situation: Situation, given: Mapping[str, Any]
) -> Iterator[tuple[type[Method], dict[str, Any], str]]:
    """Methods with settings and reasons, the first choice first."""

    together = min(situation.images, Pool.pictures)
    if situation.path and situation.images >= _SHARED and _takes(Pool, given):
        why = (
            f"{together} guided pictures and a bank are weighed together, which takes the fewest "
            "calls to the tilted law where pictures of a prompt share them"
        )
        for bank in _banks(Pool.bank, situation, given):
            yield Pool, {"pictures": together, **bank}, why
    if _takes(Resample, given):
        why = f"{together} of the draws of a prompt's bank are picked by weight"
        if situation.path and situation.images < _SHARED:
            why += f"; from {_SHARED} pictures on, {Pool.name} takes fewer calls for each"
        for bank in _banks(Resample.bank, situation, given):
            yield Resample, {"pictures": together, **bank}, why
    if situation.gradient and "beta" in given and _takes(NoiseGradient, given):
        why = (
            "no bank fits into --calls, so the noise moves once along the gradient of the reward, "
            "by the size of the test bed, which may not be yours: --size sets another"
        )
        yield NoiseGradient, {"size": 0.65 if situation.steps == 1 else 0.9}, why


def _takes(kind: type[Method], given: Mapping[str, Any]) -> bool:
    return given.keys() <= {setting.option for setting in method_settings(kind)}


def _least(given: Mapping[str, Any]) -> int:
    """The smallest bank that the strength allows."""

    if "beta" in given:
        return _LEAST
    return math.ceil(_PER_WEIGHT * math.exp(given.get("kl", 1.0)))


def _banks(default: int, situation: Situation, given: Mapping[str, Any]) -> list[dict[str, int]]:
    """Sizes of banks to try, the largest first."""

    if "bank" in given:
        return [{}]
    least = _least(given)
    most = max(default, least)
    return [
        {"bank": n} for n in ([most] if situation.calls is None else range(most, least - 1, -1))
    ]


def _refusal(situation: Situation, given: Mapping[str, Any], cheapest: Mapping[str, float]) -> str:
    """What is not possible, and what would be."""

    n, calls = situation.images, situation.calls
    strength = f"beta {given['beta']:g}" if "beta" in given else f"{given.get('kl', 1.0):g} nats"
    needs = [f"{name} needs {found:.3g}" for name, found in cheapest.items()]
    if n < Pool.pictures:
        many = Situation(Pool.pictures, situation.steps, situation.path, False)
        kind = Pool if situation.path else Resample
        least = {} if "bank" in given else {"bank": _least(given)}
        if _takes(kind, given):
            found = calls_of(build(kind, {**least, **given}), many)
            needs.append(f"{kind.name} {found:.3g} if {many.images} pictures share the bank")
    draws = int((calls or 0) * n / situation.steps)
    if "beta" not in given and draws > _PER_WEIGHT:
        weaker = math.log(draws / _PER_WEIGHT)
        needs.append(f"{Resample.name} goes {weaker:.2g} nats far with {calls:g}")
    if not situation.gradient:
        method = NoiseGradient(beta=1.0, size=1.0)
        found = calls_of(method, situation)
        needs.append(f"{method.name} {found:.3g}, with a differentiable reward and --beta")
    return (
        f"no method makes {n} picture{'s' * (n > 1)} of a prompt at {strength} with "
        f"{calls:g} calls of the network for each: {'; '.join(needs)}"
    )
