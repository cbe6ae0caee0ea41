"""A network whose output at one state is known, and which is asked again elsewhere."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rwguidance import Model, Prediction
from rwguidance.schedules import as_times

from .conditioning import TextCondition
from .coordinates import Coordinates
from .flux import Flux
from .guided_classes import plain
from .pipelines import PipelineBackbone, require
from .published import family_of

__all__ = ["Recorded", "evaluate_again"]


_ADVICE = "ImportanceSampling, LearnedShift or PlugIn(..., jacobian=False), which need no gradient"


class Recorded(Model):
    """A model whose prediction at one state is recorded, and which is evaluated anew elsewhere.

    Arguments:
        coordinates: Coordinates of the scheduler.
        x_t: The state.
        t: Time of the state.
        prediction: The recorded prediction.
        condition: Condition that the estimator was given.
        again: Function that evaluates the network, as a model does.
        tolerance: Relative difference that a second evaluation may show.
    """

    def __init__(
        self,
        coordinates: Coordinates,
        x_t: Tensor,
        t: Tensor,
        prediction: Prediction,
        condition: Any,
        again: Callable[[Tensor, float | Tensor, Any], Prediction],
        tolerance: float,
    ) -> None:
        super().__init__(coordinates.schedule)
        self.coordinates = coordinates
        self.x_t = x_t
        self.t = t
        self.prediction = prediction
        self.condition = condition
        self.again = again
        self.tolerance = tolerance
        self.checked = False

    def forward(self, x_t: Tensor, t: float | Tensor, condition: Any = None) -> Prediction:
        here = condition is self.condition and self._is_here(x_t, t)
        differentiated = x_t.requires_grad and torch.is_grad_enabled()
        if here and not differentiated:
            return self.prediction
        if not here:
            if not self.checked:
                with torch.no_grad():
                    self._check(self.again(self.x_t, self.t, self.condition))
            return self.again(x_t, t, condition)
        prediction = self.again(x_t, t, condition)
        self._check(prediction)
        # The recorded values, with the gradients of the new ones.
        graft = lambda old, new: old + (new - new.detach())
        return replace(
            self.prediction,
            mean=graft(self.prediction.mean, prediction.mean),
            noise=graft(self.prediction.noise, prediction.noise),
        )

    def _is_here(self, x_t: Tensor, t: float | Tensor) -> bool:
        return bool((as_times(t).cpu() == self.t).all()) and torch.equal(x_t, self.x_t)

    def _check(self, prediction: Prediction) -> None:
        old, new = (
            self.coordinates.write(value).detach().flatten(1)
            for value in (self.prediction, prediction)
        )
        size = old.norm(dim=1).clamp_min(torch.finfo(old.dtype).tiny)
        difference = float(((new - old).norm(dim=1) / size).max())
        if not difference <= self.tolerance:
            raise ValueError(
                "the estimator asks the network again, whose output then differs by "
                f"{difference:.1e} (relative; {self.tolerance:.1e} is allowed) from what the "
                "pipeline handed to its scheduler: this call composes its predictions in a way "
                "that the adapter of its family does not know, such as rescaled, skip-layer or "
                "true classifier-free guidance, image prompts or unusual sizes; leave that out, "
                f"or use {_ADVICE}"
            )
        self.checked = True


def evaluate_again(
    pipe: Any,
    text: TextCondition | None,
    told: Any,
    x_t: Tensor,
    t: float | Tensor,
    condition: Any,
) -> Prediction:
    r"""Calls the network of a pipeline again, through the adapter of its family.

    Arguments:
        pipe: The guided pipeline.
        text: Prompts and embeddings of the present call.
        told: Condition of the present call, as the estimator was given it.
        x_t: States with shape (B, \*event).
        t: Times with shape () or (B,).
        condition: Condition for which the estimator asks.

    Raises:
        TypeError: If the pipeline belongs to no family that is adapted.
        ValueError: If the embeddings of the call are not known.
    """

    purpose = "the estimator asks the network again, which takes"
    family = family_of(pipe, purpose, f"; use {_ADVICE}")
    if condition is told:
        condition = text
    if condition is None or (isinstance(condition, TextCondition) and not condition.embeddings):
        raise ValueError(
            "the estimator asks the network again, but the embeddings of this call are not known; "
            f"call the guided pipeline itself, or use {_ADVICE}"
        )
    # Copies, since embeddings may come from inside of it; to leave it would turn gradients on.
    gradients = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        prediction: Prediction = _adapter(family, pipe)(x_t, t, condition[:])
    return prediction


def _adapter(family: type[PipelineBackbone], pipe: Any) -> PipelineBackbone:
    """The adapter of a pipeline, with the guidance scale of its present call."""

    unguided = plain(pipe)
    scheduler = getattr(require("diffusers"), family.schedulers[0])
    unguided.scheduler = scheduler.from_config(pipe.scheduler.config)
    takes_scale = family is not Flux or pipe.transformer.config.guidance_embeds
    return family(unguided, pipe.guidance_scale if takes_scale else None)
