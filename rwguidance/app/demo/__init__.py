"""The main job: align two text-to-image models with a learned reward, and show it.

And a smaller one, where everything is exact: a model of real digits, and a mixture in the plane.
"""

import csv
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .digits import Row, align_digits
from .mixture import Panel, align_mixture, problem
from .pictures import Case, Mean, Scorer, Settings, align, verdict
from .pictures import Row as PictureRow

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Case", "Scorer", "Settings", "run", "run_digits"]


def run(
    cases: Sequence[Case],
    scorer: Scorer,
    out: Path,
    settings: Settings | None = None,
    seed: int = 0,
) -> list[Path]:
    """Runs the demo on pictures and returns the files it wrote: a contact sheet and a table.

    Arguments:
        cases: The models.
        scorer: Has the prompts, and says what is good.
        out: Folder to write to; made if missing.
        settings: How much is drawn; None is the default.
        seed: Of everything.
    """

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from .figures import draw_pictures

    settings = Settings() if settings is None else settings
    console = Console()
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    each = settings.bank + settings.images * (2 + settings.candidates)
    columns = (TextColumn("{task.description:<36}"), BarColumn(), TimeElapsedColumn())
    rows, blocks = [], []
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=len(cases) * len(scorer.prompts) * each)

        def report(stage: str, pictures: int) -> None:
            bar.update(task, advance=pictures, description=stage or None)

        for case in cases:
            found, pairs = align(case, scorer, settings, seed, report)
            rows += found
            blocks.append(pairs)
        report("done", 0)

    files = [out / "emoji.png", out / "emoji.csv"]
    draw_pictures(scorer.prompts, blocks, files[0])
    _write_csv(files[1], [_flat(row) for row in rows])
    console.print(_picture_table(rows, len(scorer.prompts), settings.images))
    for row in rows:
        if row.excess is not None:
            console.print(verdict(row), highlight=False)
    console.print(f"done in {time.perf_counter() - started:.0f} s; look at")
    for path in files:
        console.print(f"  {path}", soft_wrap=True)
    return files


def _picture_table(rows: Sequence[PictureRow], prompts: int, images: int) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{prompts} prompts, {images} pictures each. Base: means. Others: gains over\n"
        "base from the same noise, ± standard error over prompts. Proxy: the learned\n"
        "reward. Gold: what it was learned from. Match: the prompt's term of gold alone, a\n"
        "cosine, in %. Target: means of the tilted bank minus its means.\n"
        "Calls of the network and seconds: per picture, + per prompt for its bank.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("", "proxy", "gold", "match", "calls", "s"):
        justify: Any = "right" if name else "left"
        table.add_column(name, justify=justify, no_wrap=True)
    for i, row in enumerate(rows):
        if i == 0 or rows[i - 1].model != row.model:
            table.add_section()
            table.add_row(f"[bold]{row.model}[/bold]")
        table.add_row(
            row.method,
            _with_error(row.proxy, 2),
            _with_error(row.gold, 2),
            _with_error(Mean(100 * row.match.value, 100 * row.match.error), 1),
            _sum(row.calls, row.setup_calls, 0),
            _sum(row.seconds, row.setup_seconds, 2),
        )
    return table


def _sum(each: float, once: float, digits: int) -> str:
    if not each:
        return ""
    return f"{each:.{digits}f}" + (f" + {once:.{digits}f}" if once else "")


def _with_error(mean: Mean, digits: int) -> str:
    return f"{mean.value:.{digits}f} ± {mean.error:.{digits}f}"


def _flat(row: PictureRow) -> dict[str, object]:
    """A row as the table on disk has it: numbers only, means beside their errors."""

    flat: dict[str, object] = {}
    for key, value in vars(row).items():
        if isinstance(value, Mean) or key == "excess":
            flat[key] = value.value if value else ""
            flat[f"{key}_error"] = value.error if value else ""
        else:
            flat[key] = " ".join(f"{v:.4g}" for v in value) if key == "ess" else value
    return flat


def run_digits(out: Path, seed: int = 0, quick: bool = False) -> list[Path]:
    """Runs the demo on digits and returns the files it wrote: two pictures and two tables.

    Arguments:
        out: Folder to write to; made if missing.
        seed: Of everything.
        quick: Fewer samples and training steps, for a first look and for tests.
    """

    from rich.console import Console

    from .figures import draw_digits, draw_mixture

    console = Console()
    say = lambda message: console.print(f"[bold]{message}[/bold]")
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    small = {"samples": 20, "bank_size": 256, "training_steps": 30} if quick else {}

    rows, pictures = align_digits(seed=seed, say=say, **small)
    panels = align_mixture(seed=seed, say=say, **small)

    base, tilt = problem()
    files = [out / name for name in ("digits.png", "mixture.png", "digits.csv", "mixture.csv")]
    draw_digits(pictures, files[0])
    draw_mixture(panels, base, base.tilted(tilt), files[1])
    _write_csv(files[2], [asdict(row) for row in rows])
    _write_csv(files[3], [{k: v for k, v in vars(p).items() if k != "draws"} for p in panels])
    console.print(_digits_table(rows))
    console.print(_mixture_table(panels))
    console.print(f"done in {time.perf_counter() - started:.0f} s; look at")
    for path in files:
        console.print(f"  {path}", soft_wrap=True)
    return files


def _digits_table(rows: Sequence[Row]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(
        title="Handwritten digits. Distance: sliced Wasserstein to exact draws of the\n"
        "target (for the target, between two sets). ESS: effective draws, first to\n"
        "last step. One step gives a mean, not a sample. Seconds include training.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("reward", "method", "calls", "mean reward", "distance", "ESS", "s"):
        justify: Any = "left" if name in ("reward", "method") else "right"
        table.add_column(name, justify=justify, no_wrap=True)
    previous = rows[0]
    for row in rows:
        if row.reward != previous.reward or row.steps != previous.steps:
            table.add_section()
        previous = row
        table.add_row(
            row.reward,
            row.method,
            str(row.calls or ""),
            f"{row.mean:.2f} ± {row.standard_error:.2f}",
            f"{row.distance:.3f}",
            "{:.0f} to {:.0f}".format(*row.ess) if row.ess else "",
            f"{row.seconds:.0f}" if row.seconds else "",
        )
    return table


def _mixture_table(panels: Sequence[Panel]) -> "Table":
    from rich.table import Table

    table = Table(title="The mixture, 25 Heun steps (50 network calls), VP path")
    for name in ("samples of", "mean reward", "distance", "seconds"):
        table.add_column(name, justify="left" if name == "samples of" else "right")
    for panel in panels:
        seconds = f"{panel.seconds:.1f}" if panel.seconds else ""
        table.add_row(panel.title, f"{panel.reward:.3f}", f"{panel.distance:.3f}", seconds)
    return table


def _write_csv(path: Path, rows: Sequence[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
