"""Finding, checking and reading the files of a reward; nothing in a file is ever executed.

A path is a local file, a local directory, a folder of an installed package
(:mod:`rwguidance.support.packaged`), or ``hf://owner/repository[@revision]``, which goes through
the cache of huggingface_hub. Without a path, the published files are meant. A constructor that is
given a local path never asks the hub.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rwguidance.support import outside
from rwguidance.support.files import expanded, read_regular
from rwguidance.support.outside import on_hub, split_hub
from rwguidance.support.packaged import in_package, package_folder, package_of
from rwguidance.support.randomness import forked
from rwguidance.support.tensors import check_config, read_tensors

from .base import RewardFile, RewardSpec

__all__ = [
    "PathLike",
    "assign_weights",
    "build_tokenizer",
    "empty_weights",
    "find_file",
    "find_weights",
    "local",
    "read_config",
    "read_weights",
    "reading",
    "require",
]

PathLike = str | os.PathLike[str]


def require(module: str, reward: str) -> Any:
    """Imports an optional module, or says how to install it.

    Raises:
        ImportError: If it is missing or does not load; says what to do.
    """

    return outside.require(module, f"the reward {reward!r} needs", "rewards")


def find_file(
    spec: RewardSpec, file: RewardFile, path: PathLike | None, verify: bool = True
) -> Path:
    """A local copy of one of a reward's files.

    Arguments:
        spec: The reward, for messages.
        file: The file that is wanted.
        path: The file itself, a directory that holds a file of this name, ``hf://...`` or
            ``package://...`` for another place, or None for the published one.
        verify: Whether to compare with the digest of the published file, if that is known.

    Raises:
        FileNotFoundError: If it is not there; says what is missing, from where, under which
            license, and how to fetch it.
        ValueError: If the digest differs.
    """

    if path is None or on_hub(path) or in_package(path):
        found = _download(spec, file, str(path) if path is not None else file.source)
    else:
        found = expanded(path)
        found = found / file.name if found.is_dir() else found
        if not found.is_file():
            raise FileNotFoundError(f"no file {found}: {_how_to_get(spec, file)}")
    if verify and file.digest is not None:
        _check_digest(spec, found, file.digest)
    return found


def local(path: PathLike | None) -> PathLike | None:
    """Returns a path, in which ``~`` is the user's own folder if it is a local one."""

    if path is None or on_hub(path) or in_package(path):
        return path
    return expanded(path)


def find_weights(spec: RewardSpec, file: RewardFile, path: PathLike | None) -> Path:
    """The weights of a model of transformers: one file, or the index of its shards.

    Arguments:
        spec: The reward, for messages.
        file: The file model.safetensors that is wanted. A local directory may have shards with
            their index instead, or pytorch_model.bin, or its shards, or a single variant of these,
            such as model.fp16.safetensors.
        path: Place of the file, see :func:`find_file`.

    Raises:
        FileNotFoundError: If there are no weights; says where to get them.
        ValueError: If there are several variants, and none without a name.
    """

    place = local(path)
    if not isinstance(place, Path) or not place.is_dir():
        return find_file(spec, file, path)
    names = sorted(entry.name for entry in place.iterdir() if entry.is_file())
    for plain, variant in _WEIGHTS:
        if plain in names:
            return place / plain
        found = [name for name in names if re.fullmatch(variant, name)]
        if len(found) > 1:
            raise ValueError(f"path must name one of {', '.join(found)} in {place}, got the folder")
        if found:
            return place.joinpath(*found)
    return find_file(spec, file, path)


_WEIGHTS = tuple(
    (plain, re.escape(plain).replace(where, rf"\.[\w]+{where}"))
    for plain, where in (
        ("model.safetensors", r"\.safetensors"),
        ("model.safetensors.index.json", r"\.json"),
        ("pytorch_model.bin", r"\.bin"),
        ("pytorch_model.bin.index.json", r"\.json"),
    )
)
"""Names of weights as save_pretrained writes them, and patterns of their variants."""


def read_weights(path: PathLike) -> dict[str, Tensor]:
    """The tensors of a safetensors or PyTorch file or of an index of shards, on the CPU.

    They are mapped into memory if possible. Names lose what wrappers of modules have put before
    them: "module.", "_orig_mod.", "model.", in any nesting, where all of them have it.

    Raises:
        OSError: If a file is not there, or cannot be read.
        ValueError: If a file is damaged, holds anything but tensors, or needs code to be run.
    """

    path = Path(path)
    read = read_tensors(path)
    tensors = {_INNER.sub("", name): value for name, value in read.items()}
    while tensors and (prefix := _common(tensors)):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    if len(tensors) != len(read):
        raise ValueError(f"{path} holds tensors whose names differ by what wrappers add alone")
    return tensors


_INNER = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts of names that torch.compile and other wrappers add anywhere."""


def _common(names: Iterable[str]) -> str:
    """The prefix of a wrapper that all names have, or nothing."""

    wrappers = ("module.", "model.")
    return next((p for p in wrappers if all(name.startswith(p) for name in names)), "")


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in a file of JSON, which asks for no absurd sizes.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no object of JSON, or asks for what no network has.
    """

    try:
        content = json.loads(read_regular(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} does not hold what it should, JSON: {_first_line(error)}"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object of JSON, got {type(content).__name__}")
    check_config(content, path)
    return content


@contextmanager
def empty_weights() -> Iterator[None]:
    """Context in which modules are built without memory for their parameters.

    Whatever random numbers they would be filled with, the global generator stays as it is. Threads
    take turns, which accelerate needs, too: it changes `nn.Module` itself for the time being.
    """

    from accelerate import init_empty_weights

    with forked(), init_empty_weights(include_buffers=False):
        yield


_PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Precisions in which weights are what they say."""


@contextmanager
def reading(path: PathLike) -> Iterator[None]:
    """Context in which whatever a foreign reader makes of a damaged file becomes a ValueError."""

    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{path} does not hold what it should ({type(error).__name__}: {_first_line(error)})"
        ) from error


def build_tokenizer(factory: Any, files: Iterable[Path]) -> Any:
    """A tokenizer of transformers made of these files and of no other that lies beside them.

    Arguments:
        factory: The class of the tokenizer.
        files: The files that the tokenizer is read from.

    Raises:
        ValueError: If they do not hold a vocabulary.
    """

    files = tuple(files)
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            shutil.copyfile(file, Path(folder) / file.name)
        first, *_ = files
        with reading(first):
            tokenizer = factory.from_pretrained(folder, local_files_only=True)
    return tokenizer


def assign_weights(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    where: object,
    ignored: Iterable[str] = (),
    keep_dtype: bool = False,
) -> None:
    """Makes `weights` the parameters of `module`, in float32, if names and shapes agree.

    Nothing is copied if they are in float32 already.

    Arguments:
        module: Built within :func:`empty_weights`, or not.
        weights: Tensors by name.
        where: Origin of the weights, for messages.
        ignored: Ends of names that may be there without being used.
        keep_dtype: Whether to leave the precision as it is in the file.

    Raises:
        ValueError: If a name is missing, not expected, or has another shape; lists them.
    """

    own = module.state_dict()
    ignored = tuple(ignored)
    used = {k: v for k, v in weights.items() if k in own or not (ignored and k.endswith(ignored))}
    for name, value in used.items():
        if value.dtype not in _PRECISIONS and name in own and own[name].is_floating_point():
            raise ValueError(
                f"{where} must hold plain numbers, got {name} in {str(value.dtype)[6:]}: quantized "
                "weights mean nothing without their scales; take the weights they were made of"
            )
    missing = [f"missing {name}" for name in own if name not in used]
    unexpected = [f"unexpected {name}" for name in used if name not in own]
    shapes = [
        f"{name} of shape {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in used.items()
        if name in own and value.shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        report = "; ".join(
            ", ".join(part[:5]) + (f" and {len(part) - 5} more" if len(part) > 5 else "")
            for part in (missing, unexpected, shapes)
            if part
        )
        raise ValueError(f"{where} does not fit this architecture: {report}")
    # float32, as in the reference, whatever the file was compressed to; no copy if it is already.
    widen = lambda v: v.float() if v.is_floating_point() and not keep_dtype else v
    module.load_state_dict({name: widen(value) for name, value in used.items()}, assign=True)


def _download(spec: RewardSpec, file: RewardFile, source: str) -> Path:
    if in_package(source):
        return package_folder(source) / file.name
    if not on_hub(source):
        return _from_web(spec, file, source)
    hub = require("huggingface_hub", spec.name)
    repository, revision = split_hub(source)
    try:
        return Path(hub.hf_hub_download(repository, file.name, revision=revision))
    except Exception as error:  # offline, not there, not allowed: one thing to the user
        raise FileNotFoundError(
            f"{file.name} is neither cached nor to be had from {source} "
            f"({type(error).__name__}: {_first_line(error)}): {_how_to_get(spec, file)}"
        ) from error


def _from_web(spec: RewardSpec, file: RewardFile, url: str) -> Path:
    target = Path(torch.hub.get_dir()) / "checkpoints" / file.name
    if not target.is_file():
        if require("huggingface_hub.constants", spec.name).HF_HUB_OFFLINE:
            raise FileNotFoundError(
                f"{file.name} is not cached, and HF_HUB_OFFLINE is set: {_how_to_get(spec, file)}"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(target), progress=True)
        except OSError as error:
            raise FileNotFoundError(
                f"{file.name} cannot be had from {url} ({error}): {_how_to_get(spec, file)}"
            ) from error
    return target


def _how_to_get(spec: RewardSpec, file: RewardFile) -> str:
    if in_package(file.source):
        files = " and ".join(other.name for other in spec.files)
        return (
            f"{spec.name} needs {files}; without path= they come with {package_of(file.source)}"
            + (f", and {spec.card} says how they were made" if spec.card else "")
        )
    sources: dict[str, list[str]] = {}
    for other in spec.files:
        sources.setdefault(other.source, []).append(other.name)
    commands = [
        f"`hf download {split_hub(source)[0]} {' '.join(names)} --local-dir DIRECTORY`"
        if on_hub(source)
        else f"`curl --location --output 'DIRECTORY/{names[0]}' '{source}'`"
        for source, names in sources.items()
    ]
    return (
        f"{spec.title} needs {file.name} from {file.source} (license of the weights: "
        f"{spec.weights_license}); fetch its files with {' and '.join(commands)}, and pass "
        "DIRECTORY as path="
    )


def _check_digest(spec: RewardSpec, path: Path, digest: str) -> None:
    algorithm, _, expected = digest.partition(":")
    found = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            found.update(block)
    if found.hexdigest() != expected:
        raise ValueError(
            f"{path} is not the published {spec.title}: its {algorithm} is {found.hexdigest()}, "
            f"expected {expected}; fetch it again, or pass verify=False for weights of your own"
        )


def _first_line(error: BaseException) -> str:
    line, *_ = str(error).strip().splitlines() or [""]
    return line[:200]
