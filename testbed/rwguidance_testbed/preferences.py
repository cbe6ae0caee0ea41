"""Preferences between pictures that the generators drew, by the gold utility.

.. code-block:: text

    python -m rwguidance_testbed.preferences --data FOLDER --flow FOLDER --turbo FOLDER \\
        --judge FOLDER --out FILE.parquet

lets the generators draw pictures of captions, as many of each, pairs all pictures of a caption
with each other, and draws noisy preferences by :class:`rwguidance_testbed.gold.Gold`. What was
drawn is kept in parts beside the file, so that an interrupted run goes on.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from rwguidance.support.files import replacing

from . import commands, flow, turbo
from .data import Drawings, load_names
from .encoders import read
from .gold import WEIGHTS, Gold, prefer, temperature_for, write_pairs
from .scenes import sample_scenes
from .vae import read as read_vae

__all__ = ["Generators", "all_pairs", "sample_captions", "train"]

_PART = 32  # captions whose pictures are drawn at once and kept in one file


class Generators:
    """The generators, each run as it is meant to be: four steps and one, without guidance.

    Arguments:
        flow_folder: Folder of the flow of four steps.
        turbo_folder: Folder of the model of one step; None to go without.
        vae: Folder of the autoencoder.
    """

    def __init__(self, flow_folder: Path, turbo_folder: Path | None, vae: Path) -> None:
        self.vae = read_vae(vae)
        self.runs: list[tuple[Any, dict[str, Any]]] = [
            (
                flow.read(flow_folder, self.vae),
                {"num_inference_steps": 4, "guidance_scale": 1.0, "max_sequence_length": 1},
            ),
        ]
        if turbo_folder is not None:
            settings = {"num_inference_steps": 1, "guidance_scale": 0.0}
            self.runs.append((turbo.read(turbo_folder, self.vae), settings))
        for pipe, _ in self.runs:
            pipe.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def draw(self, captions: Sequence[str], each: int, generator: Generator) -> Tensor:
        """Draws pictures of captions, of each caption `each` by each generator.

        Arguments:
            captions: Captions to draw.
            each: Number of pictures of one caption by one generator.
            generator: Source of all noise.

        Returns:
            Pictures of type uint8, with shape (captions, generators * each, 3, 64, 64), those of
            the flow first.
        """

        prompts = [caption for caption in captions for _ in range(each)]
        drawn = []
        for pipe, settings in self.runs:
            latents = pipe(
                prompts, height=64, width=64, generator=generator, output_type="latent", **settings
            ).images
            shift = self.vae.config.shift_factor if "max_sequence_length" in settings else 0.0
            with torch.autocast("cpu", dtype=torch.bfloat16):
                decoded = self.vae.decode(latents / self.vae.config.scaling_factor + shift).sample
            pictures = (decoded.float() / 2 + 0.5).clamp(0, 1)
            drawn.append((255 * pictures).round().byte().unflatten(0, (len(captions), each)))
        return torch.cat(drawn, dim=1)


def sample_captions(drawings: Drawings, count: int, generator: Generator) -> list[str]:
    """Returns different captions of scenes that the generators learned to draw.

    Arguments:
        drawings: All drawings.
        count: Number of captions.
        generator: Source of the random numbers.
    """

    own = drawings.where("generator", load_names()["train"])
    found: dict[str, None] = {}
    while len(found) < count:
        found.update(dict.fromkeys(s.caption for s in sample_scenes(own, count, generator)))
    return list(found)[:count]


def all_pairs(captions: int, pictures: int) -> Tensor:
    """Returns all pairs of pictures of the same caption, in an order that says nothing.

    Arguments:
        captions: Number of captions.
        pictures: Number of pictures of each caption.

    Returns:
        Indices into captions * pictures pictures, with shape (N, 2).
    """

    first, second = torch.triu_indices(pictures, pictures, offset=1)
    swap = (first + second) % 2 == 0
    inside = torch.stack((torch.where(swap, second, first), torch.where(swap, first, second)), 1)
    return (pictures * torch.arange(captions)[:, None, None] + inside).flatten(0, 1)


def train(
    data: Path = Path("out/testbed"),
    vae: Path = Path("out/testbed/emoji-vae"),
    flow: Path = Path("out/testbed/emoji-flow"),
    turbo: Path | None = None,
    judge: Path = Path("out/testbed/emoji-judge"),
    out: Path = Path("out/testbed/preferences.parquet"),
    captions: int = 3500,
    each: int = 3,
    agreement: float = 0.8,
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Draws pictures and preferences and writes them to `out`, with figures beside it.

    Arguments:
        data: Folder of the drawings.
        vae: Folder of the autoencoder.
        flow: Folder of the flow of four steps.
        turbo: Folder of the model of one step; without, the flow draws alone.
        judge: Folder of the judge.
        out: File to write.
        captions: Number of captions.
        each: Number of pictures of each caption by each generator.
        agreement: Share of noisy preferences that are those of the utility.
        seed: Seed of captions, pictures and preferences.
        threads: Threads of PyTorch.
    """

    torch.set_num_threads(threads)
    texts = sample_captions(Drawings.load(data), captions, Generator().manual_seed(seed))
    generators, gold = Generators(flow, turbo, vae), Gold(read("judge", judge))
    drawn = _draw(generators, gold, texts, each, seed, out.with_suffix(".parts"))
    count = each * len(generators.runs)
    index = all_pairs(captions, count)
    terms = [weight * drawn[name] for name, weight in WEIGHTS.items()]
    utilities = torch.stack(terms).sum(0)[index]
    temperature = temperature_for(utilities, agreement)
    labels = prefer(utilities, temperature, Generator().manual_seed(seed + 1))
    of_pairs = [texts[i] for i in (index[:, 0] // count).tolist()]
    write_pairs(out, drawn["pictures"], index, of_pairs, labels, utilities)
    figures: dict[str, float] = {"pairs": len(index), "pictures": captions * count}
    figures |= {"captions": captions, "temperature": temperature}
    figures["agreement_with_clean"] = float((labels == prefer(utilities)).float().mean())
    if turbo is not None:
        figures["flow_preferred"] = _preferred(labels, index, count, each)
    figures |= _spreads(terms, captions)
    figures = {name: round(value, 4) for name, value in figures.items()}
    out.with_suffix(".json").write_bytes(json.dumps(figures, indent=2).encode())
    print(json.dumps(figures, indent=2))


def _draw(
    generators: Generators, gold: Gold, captions: Sequence[str], each: int, seed: int, folder: Path
) -> dict[str, Tensor]:
    """Returns all pictures, (M, 3, 64, 64), and the terms of their utilities, each (M,).

    They are drawn in parts that are kept in a folder; those which are there are taken from it.
    """

    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in range(0, len(captions), _PART):
        path, some = folder / f"{start:06d}.safetensors", captions[start : start + _PART]
        if not path.exists():
            noise = Generator().manual_seed(1_000_003 * (seed + 1) + start)
            pictures = generators.draw(some, each, noise)
            prompts = [caption for caption in some for _ in range(pictures.shape[1])]
            pictures = pictures.flatten(0, 1)
            terms = gold.terms(pictures.float() / 255, prompts)
            with replacing(path) as partial:
                save_file({"pictures": pictures, **terms}, partial)
        parts.append(load_file(path))
        print(json.dumps({"captions": start + len(some), "of": len(captions)}), flush=True)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _spreads(terms: Sequence[Tensor], captions: int) -> dict[str, float]:
    """Returns the standard deviation of each term of the utility, mean over captions."""

    return {
        f"spread_within_captions_of_{name}": float(x.unflatten(0, (captions, -1)).std(1).mean())
        for name, x in zip(WEIGHTS, terms, strict=True)
    }


def _preferred(labels: Tensor, index: Tensor, pictures: int, each: int) -> float:
    """Returns how often the flow's picture is preferred to the other generator's."""

    first, second = (index % pictures < each).T
    mixed = first != second
    return float(torch.where(first, labels, 1 - labels)[mixed].mean())


if __name__ == "__main__":
    commands.run(train)
