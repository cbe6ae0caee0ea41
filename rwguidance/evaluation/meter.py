"""What a method costs: states that the network sees, pictures decoded and scored, time, memory.

The backward pass of a call counts as two more calls, whether of network, decoder or reward.

Draws of the model that methods share, such as banks, are counted and not timed: whether they came
from a store, or another method had them made, says nothing of the method.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import TextToImage
from ..bank import Bank
from ..generation.run import Run
from ..prediction import Prediction
from ..tilt import RewardFunction

__all__ = ["Counted", "Meter", "MeteredRun", "peak_memory", "reset_peak"]


class Counted(nn.Module):
    """A reward as a module, so that its calls can be counted.

    Arguments:
        reward: The reward.
    """

    depends_on = ("reward",)

    def __init__(self, reward: RewardFunction) -> None:
        super().__init__()
        self.reward = reward

    def forward(self, images: Tensor, prompts: Any) -> Tensor:
        return self.reward(images, prompts)


class Meter:
    """Counts within blocks, added up.

    Arguments:
        backbone: The model.
        reward: The reward that is aligned to.
        device: Device of the model.
    """

    def __init__(self, backbone: TextToImage, reward: Counted, device: torch.device) -> None:
        self.backbone, self.reward, self.device = backbone, reward, device
        self.network = self.decoder = self.scored = 0
        self.seconds, self.memory = 0.0, math.nan
        self.draws: dict[tuple[Any, ...], int] = {}
        self._running = False

    def costs(self, base: "Meter | None" = None) -> tuple[float, ...]:
        """Returns the costs, in the order of :data:`rwguidance.evaluation.results.COSTS`.

        Arguments:
            base: The costs of the unguided pictures, if they are part of these.
        """

        draws = sum(self.draws.values())
        own = (self.network, self.decoder, self.scored, draws, self.seconds)
        more = (0.0,) * 5 if base is None else base.costs()[:5]
        return (*(a + b for a, b in zip(own, more, strict=True)), self.memory)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Counts and times a block."""

        device = self.device
        reset_peak(device)
        with self._counting():
            start, self._running = time.perf_counter(), True
            try:
                yield
                if device.type == "cuda":  # it may return before it has finished
                    torch.cuda.synchronize(device)
            finally:
                self._running = False
                self.seconds += time.perf_counter() - start
        peak = peak_memory(device)
        self.memory = peak if math.isnan(self.memory) else max(peak, self.memory)

    @contextmanager
    def shared(self, when: bool = True) -> Iterator[None]:
        """Neither counts nor times a block within a measured one.

        Arguments:
            when: Whether to do so; if not, the block is measured as what is around it.
        """

        running, start = self._running and when, time.perf_counter()
        self._running = self._running and not when
        try:
            yield
        finally:
            self._running = self._running or running
            if running:
                self.seconds -= time.perf_counter() - start

    @contextmanager
    def _counting(self) -> Iterator[None]:
        def count(kind: str, n: int) -> None:
            if self._running:
                setattr(self, kind, getattr(self, kind) + n)

        decode = self.backbone.decode

        def called(kind: str, n: int, result: Any) -> None:
            """Counts a call, and two more when a gradient passes back through its result."""

            count(kind, n)
            value = result.mean if isinstance(result, Prediction) else result
            if value.requires_grad:
                value.register_hook(lambda _: count(kind, 2 * n))

        def counted(latents: Tensor) -> Tensor:
            images = decode(latents)
            called("decoder", len(latents), images)
            return images

        hooks = [
            module.register_forward_hook(
                lambda _, inputs, result, kind=kind: called(kind, len(inputs[0]), result)
            )
            for module, kind in ((self.backbone, "network"), (self.reward, "scored"))
        ]
        own = vars(self.backbone).get("decode")
        self.backbone.decode = counted  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self.backbone.decode
            if own is not None:
                self.backbone.decode = own  # type: ignore[method-assign]
            for hook in hooks:
                hook.remove()


@dataclass(frozen=True)
class MeteredRun(Run):
    """A run whose draws a meter counts, and which keeps all banks of a prompt in memory.

    Arguments:
        like: A run of the same model and reward that counts nothing.
        meters: The meter that counts now, alone in a list, or none.
    """

    like: Run | None = None
    meters: list[Meter] = field(default_factory=list)

    @property
    def _keys(self) -> dict[str, tuple[str | None, str]]:
        """The fingerprints of the run that counts nothing, which has the same draws."""

        assert self.like is not None
        return self.like._keys

    def draws(self, prompt: str, n: int, *stream: str | int) -> Tensor:
        with self._counted(n, [stream]):
            return super().draws(prompt, n, *stream)

    def banks(self, prompt: str, n: int, streams: Sequence[tuple[str | int, ...]]) -> list[Bank]:
        kept: dict[tuple[Any, ...], Bank] = self.keep("all banks", prompt, dict)
        with self._counted(n, streams):
            lacking = [stream for stream in streams if (n, stream) not in kept]
            if lacking:
                made = super().banks(prompt, n, lacking)
                kept.update(zip([(n, stream) for stream in lacking], made, strict=True))
            return [kept[n, stream] for stream in streams]

    @contextmanager
    def _counted(self, n: int, streams: Sequence[tuple[str | int, ...]]) -> Iterator[None]:
        """Counts draws, each once, and neither counts nor times how they are made."""

        with ExitStack() as stack:
            for meter in self.meters:
                for key in [(self.seed, stream) for stream in streams]:
                    meter.draws[key] = max(meter.draws.get(key, 0), n)
                stack.enter_context(meter.shared())
            yield

    @contextmanager
    def metered(self, meter: Meter) -> Iterator[None]:
        """Has a meter count and time a block."""

        self.meters.append(meter)
        try:
            with meter.measured():
                yield
        finally:
            self.meters.clear()


def reset_peak(device: torch.device) -> None:
    """Forgets the largest memory in use so far, where that can be done."""

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            _RESET.write_text("5", encoding="ascii")


def peak_memory(device: torch.device) -> float:
    """Returns the largest memory in use since it was reset, in bytes; NaN where it is not known.

    That is of tensors on a GPU, and of the whole process on the CPU, where Linux alone tells.
    """

    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    with suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024.0 * int(line.split()[1])
    return math.nan


_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
