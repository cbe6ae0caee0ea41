"""The command `rwguidance generate`; the options of methods come from the methods."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ...backbone import TextToImage
from ...generation import Generated, Store
from ...generation.choice import AUTO, Situation, check_calls, choose, situation_of
from ...generation.console import Terminal, run_generate
from ...generation.job import Job
from ...generation.methods import METHODS
from ...generation.pairs import make
from ...generation.settings import build, method_options
from ...support.processes import joined
from ...tilt import RewardFunction
from .options import (
    Device,
    DtypeName,
    Seed,
    dtype_named,
    parse_options,
    parse_paths,
    takes_settings,
)
from .prompts import PromptColumn, PromptsOption, read_prompt_set
from .sources import Sources

if TYPE_CHECKING:
    Method = str
else:  # a type checker cannot know the names
    Method = Literal[tuple([AUTO, *METHODS])]

BackboneName = Annotated[
    str,
    typer.Option(
        help="A name that `rwguidance backbones` lists, or FILE.py:NAME, a backbone of your own or "
        "what returns one: the file is run.",
    ),
]
RewardName = Annotated[
    str,
    typer.Option(
        help="A name that `rwguidance rewards` lists, or FILE.py:NAME, a reward of your own, such "
        "as a function of images and prompts: the file is run.",
    ),
]
Prompts = Annotated[
    list[str] | None, typer.Option(help="A prompt; may repeat.", show_default=False)
]
MethodName = Annotated[
    Method,
    typer.Option(
        help="How to align; by default what suits pictures, steps, reward and --calls, and says so."
    ),
]
Images = Annotated[int, typer.Option(help="Pictures per prompt.", min=1)]
Steps = Annotated[int | None, typer.Option(help="Steps of the sampler.", min=1, show_default=False)]
Calls = Annotated[
    float | None,
    typer.Option(
        help="Calls of the network for an aligned picture, at most, with its part of those on the "
        "bank of its prompt; a pass back counts as two.",
        min=1,
        show_default=False,
    ),
]
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
    prompts: PromptsOption = None,
    prompt_column: PromptColumn = "prompt",
    method: MethodName = AUTO,
    images: Images = 1,
    steps: Steps = None,
    calls: Calls = None,
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
    batch size or on other prompts. The same command goes on after an interruption, and makes again
    what failed.

    Started by `accelerate launch -m rwguidance generate ...` or torchrun, several processes share
    the prompts, and write the folder of a single one.

    Exit code: 0, or 2 if a prompt, a picture or a reward failed, 130 if interrupted, 1 for all
    other errors.
    """

    given = {name: value for name, value in settings.items() if value is not None}
    if method == AUTO:  # for any model and reward: what none could do is said before they load
        choice = choose(Situation(images, steps or 1, path=True, gradient=True), given)
        made_by = build(choice.kind, {**choice.settings, **given})
    else:
        made_by = build(METHODS[method], given)
    job = Job(
        prompts=_texts(prompt, prompts, prompt_column),
        out=out,
        method=made_by,
        images=images,
        seed=seed,
        steps=steps,
        batch_size=batch_size,
        negative_prompt=negative_prompt,
        restart=restart,
        names={"backbone name": backbone, "reward name": reward},
    )
    sources = Sources(parse_paths(path), parse_options(option), device, dtype_named(dtype))
    sources.check(backbone, reward)
    store = Store.default() if cache is None else Store(cache)

    with joined() as processes:

        def work(terminal: Terminal) -> Generated:
            load = lambda: (sources.reward(reward), sources.backbone(backbone))
            loaded = load() if method == AUTO else None
            own = job if loaded is None else _of_choice(job, *loaded, calls, given, terminal.say)
            with own.claimed(processes):  # before anything is loaded, if nothing is to be chosen
                judge, model = loaded or load()
                if calls is not None:
                    check_calls(own.method, situation_of(model, judge, images, steps, calls))
                with terminal.bars() as report:
                    return make(own, model, judge, store, report, terminal.say, processes)

        raise typer.Exit(run_generate(work, restart, processes))


def _of_choice(
    job: Job,
    reward: RewardFunction,
    backbone: TextToImage,
    calls: float | None,
    given: Mapping[str, Any],
    say: Callable[[str], None],
) -> Job:
    """Returns the job with the method that suits its model and its reward, and says which."""

    situation = situation_of(backbone, reward, job.images, job.steps, calls)
    choice = choose(situation, given)
    say(choice.why)
    return replace(job, method=build(choice.kind, {**choice.settings, **given}))


def _texts(prompt: list[str] | None, prompts: str | None, column: str) -> Sequence[str]:
    """Returns the prompts that were given, or those of a set or a file."""

    if (prompt is None) == (prompts is None):
        raise ValueError("give --prompt or --prompts, one of them")
    return prompt or read_prompt_set(prompts or "", column).prompts
