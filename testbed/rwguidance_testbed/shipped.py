"""The trained models that come with the test bed: where they are, and that they are whole.

Every model is a folder of ``weights/``, and ``weights/hashes.json`` has the SHA-256 of its files.

.. code-block:: bash

    python -m rwguidance_testbed.shipped

writes that file anew, after a folder has come or changed, and prints what there is.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rwguidance.support.packaged import package_folder, write_hashes

if TYPE_CHECKING:
    from .encoders import Towers
    from .gold import Gold

__all__ = ["MODELS", "SOURCE", "folder", "gold", "judge", "names", "parameters", "report", "write"]

SOURCE = "package://rwguidance_testbed/weights"
"""Where the folders of the models are."""

MODELS: Mapping[str, str] = {
    "emoji-flow": "distill",
    "emoji-flow-teacher": "flow",
    "emoji-hps": "towers",
    "emoji-judge": "towers",
    "emoji-pick": "towers",
    "emoji-turbo": "distill",
    "emoji-turbo-change": "prompt_sets",
    "emoji-turbo-guide": "network",
    "emoji-turbo-noise": "black_box",
    "emoji-turbo-wide": "adversarial",
    "emoji-vae": "vae",
}
"""The models that can come with a version, each with the module that trains it, or begins to."""

_WEIGHTS = Path(__file__).with_name("weights")


def names() -> list[str]:
    """Returns the models that come with this version, sorted."""

    return sorted(path.name for path in _WEIGHTS.iterdir() if path.is_dir())


def folder(name: str) -> Path:
    """Returns the folder of a model, whose files were compared with their hashes.

    Raises:
        FileNotFoundError: If the model does not come with this version; says how to train it.
        ValueError: If a file is missing, changed or cut short; names all of them.
    """

    try:
        return package_folder(f"{SOURCE}/{name}")
    except FileNotFoundError as error:
        command = f"python -m {__package__}.{MODELS[name]}" if name in MODELS else ""
        hint = f"; train it with `{command}`, whose --help says how" if command else ""
        raise FileNotFoundError(f"{error}{hint}") from None


def judge(path: str | Path | None = None) -> "Towers":
    """Returns the judge of pictures and captions, frozen, in single precision.

    Arguments:
        path: Folder of the judge; None is the one that comes with the test bed.

    Raises:
        FileNotFoundError: If the folder is not there.
        ValueError: If it is not as it was shipped.
    """

    from .encoders import read

    where = folder("emoji-judge") if path is None else Path(path)
    return read("judge", where).eval().requires_grad_(False)


def gold() -> "Gold":
    """Returns the gold utility by :func:`judge`, whose errors it has."""

    from .gold import Gold

    return Gold(judge())


def parameters(folder: Path) -> int:
    """Returns how many floating-point numbers the weights in a folder hold, in all its files."""

    import torch
    from safetensors.torch import load_file

    states = [load_file(path) for path in folder.rglob("*.safetensors")]
    for path in folder.rglob("*.pt"):
        state = torch.load(path, map_location="cpu", weights_only=True)
        states.append(state.get("state_dict", state))
    values = (value for state in states for value in state.values())
    return sum(math.prod(value.shape) for value in values if value.is_floating_point())


def write(root: Path = _WEIGHTS) -> dict[str, dict[str, str]]:
    """Writes the hashes of the folders in `root`, and returns them by model and file.

    Raises:
        ValueError: If there is a folder of another name than those in `MODELS`.
    """

    stray = sorted(
        path.name for path in root.iterdir() if path.is_dir() and path.name not in MODELS
    )
    if stray:
        raise ValueError(
            f"folders of {root} must be among {', '.join(MODELS)}, got {', '.join(stray)}"
        )
    return write_hashes(root)


def report(root: Path = _WEIGHTS) -> str:
    """Returns a table of the folders in `root`: name, parameters and bytes, and their sums."""

    rows = []
    for path in sorted(path for path in root.iterdir() if path.is_dir()):
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        rows.append((path.name, parameters(path), size))
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    lines = [f"{name:<20}{count:>12,}{size:>14,}" for name, count, size in rows]
    return "\n".join([f"{'name':<20}{'parameters':>12}{'bytes':>14}", *lines])


if __name__ == "__main__":
    write()
    print(report())
