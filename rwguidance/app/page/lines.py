"""The lines that make the pictures of a page again: of the command line, and of Python."""

import json
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...generation import Method
from ...generation.settings import flag, method_settings
from .requests import Request

if TYPE_CHECKING:
    from ..commands.sources import Sources

__all__ = ["command_lines", "python_lines"]

_FILE = "reward.py"
"""Name of the file with a sum of rewards, which a command takes as a reward of the user's own."""


def command_lines(
    request: Request,
    method: Method,
    weights: Mapping[str, float],
    sources: "Sources",
    batch_size: int,
) -> str:
    """Returns the lines of a shell that make the pictures of a request.

    Arguments:
        request: The request.
        method: Its method.
        weights: Weights of the sum of rewards, per reward unit.
        sources: The places and the keywords of model and rewards.
        batch_size: Number of samples that the networks see at once.
    """

    alone = list(weights.values()) == [1.0]
    reward = next(iter(weights)) if alone else f"{_FILE}:reward"
    groups = [
        ["rwguidance", "generate", "--backbone", request.backbone, "--reward", reward],
        _loading(request, weights if alone else {}, sources),
        [f"--prompt={request.prompt}"],  # it may begin with a dash, and would be an option
        ["--method", method.name, *_options(method)],
        ["--images", str(request.images), "--seed", str(request.seed)],
    ]
    groups[-1] += [] if request.steps is None else ["--steps", str(request.steps)]
    groups[-1] += ["--batch-size", str(batch_size)]
    lines = " \\\n    ".join(shlex.join(group) for group in groups if group)
    if alone:
        return lines
    file = "\n".join(["from rwguidance import rewards", "", _reward(weights, sources)])
    return f"cat > {_FILE} <<'END'\n{file}\nEND\n{lines}"


def python_lines(
    request: Request,
    method: Method,
    weights: Mapping[str, float],
    sources: "Sources",
    batch_size: int,
) -> str:
    """Returns the lines of Python that make the pictures of a request; as :func:`command_lines`."""

    settings = {"images": request.images, "seed": request.seed, "batch_size": batch_size}
    settings |= {} if request.steps is None else {"steps": request.steps}
    backbone = _load("backbones", request.backbone, sources, str(sources.dtype or ""))
    return "\n".join(
        [
            *(["import torch", ""] if sources.dtype else []),
            "from rwguidance import backbones, rewards",
            f"from rwguidance.generation import {type(method).__name__}, generate",
            "",
            f"backbone = {backbone}",
            _reward(weights, sources),
            f"method = {type(method).__name__}({_keywords(_settings(method))})",
            f"prompts = [{request.prompt!r}]",
            f'generate(backbone, reward, prompts, "out", method, {_keywords(settings)})',
        ]
    )


def _reward(weights: Mapping[str, float], sources: "Sources") -> str:
    """The line that makes a reward, or the sum of several."""

    parts = [_load("rewards", name, sources) for name in weights]
    if list(weights.values()) == [1.0]:
        return f"reward = {parts[0]}"
    inner = "".join(f"        {part},\n" for part in parts)
    return f"reward = rewards.WeightedSum(\n    [\n{inner}    ],\n    {list(weights.values())},\n)"


def _load(package: str, name: str, sources: "Sources", dtype: str = "") -> str:
    """The call that loads a model or a reward by name."""

    given = {"path": sources.paths.get(name), "device": sources.device}
    given = {key: value for key, value in given.items() if value is not None}
    words = [repr(name), *([_keywords(given)] if given else [])]
    words += [f"dtype={dtype}"] if dtype else []
    options = sources.options.get(name, {})
    return f"{package}.load({', '.join([*words, *([_keywords(options)] if options else [])])})"


def _loading(request: Request, rewards: Mapping[str, float], sources: "Sources") -> list[str]:
    """The options of the command that say where model and reward are, and how they are loaded."""

    words = []
    for name in (request.backbone, *rewards):
        if name in sources.paths:
            words += ["--path", f"{name}={sources.paths[name]}"]
        for key, value in sources.options.get(name, {}).items():
            words += ["--option", f"{name}:{key}={json.dumps(value)}"]
    words += ["--device", sources.device] if sources.device else []
    return words + (["--dtype", str(sources.dtype).removeprefix("torch.")] if sources.dtype else [])


def _settings(method: Method) -> dict[str, Any]:
    """The settings of a method that are not its defaults, by the names of its fields."""

    found = {s.field: (getattr(method, s.field), s.default) for s in method_settings(type(method))}
    return {name: value for name, (value, default) in found.items() if value != default}


def _options(method: Method) -> list[str]:
    """The settings of a method that are not its defaults, as options."""

    changed, words = _settings(method), []
    for setting in method_settings(type(method)):
        if setting.field in changed:
            value = changed[setting.field]
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            words += [flag(setting.option), *map(str, values)]
    return words


def _keywords(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
