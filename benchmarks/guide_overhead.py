"""What `guide` adds to the steps of a pipeline: processor time over that of the denoiser, memory.

Run `python benchmarks/guide_overhead.py`. Pipelines have their published depth and sizes of states,
an eighth of their width, random weights and float32, and a bank of 64 in the dtype of the states.
Processor seconds of one thread, so that other work on the machine counts little; the median of all
steps of each part. All that happens at a step counts as the guidance's: reading the state in its
coordinates, the estimate, and writing the output back.
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import torch
from rich.console import Console
from torch import Tensor

if __name__ == "__main__":  # this folder's files are not the packages
    sys.path[0] = str(Path(__file__).parents[1])

from backbones.guided_steps import StepGuidance
from benchmarks.importance import peak_bytes, table
from benchmarks.subjects import NAMES, PROMPT, Subject, published, tiny
from rwguidance import Bank, ImportanceSampling, Tilt, backbones

GOAL, BANK, FACTOR = 0.03, 64, 8
TILT = Tilt(lambda x, condition: x.flatten(1)[:, 0], 1.0)


class Clock:
    """Processor seconds of every call of a function, and the arguments of the last one."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last: Callable[[], object] = lambda: None

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            result = function(*args, **kwargs)
            self.seconds.append(time.process_time() - started)
            self.last = lambda: function(*args, **kwargs)
            return result

        return timed


def states_of(subject: Subject) -> Tensor:
    """A state in the layout that estimators see, as the pipeline's own call has it."""

    seen: list[Tensor] = []

    def look(guidance: StepGuidance, x_t: Tensor, *rest: Any) -> Any:
        seen.append(x_t)
        return rest[1]

    guided = backbones.guide(subject.pipe, _estimator(torch.zeros(1, 1)), condition=[PROMPT])
    with mock.patch.object(StepGuidance, "_guide", look):
        guided(**subject.call(1), output_type="latent")
    return seen[0]


def measured(subject: Subject, batch: int, repeat: int) -> dict[str, float]:
    """Median seconds of denoiser and guidance at a step, and the memory of an estimate."""

    like = states_of(subject)
    draws = torch.randn(BANK, *like.shape[1:], generator=torch.Generator().manual_seed(0))
    estimator = _estimator(draws.to(like))
    guided = backbones.guide(subject.pipe, estimator, condition=[PROMPT] * batch)
    denoiser, guidance, estimate = Clock(), Clock(), Clock()
    network = subject.denoiser
    with (
        mock.patch.object(network, "forward", denoiser.around(network.forward)),
        mock.patch.object(StepGuidance, "__call__", _method(guidance, StepGuidance.__call__)),
        mock.patch.object(estimator, "forward", estimate.around(estimator.forward)),
    ):
        for _ in range(repeat):
            guided(**subject.call(batch), output_type="latent")
    with torch.no_grad():
        memory = peak_bytes(estimate.last)
    return {
        "denoiser": statistics.median(denoiser.seconds),
        "guidance": statistics.median(guidance.seconds),
        "MB": memory / 1e6,
        "bank": draws.nbytes / 1e6,
    }


def _method(clock: Clock, function: Callable[..., Any]) -> Callable[..., Any]:
    """A timed function that is bound as a method, which an object would not be."""

    timed = clock.around(function)
    return lambda self, *args: timed(self, *args)


def _estimator(x_0: Tensor) -> ImportanceSampling:
    return ImportanceSampling(Bank(x_0, [PROMPT] * len(x_0), torch.zeros(len(x_0))), TILT)


def main() -> None:
    diffusers.utils.logging.set_verbosity_error()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(NAMES)}")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeat", type=int, default=2, help="calls of a pipeline")
    parser.add_argument("--size", type=int, default=None, help="side of the images in pixels")
    parser.add_argument("--smoke", action="store_true", help="a rehearsal on tiny pipelines")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of unreliable estimates: the bank is random, too
    columns = ("denoiser, s", "guidance, s", "ratio", "estimate, MB", "bank, MB")
    result = table(f"A step, processor time; goal {GOAL:.0%}", "", "batch", *columns)
    for name in given.names or NAMES:
        cpu = torch.device("cpu")
        subject = (
            tiny(name) if given.smoke else published(name, cpu, torch.float32, FACTOR, given.size)
        )
        for batch in given.batches:
            found = measured(subject, batch, given.repeat)
            ratio = found["guidance"] / found["denoiser"]
            cells = (f"{found['denoiser']:.3f}", f"{found['guidance']:.4f}", f"{ratio:.2%}")
            result.add_row(name, str(batch), *cells, f"{found['MB']:.1f}", f"{found['bank']:.1f}")
            Console(stderr=True).print(name, batch, *cells)
    Console(width=110).print(result)


if __name__ == "__main__":
    main()
