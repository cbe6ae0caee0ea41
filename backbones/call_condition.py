"""Prompts as a pipeline encodes them, whatever the results of its `encode_prompt` hold."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .conditioning import TextCondition

__all__ = ["CallCondition", "texts_of_call"]


@dataclass(frozen=True, eq=False)
class CallCondition(TextCondition):
    """Prompts with what `encode_prompt` of a pipeline returned for them.

    Arguments:
        results: Results of `encode_prompt`, in the order of its calls, each with one row per
            prompt.
        negative_prompts: One negative prompt per prompt; None is the pipeline's default.
    """

    results: tuple[Any, ...] = field(default=())
    negative_prompts: tuple[str, ...] | None = None

    def __getitem__(self, index: slice | Sequence[int]) -> "CallCondition":
        rows = self._rows(index)
        take = lambda values: tuple(values[i] for i in rows)
        return CallCondition(
            take(self.prompts),
            {},
            results=tuple(_taken(result, rows, len(self)) for result in self.results),
            negative_prompts=None if self.negative_prompts is None else take(self.negative_prompts),
        )


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
