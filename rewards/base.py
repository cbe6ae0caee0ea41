"""Rewards: modules that give one number to each pair of an image and a prompt."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rwguidance.schedules import working_dtype
from rwguidance.support.conditions import has_half_surrogate, string_keys

from .images import Images, SizeGroups, reduced

__all__ = ["Reward", "RewardFile", "RewardSpec"]


@dataclass(frozen=True, kw_only=True)
class RewardFile:
    """A published file that a reward needs.

    Arguments:
        name: Name of the file, the one that is looked for in a local directory.
        source: Place where the file is published: ``hf://owner/repository``, a web address, or a
            folder of an installed package, ``package://name/folder``
            (:mod:`rwguidance.support.packaged`).
        digest: ``sha256:...`` or ``md5:...`` of the published file, or None if unknown.
    """

    name: str
    source: str
    digest: str | None = None


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """The facts about a reward that one needs before using it.

    Arguments:
        name: The name it is registered under.
        title: The name it goes by in the literature, with the version.
        differentiable: Whether gradients reach the images.
        needs_prompt: Whether the reward looks at the prompt.
        code_license: SPDX identifier of the license of the original code.
        weights_license: SPDX identifier of the license of the weights, or "none" if there are none
            and "unknown" if their authors do not say.
        formula: The formula of the number, in one line of text.
        typical_range: Smallest and largest value that is usual, in reward units.
        citation: Authors, year and link.
        commercial_use: Whether the licenses of code and weights permit it; None if that is not
            known. A summary, not legal advice.
        files: The files that must be there before it can be loaded.
        preprocessing: The way images are brought to the network's size, in one line of text.
        context_length: Number of tokens after which a prompt is cut off; None if there is no limit.
        published_scale: The scales under which its numbers are published, if there are several.
        parity: The largest difference from the reference, with the reference's version, or that it
            was not run.
        card: Address of the model card, on the web or ``package://name/folder/README.md``; empty
            if there is none.

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
    commercial_use: bool | None = None
    files: tuple[RewardFile, ...] = ()
    preprocessing: str = "none"
    context_length: int | None = None
    published_scale: str = ""
    parity: str = ""
    card: str = ""

    def __post_init__(self) -> None:
        ends = self.typical_range if isinstance(self.typical_range, Sequence) else ()
        kinds = [isinstance(end, int | float) and not isinstance(end, bool) for end in ends]
        if kinds != [True, True] or not ends[0] < ends[1]:
            raise ValueError(
                f"typical_range must be (low, high) with low < high, got {self.typical_range!r}"
            )

    def file(self, name: str) -> RewardFile:
        """The file of that name.

        Raises:
            KeyError: If the reward needs no such file.
        """

        return {file.name: file for file in self.files}[name]


class Reward(nn.Module, ABC):
    r"""A reward of images. A subclass states its `spec` and implements :meth:`forward`.

    Calling a reward checks what comes in, preprocesses it, and runs :meth:`forward`. A reward is a
    callable (images, prompts) -> (B,), so that it can be given to :class:`rwguidance.Tilt` as it
    is, with the prompts as the condition.

    Attributes:
        spec: The facts about this reward; of the class, unless an instance knows better.
        straight_through: Whether the gradient is that of a smooth stand-in, which finite
            differences of the value do not confirm (such as pixels rounded to 8 bits).
        takes_levels: Whether :meth:`preprocess` also takes the levels of PIL images, uint8 in 0 to
            255, which :func:`rewards.preprocessing.resize` does.
    """

    depends_on: ClassVar[tuple[str, ...]]
    """Names of the attributes that decide results, see :mod:`rwguidance.support.fingerprint`."""

    spec: RewardSpec
    straight_through: bool = False
    takes_levels: ClassVar[bool] = False

    @abstractmethod
    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        r"""Rewards in reward units, float32 or wider, with shape (B,).

        Arguments:
            images: Images of one size, as :meth:`preprocess` returned them, with shape (B, \*).
            prompts: One prompt per image; empty if the reward needs no prompt.
        """

    def preprocess(self, images: Tensor) -> Tensor:
        r"""The images as :meth:`forward` takes them; by default themselves, in float32 or wider.

        Arguments:
            images: Floating point in [0, 1], sRGB, with shape (B, 3, H, W).

        Returns:
            Preprocessed images, with shape (B, \*). If the shape does not depend on H and W, images
            of several sizes reach :meth:`forward` in one batch.
        """

        return images.to(working_dtype(images.dtype))

    def logits(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Values whose softmax over the images of one prompt are preferences, with shape (B,).

        Arguments and shapes are those of :meth:`forward`.

        Raises:
            TypeError: If the reward was not trained on preferences; subclasses that were override.
        """

        raise TypeError(
            f"{self.spec.name} was not trained on preferences, so a softmax of its values has no "
            "meaning; compare the values themselves"
        )

    def __call__(self, images: Images, prompts: Any = None) -> Tensor:
        """Checks the arguments, preprocesses the images and calls :meth:`forward`.

        Arguments:
            images: A float tensor (B, 3, H, W) in [0, 1], sRGB, or a list of images of any sizes:
                float tensors (3, H, W), PIL images, arrays of 8 bits (H, W, 3), or paths of files.
                Tensors must be on the reward's device; for the others see
                :func:`rewards.images.from_pil`.
            prompts: A collection with one prompt per image, such as a list. Ignored if the reward
                needs none.

        Returns:
            Rewards in reward units, float32 or wider, with shape (B,).

        Raises:
            TypeError: If the images are of another kind, or the prompts not strings.
            ValueError: If the images have another shape or range, or the number of prompts differs.
        """

        groups = self._groups(images)
        prompts = self._prompts(prompts, len(groups))
        values: Tensor = self._in_groups(super().__call__, groups, prompts)
        return values

    def score_matrix(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """Rewards of every image with every prompt, with shape (n, m).

        Arguments:
            images: n images, as in :meth:`__call__`.
            prompts: m prompts.
        """

        groups = self._groups(images)
        texts = as_strings(prompts)
        return groups.reduce(lambda pixels, _: self._matrix(pixels, texts))

    def prefer(self, images: Images, prompt: str) -> Tensor:
        """Probability that people prefer each image to the others for the prompt, with shape (n,).

        The softmax over the candidates that the model was trained with, on its logits.

        Arguments:
            images: n candidates, as in :meth:`__call__`.
            prompt: The one prompt that all of them were made for.

        Raises:
            TypeError: If the reward was not trained on preferences, or `prompt` is not a string.
        """

        if not isinstance(prompt, str):
            raise TypeError(
                f"prompt must be one string for all candidates, got {type(prompt).__name__}"
            )
        groups = self._groups(images)
        prompts = self._prompts([prompt] * len(groups), len(groups))
        return self._in_groups(self.logits, groups, prompts).softmax(0)

    def __repr__(self) -> str:
        """Returns one line; the parts of a network are those of its attributes."""

        about = [repr(self.spec.name), self.extra_repr(), f"device={self.device}"]
        return f"{type(self).__name__}({', '.join(filter(None, about))})"

    @property
    def device(self) -> torch.device | None:
        """The device of the reward's tensors; None if it has none, and follows the images."""

        tensors = (*self.parameters(), *self.buffers())
        return next((tensor.device for tensor in tensors), None)

    def _groups(self, images: Images) -> SizeGroups:
        return reduced(images, self.device, self.preprocess, self.takes_levels)

    def _matrix(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """Values of preprocessed images with every prompt, shape (n, m); one pass per prompt."""

        if not self.spec.needs_prompt:
            return self.forward(pixels, [])[:, None].repeat(1, len(prompts))
        columns = [self.forward(pixels, [prompt] * len(pixels)) for prompt in prompts]
        return torch.stack(columns, dim=1)

    def _in_groups(
        self, function: Callable[..., Tensor], groups: SizeGroups, prompts: Sequence[str]
    ) -> Tensor:
        pick = lambda positions: [prompts[i] for i in positions] if prompts else []
        return groups.reduce(lambda pixels, positions: function(pixels, pick(positions)))

    def _prompts(self, prompts: Any, n: int) -> list[str]:
        if not self.spec.needs_prompt:
            return []
        if prompts is None:
            raise ValueError(f"{self.spec.name} needs prompts, one per image, got None")
        return as_strings(prompts, n)


def as_strings(prompts: Any, n: int | None = None) -> list[str]:
    """Prompts as a list of strings, at least one.

    Arguments:
        prompts: A collection of strings.
        n: Number of prompts that there must be; None takes any number.

    Raises:
        TypeError: If it is no collection of strings.
        ValueError: If there is no prompt, or another number, or one holds half a surrogate pair.
    """

    n = len(prompts) if n is None and isinstance(prompts, Sized) else n
    strings = string_keys(prompts, n or 0, "prompts")
    if not strings:
        raise ValueError("prompts must hold at least one prompt, got none")
    for i, string in enumerate(strings):
        if has_half_surrogate(string):
            raise ValueError(f"prompts must be text, got half of a surrogate pair in prompts[{i}]")
    return strings
