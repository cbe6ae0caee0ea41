"""Files of tensors, read without executing anything: safetensors, PyTorch's, and shards of both.

Whatever is in a file, who reads it gets tensors that lie in the file as they say, or a ValueError
that names the file. A pickle may state a tensor of a million rows that are one row in memory; what
asks for more numbers than it brings is refused before anything copies it.
"""

import errno
import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .files import open_regular, read_regular, replacing

__all__ = [
    "INDEX",
    "TensorFile",
    "check_config",
    "is_index",
    "read_pickle",
    "read_tensor_file",
    "read_tensors",
    "write_pickle",
    "write_tensor_file",
]

INDEX = ".index.json"
"""Ending of the name of the index of shards; a variant may stand within: .index.fp16.json."""

_SEAL = "sha256"
_MOST_LAYERS = 1000
_LONGEST_SIDE = 8192
_LARGEST = 2**24
"""Largest numbers of layers, pixels along a side, and anything else in a configuration."""


class TensorFile(NamedTuple):
    """The content of a safetensors file.

    Arguments:
        tensors: The tensors by name.
        metadata: Texts by name.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def write_tensor_file(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file, atomically, with the SHA-256 of its content.

    The same content makes the same bytes.

    Arguments:
        path: The file.
        tensors: The tensors by name.
        metadata: Texts by name, which may not be "sha256".

    Raises:
        OSError: If the disk is full or cannot be written to.
    """

    from safetensors.torch import save_file

    plain = {name: value.contiguous() for name, value in tensors.items()}
    with replacing(path) as partial:
        save_file(plain, partial, {**metadata, _SEAL: _digest(plain, metadata)})
        _sort_metadata(partial)


def _sort_metadata(file: Path) -> None:
    """Sorts texts in the header of a file, which safetensors writes in an order of chance."""

    with file.open("r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # it is no longer, unless a library escapes characters otherwise
            opened.seek(8)
            opened.write(text.ljust(size))


def read_tensor_file(path: Path, device: torch.device | str = "cpu") -> TensorFile:
    """Returns the content of a safetensors file, copied out of it.

    If the file has the SHA-256 of its content, as :func:`write_tensor_file` puts it there, the
    content is compared with it.

    Raises:
        OSError: If it is no file, is not there, or cannot be read.
        ValueError: If it is damaged, or holds something else; names it.
    """

    from safetensors import SafetensorError, safe_open

    open_regular(path).close()
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            # Copied: in the mapped file they lie at addresses where kernels round otherwise.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (SafetensorError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {_line(error)}") from None
    rest = {name: text for name, text in metadata.items() if name != _SEAL}
    if _SEAL in metadata and metadata[_SEAL] != _digest(tensors, rest):
        raise ValueError(f"{path} is damaged: its SHA-256 is not that of what was written")
    return TensorFile(tensors, metadata)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file, or of all shards of an index, on the CPU.

    They are mapped into memory where that is possible. A file of PyTorch may hold them within
    dictionaries under "state_dict", "model_state_dict" or "model".

    Arguments:
        path: A safetensors file, a file of PyTorch, or an index that `save_pretrained` wrote.

    Raises:
        OSError: If a file is not there, is no file, or cannot be read.
        ValueError: If one is damaged, holds anything but tensors, needs code to be run, or lacks
            what the index promises; names the file.
    """

    if is_index(path):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _mapped(path)
    content = _unwrapped(read_pickle(path, mapped=True))
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} must hold a dictionary of tensors, got {type(content).__name__}")
    for name, value in content.items():
        _check_tensor(path, name, value)
    return dict(content)


def is_index(path: Path) -> bool:
    """Returns whether a file is the index of shards, by its name."""

    return path.suffix == ".json" and INDEX.removesuffix(".json") in path.name


def read_pickle(path: Path, device: torch.device | str = "cpu", mapped: bool = False) -> Any:
    """Returns what a file of PyTorch holds, if it is plain data and tensors; nothing is executed.

    Arguments:
        path: The file.
        device: Device of the tensors.
        mapped: Whether the file is mapped into memory, if it can be, rather than read.

    Raises:
        OSError: If it is no file, is not there, or cannot be read.
        ValueError: If it is damaged, or needs code to be run; names it.
    """

    open_regular(path).close()
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_zip(path, mapped)
        return torch.load(path, map_location=device, weights_only=True, mmap=mapped and zipped)
    except Exception as error:  # whatever a damaged file makes of the reader
        # Nor is it named as the cause: torch advises to execute what is in the file.
        raise ValueError(
            f"{path} cannot be read as a file of tensors; it is damaged, or a pickle of something "
            f"else, which is never executed ({type(error).__name__})"
        ) from None


def write_pickle(path: Path, content: Any) -> None:
    """Writes a file of PyTorch, atomically, and waits until it is on the disk.

    Arguments:
        path: The file.
        content: Plain data and tensors, as :func:`read_pickle` reads them back.

    Raises:
        OSError: If the disk is full or cannot be written to; names the file.
    """

    with replacing(path, durable=True) as partial:
        try:
            torch.save(content, partial)
        except RuntimeError as error:  # of torch's own writer, which says nothing of the disk
            reason = f"it cannot be written, the disk may be full ({_line(error)})"
            raise OSError(errno.EIO, reason, str(path)) from None


def check_config(content: Any, where: object, key: str = "") -> None:
    """Checks that a configuration asks for nothing absurd and for no code, before it is built.

    Arguments:
        content: The configuration, as JSON reads it.
        where: File of the configuration, for the message.
        key: Name of the entry that is looked at.

    Raises:
        ValueError: If a number is beyond all bounds, or kernels of the hub are asked for; names the
            entry.
    """

    if isinstance(content, Mapping):
        for name, value in content.items():
            check_config(value, where, str(name))
    elif isinstance(content, list):
        if len(content) > _MOST_LAYERS and isinstance(content[0], int):
            raise ValueError(f"{where} asks for an absurd size: {key} has {len(content):,} entries")
        for value in content:
            check_config(value, where, key)
    elif isinstance(content, int):
        deep = "layers" in key or key == "depth"
        bound = _MOST_LAYERS if deep else _LONGEST_SIDE if key == "image_size" else _LARGEST
        if abs(content) > bound:
            raise ValueError(f"{where} asks for an absurd size: {key} is {content:,}")
    elif isinstance(content, str) and key.endswith("implementation") and "/" in content:
        raise ValueError(f"{where} asks for code of the hub, which is never run: {key} {content}")


def _check_zip(path: Path, mapped: bool) -> None:
    """Raises if a zip is compressed, as none that torch wrote: a small one could fill memory.

    Sums of its parts are compared where all of it is read, which torch does not do.
    """

    with zipfile.ZipFile(path) as file:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
            raise ValueError("it is compressed")
        if not mapped and file.testzip() is not None:
            raise ValueError("its sums are wrong")


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.cpu().flatten().view(torch.uint8).numpy().data)  # bytes have no graph
    return digest.hexdigest()


def _mapped(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    open_regular(path).close()
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, ValueError, TypeError, RuntimeError, KeyError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {_line(error)}") from None
    return tensors


def _unwrapped(content: Any) -> Any:
    while isinstance(content, Mapping):
        inner = [content.get(key) for key in ("state_dict", "model_state_dict", "model")]
        found = next((value for value in inner if isinstance(value, Mapping)), None)
        if found is None:
            break
        content = found
    return content


def _check_tensor(path: Path, name: object, value: object) -> None:
    if not isinstance(name, str) or not isinstance(value, Tensor):
        raise ValueError(
            f"{path} must hold nothing but tensors, got {type(value).__name__} at {str(name)!r:.80}"
        )
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        raise ValueError(f"{path} must hold plain tensors, got another kind at {name!r:.80}")
    claimed = value.numel() * value.element_size()
    if claimed > value.untyped_storage().nbytes():
        raise ValueError(
            f"{path} asks for more numbers than it holds: {name!r:.80} of shape "
            f"{tuple(value.shape)}"
        )


def _read_shards(index: Path) -> dict[str, Tensor]:
    table = _weight_map(index)
    tensors: dict[str, Tensor] = {}
    for file in dict.fromkeys(table.values()):
        shard = index.parent / file
        if not shard.is_file():
            raise ValueError(f"{index} names the shard {file}, which is not beside it")
        found = read_tensors(shard)
        wanted = [name for name, place in table.items() if place == file]
        lost = [name for name in wanted if name not in found]
        if lost:
            raise ValueError(
                f"{shard} lacks {len(lost)} of the tensors that {index.name} places there, such as "
                f"{lost[0]}"
            )
        tensors.update((name, found[name]) for name in wanted)
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """Names of the shards, which are files beside the index, by names of tensors."""

    try:
        content = json.loads(read_regular(index))
        table = dict(content["weight_map"])
    except (ValueError, TypeError, LookupError, RecursionError):
        raise ValueError(
            f"{index} is not the index of shards that save_pretrained writes"
        ) from None
    for name, file in table.items():
        if (
            not isinstance(file, str)
            or not file
            or file != os.path.basename(file.replace("\\", "/"))
        ):
            raise ValueError(
                f"{index} must name files beside it, got {file!r:.80} for {name!r:.80}"
            )
        if is_index(Path(file)):
            raise ValueError(f"{index} must name files of tensors, got {file!r:.80}")
    if not table:
        raise ValueError(f"{index} names no tensors")
    return table


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:200]
