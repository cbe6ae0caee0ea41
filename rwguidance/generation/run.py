"""A run: the model, the reward, and the settings that decide every random number.

All random numbers of an image come from a generator named by seed, prompt and number of the image.
So an image depends neither on the batch that it was made in nor on the other prompts (up to the
rounding of the device, which may differ between batch sizes).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..backbone import Backbone, Generator, TextToImage
from ..bank import Bank
from ..models import Model
from ..noise_space import Generate, flow_map
from ..samplers import Trace, sample
from ..store import Column, Drawer, Store, Task, fill
from ..support.batches import batches
from ..support.conditions import take
from ..support.fingerprint import fingerprint_or_reason
from ..support.randomness import Generators, generator_for
from ..tilt import RewardFunction, Tilt
from .extensions import encode
from .failures import reason
from .scores import Scores, score

__all__ = ["Report", "Run", "Scores"]

Report = Callable[[str, int, int], None]
"""Type of a function that is told a stage, how much of it is done, and out of how much."""

Stream = tuple[str | int, ...]
"""Name of a random stream."""

Make = Callable[[range], Tensor]
"""Type of a function from numbers of draws to their states or rewards."""


@dataclass(frozen=True)
class _Failure:
    """A value that could not be made, so that it is not tried again for every batch."""

    reason: str


@dataclass(frozen=True)
class Run:
    """One run: a model, a reward, and the settings that decide every random number.

    Arguments:
        backbone: The model.
        reward: Maps (images, prompts) to rewards, with shape (B,).
        times: Strictly decreasing times, as :func:`rwguidance.sample` takes them.
        seed: Seed of every random number.
        batch_size: Samples that the network, the decoder and the reward see at once.
        negative_prompt: The text that classifier-free guidance leads away from; None is the
            backbone's own.
        store: Keeps draws and their rewards; None keeps them in memory only.
        report: Is told about progress.
    """

    backbone: TextToImage
    reward: RewardFunction
    times: Tensor
    seed: int = 0
    batch_size: int = 4
    negative_prompt: str | None = None
    store: Store | None = None
    report: Report = lambda stage, done, total: None

    @cached_property
    def origin(self) -> dict[str, Any]:
        """Everything that the law of the draws depends on, besides the prompt.

        The fingerprint of what does not say what it depends on is None, see :attr:`undescribed`.
        """

        return {
            "backbone": self._keys["backbone"][0],
            "sampler": self._keys["sampler"][0],
            "times": [float(t) for t in self.times],
            "negative prompt": self.negative_prompt,
            "seed": self.seed,
        }

    @cached_property
    def device(self) -> torch.device:
        """The device of the backbone's states."""

        return self.backbone.draw_noise(1, torch.Generator()).device

    @cached_property
    def reward_key(self) -> str | None:
        """A key of the reward; None if it does not say what it depends on, as a function."""

        return self._keys["reward"][0]

    @property
    def undescribed(self) -> list[str]:
        """Reasons why draws or rewards of this run are not kept, one line each."""

        return [reason for _, reason in self._keys.values() if reason]

    @cached_property
    def _keys(self) -> dict[str, tuple[str | None, str]]:
        """The fingerprint of each part, or None and the reason why there is none."""

        path = isinstance(self.backbone, Backbone)
        return {
            "backbone": fingerprint_or_reason(self.backbone, self.backbone.incidental),
            "sampler": fingerprint_or_reason(self.model.sampler) if path else ("one call", ""),
            "reward": fingerprint_or_reason(self.reward),
        }

    @property
    def model(self) -> Backbone:
        """The backbone as a model with a path.

        Raises:
            ValueError: If it has none.
        """

        if not isinstance(self.backbone, Backbone):
            raise ValueError(
                f"backbone must have a path to guide along, but {type(self.backbone).__name__} is "
                "a Generator"
            )
        return self.backbone

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise."""

        if isinstance(self.backbone, Generator):
            return self.backbone.std
        return float(self.model.schedule.sigma(self.times[0]))

    def generator(self, prompt: str, gradient: bool = False, calls: int | None = None) -> Generate:
        """Returns the map from noise to clean states of a prompt, whatever condition it is given.

        Arguments:
            prompt: The prompt.
            gradient: Whether the states carry gradients in the noise.
            calls: Number of steps, of which the last leads to the end. None is all.

        Raises:
            ValueError: If the sampler draws random numbers.
        """

        if isinstance(self.backbone, Backbone):
            first = self.times[: -1 if calls is None else min(calls, len(self.times) - 1)]
            times = torch.cat((first, self.times[-1:]))
            run = flow_map(self.backbone, self.backbone.sampler, times, gradient)
        else:
            run = self.backbone
        return lambda noise, _: run(noise, self.condition(prompt, len(noise)))

    def noise(self, names: Sequence[tuple[str | int, ...]]) -> Tensor:
        """Returns the noise that the samples of these names start from, as :meth:`sample` does."""

        return self.fresh_noise(len(names), [generator_for(self.seed, *name) for name in names])

    def fresh_noise(self, n: int, generators: Generators) -> Tensor:
        """Returns noise of `n` samples, one source for each of them."""

        assert isinstance(generators, Sequence)
        assert len(generators) == n
        return torch.cat([self.backbone.draw_noise(1, generator) for generator in generators])

    def drawer(self, prompt: str, stream: Sequence[str | int]) -> Drawer | None:
        """Returns where the draws of a stream are kept; None if they are not.

        Arguments:
            prompt: The prompt.
            stream: Name of the stream, as for :meth:`draws`.
        """

        # What cannot be told apart from another model is not kept.
        if self.store is None or None in (self.origin["backbone"], self.origin["sampler"]):
            return None
        return self.store.of({**self.origin, "prompt": prompt, "stream": list(stream)})

    @cached_property
    def _kept(self) -> dict[str, Any]:
        return {}

    def keep(self, what: str, key: Any, make: Callable[[], Any]) -> Any:
        """Returns the value that was made for a key, or makes it; one value of each kind is kept.

        Arguments:
            what: Kind of the value.
            key: Key of the value, compared with that of the value that is kept.
            make: Makes the value.

        Raises:
            Exception: What `make` raises; ValueError with the same reason when it is asked again.
        """

        if self._kept.get(what, (None,))[0] != key:
            self._kept.pop(what, None)  # never two at a time
            try:
                self._kept[what] = key, make()
            except Exception as error:
                self._kept[what] = key, _Failure(reason(error))  # without what its frames hold
                raise
        value = self._kept[what][1]
        if isinstance(value, _Failure):
            raise ValueError(value.reason)
        return value

    def condition(self, prompt: str, n: int) -> Any:
        """Returns the condition of `n` samples of one prompt, which is encoded once."""

        make = lambda: encode(self.backbone, [prompt], self.negative_prompt)
        with torch.no_grad():
            return take(self.keep("condition", prompt, make), [0] * n)

    def sample(
        self,
        model: TextToImage | Model,
        prompt: str,
        names: Sequence[tuple[str | int, ...]],
        trace: Trace | None = None,
    ) -> Tensor:
        r"""Returns clean states of a model, guided or not.

        Arguments:
            model: The model.
            prompt: The prompt of all samples.
            names: Names of the samples, B of them; seed and name decide its random numbers.
            trace: Is given time and prediction of every step, as by :func:`rwguidance.sample`.

        Returns:
            Clean states, with shape (B, \*event).
        """

        condition = self.condition(prompt, len(names))
        generators = [generator_for(self.seed, *name) for name in names]
        x_1 = self.fresh_noise(len(names), generators)
        with torch.no_grad():
            if isinstance(model, Generator):
                states: Tensor = model(x_1, condition)
                return states
            assert isinstance(model, Model)
            sampler = self.model.sampler
            model = model.starting(float(self.times[0]))
            return sample(model, sampler, x_1, self.times, condition, generators, trace=trace)

    def draws(self, prompt: str, n: int, *stream: str | int) -> Tensor:
        r"""Returns the first unguided samples of a stream, from the store as far as it has them.

        Arguments:
            prompt: The prompt.
            n: Number of draws.
            stream: Name of the stream; others have other random numbers.

        Returns:
            Clean states, with shape (n, \*event).

        Raises:
            FloatingPointError: If a draw is not finite, as when half precision overflows.
        """

        return self._draws(prompt, n, [stream])

    def reader(self, prompt: str, n: int, *stream: str | int) -> Callable[[range], Tensor]:
        r"""Makes the first samples of a stream, as far as the store lacks them, to read some later.

        So more of them can be used than memory holds. Without a store they are made when they are
        read.

        Arguments:
            prompt: The prompt.
            n: Number of draws.
            stream: Name of the stream, as for :meth:`draws`.

        Returns:
            A function from numbers of draws, a batch of them, to clean states, (B, \*event).

        Raises:
            FloatingPointError: If a draw is not finite.
        """

        make = lambda rows: self.drawn(prompt, [("draw", *stream, prompt, i) for i in rows])
        drawer = self.drawer(prompt, stream)
        if drawer is None:
            return make
        column = drawer.column("x_0")
        tell = lambda done, total: self.report("draws", done, total)
        column.fill(n, make, self.batch_size, tell)
        return lambda rows: column.read(rows).to(self.device)

    def drawn(self, prompt: str, names: Sequence[tuple[str | int, ...]]) -> Tensor:
        r"""Returns unguided samples that are to stand for the model's law, as :meth:`sample` does.

        Arguments:
            prompt: The prompt.
            names: Names of the samples, B of them.

        Raises:
            FloatingPointError: If one is not finite.
        """

        x_0 = self.sample(self.backbone, prompt, names)
        if not bool(x_0.isfinite().all()):
            raise FloatingPointError(
                f"the model drew NaN or inf for {prompt!r} in {x_0.dtype}; try another dtype"
            )
        return x_0

    def bank(self, prompt: str, n: int, *stream: str | int) -> Bank:
        """Returns samples of a stream with their rewards, as :meth:`banks` does."""

        (bank,) = self.banks(prompt, n, [stream])
        return bank

    def banks(self, prompt: str, n: int, streams: Sequence[Stream]) -> list[Bank]:
        """Returns samples of streams with their rewards, from the store as far as it has them.

        What was made last stays in memory, for the next batch of images.

        Arguments:
            prompt: The prompt.
            n: Number of draws of each stream.
            streams: Names of the streams, as for :meth:`draws`; they share batches.

        Returns:
            A bank for each stream.

        Raises:
            FloatingPointError: If a draw is not finite.
            ValueError: If the reward of a draw is NaN or +inf; names the draws.
        """

        make = lambda: self._banks(prompt, n, streams)
        banks: list[Bank] = self.keep("banks", (prompt, n, *streams), make)
        return banks

    def _draws(self, prompt: str, n: int, streams: Sequence[Stream]) -> Tensor:
        names = [("draw", *stream, prompt, i) for stream in streams for i in range(n)]
        drawers = [self.drawer(prompt, stream) for stream in streams]
        columns = [drawer.column("x_0") for drawer in drawers if drawer is not None]
        make = lambda rows: self.drawn(prompt, names[rows.start : rows.stop])
        return self._filled(columns, n, len(names), make, "draws")

    def _banks(self, prompt: str, n: int, streams: Sequence[Stream]) -> list[Bank]:
        x_0 = self._draws(prompt, n, streams)
        tilt = Tilt(self.reward, 1.0, self.backbone.decode)

        def make(rows: range) -> Tensor:
            with torch.no_grad():
                return tilt.score(x_0[rows.start : rows.stop], [prompt] * len(rows))

        key = {"reward": self.reward_key}
        drawers = [self.drawer(prompt, stream) for stream in streams if self.reward_key is not None]
        name = f"rewards/{type(self.reward).__name__}"
        columns = [drawer.column(name, key) for drawer in drawers if drawer is not None]
        rewards = self._filled(columns, n, len(x_0), make, "rewards of draws")
        origin = {**self.origin, "prompt": prompt, **key}
        parts = zip(x_0.split(n), rewards.split(n), strict=True)
        return [Bank(states, [prompt] * n, values, origin) for states, values in parts]

    def _filled(
        self, columns: Sequence[Column], n: int, total: int, make: Make, stage: str
    ) -> Tensor:
        """Returns the first `n` entries of each column, or makes them all where there is none."""

        tell = lambda done, total: self.report(stage, done, total)
        if columns:
            fill([Task(columns, n, make, self.batch_size)], report=tell)
            return torch.cat([column.read(range(n)) for column in columns]).to(self.device)
        parts = []
        for batch in batches(total, self.batch_size):
            tell(batch.start, total)
            parts.append(make(batch))
        tell(total, total)
        return torch.cat(parts)

    def decode(self, x_0: Tensor) -> Tensor:
        """Returns the images of clean states, with shape (B, 3, H, W)."""

        with torch.no_grad():
            return self.backbone.decode(x_0)

    def score(self, images: Tensor, prompt: str) -> Scores:
        """Returns the rewards of images of one prompt, as :func:`.scores.score` does."""

        return score(self.reward, images, prompt)
