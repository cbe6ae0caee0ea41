"""What every part of a generation shares: the model, the reward, and how random numbers are named.

All random numbers of an image come from a generator named by seed, prompt and number of the image.
So an image depends neither on the batch that it was made in nor on the other prompts (up to the
rounding of the device, which may differ between batch sizes).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..bank import Bank
from ..models import Model
from ..samplers import Trace, sample
from ..support.conditions import take
from ..support.fingerprint import fingerprint
from ..support.randomness import generator_for
from ..tilt import RewardFunction, Tilt
from .extensions import encode
from .store import Store

__all__ = ["Report", "Run", "Scores"]

Report = Callable[[str, int, int], None]
"""Is told the name of a stage, how much of it is done, and out of how much."""


@dataclass(frozen=True)
class Scores:
    """Rewards of images, where they have one.

    Arguments:
        values: In reward units, float64, with shape (B,); NaN where the reward failed.
        errors: Why it failed, by the image's place in the batch.
    """

    values: Tensor
    errors: dict[int, str]


@dataclass(frozen=True)
class Run:
    """One run: a model, a reward, and the settings that decide every random number.

    Arguments:
        backbone: The model.
        reward: (images, prompts) to rewards, with shape (B,).
        times: Strictly decreasing times, as :func:`rwguidance.sample` takes them.
        seed: Of everything.
        batch_size: Samples that the network, the decoder and the reward see at once.
        negative_prompt: What classifier-free guidance leads away from; None is the backbone's own.
        store: Where draws and their rewards are kept; None keeps them in memory only.
        report: Is told about progress.
    """

    backbone: Backbone
    reward: RewardFunction
    times: Tensor
    seed: int = 0
    batch_size: int = 4
    negative_prompt: str | None = None
    store: Store | None = None
    report: Report = lambda stage, done, total: None

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What the law of the draws depends on, besides the prompt."""

        sampler = self.backbone.sampler
        return {
            "backbone": fingerprint(self.backbone, self.backbone.incidental),
            "sampler": f"{type(sampler).__name__} {vars(sampler)}",
            "times": [float(t) for t in self.times],
            "negative prompt": self.negative_prompt,
            "seed": self.seed,
        }

    @cached_property
    def device(self) -> torch.device:
        """Where the backbone keeps its states."""

        return self.backbone.draw_noise(1, torch.Generator()).device

    @cached_property
    def reward_key(self) -> str | None:
        """A key of the reward; None if it is a plain function, which cannot be told apart."""

        return fingerprint(self.reward) if isinstance(self.reward, nn.Module) else None

    @cached_property
    def _kept(self) -> dict[str, Any]:
        return {}

    def keep(self, what: str, key: Any, make: Callable[[], Any]) -> Any:
        """What was made for this key the last time, or what is made now; one of each kind."""

        if self._kept.get(what, (None,))[0] != key:
            self._kept.pop(what, None)  # never two at a time
            self._kept[what] = key, make()
        return self._kept[what][1]

    def condition(self, prompt: str, n: int) -> Any:
        """The condition of `n` samples of one prompt, encoded once."""

        make = lambda: encode(self.backbone, [prompt], self.negative_prompt)
        return take(self.keep("condition", prompt, make), [0] * n)

    def sample(
        self,
        model: Model,
        prompt: str,
        names: Sequence[tuple[str | int, ...]],
        trace: Trace | None = None,
    ) -> Tensor:
        """Clean states of a model, guided or not, for samples of a prompt with these names."""

        condition = self.condition(prompt, len(names))
        generators = [generator_for(self.seed, *name) for name in names]
        x_1 = torch.cat([self.backbone.draw_noise(1, generator) for generator in generators])
        sampler = self.backbone.sampler
        with torch.no_grad():
            return sample(model, sampler, x_1, self.times, condition, generators, trace=trace)

    def draws(self, prompt: str, n: int, *stream: str | int) -> Tensor:
        """The first `n` draws of a stream of unguided samples, from the store as far as they are.

        Raises:
            FloatingPointError: If a draw is not finite, as when half precision overflows.
        """

        store = None if self.store is None else self.store.of({**self.origin, "prompt": prompt})
        name = "-".join(map(str, ("draws", *stream)))
        parts = [] if store is None else store.read(name)
        done = sum(map(len, parts))
        while done < n:
            numbers = range(done, min(n, done + self.batch_size))
            self.report("draws", done, n)
            names = [("draw", *stream, prompt, i) for i in numbers]
            x_0 = self.sample(self.backbone, prompt, names)
            if not bool(x_0.isfinite().all()):
                raise FloatingPointError(
                    f"the model drew NaN or inf for {prompt!r} in {x_0.dtype}; try another dtype"
                )
            if store is not None:
                store.append(name, done, x_0)
            parts.append(x_0)
            done += len(x_0)
        self.report("draws", n, n)
        return torch.cat([part.to(self.device) for part in parts])[:n]

    def bank(self, prompt: str, n: int, *stream: str | int) -> Bank:
        """Draws of one prompt with their rewards, from the store as far as they are there.

        The last one stays in memory, for the next batch of images.

        Raises:
            ValueError: If the reward of a draw is NaN or +inf; names the draws.
        """

        bank: Bank = self.keep("bank", (prompt, n, *stream), lambda: self._bank(prompt, n, *stream))
        return bank

    def _bank(self, prompt: str, n: int, *stream: str | int) -> Bank:
        x_0 = self.draws(prompt, n, *stream)
        origin = {**self.origin, "prompt": prompt, "reward": self.reward_key}
        store = None
        if self.store is not None and self.reward_key is not None:
            store = self.store.of(origin)
        name = "-".join(map(str, ("rewards", *stream)))
        parts = [] if store is None else store.read(name)
        done = sum(map(len, parts))
        tilt = Tilt(self.reward, 1.0, self.backbone.decode)
        while done < n:
            self.report("rewards of draws", done, n)
            batch = x_0[done : done + self.batch_size]
            with torch.no_grad():
                rewards = tilt.score(batch, [prompt] * len(batch))
            if store is not None:
                store.append(name, done, rewards)
            parts.append(rewards)
            done += len(batch)
        self.report("rewards of draws", n, n)
        rewards = torch.cat([part.to(x_0.device) for part in parts])[:n]
        return Bank(x_0, [prompt] * n, rewards, origin)

    def decode(self, x_0: Tensor) -> Tensor:
        """Images of clean states, with shape (B, 3, H, W)."""

        with torch.no_grad():
            return self.backbone.decode(x_0)

    def score(self, images: Tensor, prompt: str) -> Scores:
        """Rewards of images of one prompt; where the reward fails for some, those of the others."""

        values, errors = torch.full((len(images),), math.nan, dtype=torch.float64), {}
        tilt = Tilt(self.reward, 1.0)

        def attempt(rows: range) -> None:
            try:
                with torch.no_grad():
                    found = tilt.score(images[rows.start : rows.stop], [prompt] * len(rows))
                values[rows.start : rows.stop] = found.double().cpu()
            except ValueError as error:
                if len(rows) == 1:
                    errors[rows.start] = str(error)
                    return
                for row in rows:
                    attempt(range(row, row + 1))

        attempt(range(len(images)))
        return Scores(values, errors)
