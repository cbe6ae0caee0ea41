"""Requirements of the conformance checks: each says what was expected and what came."""

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

Select = Callable[[Any, list[int]], Any]
"""A function from (condition, indices) to the condition of those samples."""

T = TypeVar("T")


def require(holds: bool, message: str) -> None:
    """Raises AssertionError unless something holds."""

    if not holds:
        raise AssertionError(message)


def require_tensor(
    what: str,
    value: Any,
    shape: Sequence[int],
    dtype: torch.dtype | None = None,
    floating: bool = True,
) -> None:
    """Requires a tensor of one shape, of floating point unless told, of one dtype if given."""

    require(isinstance(value, Tensor), f"{what} must be a tensor, got {type(value).__name__}")
    require(
        tuple(value.shape) == tuple(shape),
        f"{what} must have shape {tuple(shape)}, got {tuple(value.shape)}",
    )
    require(
        value.is_floating_point() or not floating,
        f"{what} must be floating point, got {value.dtype}",
    )
    require(
        dtype is None or value.dtype == dtype, f"{what} must have dtype {dtype}, got {value.dtype}"
    )


def require_wide(what: str, value: Tensor) -> None:
    """Requires float32 or wider."""

    require(
        torch.finfo(value.dtype).eps <= torch.finfo(torch.float32).eps,
        f"{what} must be float32 or wider, got {value.dtype}",
    )


@torch.no_grad()
def require_same(
    expected: dict[str, Tensor], got: dict[str, Tensor], tolerance: float, message: str
) -> None:
    """Requires tensors, by name, to agree up to `tolerance` times the largest finite entry."""

    for key, a in expected.items():
        b = got[key]
        finite = a[a.isfinite()]
        size = float(finite.abs().max()) if finite.numel() else 0.0
        if not torch.allclose(a, b.to(a), rtol=0, atol=tolerance * size, equal_nan=True):
            alike = (a == b) | (a.isnan() & b.isnan())  # NaN and inf may be in both
            error = float((a - b).abs().nan_to_num(math.inf).masked_fill(alike, 0).max())
            raise AssertionError(
                f"{message}; {key} differs by {error:.3g}, expected at most {tolerance * size:.3g}"
            )


@contextmanager
def untouched(what: str, **inputs: Any) -> Iterator[None]:
    """Checks that the body changes neither these inputs nor the global random state."""

    state, before = _random_state(), {name: _copy(value) for name, value in inputs.items()}
    yield
    for name, value in inputs.items():
        require(_equal(before[name], value), f"{what} must not change its argument {name}")
    require(
        all(map(torch.equal, state, _random_state())),
        f"{what} must not use the global random state; randomness enters through a torch.Generator",
    )


def _random_state() -> list[Tensor]:
    gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.random.get_rng_state(), *gpu]


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return list(value) if isinstance(value, list) else None


def _equal(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor):
        return torch.equal(before, after)
    if isinstance(before, list):
        return len(before) == len(after) and all(map(operator.is_, before, after))
    return True


def run(what: str, function: Callable[..., T], *arguments: Any) -> T:
    """Calls a function, whose exceptions are failed checks, too."""

    try:
        return function(*arguments)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{what} fails with {type(error).__name__}: {error}") from error


def tolerance_for(x: Tensor) -> float:
    """Relative difference that rounding in the dtype of `x` may make."""

    return math.sqrt(torch.finfo(x.dtype).eps)


def few(name: str, x: Tensor) -> str:
    """The message about states of which there are fewer than two."""

    return (
        f"{name} must hold at least two samples, shape (B, *event) with B >= 2, "
        f"got {tuple(x.shape)}"
    )


def extremes(value: Tensor) -> str:
    """A description of values for a message: their range, or how many are NaN."""

    value = value.detach()
    if value.isnan().any():
        return f"{int(value.isnan().sum())} NaN of {value.numel()} values"
    return f"values from {float(value.min()):.4g} to {float(value.max()):.4g}"
