"""The command that builds the drawings.

.. code-block:: bash

    python -m rwguidance_testbed.data --data FOLDER

fetches nine packages of the npm registry through the ``npm`` of this machine, checks them against
the hashes in ``sources.json``, rasterizes every drawing with its transparency and writes
``drawings.safetensors`` and ``drawings.json``. Nothing in it is random, and the hash of what was
rasterized is compared with the one in ``sources.json``.
"""

import warnings
from pathlib import Path

import torch

from .drawings import Drawings, fingerprint
from .packages import fetch, read_drawings
from .rasterizing import rasterize
from .tables import sources

__all__ = ["build"]


def build(data: Path = Path("out/testbed"), packages: Path | None = None) -> Drawings:
    """Fetches the packages, rasterizes all drawings and writes them.

    Arguments:
        data: Folder to write to.
        packages: Folder with the archives of the packages, or where to fetch them to. Default:
            a folder inside `data`.

    Raises:
        ValueError: If a package is not the expected one.
    """

    from rich.progress import track

    packages = packages or data / "packages"
    table = sources()
    archive = lambda row: fetch(row["package"], row["version"], row["integrity"], packages)
    styles = {row["name"]: archive(row) for row in table["styles"]}
    drawings, documents = read_drawings(styles, archive(table["words"]))
    pixels = torch.stack([rasterize(d) for d in track(documents, description="rasterizing")])
    result = Drawings(drawings, pixels)
    result.save(data)
    found = fingerprint(result)
    if found != table["rendered"]:
        warnings.warn(
            f"the drawings have the hash {found}, those of the shipped models have "
            f"{table['rendered']}; they were rendered by {table['renderer']}",
            stacklevel=2,
        )
    return result
