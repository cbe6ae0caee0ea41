"""The command `rwguidance generate`; the options of methods come from the methods."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ...generation import Store
from ...generation import generate as make_pairs
from ...generation.console import run_generate
from ...generation.methods import METHODS
from ...generation.settings import build, method_options
from .options import (
    Device,
    DtypeName,
    Seed,
    check_device,
    dtype_named,
    parse_options,
    parse_paths,
    takes_settings,
)

if TYPE_CHECKING:
    from rwguidance import backbones, rewards

    Method = str
else:  # a type checker cannot know the names
    Method = Literal[tuple(METHODS)]

BackboneName = Annotated[str, typer.Option(help="A name that `rwguidance backbones` lists.")]
RewardName = Annotated[str, typer.Option(help="A name that `rwguidance rewards` lists.")]
Prompts = Annotated[
    list[str] | None, typer.Option(help="A prompt; may repeat.", show_default=False)
]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        help="A file of prompts: .txt, or .csv or .jsonl with prompt.", show_default=False
    ),
]
MethodName = Annotated[Method, typer.Option(help="How to align.")]
Images = Annotated[int, typer.Option(help="Pictures per prompt.", min=1)]
Steps = Annotated[int | None, typer.Option(help="Steps of the sampler.", min=1, show_default=False)]
NegativePrompt = Annotated[
    str | None,
    typer.Option(help="What classifier-free guidance leads away from.", show_default=False),
]
Paths = Annotated[
    list[str] | None,
    typer.Option(
        help="Where the weights of the backbone or the reward are; may repeat.",
        metavar="NAME=PATH",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        help="A keyword of the backbone's or the reward's constructor, such as "
        "sdxl:guidance_scale=6; may repeat.",
        metavar="NAME:KEY=VALUE",
    ),
]
Dtype = Annotated[
    DtypeName | None,
    typer.Option(help="What the backbone's weights are cast to.", show_default=False),
]
BatchSize = Annotated[int, typer.Option(help="Samples that the networks see at once.", min=1)]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Folder for draws of the model; by default rwguidance/banks in the user's cache.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option(help="Folder for pictures and tables.")]
Restart = Annotated[bool, typer.Option("--restart", help="Replace pictures of other settings.")]


@takes_settings(method_options(METHODS), "Settings of the method")
def generate(
    backbone: BackboneName,
    reward: RewardName,
    prompt: Prompts = None,
    prompts: PromptFile = None,
    method: MethodName = "importance",
    images: Images = 1,
    steps: Steps = None,
    seed: Seed = 0,
    negative_prompt: NegativePrompt = None,
    path: Paths = None,
    option: Options = None,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = 4,
    cache: Cache = None,
    out: Out = Path("out/generate"),
    restart: Restart = False,
    **settings: Any,
) -> None:
    """Make pictures of prompts twice from the same noise: by the model alone, and aligned.

    Writes pictures with their settings and rewards in the metadata, a table results.csv, and sheets
    of base beside aligned. A picture depends on the seed, its prompt and its number, not on the
    batch size or on other prompts. An interrupted run goes on when the same command is given again.

    Exit code: 0, or 2 if a prompt or a reward failed, 130 if interrupted, 1 for all other errors.
    """

    texts = _texts(prompt, prompts)
    aligned = build(METHODS[method], settings)
    model, judge = _load(backbone, reward, path, option, device, dtype)
    work = lambda report: make_pairs(
        model,
        judge,
        texts,
        out,
        aligned,
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


def _texts(prompts: list[str] | None, file: Path | None) -> list[str]:
    """Returns the prompts that were given, or the distinct ones of a file."""

    from rwguidance.rewards.prompt_files import read_prompts

    if (prompts is None) == (file is None):
        raise ValueError("give --prompt or --prompts, one of them")
    return prompts or list(dict.fromkeys(line.text for line in read_prompts(file or "")))


def _load(
    backbone: str,
    reward: str,
    path: list[str] | None,
    option: list[str] | None,
    device: str | None,
    dtype: DtypeName | None,
) -> tuple["backbones.Backbone", "rewards.Reward"]:
    """Returns the backbone and the reward of these names, from the entries of the command line."""

    from rwguidance import backbones, rewards

    paths, options = parse_paths(path), parse_options(option)
    for what, names in (("path", paths), ("option", options)):
        stray = [name for name in names if name not in (backbone, reward)]
        if stray:
            raise ValueError(f"{what} names {stray[0]!r}, which is neither {backbone} nor {reward}")
    check_device(device)
    judge = rewards.load(reward, paths.get(reward), device, **options.get(reward, {}))
    model = backbones.load(
        backbone,
        paths.get(backbone),
        device,
        dtype_named(dtype),
        **options.get(backbone, {}),
    )
    return model, judge
