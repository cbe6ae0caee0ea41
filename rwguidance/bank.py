"""Banks: draws of the pretrained law with their rewards, made once and used for many outputs."""

import json
import os
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .support import checks, memory
from .support.conditions import condition_keys
from .support.tensors import read_tensor_file, write_tensor_file
from .tilt import Tilt, check_rewards

if TYPE_CHECKING:
    from .models import Model

__all__ = ["Bank"]

_COLUMNS = ("x_0", "rewards", "log_importance")
"""The tensors of a bank, with a row per draw."""


@dataclass(frozen=True, repr=False)
class Bank:
    r"""Draws :math:`x^1, \dots, x^N \sim p(x_0 | y)` for one or several conditions y.

    Draws of one condition are kept next to each other: if they come interleaved, they are
    reordered (stably), and `rows` tells where each condition went.

    Arguments:
        x_0: The draws, in data units, with shape (N, \*event). Any floating dtype.
        condition: One hashable item per draw (prompts, labels), or None if the bank serves every
            condition.
        rewards: Raw rewards in reward units, with shape (N,), or (N, R) for R rewards; None if not
            scored yet.
        origin: Names and values of what made the draws and the rewards, such as a
            :func:`rwguidance.support.fingerprint.fingerprint` of the model, in values that JSON can
            hold; None if it is not known. See :meth:`check_origin`.
        log_importance: For draws of another law q, log p(x^i | y) - log q(x^i) up to a constant per
            condition, in nats, with shape (N,). None if they are of p.
        decode: Function from draws to what rewards look at, for tilts that have none of their own;
            it is not saved.

    Raises:
        TypeError: If the draws are not a floating-point tensor.
        ValueError: If the bank is empty, holds NaN or inf, or the lengths differ.
    """

    depends_on: ClassVar[tuple[str, ...]] = ("x_0", "condition", "rewards", "log_importance")

    x_0: Tensor
    condition: Any = None
    rewards: Tensor | None = None
    origin: Mapping[str, Any] | None = None
    log_importance: Tensor | None = None
    decode: Callable[[Tensor], Tensor] | None = field(default=None, compare=False)
    rows: dict[Hashable, slice] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        checks.states("x_0", self.x_0, finite=True)
        checks.instance("origin", self.origin, (Mapping, type(None)), "a mapping or None")
        checks.optional(checks.function, "decode", self.decode)
        n = len(self.x_0)
        if n == 0:
            raise ValueError(f"x_0 must hold N >= 1 draws, got shape {tuple(self.x_0.shape)}")
        keys = condition_keys(self.condition, n)
        if self.rewards is not None:
            _check_bank_rewards(self.rewards, n, self.condition)
        if self.log_importance is not None:
            _check_log_importance(self.log_importance, n)

        if keys is None:
            object.__setattr__(self, "rows", {None: slice(0, n)})
            return
        names = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        group = torch.tensor([names[key] for key in keys])
        if bool((group.diff() < 0).any()):
            order = group.argsort(stable=True)
            keys = tuple(keys[i] for i in order.tolist())
            for name in _COLUMNS:
                values = getattr(self, name)
                if values is not None:
                    object.__setattr__(self, name, values[order.to(values.device)])
        ends = group.bincount().cumsum(0).tolist()
        rows = {key: slice(a, b) for key, a, b in zip(names, [0, *ends], ends, strict=False)}
        object.__setattr__(self, "condition", keys)
        object.__setattr__(self, "rows", rows)

    def __repr__(self) -> str:
        one = "1 condition" if len(self.rows) == 1 else f"{len(self.rows)} conditions"
        scored = "not scored" if self.rewards is None else "scored"
        if self.rewards is not None and self.rewards.ndim == 2:
            scored += f" by {self.rewards.shape[1]} rewards"
        return (
            f"Bank({len(self)} draws of {tuple(self.x_0.shape[1:])} for "
            f"{'every condition' if self.condition is None else one}, {scored})"
        )

    def __len__(self) -> int:
        return len(self.x_0)

    def check_of_model(self, purpose: str) -> None:
        """Checks that the draws are of the model itself, for what cannot use their importance.

        Arguments:
            purpose: What needs it, for the message.

        Raises:
            ValueError: If the bank has log-importances.
        """

        if self.log_importance is not None:
            raise ValueError(f"{purpose} needs draws of the model itself, without log_importance")

    def check_origin(self, **expected: Any) -> None:
        """Checks what the bank was made of.

        Arguments:
            expected: Entries of the origin: `bank.check_origin(backbone=fingerprint(model))`.

        Raises:
            ValueError: If the origin lacks one of them, or has another value.
        """

        origin = {} if self.origin is None else self.origin
        differ = [key for key, value in expected.items() if origin.get(key) != value]
        if differ:
            details = "; ".join(
                f"{key} is {origin.get(key, 'not stated')!r}, expected {expected[key]!r}"
                for key in differ
            )
            raise ValueError(f"this bank is of another origin: {details}")

    def scored(self, tilt: Tilt, batch_size: int | None = None, progress: bool = False) -> "Bank":
        """Returns the same draws with the rewards of `tilt`, scored in batches without gradients.

        Arguments:
            tilt: The tilt whose rewards (not temperatures) are stored. One without a decoder has
                that of the bank.
            batch_size: Number of draws that are decoded and scored at once. None is the
                `batch_size` of a decoder that has one, and otherwise 64.
            progress: Whether to show a progress bar.

        Raises:
            TypeError: If `tilt` is no Tilt, or another argument is of the wrong kind.
            ValueError: If `batch_size` is less than 1, or a pipeline drew the bank and neither it
                nor the tilt has a decoder, as after it was read from a file.
        """

        checks.instance("tilt", tilt, Tilt, "a Tilt")
        if tilt.decode is None and self.decode is not None:
            tilt = Tilt(tilt.rewards, tilt.betas, self.decode)
        if tilt.decode is None and "pipeline" in (self.origin or {}):
            raise ValueError(
                "decode must be given, since this bank was read from a file, which holds no "
                "decoder: pass decode=backbones.PipelineDecoder(pipe, call), with the pipeline and "
                "the arguments of the call that drew it"
            )
        if batch_size is None:
            batch_size = getattr(tilt.decode, "batch_size", 64)
        batch_size = checks.integer("batch_size", batch_size, 1)
        starts: Any = range(0, len(self), batch_size)
        if checks.flag("progress", progress):
            from rich.progress import track

            starts = track(starts, description="scoring the bank")
        scores = []
        hint = f"The bank was scored with {batch_size} draws at once: lower batch_size"
        with torch.no_grad(), memory.advice(hint):
            for start in starts:
                rows = slice(start, start + batch_size)
                condition = None if self.condition is None else self.condition[rows]
                scores.append(tilt.score(self.x_0[rows], condition))
        return replace(self, rewards=torch.cat(scores))

    def anneal(self, model: "Model", tilt: Tilt, draw: Any, times: Any, **options: Any) -> "Bank":
        """Returns a bank that serves a tilt too strong for these draws, see :mod:`.annealing`.

        Draws of intermediate tilts join, with log-importances. Arguments, errors and warnings are
        those of :func:`rwguidance.annealing.anneal`.

        Arguments:
            model: The model.
            tilt: The tilt that the bank is to serve.
            draw: A function that draws the noise at the first of the times.
            times: Times of a run.
            options: Other arguments of the function: the draws of a stage, the sampler, ...
        """

        from .annealing import anneal  # which samples, and so knows banks

        return anneal(self, model, tilt, draw, times, **options)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | str | None = None
    ) -> "Bank":
        """Returns the bank with its draws on `device` in `dtype`.

        Rewards and log-importances keep their precision.

        Arguments:
            device: The device, or its name; None leaves the draws where they are.
            dtype: The floating-point dtype, or its name; None leaves it.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If there is no such device, or the dtype is not of floating point.
        """

        device = checks.device("device", device)
        dtype = checks.floating_dtype("dtype", dtype)
        moved = lambda values: None if values is None else values.to(device=device)
        return replace(
            self,
            x_0=self.x_0.to(device=device, dtype=dtype),
            rewards=moved(self.rewards),
            log_importance=moved(self.log_importance),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the bank as one safetensors file, atomically: a write that fails changes nothing.

        Raises:
            TypeError: If a condition is neither a string nor an integer, or the path is none.
            FileNotFoundError: If there is no such directory.
        """

        path = checks.path("path", path)
        for key in () if self.condition is None else self.rows:
            if not isinstance(key, str | int):
                raise TypeError(
                    "a saved bank's conditions must be strings or integers, "
                    f"got {type(key).__name__}"
                )
        columns = {name: getattr(self, name) for name in _COLUMNS}
        tensors = {name: value for name, value in columns.items() if value is not None}
        metadata = {"condition": json.dumps(self.condition), "origin": json.dumps(self.origin)}
        if not path.parent.is_dir():
            raise FileNotFoundError(f"no directory {path.parent} to save a bank in")
        write_tensor_file(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> "Bank":
        """Reads a bank that :meth:`save` wrote.

        Arguments:
            path: The file.
            device: The device, or its name, on which the tensors are put.

        Raises:
            TypeError: If an argument is of the wrong kind.
            FileNotFoundError: If there is no such file.
            ValueError: If the file holds no bank, or there is no such device.
        """

        path = checks.path("path", path)
        place = checks.device("device", device) or "cpu"
        if not path.is_file():
            raise FileNotFoundError(f"no bank at {path}")
        tensors, metadata = read_tensor_file(path, place)
        if "x_0" not in tensors or "condition" not in metadata:
            names = sorted(tensors)[:8]
            raise ValueError(f"{path} is a safetensors file but not a bank, it holds {names}")
        parts: dict[str, Any] = {name: tensors[name] for name in _COLUMNS if name in tensors}
        try:
            for name in ("condition", "origin"):
                parts[name] = json.loads(metadata.get(name, "null"))
            return cls(**parts)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} does not hold a whole bank: {error}") from None


def _check_log_importance(values: Tensor, n: int) -> None:
    checks.tensor("log_importance", values, (n,))
    if not bool(values.isfinite().all()):
        raise ValueError(
            f"log_importance must be finite, got NaN or inf in {checks.bad_items(values[:, None])}"
        )


def _check_bank_rewards(rewards: Tensor, n: int, condition: Any) -> None:
    checks.tensor("rewards", rewards)
    columns = isinstance(rewards, Tensor) and rewards.ndim == 2 and rewards.shape[1] > 0
    for column in rewards.unbind(1) if columns and len(rewards) == n else (rewards,):
        check_rewards(column, n, condition, "rewards")
