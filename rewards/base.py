"""What a reward is: a module that gives one number to each pair of an image and a prompt."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from rwguidance.conditions import condition_keys

__all__ = ["Reward", "RewardSpec"]


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """What one needs to know before using a reward.

    Arguments:
        name: The name it is registered under.
        title: The name it goes by in the literature, with the version.
        differentiable: Whether gradients reach the images.
        needs_prompt: Whether the reward looks at the prompt.
        code_license: SPDX identifier of the license of the original code.
        weights_license: SPDX identifier of the license of the weights, or "none" if there are none
            and "unknown" if their authors do not say.
        formula: How the number comes about, in one line of text.
        typical_range: Smallest and largest value that is usual, in reward units.
        citation: Authors, year and link.

    Raises:
        ValueError: If the range is not (low, high) with low < high.
    """

    name: str
    title: str
    differentiable: bool
    needs_prompt: bool
    code_license: str
    weights_license: str
    formula: str
    typical_range: tuple[float, float]
    citation: str

    def __post_init__(self) -> None:
        low, high = self.typical_range
        if not low < high:
            raise ValueError(
                f"typical_range must be (low, high) with low < high, got {self.typical_range}"
            )


class Reward(nn.Module, ABC):
    r"""A reward of images. A subclass states its `spec` and implements :meth:`forward`.

    Calling a reward checks what comes in and then runs :meth:`forward`. A reward is a callable
    (images, prompts) -> (B,), so that it can be given to :class:`rwguidance.Tilt` as it is, with
    the prompts as the condition.

    Attributes:
        spec: The facts about this reward.
    """

    spec: ClassVar[RewardSpec]

    @abstractmethod
    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rewards in reward units, float32 or wider, with shape (B,).

        Arguments:
            images: Floating point in [0, 1], sRGB, with shape (B, 3, H, W).
            prompts: One per image; empty if the reward needs no prompt.
        """

    def __call__(self, images: Tensor, prompts: Any = None) -> Tensor:
        """Checks the arguments and calls :meth:`forward`.

        Arguments:
            images: Floating point in [0, 1], sRGB, with shape (B, 3, H, W).
            prompts: A collection with one prompt per image, such as a list. Ignored if the reward
                needs none.

        Raises:
            TypeError: If the images are not a floating-point tensor, or the prompts not strings.
            ValueError: If the images have another shape or range, or the number of prompts differs.
        """

        check_images(images)
        values: Tensor = super().__call__(images, self._prompts(prompts, len(images)))
        return values

    def _prompts(self, prompts: Any, n: int) -> list[str]:
        if not self.spec.needs_prompt:
            return []
        keys = condition_keys(prompts, n, "prompts")
        if keys is None:
            raise ValueError(f"{self.spec.name} needs prompts, one per image, got None")
        strings = [key for key in keys if isinstance(key, str)]
        if len(strings) != n:
            other = next(key for key in keys if not isinstance(key, str))
            raise TypeError(f"prompts must be strings, got {type(other).__name__}")
        return strings


def check_images(images: Tensor) -> None:
    """Explains what is wrong with images that are not float (B, 3, H, W) in [0, 1].

    NaN passes, so that the reward's value names the item.

    Raises:
        TypeError: If they are not a floating-point tensor.
        ValueError: If they have another shape or range.
    """

    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = str(images.dtype) if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"images must be a floating-point tensor in [0, 1], got {kind}; "
            "divide 8-bit images by 255"
        )
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape (B, 3, H, W), got {tuple(images.shape)}")
    if bool(((images < 0) | (images > 1)).any()):
        low, high = images.aminmax()
        raise ValueError(
            f"images must lie in [0, 1], got values from {low.item():.4g} to {high.item():.4g}; "
            "a decoder that returns [-1, 1] needs (x / 2 + 0.5).clamp(0, 1)"
        )
