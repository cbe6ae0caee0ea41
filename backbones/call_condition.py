"""Prompts as a pipeline encodes them, whatever the results of its `encode_prompt` hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .conditioning import Embeddings, TextCondition

__all__ = ["CallCondition", "embeddings_of_call", "texts_of_call"]


@dataclass(frozen=True, eq=False)
class CallCondition(TextCondition):
    """Prompts with what `encode_prompt` of a pipeline returned for them.

    Its embeddings are for guidance networks, see :func:`embeddings_of_call`; the pipeline itself
    takes the results.

    Arguments:
        results: Results of `encode_prompt`, in the order of its calls, each with one row per
            prompt.
        negative_prompts: One negative prompt per prompt; None is the pipeline's default.
    """

    storable: ClassVar[bool] = False

    results: tuple[Any, ...] = field(default=())
    negative_prompts: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls,
        prompts: Sequence[str],
        results: Sequence[Any],
        negative_prompts: Sequence[str] | None = None,
    ) -> "CallCondition":
        """Returns the condition of prompts, with the embeddings that the results hold."""

        told = None if negative_prompts is None else tuple(negative_prompts)
        shown = embeddings_of_call(results, len(prompts))
        return cls(tuple(prompts), shown, None, tuple(results), told)

    def __getitem__(self, index: slice | Sequence[int]) -> "CallCondition":
        rows = self._rows(index)
        take = lambda values: [values[i] for i in rows]
        results = [_taken(result, rows, len(self)) for result in self.results]
        told = None if self.negative_prompts is None else take(self.negative_prompts)
        return CallCondition.of(take(self.prompts), results, told)

    def restored(self, prompts: Sequence[str], embeddings: Mapping[str, Tensor]) -> TextCondition:
        """Raises, since the results of a call cannot be made of its embeddings alone.

        Raises:
            TypeError: Always.
        """

        raise TypeError("the condition of a pipeline's own call cannot be made of embeddings")


def embeddings_of_call(results: Sequence[Any], n: int) -> Embeddings:
    """Returns the embeddings that results of `encode_prompt` hold, by the names of the adapters.

    Pipelines return what belongs to the prompts before what belongs to negative ones, so each is
    the first of its kind: ``text``, the states of tokens, with shape (n, L, D), which some return
    as a list of tensors, one for each prompt; ``mask``, with shape (n, L), true where there is a
    token; ``pooled``, with shape (n, D). What is not there is left out.

    Arguments:
        results: Results of the calls of `encode_prompt`, in their order.
        n: Number of prompts.
    """

    parts = [part for result in results for part in _parts(result)]
    found: Embeddings = {}
    for part in parts:
        if isinstance(part, list):
            first, *_ = part
            if "text" not in found and len(part) == n and first.ndim == 2:
                device = first.device
                lengths = torch.tensor([len(tokens) for tokens in part], device=device)
                found["text"] = pad_sequence(part, batch_first=True)
                found["mask"] = torch.arange(int(lengths.max()), device=device) < lengths[:, None]
        elif len(part) == n and part.ndim == 3 and part.is_floating_point():
            found.setdefault("text", part)
    flat = [part for part in parts if isinstance(part, Tensor) and part.ndim == 2]
    for part in (part for part in flat if len(part) == n):
        if "text" in found and part.shape == found["text"].shape[:2] and _is_mask(part):
            found.setdefault("mask", part.bool())
        elif part.is_floating_point() and part.shape[1] != _PLACES:
            found.setdefault("pooled", part)
    return found


_PLACES = 3
"""Numbers that say where a token is, in results that have no row for each prompt."""


def _parts(result: Any) -> list[Tensor | list[Tensor]]:
    """Returns the tensors of a result, and its lists of tensors, which are of one prompt each."""

    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, list) and result and all(isinstance(v, Tensor) for v in result):
        return [result]
    if isinstance(result, list | tuple):
        return [part for item in result for part in _parts(item)]
    return []


def _is_mask(values: Tensor) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def texts_of_call(prompts: Sequence[str], negatives: Sequence[str] | None) -> dict[str, Any]:
    """The arguments of a call that hold its texts."""

    given = {} if negatives is None else {"negative_prompt": list(negatives)}
    return {"prompt": list(prompts), **given}


def _taken(value: Any, rows: Sequence[int], n: int) -> Any:
    """Rows of a result of `encode_prompt` for n prompts."""

    if isinstance(value, Tensor):
        if value.ndim == 4 and value.shape[1] == n:  # embeddings of several layers
            return value[:, rows]
        places = value.ndim == 2 and value.shape[1] == 3 and value.is_floating_point()
        return value if places or len(value) != n else value[rows]
    if isinstance(value, list) and len(value) == n and all(isinstance(v, Tensor) for v in value):
        return [value[i] for i in rows]
    if isinstance(value, list | tuple):
        return type(value)(_taken(item, rows, n) for item in value)
    return value
