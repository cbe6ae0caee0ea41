"""Embeddings of the prompts that were used last, for threads that share a reward."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

__all__ = ["PromptCache"]


class PromptCache:
    """Embeddings by prompt, the one that was used last at the end. A copy of it is empty."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, prompts: Iterable[str]) -> dict[str, Tensor]:
        """Returns the embeddings of those of the prompts that are there."""

        with self._lock:
            return {p: self._entries[p] for p in prompts if p in self._entries}

    def keep(self, embeddings: Mapping[str, Tensor], size: int) -> None:
        """Adds embeddings, and drops those that were not used for longest.

        Arguments:
            embeddings: The embeddings by prompt, those that were found among them.
            size: Number of embeddings that stay.
        """

        with self._lock:
            for prompt, embedding in embeddings.items():
                self._entries[prompt] = embedding
                self._entries.move_to_end(prompt)
            while len(self._entries) > size:
                self._entries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            return iter(list(self._entries))

    def __reduce__(self) -> tuple[Any, ...]:
        return PromptCache, ()
