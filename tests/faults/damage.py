"""Flipped bits in what is read back, and files that were never meant to be read."""

import pickle
import random
import shutil
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from rewards.images import group_by_size
from rewards.loading import read_config
from rewards.normalizers import Normalizer
from rwguidance import Bank, RectifiedSchedule, networks
from rwguidance.networks import LatentShift
from rwguidance.support.records import read_records
from rwguidance.support.tensors import read_tensors

from .work import COMMANDS, Command, Line, differing, whole

__all__ = ["lines"]

FLIPS = 200
"""Flipped bits in banks and networks; a fifth of them in the files of each command."""


def lines(root: Path) -> Iterator[Line]:
    """Yields the lines."""

    for command in COMMANDS.values():
        yield _flipped_run(command, root / command.name)
    yield from _flipped_files(root)
    yield from _hostile(root / "hostile")
    yield _names(root / "names")


def _flipped_run(command: Command, root: Path) -> Line:
    """Flips bits in everything a finished run has left, and asks for it again."""

    expected = whole(command, root / "whole")
    results = [root / "whole" / "out", root / "whole" / "store"]
    files = sorted(path for place in results for path in place.rglob("*") if path.is_file())
    draw, failures = random.Random(command.name), []
    for i in range(FLIPS // 5):
        here = root / str(i)
        shutil.copytree(root / "whole", here)
        file = draw.choice([path for path in files if path.stat().st_size])
        place = _flip(here / file.relative_to(root / "whole"), draw)
        try:
            found = whole(command, here)
        except (ValueError, OSError):  # refused, by name
            continue
        if differ := differing(found, expected):
            failures.append(f"bit {place} of {file.name}: {differ}")
    return Line(f"{command.name}: a flipped bit in what a run has left", FLIPS // 5, failures)


def _flip(file: Path, draw: random.Random) -> int:
    data = bytearray(file.read_bytes())
    place = draw.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    file.write_bytes(data)
    return place


def _flipped_files(root: Path) -> Iterator[Line]:
    generator = torch.Generator().manual_seed(0)
    bank = Bank(torch.randn(20, 3, generator=generator), ["a"] * 20, origin={"seed": 0})
    network = LatentShift(4, RectifiedSchedule(), widths=(8,), depth=1)
    state = lambda network: {key: value.tolist() for key, value in network.state_dict().items()}
    facts = lambda bank: (bank.x_0.tolist(), bank.condition, bank.origin)
    yield _flipped("bank", bank, Bank.load, facts, root / "bank")
    yield _flipped("network", network, networks.load, state, root / "network")


def _flipped(
    name: str, value: Any, load: Callable[[Path], Any], facts: Callable[[Any], Any], file: Path
) -> Line:
    value.save(file)
    whole, expected = file.read_bytes(), facts(load(file))
    draw, failures = random.Random(name), []
    for _ in range(FLIPS):
        file.write_bytes(whole)
        place = _flip(file, draw)
        try:
            found = facts(load(file))
        except ValueError as error:
            if file.name not in str(error) or "weights_only" in str(error):
                failures.append(f"bit {place}: {error}")
            continue
        if found != expected:
            failures.append(f"bit {place} changes what is read")
    return Line(f"a flipped bit in a {name}", FLIPS, failures)


class Recording:
    """A pickle that leaves a file if it is executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def _hostile(root: Path) -> Iterator[Line]:
    """Every reader is given every file that is none of its kind."""

    root.mkdir()
    trace = root / "executed"
    tensor = b'{"x_0":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    torch.save({"a": Recording(trace)}, root / "archive")
    torch.save({"a": torch.ones(1).expand(10**7, 10**7)}, root / "expanded")
    (root / "archive and more").write_bytes((root / "archive").read_bytes()[:-40])
    contents = {
        "nothing": b"",
        "pickle": pickle.dumps({"a": Recording(trace)}),
        "a long header": struct.pack("<Q", 2**62) + b"{}",
        "a terabyte": struct.pack("<Q", len(tensor)) + tensor,
        "a deep nest": b"[" * 10**6,
        "NUL": bytes(10**5),
        "a program": b"#!/bin/sh\ntouch executed\n",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "a header of PNG": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "a huge PPM": b"P6 999999 999999 255\n" + bytes(10),
        "a long number": b'{"a": ' + b"9" * 10**5 + b"}",
    }
    for name, content in contents.items():
        (root / name).write_bytes(content)
    files = sorted(path for path in root.iterdir() if path.is_file())
    readers: dict[str, tuple[str, Callable[[Path], Any]]] = {
        "a bank": (".safetensors", Bank.load),
        "a network": (".safetensors", networks.load),
        "weights": (".safetensors", read_tensors),
        "a pickle": (".bin", read_tensors),
        "an index": (".index.json", read_tensors),
        "a configuration": (".json", read_config),
        "an image": (".png", group_by_size),
        "a normalizer": (".json", Normalizer.load),
        "a table": (".csv", lambda file: list(read_records(file, "prompt"))),
        "a list": (".json", lambda file: list(read_records(file, "prompt"))),
        "lines": (".jsonl", lambda file: list(read_records(file, "prompt"))),
        "columns": (".parquet", lambda file: list(read_records(file, "prompt"))),
    }
    for name, (ending, read) in readers.items():
        yield _refused(name, ending, read, files, trace)


def _refused(
    name: str, ending: str, read: Callable[[Path], Any], files: list[Path], trace: Path
) -> Line:
    failures = []
    for file in files:
        named = file.parent / "named" / f"{file.name}{ending}"
        named.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, named)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(named)
        except (ValueError, OSError) as error:
            if "weights_only" in str(error):
                failures.append(f"{file.name}: advice to execute it")
        except BaseException as error:
            failures.append(f"{file.name}: {type(error).__name__}: {str(error)[:80]}")
        if trace.exists():
            trace.unlink()
            failures.append(f"{file.name}: was executed")
    return Line(f"{name}: files that are none", len(files), failures)


def _names(root: Path) -> Line:
    """Prompts that would be paths, and an index that leaves its folder."""

    from pixel_law import run
    from rwguidance.generation import BestOfN

    root.mkdir()
    prompts = [
        "../x",
        "con",
        "nul\0",
        "/etc/passwd",
        "a" * 5000,
        "..",
        "%00",
        "\u202e",
        "NUL.",
        "~",
    ]
    failures = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = run(root / "out", BestOfN(2), prompts=prompts, steps=1)
    for row in made.rows:
        inside = all(path.is_file() and root / "out" in path.parents for path in row.files)
        if not inside or row.error:
            failures.append(f"{row.prompt[:20]!r}: {row.error}")
    if sorted(path.name for path in root.iterdir()) != ["out"]:
        failures.append("files beside the folder")
    return Line("names of prompts that are none of files", len(prompts), failures)
