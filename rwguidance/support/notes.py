"""Warnings of some kinds, collected, for a command that says them once and in its own way."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["collected"]


@contextmanager
def collected(*kinds: type[Warning]) -> Iterator[dict[type[Warning], list[str]]]:
    """Collects the texts of all warnings of some classes; others pass.

    Arguments:
        kinds: The classes, each of which has its list of texts.
    """

    texts: dict[type[Warning], list[str]] = {kind: [] for kind in kinds}
    with warnings.catch_warnings():
        for kind in kinds:
            warnings.simplefilter("always", kind)
        show: Any = warnings.showwarning

        def collect(message: Any, category: Any, *rest: Any, **keywords: Any) -> None:
            kind = next((kind for kind in kinds if issubclass(category, kind)), None)
            if kind is None:
                show(message, category, *rest, **keywords)
            else:
                texts[kind].append(str(message))

        warnings.showwarning = collect
        yield texts
