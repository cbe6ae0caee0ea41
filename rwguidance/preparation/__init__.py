"""Data for trainings, prepared once: preference data in its published columns, or own draws.

.. code-block:: python

    job = Preparation(backbone=backbone, out="out/pickapic", rewards={"pickscore": pickscore})
    data = prepare_pairs(job, ["pickapic/data"], size=(512, 512))
    for x_0, prompt, preference, rewards in data.pairs("train"): ...

The folder holds a :class:`rwguidance.store.Store` of latents and rewards with an entry for each
picture and embeddings with an entry for each prompt; what was found in each row of the data; and
``skipped.csv`` with the rows that were left out. All of it grows batch by batch, and outlives the
process.
"""

from .layouts import LAYOUTS, Dirty, Layout, Ranked, layout_of, own_layout
from .prepared import Example, Pairs, Prepared, split_of
from .run import Preparation, prepare_draws, prepare_pairs
from .sources import Source, find_sources

__all__ = [
    "LAYOUTS",
    "Dirty",
    "Example",
    "Layout",
    "Pairs",
    "Preparation",
    "Prepared",
    "Ranked",
    "Source",
    "find_sources",
    "layout_of",
    "own_layout",
    "prepare_draws",
    "prepare_pairs",
    "split_of",
]
