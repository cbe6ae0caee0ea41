"""Draws of models on disk: made once, extended, scored and embedded later, read piece by piece.

A :class:`Store` is a folder of drawers. A :class:`Drawer` holds the draws of one origin: a model
with its options, sampler, times, seed and prompt. It is a table. Rows are draws, numbered from 0;
a :class:`Column` is a tensor with an entry for each of them, and is filled whenever it is wanted:

.. code-block:: python

    store = Store("out/draws")
    drawer = store.of({"backbone": fingerprint(backbone), "prompt": prompt, "seed": 0})
    x_0 = drawer.column("x_0")
    x_0.fill(10_000, draw, batch_size=8)              # draw(range(16, 24)): states of these numbers
    pick = drawer.column("rewards/pickscore", {"reward": fingerprint(reward)})
    pick.fill(10_000, lambda rows: score(x_0.read(rows)), batch_size=32)
    for rows, states in x_0.batches(64): ...          # never more than 64 draws in memory
    bank = drawer.bank(256, pick)                     # the first 256 draws, as a Bank

**Names.** Columns are called ``x_0``, ``log_importance`` (in nats, where draws are not of the model
itself), ``rewards/NAME`` and ``embeddings/NAME``. A column has an origin of its own beside its
name, so that rewards of other weights are another column. The key ``prompt`` of a drawer's origin
is the condition of its draws.

**Making.** A draw depends on seed, prompt and number, through a generator of its own
(:func:`rwguidance.support.randomness.generator_for`); never on what is there. Batches begin at
multiples of their size, whatever is there. So a run that was killed and goes on ends with the same
bits, and a longer run begins with a shorter one. Every finished batch outlives the
process, and what :func:`fill` has finished a loss of power as well. It fills many columns at once,
such as those of all prompts, and deals their batches out to processes.

**On disk.** A folder per drawer, named by the hash of its origin, with ``origin.json`` and a folder
per column, with ``manifest.json`` and shards. A shard is a safetensors file of bounded size that
holds some rows; its name and the manifest have its SHA-256. Small shards are merged to larger ones.
The digest is compared when a process reads a shard for the first time. To read a damaged one raises
:class:`Damaged`; to fill sets it aside under another name, says so once, and makes its rows again.
A manifest that is damaged or lost is made anew from the names of the shards.

**Several processes** may read and fill one store at a time: each writes shards of its own, and
manifests are changed under a lock.
"""

from .columns import Column
from .drawers import Drawer, OldStore, Store
from .filling import Task, fill
from .shards import Damaged

__all__ = ["Column", "Damaged", "Drawer", "OldStore", "Store", "Task", "fill"]
