"""Warnings that a command says in its own way."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["heard"]


@contextmanager
def heard(hear: Callable[[Warning], None], *kinds: type[Warning]) -> Iterator[None]:
    """Hands every warning of some classes to a function, in place of showing it; others pass.

    Arguments:
        hear: Function that is called with each of them.
        kinds: The classes.
    """

    with warnings.catch_warnings():
        for kind in kinds:
            warnings.simplefilter("always", kind)
        show: Any = warnings.showwarning

        def pick(message: Any, category: Any, *rest: Any, **keywords: Any) -> None:
            if issubclass(category, kinds):
                hear(message)
            else:
                show(message, category, *rest, **keywords)

        warnings.showwarning = pick
        yield
