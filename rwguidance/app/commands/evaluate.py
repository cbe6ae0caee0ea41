"""The command `rwguidance evaluate`: methods at strengths, against the exactly tilted law."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from .generate import (
    BackboneName,
    Cache,
    Dtype,
    Images,
    NegativePrompt,
    Options,
    Paths,
    RewardName,
    Steps,
)
from .method_specs import parse_methods
from .options import Device, dtype_named, parse_names, parse_options, parse_paths
from .prompts import PromptColumn, PromptsOption, read_prompt_set
from .sources import Sources, label

if TYPE_CHECKING:
    from ...evaluation import Results, TargetSize
    from ...generation.console import Terminal
    from ...support.processes import Processes

T = TypeVar("T")

HeldOut = Annotated[
    list[str] | None,
    typer.Option(
        help="Rewards that no method sees, as --reward names them; separated by commas, or again.",
        metavar="NAME,NAME",
        show_default=False,
    ),
]
Embeddings = Annotated[
    list[str] | None,
    typer.Option(
        "--embedding",
        help="Embeddings in which pictures are compared to the tilted law: registered names, such "
        "as torchvision:resnet18 or a reward's, or FILE.py:NAME.",
        metavar="NAME,NAME",
        show_default=False,
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        help="A method with its settings, such as importance:bank=64,ess=0.05, best-of-n:n=4, "
        "network:network=NAME, plug-in, or FILE.py:NAME; may repeat. By default importance.",
        metavar="NAME[:KEY=VALUE,...]",
        show_default=False,
    ),
]
Strengths = Annotated[
    str, typer.Option(help="Strengths, in nats, of the methods that have one.", metavar="D,D,D")
]
Seeds = Annotated[
    str, typer.Option(help="Seeds; each has its own noise and its own banks.", metavar="S,S,S")
]
Subset = Annotated[
    int | None,
    typer.Option(help="So many of the prompts, picked by --subset-seed.", min=1),
]
TargetDraws = Annotated[
    int,
    typer.Option(help="Draws that stand for the tilted law of each prompt; 0: no target.", min=0),
]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="Another number of draws at one strength, for the first prompts alone if so many take "
        "too long: 4=20000@8 is for 8 of them; may repeat.",
        metavar="NATS=DRAWS[@PROMPTS]",
        show_default=False,
    ),
]
DevelopedOn = Annotated[
    list[str] | None,
    typer.Option(
        help="Prompts on which settings were chosen, as --prompts names them: warns if some of "
        "them are reported; may repeat.",
        metavar="NAME[=PATH]|FILE",
        show_default=False,
    ),
]
Shown = Annotated[
    int, typer.Option(help="First prompts of which a picture of each cell is kept.", min=0)
]
Batch = Annotated[int, typer.Option(help="Samples that the networks see at once.", min=1)]


def evaluate(
    backbone: BackboneName,
    reward: RewardName,
    prompts: PromptsOption = None,
    prompt_column: PromptColumn = "prompt",
    subset: Subset = None,
    subset_seed: Annotated[int, typer.Option(help="Seed of the subset.")] = 0,
    held_out: HeldOut = None,
    embedding: Embeddings = None,
    method: Methods = None,
    strengths: Strengths = "0.25,0.5,1,2",
    images: Images = 1,
    seeds: Seeds = "0",
    steps: Steps = None,
    negative_prompt: NegativePrompt = None,
    target_draws: TargetDraws = 256,
    target: Targets = None,
    developed_on: DevelopedOn = None,
    shown: Shown = 12,
    path: Paths = None,
    option: Options = None,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: Batch = 8,
    cache: Cache = None,
    out: Annotated[Path, typer.Option(help="Folder for results and tables.")] = Path(
        "out/evaluate"
    ),
    restart: Annotated[
        bool, typer.Option("--restart", help="Replace results of another plan.")
    ] = False,
) -> None:
    """Hold methods against the exactly tilted law: rewards, distances and costs, with errors.

    Every method runs at every strength from the noise of the same base pictures. The tilted law is
    known from draws that no method has seen. Writes table.csv, .md, .tex and .json, page.html with
    curves and pictures, records of all pictures, and some of the pictures. The same command goes on
    after an interruption, prompt by prompt, and makes prompts again of which something failed.

    Exit code: 0, or 2 if something failed, 130 if interrupted, 1 for all other errors.
    """

    from ...evaluation import Plan
    from ...evaluation.console import run_evaluate
    from ...evaluation.engine import claimed, run_plan
    from ...generation import Store

    if prompts is None:
        raise ValueError("give --prompts, a set or a file")
    found = read_prompt_set(prompts, prompt_column)
    found = found if subset is None else found.subset(subset, subset_seed)
    developed = [read_prompt_set(text, prompt_column) for text in developed_on or ()]
    held, spaces = parse_names(held_out), parse_names(embedding)
    plan = Plan(
        prompts=found.prompts,
        out=out,
        methods=parse_methods(method or ["importance"]),
        aligned=label(reward),
        held_out=list(map(label, held)),
        embeddings=list(map(label, spaces)),
        strengths=_numbers("strengths", strengths, float),
        images=images,
        seeds=_numbers("seeds", seeds, int),
        steps=steps,
        batch_size=batch_size,
        negative_prompt=negative_prompt,
        target_draws=target_draws,
        targets=_targets(target or []),
        shown=shown,
        developed_on=[prompt for one in developed for prompt in one.prompts],
        restart=restart,
        names={"backbone name": backbone, "prompt set": found.name},
    )
    sources = Sources(parse_paths(path), parse_options(option), device, dtype_named(dtype))
    sources.check(backbone, reward, *held, *spaces)
    store = Store.default() if cache is None else Store(cache)

    def work(terminal: "Terminal", processes: "Processes") -> "Results":
        # Before anything is loaded, and by one process for all.
        with claimed(plan) if processes.first else nullcontext():
            rewards = {label(name): sources.reward(name) for name in (reward, *held)}
            embeddings = {label(name): sources.embedding(name) for name in spaces}
            model = sources.backbone(backbone)
            with terminal.bars() as report:
                return run_plan(
                    plan, model, rewards, embeddings, store, report, terminal.say, processes
                )

    raise typer.Exit(run_evaluate(work, plan))


def _numbers(name: str, text: str, kind: Callable[[str], T]) -> list[T]:
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"{name} must be numbers separated by commas, got {text!r}") from None


def _targets(entries: Sequence[str]) -> "dict[float, TargetSize]":
    from ...evaluation import TargetSize

    targets: dict[float, Any] = {}
    for entry in entries:
        nats, _, size = entry.partition("=")
        draws, at, prompts = size.partition("@")
        try:
            place, numbers = float(nats), [int(draws), *([int(prompts)] if at else [])]
        except ValueError:
            raise ValueError(
                f"target must be NATS=DRAWS or NATS=DRAWS@PROMPTS, got {entry!r}"
            ) from None
        if place in targets:
            raise ValueError(f"target must name each strength once, got {entry!r} for another time")
        targets[place] = TargetSize(*numbers)
    return targets
