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
from rwguidance.support.outside import require

from . import flow, turbo
from .data import Drawings, load_names
from .encoders import read
from .gold import WEIGHTS, Gold, prefer, temperature_for, write_pairs
from .scenes import sample_scenes

__all__ = ["Generators", "all_pairs", "sample_captions", "train"]

_PART = 32


class Generators:
    """The generators, each run as it is meant to be: four steps and one, without guidance.

    Arguments:
        flow_folder: Of the flow of four steps.
        turbo_folder: Of the model of one step; None to go without.
        vae: Folder of the autoencoder.
    """

    def __init__(self, flow_folder: Path, turbo_folder: Path | None, vae: Path) -> None:
        diffusers = require("diffusers", "the test bed needs", "testbed")
        self.vae = diffusers.AutoencoderKL.from_pretrained(vae).eval().requires_grad_(False)
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
        """Pictures of type uint8, of each caption `each` by each generator.

        Arguments:
            captions: What to draw.
            each: Pictures of one caption by one generator.
            generator: Source of all noise.

        Returns:
            Pictures with shape (captions, generators * each, 3, 64, 64), those of the flow first.
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
    """Different captions of scenes that the generators learned to draw.

    Arguments:
        drawings: All of them.
        count: How many captions.
        generator: Chooses.
    """

    own = drawings.where("generator", load_names()["train"])
    found: dict[str, None] = {}
    while len(found) < count:
        found.update(dict.fromkeys(s.caption for s in sample_scenes(own, count, generator)))
    return list(found)[:count]


def all_pairs(captions: int, pictures: int) -> Tensor:
    """All pairs of pictures of the same caption, in an order that says nothing.

    Arguments:
        captions: How many.
        pictures: Of each.

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
        out: The file to write.
        captions: How many captions.
        each: Pictures of each caption by each generator.
        agreement: Share of noisy preferences that are those of the utility.
        seed: Of captions, pictures and preferences.
        threads: Of PyTorch.
    """

    from safetensors.torch import load_file, save_file

    torch.set_num_threads(threads)
    texts = sample_captions(Drawings.load(data), captions, Generator().manual_seed(seed))
    generators, gold = Generators(flow, turbo, vae), Gold(read("judge", judge))
    count = each * len(generators.runs)
    folder = out.with_suffix(".parts")
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in range(0, captions, _PART):
        path, some = folder / f"{start:06d}.safetensors", texts[start : start + _PART]
        if not path.exists():
            noise = Generator().manual_seed(1_000_003 * (seed + 1) + start)
            pictures = generators.draw(some, each, noise)
            prompts = [text for text in some for _ in range(count)]
            terms = gold.terms(pictures.flatten(0, 1).float() / 255, prompts)
            with replacing(path) as partial:
                save_file({"pictures": pictures, **terms}, partial)
        parts.append(load_file(path))
        print(json.dumps({"captions": start + len(some), "of": captions}), flush=True)
    pictures = torch.cat([part["pictures"] for part in parts]).flatten(0, 1)
    terms = {name: torch.cat([part[name] for part in parts]) for name in WEIGHTS}
    utilities = torch.stack([weight * terms[name] for name, weight in WEIGHTS.items()]).sum(0)
    index = all_pairs(captions, count)
    both = utilities[index]
    temperature = temperature_for(both, agreement)
    labels = prefer(both, temperature, Generator().manual_seed(seed + 1))
    of_pairs = [texts[i] for i in (index[:, 0] // count).tolist()]
    write_pairs(out, pictures, index, of_pairs, labels, both)
    within = lambda values: float(values.unflatten(0, (captions, -1)).std(1).mean())
    figures: dict[str, float] = {
        "pairs": len(index),
        "pictures": len(pictures),
        "captions": captions,
        "temperature": round(temperature, 4),
        "agreement_with_clean": round(float((labels == prefer(both)).float().mean()), 4),
    }
    if turbo is not None:
        figures["flow_preferred"] = round(_preferred(labels, index, count, each), 4)
    for name, weight in WEIGHTS.items():
        figures[f"spread_within_captions_of_{name}"] = round(weight * within(terms[name]), 4)
    out.with_suffix(".json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    print(json.dumps(figures, indent=2))


def _preferred(labels: Tensor, index: Tensor, pictures: int, each: int) -> float:
    """How often the flow's picture is preferred to the other generator's."""

    first, second = (index % pictures < each).T
    mixed = first != second
    return float(torch.where(first, labels, 1 - labels)[mixed].mean())


if __name__ == "__main__":
    require("typer", "the command needs", "testbed").run(train)
