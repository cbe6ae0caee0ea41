"""Methods that move the noise of a picture instead of guiding its path."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..backbone import Generator
from ..noise_space import (
    GainOutOfReach,
    Selection,
    adapted_pcn,
    noise_gradient,
    size_for_gain,
)
from ..noise_space.slopes import check_differentiable
from ..support import checks
from ..support.randomness import generator_for
from ..tilt import Tilt
from ..weights import gumbel
from .base import Aligned, set_checked
from .run import Run
from .strength import OfTilt
from .work import Streams, Work

__all__ = ["NoiseChain", "NoiseGradient"]

# The norm of Gaussian noise varies by one part in 14 or less from here on; below, it is free.
_MANY = 100
# So many sizes are tried as a rule: two around the gain, and five between them. It may be twice as
# many where the first is far off, see `size_for_gain`.
_TRIED = 7
# Moves where none are asked for: one, or several where it does not reach the gain.
_MOVES = (1, 2)


@dataclass(frozen=True)
class _Steps:
    """Steps along the gradient: the tilt, their size and number, and the share of the gain."""

    tilt: Tilt
    size: float
    moves: int
    share: float | None = None

    @property
    def facts(self) -> dict[str, Any]:
        facts = {"beta": self.tilt.betas[0], "size": self.size, "moves": self.moves}
        return facts if self.share is None else {**facts, "gain share": round(self.share, 3)}


@dataclass(frozen=True)
class NoiseGradient(OfTilt):
    r"""Noise moved along the gradient of a differentiable reward: one picture in a few calls.

    For models with few steps and samplers without randomness. The size of a step is the one at
    which a few pilots of the prompt gain as much as the tilted law does on its bank. Where no size
    does, the pictures go as far as they can, a warning names the prompt, and their fact
    ``gain share`` is below 1: they are better than without, and to leave such prompts out would
    make a mean over prompts look better than the method is. See
    :func:`rwguidance.noise_space.noise_gradient`.

    Arguments:
        beta: Temperature, in reward units.
        kl: Divergence by which to move the law of each prompt, in nats, instead of `beta`, which
            follows from it; 1 on the command line if neither is given.
        bank: Number of draws per prompt from which `beta` and the gain follow.
        moves: Number of moves of the noise, each with a gradient of its own; strong tilts need
            several. Without it one, or two where one does not reach the gain, whatever its size.
        size: Factor of the gradient; without it, it is found on pilots.
        pilots: Number of draws per prompt on which the size is found.
        through: Number of first calls of the network through which gradients go; the state that the
            last of them predicts is scored. Without it they go through all.

    Raises:
        TypeError: If a value is of the wrong kind.
        ValueError: If not one of `beta` and `kl` is given, or a value is out of its range, which
            for `kl` ends at log(bank).
    """

    name: ClassVar[str] = "noise-gradient"

    beta: float | None = None
    kl: float | None = None
    bank: int = 64
    moves: int | None = None
    size: float | None = None
    pilots: int = 8
    through: int | None = None

    def __post_init__(self) -> None:
        set_checked(
            self,
            moves=checks.optional(checks.integer, "moves", self.moves, 1),
            size=checks.optional(checks.number, "size", self.size, above=0),
            pilots=checks.integer("pilots", self.pilots, 1),
            through=checks.optional(checks.integer, "through", self.through, 1),
        )
        self.check_tilt()

    def check_run(self, run: Run, prompt: str) -> None:
        try:
            run.generator(prompt, gradient=True)
            check_differentiable(Tilt(run.reward, 1.0))
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        if not hasattr(run.reward, "spec") and not _carries_gradients(run, prompt):
            raise ValueError(
                f"{self.name} needs a reward whose value carries a gradient in the picture, which "
                "this one does not; use best-of-n or importance, which need none"
            )

    def streams(self, images: int) -> list[Streams]:
        needs = self.kl is not None or self.size is None
        return [Streams("bank", 1, self.bank)] if needs else []

    def work(self, images: int, steps: int, batch_size: int) -> Work:
        run = Work.of_samples(images, steps, batch_size)
        shown = Work(decoded=images, scored=images)
        moves = self._tried[0]
        own = self._gradients(images, moves, steps, batch_size) + run + shown
        if self.size is not None:
            return own
        one = Work.of_samples(self.pilots, steps, batch_size)
        more = self._gradients(self.pilots, moves - 1, steps, batch_size)
        return (
            own + one + (one + more) * _TRIED + self._gradients(self.pilots, 1, steps, batch_size)
        )

    @property
    def _tried(self) -> tuple[int, ...]:
        """Numbers of moves that are tried, until one reaches the gain."""

        if self.moves is not None:
            return (self.moves,)
        return _MOVES if self.size is None else _MOVES[:1]

    def _gradients(self, n: int, moves: int, steps: int, batch_size: int) -> Work:
        """Work on gradients: a backward pass counts as two calls, and calls are made twice.

        A single call is not made twice: its graph is kept.
        """

        calls = min(self.through or steps, steps)
        one = Work.of_samples(n, calls * (3 if calls == 1 else 4), batch_size)
        return replace(one, drawn=0, decoded=3 * n, scored=3 * n) * moves

    def align(
        self, run: Run, prompt: str, numbers: Sequence[int], base: Tensor, rewards: Tensor
    ) -> Aligned:
        make = lambda: self._steps(run, prompt)
        steps: _Steps = run.keep("noise gradient", (self, prompt), make)
        noise = run.noise([("image", prompt, i) for i in numbers])
        found = noise_gradient(
            draw=lambda n, generator: noise,
            outputs=len(numbers),
            size=steps.size,
            steps=steps.moves,
            **self._settings(run, prompt, steps.tilt, noise),
        )
        return Aligned(found.x_0, steps.facts)

    def _steps(self, run: Run, prompt: str) -> _Steps:
        """The steps of a prompt's pictures."""

        tilt = self.tilt(run, prompt)
        if self.size is not None:
            (moves,) = self._tried
            return _Steps(tilt, self.size, moves)
        gain = self._gain(run, prompt, tilt)
        noise = run.noise([("draw", "bank", prompt, i) for i in range(self.pilots)])
        settings = self._settings(run, prompt, tilt, noise)
        for moves in self._tried:
            try:
                size = size_for_gain(
                    noise=noise, gain=gain, steps=moves, batch_size=run.batch_size, **settings
                )
                return _Steps(tilt, size, moves, 1.0)
            except GainOutOfReach as error:
                most, best = error.gain, _Steps(tilt, error.size, moves, error.gain / gain)
        short = (
            f"{self.name}: with --moves {best.moves} log w of {prompt!r} rises by {most:.3g} nats "
            f"at most where {gain:.3g} are due"
        )
        if most <= 0:
            raise ValueError(f"{short}; pcn and resample need no gradient")
        warnings.warn(
            f"{short}: its pictures are tilted less than asked; --moves {best.moves + 1} or a "
            "smaller --kl may mend it",
            RuntimeWarning,
            stacklevel=2,
        )
        return best

    def _gain(self, run: Run, prompt: str, tilt: Tilt) -> float:
        """The gain of the mean log-weight of a prompt that the tilted law has on its bank."""

        bank = run.bank(prompt, self.bank, "bank")
        assert bank.rewards is not None
        finite = bank.rewards.isfinite()
        log_w = tilt.weigh(bank.rewards)[finite].double()
        return float(log_w.softmax(0) @ log_w - log_w.mean())

    def _settings(self, run: Run, prompt: str, tilt: Tilt, noise: Tensor) -> dict[str, Any]:
        """What steps of any size have in common."""

        return {
            "generate": run.generator(prompt, gradient=self.through is None),
            "proxy": None
            if self.through is None
            else run.generator(prompt, gradient=True, calls=self.through),
            "tilt": tilt,
            "condition": [prompt] * len(noise),
            "std": run.noise_std,
            "keep_norm": noise[0].numel() >= _MANY,
        }


@dataclass(frozen=True)
class NoiseChain(OfTilt):
    r"""A Markov chain of the noise from a draw of a bank: the tilted law in the limit, no gradient.

    For samplers without randomness. A picture starts from a draw that is picked by its weight, and
    takes steps that a Metropolis test accepts or not. See
    :func:`rwguidance.noise_space.adapted_pcn`.

    Arguments:
        beta: Temperature, in reward units.
        kl: Divergence by which to move the law of each prompt, in nats, instead of `beta`, which
            follows from it; 1 on the command line if neither is given.
        bank: Number of draws per prompt from which `beta` follows, and from which pictures start.
        burn_in: Number of steps in which a picture finds the size of its steps.
        moves: Number of steps after them.
        acceptance: Share of steps that are to be accepted.

    Raises:
        TypeError: If a value is of the wrong kind.
        ValueError: If not one of `beta` and `kl` is given, or a value is out of its range, which
            for `kl` ends at log(bank).
    """

    name: ClassVar[str] = "pcn"

    beta: float | None = None
    kl: float | None = None
    bank: int = 64
    burn_in: int = 8
    moves: int = 8
    acceptance: float = 0.3

    def __post_init__(self) -> None:
        set_checked(
            self,
            burn_in=checks.integer("burn_in", self.burn_in, 2),
            moves=checks.integer("moves", self.moves, 1),
            acceptance=checks.number("acceptance", self.acceptance, above=0, below=1),
        )
        self.check_tilt()

    def check_run(self, run: Run, prompt: str) -> None:
        try:
            run.generator(prompt)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None

    def streams(self, images: int) -> list[Streams]:
        return [Streams("bank", 1, self.bank)]

    def work(self, images: int, steps: int, batch_size: int) -> Work:
        moves = Work.of_samples(images, steps, batch_size) * (self.burn_in + self.moves)
        start = Work(decoded=images, scored=images)
        return super().work(images, steps, batch_size) + start + moves

    def align(
        self, run: Run, prompt: str, numbers: Sequence[int], base: Tensor, rewards: Tensor
    ) -> Aligned:
        bank = run.bank(prompt, self.bank, "bank")
        assert bank.rewards is not None
        make = lambda: self.tilt(run, prompt)
        tilt = run.keep("tilt", (self, prompt), make)
        log_w = tilt.weigh(bank.rewards).double().cpu()
        generators = [generator_for(run.seed, "pcn", prompt, i) for i in numbers]
        picks = [int((log_w + gumbel((self.bank,), one)).argmax()) for one in generators]
        noise = run.noise([("draw", "bank", prompt, pick) for pick in picks])
        end = adapted_pcn(
            generate=run.generator(prompt),
            tilt=tilt,
            draw=run.fresh_noise,
            start=Selection(bank.x_0[picks], noise, log_w[picks], 0, {}),
            burn_in=self.burn_in,
            steps=self.moves,
            acceptance=self.acceptance,
            condition=[prompt] * len(picks),
            generator=generators,
        )
        found = end.diagnostics
        each = [
            {"chosen": pick, "acceptance": round(float(a), 3), "rho": round(float(rho), 3)}
            for pick, a, rho in zip(picks, found["acceptance"], found["rho"], strict=True)
        ]
        return Aligned(end.x_0, {"beta": tilt.betas[0]}, each)


def _carries_gradients(run: Run, prompt: str) -> bool:
    """Whether a reward has a gradient in a picture; True if it fails, which is reported later."""

    noise = run.backbone.draw_noise(1, generator_for(run.seed, "probe"))
    x_0 = noise
    if isinstance(run.backbone, Generator):
        x_0 = run.generator(prompt)(noise, None)
    images = run.decode(x_0)  # without a graph
    try:
        with torch.enable_grad():
            return bool(run.reward(images.requires_grad_(), [prompt]).requires_grad)
    except Exception:
        return True
