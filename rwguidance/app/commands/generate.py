"""`rwguidance generate`."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import DtypeName, check_device, parse_options, parse_paths


class MethodName(str, Enum):
    """The methods of `rwguidance generate`."""

    importance = "importance"
    network = "network"
    plug_in = "plug-in"
    best_of_n = "best-of-n"


def generate(
    backbone: Annotated[str, typer.Option(help="A name that `rwguidance backbones` lists.")],
    reward: Annotated[str, typer.Option(help="A name that `rwguidance rewards` lists.")],
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt; may repeat.", show_default=False)
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A file of prompts: .txt, or .csv or .jsonl with prompt.", show_default=False
        ),
    ] = None,
    method: Annotated[MethodName, typer.Option(help="How to align.")] = MethodName.importance,
    beta: Annotated[
        float | None,
        typer.Option(
            help="Temperature in reward units, for importance and plug-in, and for best-of-n to "
            "draw by weight instead of taking the best.",
            show_default=False,
        ),
    ] = None,
    kl: Annotated[
        float | None,
        typer.Option(
            help="How far to move each prompt's law, in nats, instead of beta; for importance, "
            "where 1 is the default.",
            show_default=False,
        ),
    ] = None,
    bank: Annotated[
        int | None,
        typer.Option(
            help="Draws per prompt for importance (64), or per image for best-of-n (16).",
            show_default=False,
        ),
    ] = None,
    ess: Annotated[
        float | None,
        typer.Option(
            help="Share of the bank to keep effective by flattening the kernel, for importance.",
            show_default=False,
        ),
    ] = None,
    network: Annotated[
        Path | None,
        typer.Option(help="The file of a trained guidance network.", show_default=False),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(help="Multiplies the shift; 1 is exact.", show_default=False),
    ] = None,
    window: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Times in [0, 1] between which to guide.", show_default=False),
    ] = None,
    images: Annotated[int, typer.Option(help="Pictures per prompt.", min=1)] = 1,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the sampler.", min=1, show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything.", min=0)] = 0,
    negative_prompt: Annotated[
        str | None,
        typer.Option(help="What classifier-free guidance leads away from.", show_default=False),
    ] = None,
    path: Annotated[
        list[str] | None,
        typer.Option(
            help="Where the weights of the backbone or the reward are; may repeat.",
            metavar="NAME=PATH",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="A keyword of the backbone's or the reward's constructor, such as "
            "sdxl:guidance_scale=6; may repeat.",
            metavar="NAME:KEY=VALUE",
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda:0.", show_default=False)] = None,
    dtype: Annotated[
        DtypeName | None,
        typer.Option(help="What the backbone's weights are cast to.", show_default=False),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Samples that the networks see at once.", min=1)
    ] = 4,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder for draws of the model; by default rwguidance/banks in the user's cache.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for pictures and tables.")] = Path(
        "out/generate"
    ),
    restart: Annotated[
        bool, typer.Option("--restart", help="Replace pictures of other settings.")
    ] = False,
) -> None:
    """Make pictures of prompts twice from the same noise: by the model alone, and aligned.

    Writes pictures with their settings and rewards in the metadata, a table results.csv, and sheets
    of base beside aligned. A picture depends on the seed, its prompt and its number, not on the
    batch size or on other prompts. An interrupted run goes on when the same command is given again.

    Exit code: 0, or 2 if a prompt or a reward failed, 130 if interrupted, 1 for all other errors.
    """

    import torch

    from rwguidance import backbones, rewards
    from rwguidance.rewards.prompt_files import read_prompts

    from ...generation import Store
    from ...generation import generate as generate_pairs
    from ...generation.console import run_generate

    if (prompt is None) == (prompts is None):
        raise ValueError("give --prompt or --prompts, one of them")
    texts = prompt or list(dict.fromkeys(line.text for line in read_prompts(prompts or "")))
    paths, options = parse_paths(path), parse_options(option)
    for what, names in (("path", paths), ("option", options)):
        stray = [name for name in names if name not in (backbone, reward)]
        if stray:
            raise ValueError(f"{what} names {stray[0]!r}, which is neither {backbone} nor {reward}")
    settings: dict[str, Any] = {
        "beta": beta,
        "kl": kl,
        "bank": bank,
        "ess": ess,
        "network": network,
        "scale": scale,
        "window": window,
    }
    how = _method(method, {key: value for key, value in settings.items() if value is not None})
    check_device(device)
    precision = None if dtype is None else getattr(torch, dtype.value)
    try:
        judge = rewards.load(reward, paths.get(reward), device, **options.get(reward, {}))
        model = backbones.load(
            backbone, paths.get(backbone), device, precision, **options.get(backbone, {})
        )
    except LookupError as error:
        if type(error) is not LookupError:  # a KeyError is ours
            raise
        raise ValueError(str(error)) from None
    work = lambda report: generate_pairs(
        model,
        judge,
        texts,
        out,
        how,
        images=images,
        seed=seed,
        steps=steps,
        batch_size=batch_size,
        negative_prompt=negative_prompt,
        store=Store.default() if cache is None else Store(cache),
        restart=restart,
        names={"backbone name": backbone, "reward name": reward},
        report=report,
    )
    raise typer.Exit(run_generate(work, restart))


def _method(name: MethodName, given: dict[str, Any]) -> Any:
    """The method of a name, if it takes the options that were given."""

    from ...generation import BestOfN, Importance, Network, PlugInMean
    from ...networks import LatentExpectation, load

    takes = {
        MethodName.importance: {"beta", "kl", "bank", "ess", "scale", "window"},
        MethodName.network: {"network", "scale", "window"},
        MethodName.plug_in: {"beta", "scale", "window"},
        MethodName.best_of_n: {"bank", "beta"},
    }[name]
    stray = sorted(set(given) - takes)
    if stray:
        raise ValueError(
            f"--{stray[0]} is not for --method {name.value}, which takes "
            + ", ".join(f"--{option}" for option in sorted(takes))
        )
    if name is MethodName.best_of_n:
        return BestOfN(given.get("bank", 16), given.get("beta"))
    if name is MethodName.importance:
        return Importance(**(given if {"beta", "kl"} & set(given) else {"kl": 1.0, **given}))
    needed = "network" if name is MethodName.network else "beta"
    if needed not in given:
        raise ValueError(f"--method {name.value} needs --{needed}")
    if name is MethodName.plug_in:
        return PlugInMean(**given)
    trained = load(given.pop("network"))
    return Network(trained, isinstance(trained, LatentExpectation), **given)
