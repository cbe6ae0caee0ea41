"""The command `rwguidance prepare`: preference data, or own draws, as a training reads them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .generate import BackboneName, BatchSize, Dtype, Options, Paths, Steps
from .options import Device, Seed, dtype_named, parse_names, parse_options, parse_paths
from .prompts import PromptColumn, PromptsOption, read_prompt_set
from .sources import Sources, label

if TYPE_CHECKING:
    from ...generation.console import Terminal
    from ...generation.run import Report
    from ...preparation import Preparation, Prepared
    from ...support.processes import Processes

Data = Annotated[
    list[str] | None,
    typer.Option(
        help="Preference data: .parquet, .arrow (as datasets saves it), .tar (WebDataset), or "
        ".jsonl, .json or .csv whose pictures are paths beside it; or a folder that is searched "
        "for these. May repeat.",
        metavar="FILE|FOLDER",
        show_default=False,
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        help="Names of the columns, if the data has none of the published layouts (Pick-a-Pic, "
        "HPD, ImageReward): first=A,second=B,caption=C,preference=D, with 1 where the first "
        "picture is preferred, 0, or 0.5 for a tie.",
        metavar="KEY=NAME,...",
        show_default=False,
    ),
]
Rewards = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        help="Rewards of all pictures, by names that `rwguidance rewards` lists or FILE.py:NAME; "
        "separated by commas, or again.",
        metavar="NAME,NAME",
        show_default=False,
    ),
]
Features = Annotated[
    list[str] | None,
    typer.Option(
        help="Rewards of two towers, such as clipscore or pickscore, whose features of all "
        "pictures of --data are kept, for `rwguidance train-reward`.",
        metavar="NAME,NAME",
        show_default=False,
    ),
]


def prepare(
    backbone: BackboneName,
    out: Annotated[Path, typer.Option(help="Folder for the data.")],
    data: Data = None,
    columns: Columns = None,
    size: Annotated[
        int | None,
        typer.Option(help="Height and width of pictures; by default the model's.", min=8),
    ] = None,
    prompts: PromptsOption = None,
    prompt_column: PromptColumn = "prompt",
    draws: Annotated[int, typer.Option(help="Draws of each prompt.", min=1)] = 64,
    steps: Steps = None,
    reward: Rewards = None,
    features: Features = None,
    validation: Annotated[
        float, typer.Option(help="Share of the prompts that are for validation.", min=0)
    ] = 0.02,
    seed: Seed = 0,
    path: Paths = None,
    option: Options = None,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = 8,
) -> None:
    """Prepare data for a training: encode preference data, or draw pictures of prompts and score.

    Give --data for pairs that people compared, or --prompts for draws of the model itself. Writes
    latents, rewards, embeddings of the prompts and a split by prompt. Rows that cannot be used are
    left out and listed in skipped.csv. The same command goes on after an interruption, and takes
    up files and rewards that are new. Several processes share it: `accelerate launch -m rwguidance
    prepare ...`.

    Exit code: 0, or 2 if something was left out, 130 if interrupted, 1 for all other errors.
    """

    from ...preparation import find_sources, own_layout
    from ...support.processes import joined

    if (data is None) == (prompts is None):
        raise ValueError("give --data, or --prompts, and not both")
    own = None if columns is None else _names(columns)
    if own is not None:
        own_layout(own)
    names, towers = parse_names(reward), parse_names(features)
    sources = Sources(parse_paths(path), parse_options(option), device, dtype_named(dtype))
    sources.check(backbone, *names, *towers)
    found = None if prompts is None else read_prompt_set(prompts, prompt_column).prompts
    if data is not None:
        find_sources(data)  # before anything is loaded

    def work(processes: "Processes", report: "Report") -> "Prepared":
        from ...preparation import Preparation, prepare_draws, prepare_pairs

        loaded: dict[str, Any] = {
            name: sources.reward(name) for name in dict.fromkeys([*names, *towers])
        }
        model = sources.backbone(backbone)
        job = Preparation(
            backbone=model,
            out=out,
            rewards={label(name): loaded[name] for name in names},
            features={label(name): loaded[name] for name in towers},
            batch_size=batch_size,
            validation=validation,
            seed=seed,
            report=report,
            processes=processes,
        )
        if found is not None:
            return prepare_draws(job, found, draws, steps)
        assert data is not None
        return prepare_pairs(job, data, _size(job, size), own)

    with joined() as processes:
        raise typer.Exit(_run(work, processes))


def _names(text: str) -> dict[str, str]:
    parts = [part.partition("=") for part in text.split(",")]
    if not all(key and name for key, _, name in parts):
        raise ValueError(f"columns must be KEY=NAME,..., got {text!r}")
    return {key: name for key, _, name in parts}


def _size(job: "Preparation", size: int | None) -> tuple[int, int]:
    if size is not None:
        return size, size
    height, width = (getattr(job.backbone, name, None) for name in ("height", "width"))
    if height is None or width is None:
        raise ValueError("give --size, since the model does not say its own")
    return int(height), int(width)


def _run(work: Callable[["Processes", "Report"], "Prepared"], processes: "Processes") -> int:
    """Runs the work with a bar, says what was found, and returns the exit code."""

    from ...generation.console import Terminal

    terminal = Terminal(quiet=not processes.first)
    try:
        with terminal.warnings(), progress_bars(terminal) as report:
            prepared = work(processes, report)
    except KeyboardInterrupt:
        terminal.say("interrupted: the same command goes on where this one stopped")
        return 130
    counts = prepared.counts
    terminal.say(", ".join(f"{number:,} {what}" for what, number in counts.items()))
    terminal.say(f"{prepared.folder} is ready for a training")
    if not prepared.left_out:
        return 0
    for reason, number in prepared.left_out.most_common(8):
        terminal.say(f"left out: {number:,} times: {reason}")
    terminal.say(f"{prepared.folder / 'skipped.csv'} names each of them")
    return 2


@contextmanager
def progress_bars(terminal: "Terminal") -> Iterator["Report"]:
    """Shows what is done of each file, how fast it goes, and how long the rest takes."""

    from rich import progress
    from rich.text import Text

    class Rate(progress.ProgressColumn):
        def render(self, task: progress.Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:.1f}/s")

    bars = progress.Progress(
        progress.TextColumn("{task.description:<24}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        Rate(),
        progress.TimeRemainingColumn(),
        console=terminal.console,
        transient=True,
    )
    with bars:
        tasks: dict[str, progress.TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, completed=done)
            bars.update(tasks[stage], completed=done, total=total)

        yield report
