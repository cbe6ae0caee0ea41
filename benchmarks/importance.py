"""Cost of :class:`rwguidance.ImportanceSampling` on the CPU, relative to what it cannot avoid.

Run `python benchmarks/importance.py`. Times are ratios of medians over repetitions that alternate
between what is compared, so that a busy machine slows down both; ratios of minima are the
steadiest. What a call cannot avoid are two matrix products, of the type of the bank.
"""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported

import argparse
import itertools
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import rwguidance as rw

SEED = 0
TIME = 0.9
BATCH, DRAWS, DIMENSION = 64, 4096, 4096
TIME_GOAL, IMPORT_GOAL = 1.3, 1.3

console = Console(width=100)


class Still(rw.Model):
    """Returns the state itself: costs nothing, so that the estimator alone is timed."""

    def forward(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> rw.Prediction:
        return rw.Prediction(x_t, x_t, self.schedule.at(t, like=x_t))


class Case:
    """States, a bank and an estimator of one size, and the two products that it is held against."""

    def __init__(
        self,
        batch: int = BATCH,
        draws: int = DRAWS,
        dimension: int = DIMENSION,
        dtype: torch.dtype = torch.float32,
        kernel: rw.estimators.Kernel | None = None,
    ) -> None:
        generator = torch.Generator().manual_seed(SEED)
        x_0 = torch.randn(draws, dimension, generator=generator)
        rewards = torch.randn(draws, generator=generator)
        bank = rw.Bank(x_0.to(dtype), rewards=rewards)
        self.x_0, self.rewards = x_0.to(dtype), rewards
        self.x_t = torch.randn(batch, dimension, generator=generator)
        self.weights = torch.randn(batch, draws, generator=generator)
        self.model = Still(rw.RectifiedSchedule())
        self.estimator = rw.ImportanceSampling(bank, rw.Tilt(lambda x, _: x[:, 0], 1.0), kernel)
        self.batch_bytes, self.matrix_bytes = 4 * batch * dimension, 4 * batch * draws

    def call(self) -> rw.Estimate:
        return self.estimator(self.model, self.x_t, TIME)

    def products(self) -> tuple[Tensor, Tensor]:
        dtype = self.x_0.dtype
        return self.x_t.to(dtype) @ self.x_0.T, self.weights.to(dtype) @ self.x_0

    def broadcast(self) -> Tensor:
        """The shift from explicit (B, N, D) differences."""

        scales = self.model.schedule.at(TIME, like=self.x_t)
        distance = self.x_t[:, None] - scales.alpha * self.x_0
        log_kernel = -0.5 * (distance / scales.sigma).square().sum(-1)
        difference = (log_kernel + self.rewards).softmax(1) - log_kernel.softmax(1)
        return (difference[..., None] * self.x_0).sum(1)

    def pairs(self) -> Tensor:
        """The shift from a velocity for every pair of state and draw, as flow models are guided."""

        t = self.model.schedule.at(TIME, like=self.x_t)
        velocity = (self.x_t[:, None] - self.x_0) / t.sigma
        distance = (self.x_t[:, None] - t.alpha * self.x_0) / t.sigma
        density = (-0.5 * distance.square().sum(-1)).exp()
        tilted = density * self.rewards.exp()
        weight = tilted / tilted.mean(1, keepdim=True) - density / density.mean(1, keepdim=True)
        return -t.sigma * (weight[..., None] * velocity).mean(1)


Times = dict[str, list[float]]


def interleave(functions: dict[str, Callable[[], object]], repetitions: int) -> Times:
    """Seconds of every function, called in turn; the first round warms up and is not counted."""

    times: Times = {name: [] for name in functions}
    for _ in range(repetitions + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in times.items()}


def ratio(times: Times, name: str, base: str, of: Callable[..., float] = statistics.median) -> str:
    return f"{of(times[name]) / of(times[base]):.2f}"


def milliseconds(times: Times, name: str) -> str:
    return f"{1e3 * statistics.median(times[name]):.1f}"


def peak_bytes(function: Callable[[], object]) -> int:
    """Most bytes that `function` holds at once, as PyTorch's allocator reports them."""

    function()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        result = function()
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    del result
    return max(itertools.accumulate(nbytes for _, nbytes in changes))


def table(title: str, *columns: str) -> Table:
    result = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        result.add_column(column, justify="left" if i == 0 else "right")
    return result


def size(case: Case) -> str:
    return f"B={len(case.x_t)}, N={case.x_0.shape[0]}, D={case.x_0.shape[1]}"


def variants() -> dict[str, Case]:
    return {
        "exact kernel": Case(),
        "Tempered(0.5)": Case(kernel=rw.Tempered(0.5)),
        "TargetESS(0.05)": Case(kernel=rw.TargetESS(0.05)),
        "LeaveOneOut(), chosen before": Case(kernel=rw.LeaveOneOut()),
        "bfloat16 bank": Case(dtype=torch.bfloat16),
    }


def calls(cases: dict[str, Case], repetitions: int) -> None:
    case = cases["exact kernel"]
    functions: dict[str, Callable[[], object]] = {
        "two bare products": case.products,
        "bfloat16 products": cases["bfloat16 bank"].products,
    }
    functions |= {name: case.call for name, case in cases.items()}
    times = interleave(functions, repetitions)
    result = table(
        f"One call, {size(case)}; goal for the exact kernel: {TIME_GOAL}",
        *("", "ms", "/ products", "/ exact kernel", "/ products, minima"),
    )
    for name in functions:
        against = [ratio(times, name, base) for base in ("two bare products", "exact kernel")]
        lowest = ratio(times, name, "two bare products", min)
        result.add_row(name, milliseconds(times, name), *against, lowest)
    console.print(result)


def memory(cases: dict[str, Case]) -> None:
    result = table(
        "Peak memory of one call beyond the bank and x_t",
        *("", "MB", "batches + (B, N) matrices", "/ bound"),
    )
    for name, case in cases.items():
        with torch.no_grad():
            peak = peak_bytes(case.call)
        bound = case.batch_bytes + case.matrix_bytes
        beyond = (peak - case.batch_bytes) / case.matrix_bytes
        result.add_row(
            f"{name}, {size(case)}", f"{peak / 1e6:.2f}", f"1 + {beyond:.3f}", f"{peak / bound:.3f}"
        )
    console.print(result)
    console.print("The bound is a batch of B D floats and one (B, N) matrix of weights.\n")


def scaling(title: str, cases: list[Case], repetitions: int) -> None:
    result = table(title, "", "products, ms", "call, ms", "/ products", "/ products, minima")
    for case in cases:
        times = interleave({"products": case.products, "call": case.call}, repetitions)
        result.add_row(
            size(case),
            milliseconds(times, "products"),
            milliseconds(times, "call"),
            ratio(times, "call", "products"),
            ratio(times, "call", "products", min),
        )
    console.print(result)


def broadcast(repetitions: int) -> None:
    """Against what is written first, in few dimensions and in many."""

    result = table(
        "Against (B, N, D) differences", "", "ms", "/ call", "/ call, minima", "peak, MB"
    )
    for case in (Case(16, 1024, 1024), Case(1024, 1024, 2), Case(1024, 10_240, 2)):
        functions: dict[str, Callable[[], Any]] = {"broadcast": case.broadcast}
        if case.x_0.shape[1] == 2:  # densities of many dimensions underflow
            functions["velocities of all pairs"] = case.pairs
        for other in functions.values():
            torch.testing.assert_close(other(), case.call().shift, rtol=1e-3, atol=1e-3)
        functions["call"] = case.call
        times = interleave(functions, repetitions)
        for name, function in functions.items():
            result.add_row(
                f"{name}, {size(case)}",
                milliseconds(times, name),
                ratio(times, name, "call"),
                ratio(times, name, "call", min),
                f"{peak_bytes(function) / 1e6:.2f}",
            )
    console.print(result)


def imports(repetitions: int) -> None:
    def seconds(module: str) -> float:
        program = (
            f"import time; start = time.perf_counter(); import {module}; "
            "print(time.perf_counter() - start)"
        )
        output = subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True
        )
        return float(output.stdout)

    modules = ("torch", "rwguidance")
    times: Times = {module: [] for module in modules}
    for repetition in range(repetitions + 1):
        for module in modules:
            elapsed = seconds(module)
            if repetition > 0:
                times[module].append(elapsed)
    result = table(f"Imports; goal: {IMPORT_GOAL}", "", "ms", "/ torch", "/ torch, minima")
    for module in modules:
        against = ratio(times, module, "torch"), ratio(times, module, "torch", min)
        result.add_row(f"import {module}", milliseconds(times, module), *against)
    console.print(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repetitions, noisy figures")
    parser.add_argument("--threads", type=int, default=None, help="threads of PyTorch")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    repetitions = 5 if arguments.quick else 31

    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
        f"torch {torch.__version__}, Python {platform.python_version()}; seed {SEED}\n"
    )
    with torch.no_grad():
        cases = variants()
        calls(cases, repetitions)
        memory(cases | {"large bank": Case(64, 200_000, 256)})
        del cases
        by_draws = [Case(draws=n) for n in (1024, 2048, 4096, 8192)]
        scaling("Scaling in the number of draws", by_draws, repetitions // 3)
        by_dimension = [Case(dimension=d) for d in (256, 1024, 4096, 8192)]
        scaling("Scaling in the dimension", by_dimension, repetitions // 3)
        long = [Case(64, 64, 65_536), Case(64, 256, 16_384), Case(4, 64, 262_144)]
        scaling("Few draws of many dimensions", long, repetitions // 3)
        sizes = [(64, 4096, 4096), (256, 4096, 4096), (64, 1024, 1024), (256, 1024, 1024)]
        half = [Case(*size, torch.bfloat16) for size in (*sizes, (64, 256, 16_384))]
        scaling("Banks in bfloat16, against products in bfloat16", half, repetitions // 3)
        broadcast(repetitions // 3)
    imports(2 if arguments.quick else 5)


if __name__ == "__main__":
    main()
