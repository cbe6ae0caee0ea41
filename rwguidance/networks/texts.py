"""What guidance networks find in a condition: the pooled embedding of a text, and its tokens."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def pooled_of(condition: Any, n: int, size: int) -> Tensor:
    """Returns the pooled embeddings of n texts, with shape (n, size).

    Raises:
        TypeError: If the condition holds none.
        ValueError: If they have another shape.
    """

    pooled = _embedding(condition, "pooled")
    if pooled.shape != (n, size):
        raise ValueError(
            f"condition.embeddings['pooled'] must have shape ({n}, {size}), "
            f"got {tuple(pooled.shape)}"
        )
    return pooled


def tokens_of(condition: Any, n: int, size: int) -> tuple[Tensor, Tensor | None]:
    """Returns the states of the tokens of n texts, (n, L, size), and which there are, (n, L).

    Raises:
        TypeError: If the condition holds none.
        ValueError: If they have another shape.
    """

    tokens = _embedding(condition, "text")
    if tokens.ndim != 3 or len(tokens) != n or tokens.shape[2] != size:
        raise ValueError(
            f"condition.embeddings['text'] must have shape ({n}, L, {size}), "
            f"got {tuple(tokens.shape)}"
        )
    mask = condition.embeddings.get("mask")
    if mask is None:
        return tokens, None
    if mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"condition.embeddings['mask'] must have shape {tuple(tokens.shape[:2])}, "
            f"got {tuple(mask.shape)}"
        )
    return tokens, mask.to(torch.bool)


def _embedding(condition: Any, name: str) -> Tensor:
    embeddings = getattr(condition, "embeddings", None)
    if not isinstance(embeddings, Mapping) or name not in embeddings:
        raise TypeError(
            f"condition must hold condition.embeddings[{name!r}], as what "
            f"backbone.condition(prompts) returns does, got {type(condition).__name__}; to "
            "train on a bank of prompts, give the objective encode="
        )
    found: Tensor = embeddings[name]
    return found
