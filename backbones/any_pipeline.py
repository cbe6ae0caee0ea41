"""The adapter of pipelines that have no family: a model made of the pipeline's own calls.

The call is begun for embeddings, times and noise, made again from a state for the network's output,
and ended for images. So whatever stands between a network and its scheduler, classifier-free
guidance included, is the pipeline's own code.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rwguidance import DDIM, Prediction, Sampler
from rwguidance.schedules import as_times
from rwguidance.support import checks, memory
from rwguidance.support.randomness import Generators

from .adapter import PipelineAdapter
from .beginning import Beginning, begin
from .call_condition import CallCondition, texts_of_call
from .calls import begins_from_picture, check_arguments, size_of_call
from .conditioning import TextCondition, encode_distinct
from .coordinates import Coordinates
from .decoding import PipelineDecoder
from .guided_classes import plain
from .origins import call_told
from .replay import Replay
from .states import check_state, grid_of, grid_of_latents, unpacked

__all__ = ["AnyPipeline"]

_OWN = ("prompt", "prompt_embeds", "generator", "latents", "num_inference_steps", "output_type")
"""Arguments of calls that the adapter makes itself."""

_STOCHASTIC = ("Ancestral", "DDPM", "LCM", "SCM", "TCD")
"""Parts of the names of schedulers whose steps add noise."""


class AnyPipeline(PipelineAdapter):
    r"""A text-to-image pipeline of any class, with a scheduler of :mod:`backbones.coordinates`.

    States and times are those of :func:`backbones.guide`: :math:`\alpha_t x_0 + \sigma_t \epsilon`
    in the layout of the pipeline. Its prediction is that of the pipeline's call, composed with
    classifier-free guidance as the pipeline does it. States of a batch at several times are asked
    for one call after the other.

    Its sampler is the deterministic one, or DDIM(eta=1) for schedulers that add noise. With
    EulerDiscrete, FlowMatchEulerDiscrete and EulerAncestralDiscrete, with DDIM, and with SCM of two
    steps, runs are those of the pipeline; multistep schedulers have the same times and the same
    law, but other steps.

    Arguments:
        pipe: The pipeline. It is left as it is.
        guidance_scale: Scale of classifier-free guidance, in the convention of the pipeline: most
            have guidance above 1, Z-Image above 0. None is without, but networks that take the
            scale as an input have the pipeline's default.
        height: Height of the images, in pixels. None is the pipeline's default.
        width: Width of the images, in pixels. None is the pipeline's default.
        steps: Number of steps that :meth:`times` takes by default. None is the pipeline's default.
        decode_batch: Number of images that are decoded at once.
        call: Further arguments of the pipeline's call, by name.

    Raises:
        TypeError: If the pipeline does not take such a call, begins from a picture, or has a
            scheduler whose coordinates are not understood.
        ValueError: If an argument is out of its range.
    """

    depends_on = ("schedule", "guidance_scale", "steps", "told", "parts")

    incidental = ("decode_batch",)

    def __init__(
        self,
        pipe: Any,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        steps: int | None = None,
        decode_batch: int = 8,
        call: Mapping[str, Any] | None = None,
    ) -> None:
        _check_can_be_adapted(pipe)
        own = [name for name in call or {} if name in _OWN]
        if own:
            raise ValueError(f"call must leave {own[0]} to the backbone, got {list(call or {})}")
        scale = checks.optional(checks.number, "guidance_scale", guidance_scale, 0)
        defaults = _defaults(pipe)
        if scale is None and _takes_scale(pipe):
            scale = defaults.get("guidance_scale")
        coordinates = Coordinates.from_scheduler(plain(pipe.scheduler))
        steps = int(defaults["num_inference_steps"]) if steps is None else steps
        super().__init__(pipe, coordinates.schedule, scale, steps)
        self.coordinates = coordinates
        self.decode_batch = checks.integer("decode_batch", decode_batch, 1)
        sizes = {"height": height, "width": width}
        given = {name: value for name, value in sizes.items() if value is not None}
        self.call = {**given, **_scale_argument(pipe, scale), **(call or {})}
        check_arguments(pipe, self.call)
        self._decoder = PipelineDecoder(pipe, self._arguments(), self.decode_batch)

    def __repr__(self) -> str:
        """Returns the class and the settings in one line, not the tree of all networks."""

        return (
            f"{type(self).__name__}(pipe={type(self.pipe).__name__}, steps={self.steps}, "
            f"call={self.call}, device={self.device}, dtype={self.dtype})"
        )

    @property
    def told(self) -> dict[str, Any]:
        """The arguments of the calls, in values that JSON can hold."""

        return call_told(self.pipe, self.call, steps=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the denoising network."""

        dtype: torch.dtype = _denoiser(self.pipe).dtype
        return dtype

    @property
    def guided(self) -> bool:
        """True if there is classifier-free guidance, whose scale is no input of the network."""

        scale = float(self.call.get(_scale_name(self.pipe)) or 0.0)
        asked = plain(self.pipe)
        asked.__dict__["_guidance_scale"] = scale  # by which some pipelines say it themselves
        says = getattr(asked, "do_classifier_free_guidance", scale > 1)
        return not _takes_scale(self.pipe) and bool(says)

    @property
    def sampler(self) -> Sampler:
        """The steps of the library that are nearest to those of the pipeline's scheduler."""

        name = type(plain(self.pipe.scheduler)).__name__
        return DDIM(eta=float(any(part in name for part in _STOCHASTIC)))

    def condition(
        self, prompts: Sequence[str], negative_prompts: str | Sequence[str] | None = None
    ) -> CallCondition:
        """Encodes prompts as a call of the pipeline does, all of them at once.

        Arguments:
            prompts: One prompt per sample.
            negative_prompts: Prompts that classifier-free guidance leads away from, one per sample
                or one for all. None is the pipeline's default.

        Raises:
            TypeError: If prompts are not strings.
            ValueError: If there is no prompt, or there are negative prompts where the pipeline
                takes none.
        """

        takes = "negative_prompt" in _defaults(self.pipe)
        if negative_prompts is not None and not (takes and self.guided):
            raise ValueError(
                "negative_prompts take classifier-free guidance by the pipeline, of which this "
                f"{type(self.pipe).__name__} has none (guidance_scale={self.guidance_scale})"
            )
        return encode_distinct(self._encoded, prompts, negative_prompts)

    def _encoded(self, prompts: list[str], negatives: list[str] | None) -> CallCondition:
        texts = texts_of_call(prompts, negatives)
        results = begin(self.pipe, {**self._arguments(), **texts, "generator": _unseen()}).encoded
        return CallCondition.of(prompts, results, negatives)

    def forward(
        self, x_t: Tensor, t: float | Tensor, condition: TextCondition | None = None
    ) -> Prediction:
        r"""Predicts by the pipeline's call, in float32 or wider around the network.

        Arguments:
            x_t: Noisy states, with shape (B, \*event).
            t: Times in [0, 1], with shape () or (B,).
            condition: The condition of these B samples, as from :meth:`condition`.

        Raises:
            TypeError: If the condition is none of :meth:`condition`.
            ValueError: If it is for another number of samples.
        """

        check_state(x_t)
        if not isinstance(condition, CallCondition) or not condition.results:
            raise TypeError(
                "condition must be what backbone.condition(prompts) of this backbone returns, "
                f"got {type(condition).__name__}"
            )
        if len(condition) != len(x_t):
            raise ValueError(
                f"condition must hold one prompt per sample, {len(x_t)}, got {len(condition)}"
            )
        times = as_times(t, batch=len(x_t)).expand(len(x_t)).cpu()
        time, *others = times.unique()
        if others:
            return self._row_by_row(x_t, times, condition)
        hint = f"The network had a batch of {len(x_t)}: sample fewer at once, or load its weights "
        with memory.advice(f"{hint}with dtype=torch.bfloat16"):
            return self._replay(x_t, time, condition)(x_t, time, condition)

    def _row_by_row(self, x_t: Tensor, times: Tensor, condition: CallCondition) -> Prediction:
        rows = [
            self.forward(x_t[i : i + 1], times[i], condition[i : i + 1]) for i in range(len(times))
        ]
        mean = torch.cat([row.mean for row in rows])
        noise = torch.cat([row.noise for row in rows])
        return Prediction(mean, noise, self.schedule.at(times, like=mean))

    def _replay(self, x_t: Tensor, t: Tensor, condition: CallCondition) -> Replay:
        scheduler = plain(self._scheduler)
        timestep = self.coordinates.timestep(scheduler, t)
        scheduler.timesteps = torch.stack((timestep, torch.zeros_like(timestep))).to(x_t.device)
        texts = texts_of_call(condition.prompts, condition.negative_prompts)
        return Replay(
            pipe=self.pipe,
            arguments={**self._arguments(), **texts},
            encoded=condition.results,
            coordinates=self.coordinates,
            scheduler=scheduler,
            timestep=timestep,
            t=t,
            grid=grid_of_latents(self.pipe, x_t),
            condition=condition,
        )

    @cached_property
    def _scheduler(self) -> Any:
        """The scheduler, set to some times: how it tells them to the network."""

        scheduler = self._begin(1, _unseen()).scheduler
        told = scheduler.timesteps.cpu()
        times = self.coordinates.times(copy.copy(scheduler))[:-1]
        meant = torch.stack([self.coordinates.timestep(scheduler, t) for t in times])
        # Those that are visited twice, and the last one, are left out of the times.
        if float((meant[:, None] - told).abs().amin(1).max()) > 2e-3 * float(told.max()):
            raise TypeError(
                f"the network of a {type(self.pipe).__name__} is asked at timesteps that are not "
                "those of the noise levels of its states, so that it has no prediction at any "
                "other time; guide the pipeline with backbones.guide"
            )
        return scheduler

    @cached_property
    def _nothing(self) -> CallCondition:
        """The condition of an empty prompt."""

        return self._encoded([""], None)

    def _begin(self, n: int, generator: Any, steps: int | None = None) -> Beginning:
        """The beginning of a call for n images, whatever their prompts."""

        condition = self._nothing[[0] * n]
        texts = texts_of_call(condition.prompts, None)
        arguments = {**self._arguments(steps), **texts, "generator": generator}
        return begin(self.pipe, arguments, condition.results)

    def draw_noise(self, n: int, generator: Generators = None) -> Tensor:
        r"""States with which the pipeline starts, the same ones for the same generator.

        Arguments:
            n: Number of states.
            generator: Source of randomness, on the CPU or on the pipeline's device; one, or one per
                state.

        Returns:
            States with shape (n, \*event), on the device of the pipeline.
        """

        n = checks.integer("n", n, 0)
        if isinstance(generator, Sequence):
            generator = list(generator) or None
        begun = self._begin(max(1, n), generator)
        one = {**self._arguments(), "prompt": ""}
        tokens = grid_of(self.pipe, begun.latents, size_of_call(self.pipe, one))
        start = self.coordinates.times(begun.scheduler)[0]
        return self.coordinates.input_scale(start) * unpacked(begun.latents, tokens)[:n]

    def times(self, steps: int | None = None) -> Tensor:
        """The times that the pipeline itself visits, as :meth:`rwguidance.backbone.Backbone.times`.

        Arguments:
            steps: Number of steps, at least 1. None is the number of the constructor.
        """

        return self.coordinates.times(self._begin(1, _unseen(), steps).scheduler)

    def decode(self, latents: Tensor) -> Tensor:
        r"""Images of clean states, by the end of the pipeline's own call.

        Arguments:
            latents: Clean states, with shape (B, \*event).

        Returns:
            Images in [0, 1], float32, with shape (B, 3, H, W); of videos (B, T, 3, H, W).
        """

        return self._decoder(latents)

    def _arguments(self, steps: int | None = None) -> dict[str, Any]:
        """The arguments of a call of a number of steps, but for its prompts."""

        arguments = {**self.call, "num_inference_steps": self._checked_steps(steps)}
        if arguments["num_inference_steps"] != 2 and "intermediate_timesteps" in _defaults(
            self.pipe
        ):
            arguments.setdefault("intermediate_timesteps", None)  # of two steps alone
        return arguments


def _check_can_be_adapted(pipe: Any) -> None:
    """Checks that the parts of a call that an adapter needs can be had of a pipeline.

    Raises:
        TypeError: If they cannot.
    """

    made = all(hasattr(type(pipe), name) for name in ("encode_prompt", "prepare_latents"))
    if not made or "prompt" not in _defaults(pipe) or getattr(pipe, "scheduler", None) is None:
        raise TypeError(
            "pipe must be a pipeline of diffusers that has a scheduler, takes a prompt, and has "
            "encode_prompt and prepare_latents of its own, "
            f"got {type(pipe).__name__}; backbones.guide may guide it as it is"
        )
    if begins_from_picture(pipe):
        raise TypeError(
            "pipe must be a pipeline that begins from noise alone, but a "
            f"{type(pipe).__name__} begins from a picture; guide it with backbones.guide"
        )


def _defaults(pipe: Any) -> dict[str, Any]:
    """The arguments of a pipeline's call with their defaults."""

    parameters = inspect.signature(type(plain(pipe)).__call__).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def _unseen() -> torch.Generator:
    """Source of noise that nobody sees."""

    return torch.Generator().manual_seed(0)


def _denoiser(pipe: Any) -> Any:
    """The network of a pipeline that denoises."""

    return pipe.unet if getattr(pipe, "unet", None) is not None else pipe.transformer


def _takes_scale(pipe: Any) -> bool:
    """Whether the scale of guidance is an input of the network."""

    config = _denoiser(pipe).config
    embeds = config.get("guidance_embeds", False)
    return bool(embeds) or config.get("time_cond_proj_dim", None) is not None


def _scale_name(pipe: Any) -> str:
    """The name of the scale of classifier-free guidance in a pipeline's call."""

    true = "true_cfg_scale" in _defaults(pipe) and not _takes_scale(pipe)
    return "true_cfg_scale" if true else "guidance_scale"


def _scale_argument(pipe: Any, scale: float | None) -> dict[str, Any]:
    """The arguments that set a scale of guidance; None is 0, with which no pipeline has any."""

    name, defaults = _scale_name(pipe), _defaults(pipe)
    if scale is None:
        return {} if defaults.get(name) is None else {name: 0.0}
    if name == "true_cfg_scale" and scale > 1:  # which there is with a negative prompt alone
        return {name: scale, "negative_prompt": " "}
    return {name: scale}
