"""Conditions of a text-to-image network: prompts, and the tensors they were encoded to."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, TypeVar

import torch
from torch import Tensor

from rwguidance.support.conditions import has_half_surrogate, string_keys

__all__ = [
    "Embeddings",
    "TextCondition",
    "check_condition",
    "encode_distinct",
    "named_embeddings",
]

Embeddings: TypeAlias = dict[str, Tensor]
"""Tensors by name, each with shape (B, ...)."""

C = TypeVar("C", bound="TextCondition")


@dataclass(frozen=True, eq=False)
class TextCondition:
    """Prompts with their embeddings, one per sample; made by :meth:`Backbone.condition`.

    It has a length and iterates over the prompts, by which banks and rewards tell conditions apart.
    Samples are taken out with a slice or a list of indices and joined with :meth:`cat`.

    Arguments:
        prompts: One prompt per sample.
        embeddings: Tensors by name, each with shape (B, ...).
        negative: Tensors of the same names and shapes, from which classifier-free guidance leads
            away. None without such guidance.

    Attributes:
        storable: Whether :meth:`restored` makes conditions of embeddings that were stored.
    """

    storable: ClassVar[bool] = True

    prompts: tuple[str, ...]
    embeddings: Mapping[str, Tensor]
    negative: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        for name, value in self.embeddings.items():
            if len(value) != len(self.prompts):
                raise ValueError(
                    f"embeddings[{name!r}] must have one entry per prompt, {len(self.prompts)}, "
                    f"got shape {tuple(value.shape)}"
                )
        if self.negative is None:
            return
        shapes = {name: value.shape for name, value in self.embeddings.items()}
        found = {name: value.shape for name, value in self.negative.items()}
        if found != shapes:
            raise ValueError(
                f"negative must hold tensors like those of embeddings, {shapes}, got {found}"
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.prompts)

    def __getitem__(self, index: slice | Sequence[int]) -> "TextCondition":
        """The condition of some samples, given as a slice or a sequence of indices.

        Raises:
            TypeError: If `index` is neither. A single sample is `condition[i : i + 1]`.
        """

        rows = self._rows(index)
        take = lambda values: {name: value[rows] for name, value in values.items()}
        return TextCondition(
            tuple(self.prompts[i] for i in rows),
            take(self.embeddings),
            None if self.negative is None else take(self.negative),
        )

    def _rows(self, index: slice | Sequence[int]) -> list[int]:
        if isinstance(index, slice):
            index = range(len(self))[index]
        if not isinstance(index, Sequence) or not all(isinstance(i, int) for i in index):
            raise TypeError(
                "index must be a slice or a sequence of integers, "
                f"got {index!r}; write condition[i : i + 1] for one sample"
            )
        return list(index)

    @classmethod
    def cat(cls, parts: Sequence["TextCondition"]) -> "TextCondition":
        """Joins conditions of the same backbone, in order.

        Raises:
            ValueError: If there are none, or only some of them have a negative part.
        """

        negatives = [part.negative for part in parts if part.negative is not None]
        if not parts or len(negatives) not in (0, len(parts)):
            raise ValueError(
                "parts must be at least one condition, all with classifier-free guidance or all "
                f"without, got {len(parts)}, {len(negatives)} of them with"
            )
        return cls(
            tuple(prompt for part in parts for prompt in part),
            _cat([part.embeddings for part in parts]),
            _cat(negatives) if negatives else None,
        )

    def restored(self, prompts: Sequence[str], embeddings: Mapping[str, Tensor]) -> "TextCondition":
        """Returns the condition of other prompts, whose embeddings are known, such as stored ones.

        They are put where those of this condition are; the negative part is that of its first
        sample.

        Arguments:
            prompts: One prompt per sample.
            embeddings: Tensors by name, each with shape (B, ...).
        """

        near = {name: embeddings[name].to(value.device) for name, value in self.embeddings.items()}
        if self.negative is None:
            return TextCondition(tuple(prompts), near)
        rows = [0] * len(prompts)
        negative = {name: value[rows] for name, value in self.negative.items()}
        return TextCondition(tuple(prompts), near, negative)

    def stacked(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The network's batch: the embeddings, after the negative ones if there are any.

        Arguments:
            dtype: The precision of floating-point embeddings; None leaves it as it is.
        """

        both = self.embeddings if self.negative is None else _cat([self.negative, self.embeddings])
        return {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in both.items()
        }


def _cat(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    first, *_ = parts
    return {name: torch.cat([part[name] for part in parts]) for name in first}


def encode_distinct(
    encode: Callable[[list[str], list[str] | None], C],
    prompts: Sequence[str],
    negative_prompts: str | Sequence[str] | None,
) -> C:
    """The condition of prompts; a pair of prompt and negative prompt that repeats is encoded once.

    Arguments:
        encode: Maps distinct prompts and their negative prompts, or None, to their condition.
        prompts: One prompt per sample.
        negative_prompts: One negative prompt per sample, one for all of them, or None.

    Raises:
        TypeError: If prompts are not strings.
        ValueError: If there is none, or not one negative prompt per sample.
    """

    prompts = _strings("prompts", prompts, len(prompts))
    if isinstance(negative_prompts, str):
        negative_prompts = [negative_prompts] * len(prompts)
    if negative_prompts is not None:
        negative_prompts = _strings("negative_prompts", negative_prompts, len(prompts))

    pairs = list(zip(prompts, negative_prompts or [""] * len(prompts), strict=True))
    place = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
    negatives = None if negative_prompts is None else [pair[1] for pair in place]
    condition = encode([pair[0] for pair in place], negatives)
    found: Any = condition[[place[pair] for pair in pairs]]
    return found


def check_condition(condition: object, n: int, guided: bool) -> TextCondition:
    """The condition itself, once checked to be one that a backbone can use.

    Arguments:
        condition: The object that the backbone was given.
        n: Number of samples.
        guided: Whether the backbone has classifier-free guidance.

    Raises:
        TypeError: If it is no :class:`TextCondition`.
        ValueError: If it holds another number of prompts, or was encoded with guidance where there
            is none, or without it where there is.
    """

    if not isinstance(condition, TextCondition):
        raise TypeError(
            "condition must be what backbone.condition(prompts) returns, "
            f"got {type(condition).__name__}"
        )
    if len(condition) != n:
        raise ValueError(f"condition must hold one prompt per sample, {n}, got {len(condition)}")
    if guided != (condition.negative is not None):
        has, was = ("has", "without") if guided else ("has no", "with")
        raise ValueError(
            f"this backbone {has} classifier-free guidance, but condition was encoded {was}; "
            "encode it with the backbone that is called"
        )
    return condition


def _strings(name: str, values: Sequence[str], n: int) -> list[str]:
    strings = string_keys(values, n, name)
    if not strings:
        raise ValueError(f"{name} must hold at least one string, got none")
    strings = strings
    for i, string in enumerate(strings):
        if has_half_surrogate(string):
            raise ValueError(f"{name} must be text, got half of a surrogate pair in {name}[{i}]")
    return strings


def named_embeddings(
    encoded: Sequence[Any],
) -> tuple[Embeddings, Embeddings | None]:
    """Embeddings of SDXL and SD3 pipelines by name, positive and negative.

    Arguments:
        encoded: Result of `encode_prompt`: text, negative text, pooled and negative pooled
            embeddings; the negative ones are None without classifier-free guidance.
    """

    text, negative_text, pooled, negative_pooled = encoded
    negative = {"text": negative_text, "pooled": negative_pooled}
    return {"text": text, "pooled": pooled}, None if negative_text is None else negative
