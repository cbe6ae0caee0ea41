"""Extensions of backbones, beyond :class:`~rwguidance.backbone.Backbone`.

Adapters of published pipelines recommend a number of steps and take negative prompts. Whether a
backbone does is read from the signatures of its methods.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from ..backbone import Backbone, TextToImage

__all__ = [
    "RecommendsSteps",
    "TakesNegativePrompts",
    "check_negative_prompt",
    "encode",
    "sampling_times",
]


class RecommendsSteps(Protocol):
    """A backbone whose authors recommend a number of steps."""

    def times(self) -> Tensor:
        """Returns times as :meth:`Backbone.times` does, for the recommended number of steps."""


class TakesNegativePrompts(Protocol):
    """A backbone with classifier-free guidance away from negative prompts."""

    def condition(self, prompts: Sequence[str], negative_prompts: str, /) -> Any:
        """Returns a condition as :meth:`Backbone.condition` does, with one negative prompt."""


def sampling_times(backbone: TextToImage, steps: int | None) -> Tensor:
    """Returns the times of a backbone for a number of steps.

    Arguments:
        backbone: The backbone.
        steps: Number of steps; None is the number that the backbone recommends. A generator makes
            one, from 1 to 0.

    Raises:
        ValueError: If `steps` is None and the backbone recommends no number, or a generator is to
            make several.
    """

    if not isinstance(backbone, Backbone):
        if steps not in (None, 1):
            raise ValueError(f"steps must be 1 for {type(backbone).__name__}, got {steps}")
        return torch.tensor([1.0, 0.0], dtype=torch.float64)
    if steps is not None:
        return backbone.times(steps)
    if not _recommends_steps(backbone):
        raise ValueError(
            f"steps must be given, as {type(backbone).__name__} recommends no number of them"
        )
    return backbone.times()


def encode(backbone: TextToImage, prompts: Sequence[str], negative_prompt: str | None) -> Any:
    """Returns the condition of a backbone for prompts.

    Arguments:
        backbone: The backbone.
        prompts: Prompts, one per sample.
        negative_prompt: The text that classifier-free guidance leads away from; None is the
            backbone's own.

    Raises:
        TypeError: If there is a negative prompt and the backbone takes none.
    """

    if negative_prompt is None:
        return backbone.condition(prompts)
    if not _takes_negative_prompts(backbone):
        raise TypeError(_refusal(backbone, negative_prompt))
    return backbone.condition(prompts, negative_prompt)


def check_negative_prompt(backbone: TextToImage, negative_prompt: str | None) -> None:
    """Raises TypeError if there is a negative prompt and the backbone takes none."""

    if negative_prompt is not None and not _takes_negative_prompts(backbone):
        raise TypeError(_refusal(backbone, negative_prompt))


def _refusal(backbone: TextToImage, negative_prompt: str) -> str:
    return (
        "negative_prompt is for backbones whose method `condition` takes negative prompts, "
        f"which {type(backbone).__name__} does not, got {negative_prompt!r}"
    )


def _recommends_steps(backbone: Backbone) -> TypeGuard[RecommendsSteps]:
    return _accepts(backbone.times)


def _takes_negative_prompts(backbone: TextToImage) -> TypeGuard[TakesNegativePrompts]:
    return _accepts(backbone.condition, [], "")


def _accepts(function: Callable[..., Any], *arguments: Any) -> bool:
    """Returns whether the signature of a function has room for these arguments."""

    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    return True
