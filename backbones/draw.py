"""Banks of draws of a pipeline of diffusers that one already has, by calls as one makes them."""

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rwguidance import Bank
from rwguidance.store import Store, Task, fill
from rwguidance.support import checks, memory
from rwguidance.support.batches import batches
from rwguidance.support.conditions import string_keys
from rwguidance.support.fingerprint import NotKept
from rwguidance.support.randomness import generator_for, seeded

from .calls import (
    batch_arguments,
    begins_from_picture,
    check_arguments,
    check_not_ours,
    size_of_call,
    warn_of_cut,
)
from .coordinates import Coordinates
from .decoding import PipelineDecoder
from .guided_classes import extended, plain
from .origins import origin_of, weights_of
from .states import check_handed_on, check_state, grid_of, state_after, unpacked

__all__ = ["draw"]


def draw(
    pipe: Any,
    prompts: str | Sequence[str],
    n: int,
    *,
    seed: int = 0,
    batch_size: int = 8,
    store: Store | None = None,
    progress: bool = False,
    **call: Any,
) -> Bank:
    r"""Draws of a pipeline, as a bank for :func:`backbones.guide`.

    .. code-block:: python

        call = dict(num_inference_steps=4, guidance_scale=0.0)
        bank = backbones.draw(pipe, prompt, 64, **call)
        tilt = Tilt.for_kl(reward, bank, nats=1.0)
        guided = backbones.guide(pipe, ImportanceSampling(bank, tilt))
        guided(prompt, **call).images

    The pipeline is called as it is, and the states in which its scheduler ends are kept, in the
    coordinates of :func:`backbones.guide`, whatever the pipeline hands out. A draw depends on seed,
    prompt and number alone, and on `batch_size` by rounding; more draws begin with fewer.

    The bank carries a decoder, by which :meth:`rwguidance.Tilt.for_kl` and
    :meth:`rwguidance.Bank.scored` score images; one that is saved and read has none. Its origin
    holds the weights, the scheduler and the arguments of the call, so that a guided call which
    samples another law is refused.

    Arguments:
        pipe: A pipeline of diffusers. It is left as it is. Of a guided one, the plain one draws.
        prompts: One prompt, or several, distinct.
        n: Number of draws of each, at least 1.
        seed: Seed of the draws.
        batch_size: Number of images that the pipeline makes and decodes at once. Pipelines that
            begin from a picture make one at a time.
        store: Keeps draws, so that a run that was cut off goes on, and a second one reads what is
            there. None is the user's own, :meth:`rwguidance.store.Store.default`.
        progress: Whether to show a progress bar.
        call: Arguments of the pipeline's call, such as `guidance_scale`; `output_type` does not
            matter.

    Returns:
        A bank on the device of the pipeline, scored by nothing yet, its states in the dtype of the
        scheduler.

    Raises:
        TypeError: If the pipeline has no scheduler, or one whose coordinates are not understood,
            its call does not take these arguments, or another argument is of the wrong kind.
        ValueError: If an argument is out of its range, or is one of which this function takes care.

    Warns:
        NotKept: If a component of the pipeline does not say what it depends on.
        UserWarning: If every tokenizer of the pipeline cuts a prompt.
    """

    if getattr(pipe, "scheduler", None) is None:
        raise TypeError(f"pipe must be a pipeline with a scheduler, got {type(pipe).__name__}")
    prompts = (
        [prompts] if isinstance(prompts, str) else string_keys(prompts, len(prompts), "prompts")
    )
    if not prompts or len(set(prompts)) < len(prompts):
        raise ValueError(f"prompts must be distinct, and at least one, got {prompts}")
    checks.integer("n", n, 1)
    checks.integer("seed", seed)
    checks.integer("batch_size", batch_size, 1)
    checks.instance("store", store, (Store, type(None)), "a Store or None")
    checks.flag("progress", progress)
    check_not_ours(call)
    check_arguments(pipe, call)
    warn_of_cut(pipe, prompts, call)

    with torch.inference_mode(False), torch.no_grad():
        first, *_ = prompts
        run = _Run(pipe, call, seed, first)
        made = _made(run, prompts, n, batch_size, store, progress)
    condition = [prompt for prompt in prompts for _ in range(n)]
    decode = PipelineDecoder(run.pipe, call, batch_size, first)
    x_0 = made.to(pipe._execution_device)
    return Bank(x_0, condition, origin=run.origin, decode=decode)


class _Run:
    """The calls that draw states of one pipeline.

    Arguments:
        pipe: The pipeline.
        call: Arguments of its calls.
        seed: Seed of the draws.
        prompt: One of the prompts.
    """

    def __init__(self, pipe: Any, call: Mapping[str, Any], seed: int, prompt: str) -> None:
        self.pipe = plain(pipe)
        self.call = dict(call)
        self.seed = seed
        self.coordinates = Coordinates.from_scheduler(plain(pipe.scheduler))
        self.size = size_of_call(self.pipe, {**call, **batch_arguments(pipe, prompt, 1)})
        size = {} if self.size is None else {"size": list(self.size)}
        self.origin = {**origin_of(pipe, call, seed), **size}

    def states(self, prompt: str, numbers: range) -> Tensor:
        """Returns the draws of a prompt with these numbers, in the coordinates of the guidance."""

        pipe, scheduler = plain(self.pipe), plain(self.pipe.scheduler)
        names = [(self.seed, prompt, number) for number in numbers]
        recorder = _Recorder([generator_for(*name) for name in names])
        kind: Any = type(scheduler)
        scheduler.__class__ = _recorded_scheduler_class(kind)
        scheduler._guidance = recorder
        pipe.scheduler = scheduler
        pipe.set_progress_bar_config(disable=True)
        arguments = {**self.call, **batch_arguments(pipe, prompt, len(numbers))}
        arguments |= {"output_type": "latent", "generator": recorder.generators}
        # For schedulers that take no generator, one draw at a time.
        first, *_ = names
        with seeded(generator_for(*first, "global").initial_seed(), pipe._execution_device):
            pipe(**arguments)
        state = recorder.state
        check_state(state)
        assert state is not None
        if len(state) != len(numbers):
            raise TypeError(
                f"guidance understands states with one row for each image, {len(numbers)}, the "
                f"{type(pipe).__name__} steps {len(state)}"
            )
        return unpacked(state, grid_of(pipe, state, self.size)) / self.coordinates.size


def _made(
    run: _Run, prompts: Sequence[str], n: int, size: int, store: Store | None, progress: bool
) -> Tensor:
    """The draws of all prompts, one prompt after the other, n of each; made or read."""

    # Images of one call also share noise where a scheduler takes no generator.
    if begins_from_picture(run.pipe) or run.pipe.scheduler.config.get("stochastic_sampling", False):
        size = 1
    hint = f"The pipeline made {size} images at once: lower batch_size"
    with _report(progress) as report, memory.advice(hint):
        if run.origin["weights"] is None:
            _, reason = weights_of(run.pipe)
            warnings.warn(f"draws are not kept for another run: {reason}", NotKept, 3)
            work = [(prompt, rows) for prompt in prompts for rows in batches(n, size)]
            made = []
            for i, (prompt, rows) in enumerate(work):
                report(i * size, len(work) * size)
                made.append(run.states(prompt, rows))
            return torch.cat(made)
        store = Store.default() if store is None else store
        columns = [store.of({**run.origin, "prompt": prompt}).column("x_0") for prompt in prompts]
        makes = [functools.partial(run.states, prompt) for prompt in prompts]
        fill(
            [Task(c, n, make, size) for c, make in zip(columns, makes, strict=True)], report=report
        )
        return torch.cat([column.read(range(n)) for column in columns])


@contextmanager
def _report(progress: bool) -> Iterator[Callable[[int, int], None]]:
    if not progress:
        yield lambda done, total: None
        return
    from rich.progress import Progress

    with Progress() as bar:
        task = bar.add_task("drawing")
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Recorder:
    """Takes note of what the steps of a scheduler return.

    Arguments:
        generators: Sources of randomness, one for each state.
    """

    def __init__(self, generators: list[torch.Generator]) -> None:
        self.generators = generators
        self.state: Tensor | None = None


@functools.cache
def _recorded_scheduler_class(base: type) -> type:
    """Returns the class of schedulers whose steps are taken note of."""

    plain_step: Any = base.step  # type: ignore[attr-defined]
    takes_generator = "generator" in inspect.signature(plain_step).parameters

    @functools.wraps(plain_step)  # pipelines look for `generator` and `eta` in its signature
    def step(
        self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        recorder = self._guidance
        if takes_generator and not args:  # which some pipelines do not pass
            kwargs["generator"] = recorder.generators
        check_handed_on(recorder.state, sample)
        result = plain_step(self, model_output, timestep, sample, *args, **kwargs)
        recorder.state = state_after(result)
        return result

    return extended(base, {"step": step}, _recorded_scheduler_class)
