"""The command `rwguidance demo`."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for pictures and tables.")] = Path("out/demo"),
    seed: Annotated[int, typer.Option(help="Seed of everything.", min=0)] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A small run, in seconds.")] = False,
    digits: Annotated[
        bool,
        typer.Option(
            "--digits", help="An exact model of digits and a mixture in the plane instead."
        ),
    ] = False,
) -> None:
    """Align small text-to-image models with a learned reward, and show what it did."""

    import torch

    from rwguidance_testbed import network, shipped
    from rwguidance_testbed.data import load_names

    from ...support.outside import require
    from ..demo import run, run_digits
    from ..demo.emoji import PROMPTS, Case, Scorer, Settings

    if digits:
        torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
        run_digits(out, seed=seed, quick=quick)
        return
    for module in ("diffusers", "transformers", "PIL"):
        require(module, "the demo needs", "demo")
    for name in ("emoji-flow", "emoji-pick", "emoji-judge"):
        shipped.folder(name)  # raises where it is missing, before anything else is loaded

    from rwguidance import backbones, rewards

    # Decoding is most of the work, and a third faster so.
    load = lambda name: (
        backbones.load(name).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    )
    cases = [Case("emoji-flow", load("emoji-flow"), 4)]
    if {"emoji-turbo", "emoji-turbo-guide"} <= set(shipped.names()):
        guide, figures = network.read(shipped.folder("emoji-turbo-guide"))
        cases.append(Case("emoji-turbo", load("emoji-turbo"), 1, guide, figures["beta"]))
    else:
        typer.echo("emoji-turbo and its network do not come with this version: emoji-flow alone")
    names = [name for part in load_names().values() for name in part]
    things = dict(list(PROMPTS.items())[: 2 if quick else None])
    scorer = Scorer(rewards.load("emoji-pick").eval(), shipped.gold(), things, names)
    settings = Settings(images=2, bank=8, nats=0.5) if quick else Settings()
    run(cases, scorer, out, settings, seed)
