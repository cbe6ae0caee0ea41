"""The contract of every sample of a batch, the same for models and estimators."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .requirements import Select, require_same, tolerance_for

Answer = Callable[[Tensor, float | Tensor, Any], dict[str, Tensor]]
"""A function from (x_t, t, condition) to tensors with one row per sample, by name."""

_SINGLES = 4
"""Number of samples of a batch that are looked at one by one."""


def check_calls(
    name: str, answer: Answer, x_t: Tensor, t: float, condition: Any, select: Select
) -> dict[str, Tensor]:
    """Checks that a call depends on its arguments alone, and a sample on its own alone.

    Returns:
        The answer at `x_t` and `t`.
    """

    result = answer(x_t, t, condition)
    compare = lambda other, why: require_same(
        result, other, tolerance_for(x_t), f"{name} at t = {t}: {why}"
    )
    compare(
        answer(x_t, t, condition),
        "two equal calls must agree; call .eval(), and draw no random numbers",
    )
    for shape in ((), (len(x_t),)):
        compare(
            answer(x_t, torch.full(shape, t, dtype=torch.float64), condition),
            f"times of shape {shape} must give what the number {t} gives",
        )
    with torch.inference_mode():
        compare(answer(x_t, t, condition), "inference_mode must change no result")
    require_same(
        _first(result),
        _one_by_one(answer, x_t, [t] * len(x_t), condition, select),
        tolerance_for(x_t),
        f"{name} at t = {t}: a sample must not depend on the others of its batch",
    )
    return result


def mixed_times(times: Sequence[float], n: int) -> Tensor:
    """Repeats `times` for `n` samples, float64, with shape (n,)."""

    return torch.tensor([times[i % len(times)] for i in range(n)], dtype=torch.float64)


def check_mixed_times(
    name: str, answer: Answer, x_t: Tensor, t: Tensor, condition: Any, select: Select
) -> None:
    """Checks that samples at different times, with shape (B,), are answered as they are alone."""

    require_same(
        _first(answer(x_t, t, condition)),
        _one_by_one(answer, x_t, t.tolist(), condition, select),
        tolerance_for(x_t),
        f"{name}: every sample must be treated at its own time when the times of a batch differ",
    )


def _first(result: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value[:_SINGLES] for key, value in result.items()}


def _one_by_one(
    answer: Answer, x_t: Tensor, times: list[float], condition: Any, select: Select
) -> dict[str, Tensor]:
    """The answers to the first few samples, each in a batch of its own."""

    answers = [
        answer(x_t[i : i + 1], times[i], select(condition, [i]))
        for i in range(min(_SINGLES, len(x_t)))
    ]
    return {key: torch.cat([one[key] for one in answers]) for key in answers[0]}
