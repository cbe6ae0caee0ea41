"""Files that come inside an installed package: ``package://name/folder``, whole or not at all.

A plug-in that ships weights names the folder in which they lie. If a file `hashes.json` lies beside
the folder (or further up within the package), the files are compared with it, once per process:

.. code-block:: json

    {"my-model": {"config.json": "9f86d0…", "model.safetensors": "2c26b4…"}}

has the SHA-256 of every file of the folder `my-model` beside it. :func:`write_hashes` writes it.
"""

import hashlib
import importlib.util
import json
import os
from functools import cache
from pathlib import Path

from .files import replacing

__all__ = ["digests", "in_package", "package_folder", "package_of", "write_hashes"]

_SCHEME = "package://"
_HASHES = "hashes.json"


def in_package(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path names a folder of a package, ``package://name/folder``."""

    return str(path).startswith(_SCHEME)


def package_of(path: str | os.PathLike[str]) -> str:
    """Returns the import name of the package in ``package://name/folder``."""

    return str(path).removeprefix(_SCHEME).partition("/")[0]


def package_folder(path: str | os.PathLike[str]) -> Path:
    """Returns the folder that ``package://name/folder`` names, after comparing its hashes.

    Raises:
        ImportError: If the package is not installed.
        FileNotFoundError: If this version of the package has no such folder; lists what it has.
        ValueError: If a file is missing, changed or cut short; names all of them.
    """

    package = package_of(path)
    inside = str(path).removeprefix(f"{_SCHEME}{package}").strip("/")
    return _checked(_locate(package), package, inside)


def digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file in a folder and below it, by its path in the folder."""

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _digest(path) for path in files}


def write_hashes(root: Path) -> dict[str, dict[str, str]]:
    """Writes `hashes.json` for the folders in `root`, and returns what it holds."""

    folders = sorted(path for path in root.iterdir() if path.is_dir())
    found = {path.name: digests(path) for path in folders}
    with replacing(root / _HASHES) as file:
        file.write_bytes((json.dumps(found, indent=2) + "\n").encode())
    return found


def _locate(package: str) -> Path:
    """The folder of an installed package, which is not imported for it."""

    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"the package {package!r} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def _checked(root: Path, package: str, inside: str) -> Path:
    folder = root / inside
    if not inside or ".." in Path(inside).parts or not folder.is_dir():
        beside = sorted(path.name for path in folder.parent.glob("*") if path.is_dir())
        raise FileNotFoundError(
            f"{inside!r} does not come with this version of {package}, which has "
            + (", ".join(beside) or "nothing there")
        )
    for parent in folder.parents:
        if (parent / _HASHES).is_file():
            _compare(folder, folder.relative_to(parent).as_posix(), parent / _HASHES, package)
            break
        if parent == root:
            break
    return folder


def _compare(folder: Path, name: str, hashes: Path, package: str) -> None:
    again = f"install {package} again, or, if you changed it on purpose, write {_HASHES} anew"
    try:
        known: dict[str, str] = json.loads(hashes.read_bytes())[name]
    except (OSError, ValueError) as error:
        raise ValueError(f"{hashes} cannot be read ({error}): {again}") from None
    except (KeyError, TypeError):
        raise ValueError(f"{hashes} has no hashes of {name!r}: {again}") from None
    wrong = []
    for file, digest in known.items():
        path = folder / file
        if not path.is_file():
            wrong.append(f"{file} is missing")
        elif _digest(path) != digest:
            wrong.append(f"{file} is changed or cut short, at {path.stat().st_size:,} bytes")
    if wrong:
        raise ValueError(f"{folder} is not as it was shipped: {'; '.join(wrong)}; {again}")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
