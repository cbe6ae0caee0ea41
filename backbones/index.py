"""The folder of a pipeline: what it names, asks for and lacks, checked around its loading.

Its index names the class of every part. Some classes load code that lies beside the weights, after
a question on the terminal or without one, and so does a configuration that names a kernel.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from rwguidance.support import outside
from rwguidance.support.files import read_regular
from rwguidance.support.tensors import check_config

__all__ = ["INDEX", "check_whole", "network_class", "read_config", "read_index"]

INDEX = "model_index.json"

_NETWORKS = {"diffusers": "ModelMixin", "transformers": "PreTrainedModel"}
"""What networks of the libraries derive from."""

_CONFIGS = ("config.json", "scheduler_config.json")


def read_index(folder: Path) -> dict[str, Any]:
    """Returns the index of a pipeline's folder, once it and the parts that it names are checked.

    Arguments:
        folder: The folder, as `save_pretrained` writes it.

    Raises:
        OSError: If a file is not there, or cannot be read.
        ValueError: If a file is damaged, a part would need code that comes with it, or a
            configuration asks for an absurd size; names the file.
    """

    content = _object(folder / INDEX)
    parts = {path.name for path in folder.iterdir() if path.is_dir()}
    for name, value in content.items():
        if name in parts or (isinstance(value, list) and any(isinstance(v, str) for v in value)):
            _check_part(folder, name, value)
    for config in (folder / part / name for part in sorted(parts) for name in _CONFIGS):
        if config.exists():
            read_config(config)
    return content


def read_config(file: Path) -> dict[str, Any]:
    """Returns the configuration of a part.

    Raises:
        OSError: If the file is not there, or cannot be read.
        ValueError: If it is damaged, or asks for an absurd size or code of the hub; names it.
    """

    content = _object(file)
    check_config(content, file)
    return content


def check_whole(network: nn.Module, report: Mapping[str, Any], folder: Path) -> None:
    """Checks that no weights of a network are random numbers, since files lack them.

    Arguments:
        network: A network of diffusers or transformers.
        report: What its library reported of the loading.
        folder: Where it was loaded from.

    Raises:
        ValueError: If some are missing; names one of them.
    """

    # What transformers 4 does not report it leaves without memory.
    empty = {name for name, value in network.named_parameters() if value.is_meta}
    missing = sorted(empty.union(report["missing_keys"]))
    if missing:
        kind = type(network)
        library = kind.__module__.partition(".")[0]
        raise ValueError(
            f"{folder} must hold all weights of a {kind.__name__} by the names that {library} "
            f"{_library(library).__version__} has for them, it lacks {len(missing)}, such as "
            f"{missing[0]}; if another version wrote it, read it with that one"
        )


def network_class(part: Any) -> Any:
    """Returns the class of a part that has weights; None for schedulers, tokenizers and the rest.

    Arguments:
        part: A value of a checked index.

    Raises:
        ImportError: If there is no such class in the versions that are installed.
    """

    if not isinstance(part, list) or part[0] not in _NETWORKS:
        return None
    library = _library(part[0])
    kind = getattr(library, part[1], None)
    if kind is None:
        raise ImportError(f"there is no {part[1]} in {part[0]} {library.__version__}")
    network = isinstance(kind, type) and issubclass(kind, getattr(library, _NETWORKS[part[0]]))
    return kind if network else None


def _object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_regular(file))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} must be JSON, as save_pretrained writes it: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold an object of JSON, got {type(content).__name__}")
    return content


def _check_part(folder: Path, name: str, value: Any) -> None:
    """Checks that a part is none, or of a class of the libraries that needs no other code."""

    if value == [None, None]:
        return
    library, kind = value if isinstance(value, list) and len(value) == 2 else (None, None)
    known = isinstance(library, str) and _is_known(library)
    # AutoModel and the like look their class up in the part itself; AutoencoderKL does not.
    if not known or not isinstance(kind, str) or re.match("Auto[A-Z]|$", kind):
        raise ValueError(
            f"{folder / INDEX} must name a class of diffusers or transformers for {name}, got "
            f"{value!r:.80}; code that comes with weights is never run"
        )
    code = folder / name / f"{library}.py"
    if code.exists():
        raise ValueError(f"{code} is code that comes with weights, which is never run")


def _is_known(library: str) -> bool:
    """Whether it is one of the two libraries, or a folder of pipelines with classes of its own."""

    pipelines = _library("diffusers").pipelines
    return library in _NETWORKS or (library.isidentifier() and hasattr(pipelines, library))


def _library(name: str) -> Any:
    return outside.require(name, "pipelines need", "backbones")
