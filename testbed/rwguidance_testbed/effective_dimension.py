r"""The effective dimension of the data given a prompt, and its modes.

.. code-block:: bash

    python -m rwguidance_testbed.effective_dimension --data FOLDER --vae FOLDER

An estimator that weighs draws by their reward does well on a law of a few points whatever its
faults. So this measures what a prompt leaves open: how many drawings fit it, and in how many
directions of the space of latents the draws vary,
:math:`(\operatorname{tr} C)^2 / \operatorname{tr} C^2` of their covariance :math:`C`, all drawings
together and within one.
"""

from pathlib import Path

import torch
from torch import Generator, Tensor

from . import commands
from .data import Drawings, load_names
from .scenes import render, scenes_with_caption
from .vae import encode, read

__all__ = ["effective_dimension", "measure"]


def effective_dimension(x: Tensor) -> float:
    """Returns the participation ratio of the eigenvalues of the covariance.

    It is corrected for the size of the sample.

    Arguments:
        x: Draws with shape (N, ...), N at least 3.

    Returns:
        A number between 1 and the dimension: d for the standard normal law in d dimensions.
    """

    flat = x.flatten(1).double()
    centered = flat - flat.mean(0)
    count = len(flat)
    gram = centered @ centered.T / (count - 1)
    trace, square = gram.trace(), gram.square().sum()
    # The unbiased estimates of both numbers for a normal law.
    factor = (count - 1) ** 2 / ((count + 1) * (count - 2))
    pure = factor * (square - trace**2 / (count - 1))
    whole = factor * (count * trace**2 / (count - 1) - 2 * square / (count - 1))
    return float(whole / pure)


def measure(
    data: Path = Path("out/testbed"),
    vae: Path = Path("out/testbed/emoji-vae"),
    names: int = 20,
    count: int = 256,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Prints and returns, for kinds of prompts, means over names of modes and dimensions.

    Arguments:
        data: Folder of the drawings.
        vae: Folder of the autoencoder, in whose latents dimensions are measured.
        names: Number of learned names.
        count: Number of draws for each prompt.
        seed: Seed of the draws.

    Returns:
        Drawings that fit, effective dimension, and that within one drawing, by kind of prompt.
    """

    torch.set_num_threads(1)
    autoencoder = read(vae)
    learned = load_names()["train"]
    own = Drawings.load(data).where("generator", learned)
    generator = Generator().manual_seed(seed)
    chosen = learned[:: max(1, len(learned) // names)][:names]
    table = {}
    for kind in ("{}", "{} on a blue background", "small {} on a blue background"):
        rows = []
        for name in chosen:
            scenes = scenes_with_caption(own, kind.format(name), count, generator)
            latents = encode(autoencoder, render(own, scenes))
            drawing = torch.tensor([scene.drawing for scene in scenes])
            parts = [latents[drawing == i] for i in drawing.unique()]
            within = [effective_dimension(part) for part in parts if len(part) > 20]
            rows.append((len(parts), effective_dimension(latents), sum(within) / len(within)))
        table[kind.format("NAME")] = [
            round(sum(column) / len(rows), 2) for column in zip(*rows, strict=True)
        ]
        print(kind.format("NAME"), table[kind.format("NAME")], flush=True)
    return table


if __name__ == "__main__":
    commands.run(measure)
