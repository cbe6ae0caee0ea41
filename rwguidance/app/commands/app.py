"""The command `rwguidance app`."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Device, DtypeName, dtype_named, parse_names, parse_options, parse_paths
from .sources import Sources, is_own

if TYPE_CHECKING:
    from ..page import Limits, Studio

_BACKBONES = ["emoji-flow", "emoji-turbo"]
_REWARDS = ["emoji-pick", "emoji-gold", "emoji-match"]

Backbones = Annotated[
    list[str] | None,
    typer.Option(
        help="A name that `rwguidance backbones` lists; may repeat, or hold several separated by "
        "commas. By default the models of the test bed.",
        show_default=False,
    ),
]
Rewards = Annotated[
    list[str] | None,
    typer.Option(
        help="A name that `rwguidance rewards` lists; may repeat, or hold several separated by "
        "commas. By default the rewards of the test bed.",
        show_default=False,
    ),
]
Paths = Annotated[
    list[str] | None,
    typer.Option(help="Where the weights of one of them are; may repeat.", metavar="NAME=PATH"),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        help="A keyword of a constructor, such as sdxl:guidance_scale=6; may repeat.",
        metavar="NAME:KEY=VALUE",
    ),
]
Dtype = Annotated[
    DtypeName | None,
    typer.Option(help="What the backbones' weights are cast to.", show_default=False),
]
BatchSize = Annotated[int, typer.Option(help="Samples that the networks see at once.", min=1)]
Host = Annotated[
    str, typer.Option(help="Address to listen on; this machine alone reaches the default.")
]
Port = Annotated[
    int | None,
    typer.Option(help="By default the first free one from 7860.", min=1, max=65535),
]
Pictures = Annotated[int, typer.Option(help="Pictures that a visitor gets at once.", min=1)]
Steps = Annotated[int, typer.Option(help="Steps of the sampler, at most.", min=1)]
Calls = Annotated[
    int, typer.Option(help="Calls of the network for what a visitor gets at once.", min=1)
]
Waiting = Annotated[int, typer.Option(help="Visitors who wait for their turn.", min=1)]


def open_app(
    backbone: Backbones = None,
    reward: Rewards = None,
    path: Paths = None,
    option: Options = None,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = 4,
    host: Host = "127.0.0.1",
    port: Port = None,
    max_pictures: Pictures = 8,
    max_steps: Steps = 50,
    max_calls: Calls = 4000,
    max_waiting: Waiting = 16,
) -> None:
    """Open a page in the browser: a prompt, a reward and a strength; base beside aligned.

    The models are those of the test bed, rwguidance-testbed, unless others are named. All are
    loaded at the start. The page shows the lines that make its pictures again, loads nothing from
    elsewhere, takes no uploads and serves one visitor after the other. It ends with Ctrl+C.
    """

    from ...support.outside import require
    from ..page import Limits
    from ..page.blocks import is_loopback, opened_page

    require("gradio", "the page needs", "app")
    sources = Sources(parse_paths(path), parse_options(option), device, dtype_named(dtype))
    limits = Limits(pictures=max_pictures, steps=max_steps, calls=max_calls, waiting=max_waiting)
    own = backbone is None and reward is None
    studio = _studio(
        parse_names(backbone) or _BACKBONES, parse_names(reward) or _REWARDS, sources, limits,
        batch_size,
    )  # fmt: skip
    with opened_page(studio, sources, _examples() if own else (), host, port) as address:
        typer.echo(f"the page is at {address} until you press Ctrl+C")
        if not is_loopback(host):
            typer.echo("note: everyone who reaches this machine reaches the page", err=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            typer.echo("closed")


def _studio(
    backbones: list[str], rewards: list[str], sources: Sources, limits: "Limits", batch_size: int
) -> "Studio":
    """The models and the rewards, loaded: the small rewards first."""

    from ..page import Studio

    for name in (*backbones, *rewards):
        if is_own(name):
            raise ValueError(f"the page takes names of the lists, and no files, got {name!r}")
    sources.check(*backbones, *rewards)
    judges = {name: sources.reward(name) for name in rewards}
    models = {name: sources.backbone(name) for name in backbones}
    return Studio(models, judges, limits, batch_size)


def _examples() -> list[str]:
    """Prompts of the test bed."""

    from rwguidance.evaluation import prompts

    return list(prompts.load("emoji-demo").prompts[:4])
