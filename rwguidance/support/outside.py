"""What comes from outside: optional packages, and repositories of the Hugging Face hub."""

import importlib
import os
from typing import Any

__all__ = ["on_hub", "require", "split_hub"]

_HUB = "hf://"


def require(module: str, purpose: str, extra: str) -> Any:
    """Imports an optional module, or says how to install it.

    Arguments:
        module: Its name.
        purpose: Who needs it, as a message begins: "pipelines need".
        extra: The extra of this distribution that installs it.

    Raises:
        ImportError: If it is missing or does not load; says what to do.
    """

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != package:
            raise
        raise ImportError(f"{purpose} {package}: pip install 'rwguidance[{extra}]'") from None
    except RuntimeError as error:
        if "torchvision" not in str(error):
            raise
        raise ImportError(
            f"{purpose} {module}, which cannot import torchvision ({error}): "
            "torch and torchvision were built for different devices; install both from one index"
        ) from error


def on_hub(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a repository of the hub, ``hf://owner/name[@revision]``."""

    return str(path).startswith(_HUB)


def split_hub(path: str | os.PathLike[str]) -> tuple[str, str | None]:
    """Repository and revision of ``hf://owner/name[@revision]``; None is the newest revision."""

    repository, _, revision = str(path).removeprefix(_HUB).partition("@")
    return repository, revision or None
