"""LoRAs that belong to a published model, such as those that make one of few steps of another."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rwguidance.support import outside
from rwguidance.support.outside import on_hub, split_hub
from rwguidance.support.packaged import in_package, package_folder

from .pipelines import require

__all__ = ["fuse_lora", "require_peft"]

_FILE = "pytorch_lora_weights.safetensors"  # as diffusers' `save_lora_weights` names it


def require_peft() -> None:
    """Checks that peft is there, which diffusers takes for LoRAs.

    Raises:
        ImportError: If it is missing; says how to install it.
    """

    outside.require("peft", "a LoRA needs", "backbones")


def fuse_lora(pipe: Any, source: str) -> None:
    """Adds the weights of a LoRA to those of a pipeline's networks, for good.

    What comes out is a pipeline of the same class without adapters: it computes what the LoRA
    beside it would, and its fingerprint is that of the sums.

    Arguments:
        pipe: A pipeline of diffusers; it is changed.
        source: Where the LoRA is, in diffusers' format: a folder, ``hf://owner/name[@revision]`` or
            ``package://name/folder``.

    Raises:
        FileNotFoundError: If there is no file of that format.
        ValueError: If it holds no weights of the pipeline's networks.
    """

    where, revision = split_hub(source) if on_hub(source) else (source, None)
    if in_package(where):
        where = str(package_folder(where))
    options = {"weight_name": _FILE, "use_safetensors": True, "revision": revision}
    try:
        with _quiet():
            pipe.load_lora_weights(str(where), local_files_only=not on_hub(source), **options)
    except OSError as error:
        raise FileNotFoundError(f"no {_FILE} of a LoRA in {source}: {error}") from error
    if not any(pipe.get_list_adapters().values()):
        raise ValueError(f"the LoRA of {source} holds no weights of a {type(pipe).__name__}")
    pipe.fuse_lora()
    pipe.unload_lora_weights()


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, diffusers does not tell which networks have no part in a LoRA: most have none."""

    logging = require("diffusers").utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
