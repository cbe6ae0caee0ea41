"""Options that commands share, and how their values are read."""

import json
from enum import Enum
from typing import Any

from typer.core import TyperCommand


class DtypeName(str, Enum):
    """The precisions that weights are cast to."""

    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"
    float64 = "float64"


class PartialCommand(TyperCommand):
    """Exits with 1 after wrong options, as 2 says that something was skipped."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().make_context(*args, **kwargs)
        except Exception as error:
            if getattr(error, "exit_code", 0) == 2:
                error.exit_code = 1  # type: ignore[attr-defined]
            raise


def check_device(device: str | None) -> None:
    """Raises ValueError if there is no such device, where torch raises this or that."""

    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"device {device!r} cannot be used: {reason}") from None


def parse_paths(entries: list[str] | None) -> dict[str, str]:
    """Entries NAME=PATH by name."""

    paths: dict[str, str] = {}
    for entry in entries or ():
        key, equals, value = entry.partition("=")
        if not (key and equals and value) or key in paths:
            raise ValueError(f"path must be NAME=PATH, once per name, got {entry!r}")
        paths[key] = value
    return paths


def parse_options(entries: list[str] | None) -> dict[str, dict[str, Any]]:
    """Entries NAME:KEY=VALUE by name and key; values are JSON, or plain words."""

    options: dict[str, dict[str, Any]] = {}
    for entry in entries or ():
        left, equals, value = entry.partition("=")
        name, colon, key = left.partition(":")
        if not (name and colon and key and equals):
            raise ValueError(f"option must be NAME:KEY=VALUE, got {entry!r}")
        options.setdefault(name, {})[key] = _json_or_word(value)
    return options


def _json_or_word(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
