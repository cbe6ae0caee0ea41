r"""Parts of rewards with a frozen image tower: float32 heads, cached prompts, checkpointing.

A two-tower reward is a function of :math:`\cos(e_x, e_y)`, the cosine between the embeddings of
image and prompt. Towers may run in half precision; normalization, product and scale do not.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rwguidance.schedules import working_dtype
from rwguidance.support.checks import integer

from .base import Reward, as_strings
from .images import Images
from .prompt_cache import PromptCache

__all__ = ["AffineHead", "EmbeddingReward", "LogitScale", "WideModule", "checkpoint_layers", "unit"]


_PROMPTS = 256
"""Prompts that are embedded at once."""


def unit(embedding: Tensor) -> Tensor:
    """Embeddings of length one, in float32 or wider, with shape (B, D)."""

    return F.normalize(embedding.to(working_dtype(embedding.dtype)), dim=-1)


class WideModule(nn.Module):
    """A module whose tensors stay in float32 or wider when it is cast to half precision.

    For scales and heads, which half precision spoils: a logit scale of 98.86 is 99.0 in bfloat16.
    """

    depends_on: ClassVar[tuple[str, ...]]
    """Names of the attributes that decide results, see :mod:`rwguidance.support.fingerprint`."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            narrow = moved.is_floating_point() and working_dtype(moved.dtype) != moved.dtype
            return tensor.to(moved.device) if narrow else moved

        return super()._apply(keep, recurse)


class LogitScale(WideModule):
    """The exponential of a learned scalar, computed in float32 or wider."""

    depends_on = ()

    def __init__(self, log_scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("log_scale", log_scale.detach().float().reshape(()).clone())
        self.log_scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.log_scale.exp() * x


class AffineHead(WideModule):
    r"""A stack of linear layers without anything between them, collapsed: :math:`w^\top e + b`.

    Arguments:
        weights: The tensors of the stack by name, "...<number>.weight" and "...<number>.bias",
            which apply in the order of the numbers.
        where: Origin of the tensors, for messages.

    Raises:
        ValueError: If they are not a stack of linear layers that ends in one number.
    """

    depends_on = ()

    def __init__(self, weights: dict[str, Tensor], where: object) -> None:
        super().__init__()
        numbers = sorted({_number(name, where) for name in weights})
        parts = {tuple(name.split(".")[-2:]): value.double() for name, value in weights.items()}
        try:
            layers = [(parts[f"{n}", "weight"], parts[f"{n}", "bias"]) for n in numbers]
            matrix, bias = layers[0]
            for w, b in layers[1:]:
                matrix, bias = w @ matrix, w @ bias + b
            if matrix.shape[0] != 1 or matrix.ndim != 2:
                raise ValueError(f"the last layer has shape {tuple(matrix.shape)}")
            (row,), (number,) = matrix, bias
        except (KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{where} must hold linear layers that end in one number, but {error}"
            ) from error
        self.register_buffer("weight", row.float())
        self.register_buffer("bias", number.float())
        self.weight: Tensor
        self.bias: Tensor

    def check_width(self, width: int, where: object) -> None:
        """Checks the width of the embeddings that the head expects.

        Arguments:
            width: Number of entries of the tower's embeddings.
            where: Origin of the head, for the message.

        Raises:
            ValueError: If the head is for embeddings of another width.
        """

        if len(self.weight) != width:
            raise ValueError(
                f"{where} is for embeddings of {len(self.weight)} numbers, "
                f"but the tower's have {width}"
            )

    def forward(self, embedding: Tensor) -> Tensor:
        """One number for each embedding (B, D), with shape (B,)."""

        with torch.autocast(embedding.device.type, enabled=False):
            return embedding.to(self.weight) @ self.weight + self.bias


def checkpoint_layers(layers: Iterable[nn.Module]) -> None:
    """Makes layers recompute their activations in the backward pass instead of keeping them."""

    for layer in layers:
        layer.forward = _Checkpointed(layer.forward)


class EmbeddingReward(Reward):
    r"""A reward that depends on the cosine of two embeddings. Subclasses embed; this caches.

    Embeddings of prompts are kept, least recently used first out, and dropped when the reward is
    moved, cast or given other weights. They carry no gradient; those of images do.

    Arguments:
        log_scale: Logarithm of the scale that training multiplied the cosine with, a scalar.
        cache_size: Number of prompts whose embeddings are kept.

    Raises:
        ValueError: If `cache_size` is negative.
    """

    def __init__(self, log_scale: Tensor, cache_size: int = 4096) -> None:
        super().__init__()
        self.logit_scale = LogitScale(log_scale)
        self.cache_size = integer("cache_size", cache_size, 0)
        self._cache = PromptCache()

    @abstractmethod
    def embed_images(self, images: Tensor) -> Tensor:
        """Raw embeddings of what :meth:`preprocess` returned, with shape (B, D)."""

    @abstractmethod
    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Raw embeddings of prompts, with shape (B, D)."""

    def pair_features(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Features of what :meth:`preprocess` returned, each for a prompt, as :meth:`features`."""

        embedded = unit(self.embed_images(images))
        return torch.cat([embedded * self._encode(prompts), embedded], dim=-1)

    def features(self, images: Images, prompts: Any) -> Tensor:
        """Numbers of each pair whose weighted sums are rewards, in float32 or wider, (B, 2 D).

        The products of both unit embeddings, entry by entry, whose plain sum is the cosine; then
        the unit embedding of the image, of which a look that suits any prompt is told.

        Arguments:
            images: B images, as in :meth:`__call__`.
            prompts: Their prompts.
        """

        groups = self._groups(images)
        return self._in_groups(self.pair_features, groups, self._prompts(prompts, len(groups)))

    @abstractmethod
    def value(self, cosine: Tensor) -> Tensor:
        """Rewards for cosines of any shape, in reward units."""

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Unit embeddings of prompts, cached, with shape (B, D)."""

        return self._encode(as_strings(prompts))

    def forget_prompts(self) -> None:
        """Drops the cached embeddings; needed after changing the text tower's weights in place."""

        # A new one: a thread that is embedding at this moment keeps its results in the old one.
        self._cache = PromptCache()

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.value(self._cosine(images, prompts))

    def logits(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.logit_scale(self._cosine(images, prompts))

    def _cosine(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return (unit(self.embed_images(images)) * self._encode(prompts)).sum(-1)

    def _matrix(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        x, y = unit(self.embed_images(pixels)), self._encode(prompts)
        with torch.autocast(x.device.type, enabled=False):
            return self.value(x @ y.T)

    def _encode(self, prompts: Sequence[str]) -> Tensor:
        cache = self._cache
        known = cache.find(prompts)
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        if new:
            # What is kept must serve every later call: a tensor born in inference mode could not be
            # part of a graph, and one born under autocast would lack precision without it.
            place = self.logit_scale.log_scale.device.type
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(place, enabled=False):
                for start in range(0, len(new), _PROMPTS):
                    part = new[start : start + _PROMPTS]
                    known.update(zip(part, unit(self.embed_prompts(part)), strict=True))
        cache.keep({prompt: known[prompt] for prompt in dict.fromkeys(prompts)}, self.cache_size)
        return torch.stack([known[prompt] for prompt in prompts])

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Loads weights as every module does, and drops the cached embeddings."""

        self.forget_prompts()
        return super().load_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self.forget_prompts()
        return super()._apply(fn, recurse)


class _Checkpointed:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(self.function, *args, use_reentrant=False, **kwargs)


def _number(name: str, where: object) -> int:
    parts = name.split(".")
    if len(parts) < 2 or not parts[-2].isdigit() or parts[-1] not in ("weight", "bias"):
        raise ValueError(f"{where} does not hold a stack of linear layers, but {name}")
    return int(parts[-2])
