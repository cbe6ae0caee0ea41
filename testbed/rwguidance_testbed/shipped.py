"""The trained models that come with this distribution: where they are, and that they are whole.

Every model is a folder of ``weights/``, and ``weights/hashes.json`` has the SHA-256 of its files.

    python -m rwguidance_testbed.shipped

writes that file anew, after a folder has come or changed, and prints what there is.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rwguidance.support.files import replacing

if TYPE_CHECKING:
    from .encoders import Towers
    from .gold import Gold

__all__ = ["MODELS", "digests", "folder", "gold", "judge", "names", "parameters", "report", "write"]

MODELS: Mapping[str, str] = {
    "emoji-flow": "distill",
    "emoji-flow-teacher": "flow",
    "emoji-hps": "towers",
    "emoji-judge": "towers",
    "emoji-pick": "towers",
    "emoji-turbo": "distill",
    "emoji-turbo-guide": "network",
    "emoji-vae": "vae",
}
"""What can come with a version, with the module that trains it."""

_WEIGHTS = Path(__file__).with_name("weights")
_HASHES = "hashes.json"
_COMMAND = f"python -m {__package__}.shipped"


def names() -> list[str]:
    """The models that come with this version, sorted.

    Raises:
        ValueError: If the file of hashes cannot be read.
    """

    return sorted(_known(_WEIGHTS))


def folder(name: str) -> Path:
    """The folder of a model, each of whose files was compared with its hash once in this process.

    Arguments:
        name: One of `MODELS`.

    Raises:
        LookupError: If there is no such model; lists those that exist.
        FileNotFoundError: If it does not come with this version; says how to train it.
        ValueError: If a file is missing, changed or cut short; names all of them.
    """

    if name not in MODELS:
        raise LookupError(f"there is no model {name!r}, there are {', '.join(map(repr, MODELS))}")
    return _checked(_WEIGHTS, name)


def judge() -> "Towers":
    """The judge of pictures and captions, frozen, in single precision.

    Raises:
        FileNotFoundError: As :func:`folder` does.
        ValueError: As :func:`folder` does.
    """

    from .encoders import read

    return read("judge", folder("emoji-judge")).eval().requires_grad_(False)


def gold() -> "Gold":
    """The gold utility by :func:`judge`, whose errors it has."""

    from .gold import Gold

    return Gold(judge())


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in a folder and in those below, by path within it."""

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _digest(path) for path in files}


def parameters(folder: Path) -> int:
    """How many floating-point numbers the weights in a folder hold, in all its files."""

    import torch
    from safetensors.torch import load_file

    states = [load_file(path) for path in folder.rglob("*.safetensors")]
    for path in folder.rglob("*.pt"):
        state = torch.load(path, map_location="cpu", weights_only=True)
        states.append(state.get("state_dict", state))
    values = (value for state in states for value in state.values())
    return sum(math.prod(value.shape) for value in values if value.is_floating_point())


def write() -> dict[str, dict[str, str]]:
    """Writes the hashes of what is there now, and returns them by model and file.

    Raises:
        ValueError: If there is a folder of another name than those in `MODELS`.
    """

    names = sorted(path.name for path in _WEIGHTS.iterdir() if path.is_dir())
    stray = [name for name in names if name not in MODELS]
    if stray:
        raise ValueError(
            f"folders of {_WEIGHTS} must be among {', '.join(MODELS)}, got {', '.join(stray)}"
        )
    found = {name: digests(_WEIGHTS / name) for name in names}
    with replacing(_WEIGHTS / _HASHES) as file:
        file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def report() -> str:
    """A table of what is there now: name, parameters and bytes, and their sums."""

    rows = []
    for path in sorted(path for path in _WEIGHTS.iterdir() if path.is_dir()):
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        rows.append((path.name, parameters(path), size))
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    lines = [f"{name:<20}{count:>12,}{size:>14,}" for name, count, size in rows]
    return "\n".join([f"{'name':<20}{'parameters':>12}{'bytes':>14}", *lines])


@cache
def _checked(weights: Path, name: str) -> Path:
    path = weights / name
    known = _known(weights)
    if name not in known:
        if path.is_dir():
            raise ValueError(f"{path} has no hashes yet; `{_COMMAND}` writes them")
        raise FileNotFoundError(
            f"{name} does not come with this version of rwguidance, which has {', '.join(known)}; "
            f"train it with `python -m {__package__}.{MODELS[name]}`, whose --help says how, and "
            "pass the folder that it writes as path="
        )
    wrong = [
        f"{file} is missing"
        if not (path / file).is_file()
        else f"{file} is changed or cut short, at {(path / file).stat().st_size:,} bytes"
        for file, digest in known[name].items()
        if not (path / file).is_file() or _digest(path / file) != digest
    ]
    if wrong:
        raise ValueError(
            f"{path} does not hold {name} as it was shipped: {'; '.join(wrong)}; install "
            f"rwguidance again, or, if you changed it on purpose, run `{_COMMAND}`"
        )
    return path


def _known(weights: Path) -> dict[str, dict[str, str]]:
    try:
        known: dict[str, dict[str, str]] = json.loads((weights / _HASHES).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{weights / _HASHES} must hold the hashes of what is shipped ({error}); install "
            "rwguidance again"
        ) from None
    return known


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    write()
    print(report())
