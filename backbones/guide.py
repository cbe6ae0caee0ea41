r"""Guidance of a pipeline of diffusers that one already has, without changing how it is called.

Pipelines differ in everything but this: after classifier-free guidance, they hand the network's
output and the state to `scheduler.step`. There the output is turned into a
:class:`~rwguidance.Prediction`, moved by :class:`~rwguidance.GuidedModel` as in every other run,
and turned back. So multistep and stochastic schedulers, img2img, callbacks and offloading stay what
they are, and the network is called as often as before.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rwguidance import ConditionalExpectation, GuidedModel, Model, Prediction

from .coordinates import Coordinates
from .guided_classes import guided_pipeline_class, guided_scheduler_class, plain
from .guided_steps import StepGuidance
from .origins import check_pipeline

__all__ = ["guide"]


def guide(
    pipe: Any,
    estimator: ConditionalExpectation | None,
    scale: float | Callable[[Tensor], Tensor] = 1.0,
    window: tuple[float, float] = (0.0, 1.0),
    condition: Any = None,
) -> Any:
    r"""A guided copy of a pipeline: called as before, it samples the tilted law.

    .. code-block:: python

        guided = guide(pipe, ImportanceSampling(bank, tilt))
        images = guided(["a cat", "a dog"], num_inference_steps=30).images

    Works with every pipeline of diffusers whose scheduler is one of those listed in
    :mod:`backbones.coordinates`, modular ones included. Estimators that ask the model only at the
    state of the run (:class:`~rwguidance.ImportanceSampling`, the learned ones,
    ``PlugIn(jacobian=False)``) cost no network call. Those that differentiate through the network
    evaluate it again: by the adapter of :func:`backbones.from_pipeline`, if the pipeline has one,
    called in a way that it knows (without rescaled, skip-layer or true classifier-free guidance and
    without image prompts); or else by the pipeline's own call, made again from the state of the
    step. Those that ask at other times or for other prompts take an adapter.

    A run that begins from noise alone has its first time as :attr:`rwguidance.Model.start`, where
    the noising kernel is flat. Runs of pipelines that take a picture (img2img, inpainting: those
    with a `strength`) have none, nor calls with both latents and times of their own, nor runs that
    skip the first timesteps of the scheduler.

    States and times are those of the adapter: :math:`\alpha_t x_0 + \sigma_t \epsilon` whatever the
    scheduler keeps, and with FLUX latents of shape (B, 16, H, W) instead of tokens. Random numbers
    that an estimator draws are a function of the state and do not disturb those of the sampler.

    Arguments:
        pipe: A pipeline of diffusers. It is left as it is, and weights are shared.
        estimator: Estimator of the shift, on the device of the pipeline. None takes guidance off,
            and a guided pipeline is guided anew, never twice.
        scale: Factor of the shift, as in :class:`~rwguidance.GuidedModel`.
        window: Closed interval of times (low, high) in which to guide.
        condition: Condition that the estimator is given, with one item per image of a call. None is
            the prompts of the call with their embeddings, as a :class:`TextCondition`, if they can
            be known: they cannot in modular pipelines, and if embeddings are passed instead.

    Returns:
        A pipeline of a class that extends the plain one and has its name. Saved and loaded, it is
        the plain pipeline; another scheduler, set on it later, is not guided. A deep copy has its
        own networks and encoders, and shares the estimator. It does not pickle: send the plain
        pipeline to another process, and guide it there.

    Raises:
        TypeError: If the pipeline has no scheduler, or one whose coordinates are not understood
            (lists those that are), or another argument is of the wrong kind.
        ValueError: If the scale is not finite, the window is not 0 <= low <= high <= 1, or the
            estimator's bank was drawn by another pipeline or with other weights. A call raises it
            if it samples another law than that of the bank: names the argument.

    Warns:
        UnreliableEstimate: Once per call, as :func:`rwguidance.sample` does.
    """

    if getattr(pipe, "scheduler", None) is None:
        raise TypeError(f"pipe must be a pipeline with a scheduler, got {type(pipe).__name__}")
    guided = plain(pipe)
    with torch.inference_mode(False):  # what is made here is used outside of it, too
        scheduler = copy.deepcopy(plain(pipe.scheduler))
        if estimator is not None:
            check_pipeline(estimator, guided)
            coordinates = Coordinates.from_scheduler(scheduler)
            # Checks the arguments before any expensive work.
            GuidedModel(_Unknown(coordinates.schedule), estimator, scale, window)
            guidance = StepGuidance(coordinates, estimator, scale, window, condition, guided)
            base: Any = type(scheduler)
            scheduler.__class__ = guided_scheduler_class(base)
            base = type(guided)
            guided.__class__ = guided_pipeline_class(base)
            scheduler._guidance = guidance
    guided.scheduler = scheduler
    return guided


class _Unknown(Model):
    """A stand-in for a model that is not there yet, where only arguments are checked."""

    def forward(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Prediction:
        raise NotImplementedError
