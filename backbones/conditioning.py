"""What a text-to-image network is conditioned on: prompts, and the tensors they were encoded to."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["TextCondition", "named_embeddings"]


@dataclass(frozen=True, eq=False)
class TextCondition:
    """Prompts with their embeddings, one per sample; made by :meth:`Backbone.condition`.

    It has a length and iterates over the prompts, by which banks and rewards tell conditions apart.
    Samples are taken out with a slice or a list of indices and joined with :meth:`cat`.

    Arguments:
        prompts: One per sample.
        embeddings: Tensors by name, each with shape (B, ...).
        negative: What classifier-free guidance leads away from: tensors of the same names and
            shapes. None without such guidance.
    """

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

        if isinstance(index, slice):
            index = range(len(self))[index]
        if not isinstance(index, Sequence) or not all(isinstance(i, int) for i in index):
            raise TypeError(
                "index must be a slice or a sequence of integers, "
                f"got {index!r}; write condition[i : i + 1] for one sample"
            )
        rows = list(index)
        take = lambda values: {name: value[rows] for name, value in values.items()}
        return TextCondition(
            tuple(self.prompts[i] for i in rows),
            take(self.embeddings),
            None if self.negative is None else take(self.negative),
        )

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

    def stacked(self) -> dict[str, Tensor]:
        """The network's batch: the embeddings, after the negative ones if there are any."""

        if self.negative is None:
            return dict(self.embeddings)
        return _cat([self.negative, self.embeddings])


def _cat(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def named_embeddings(
    encoded: Sequence[Any],
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """What `encode_prompt` of SDXL and SD3 pipelines returns, by name: positive and negative.

    Arguments:
        encoded: Text, negative text, pooled and negative pooled embeddings; the negative ones are
            None without classifier-free guidance.
    """

    text, negative_text, pooled, negative_pooled = encoded
    negative = {"text": negative_text, "pooled": negative_pooled}
    return {"text": text, "pooled": pooled}, None if negative_text is None else negative
