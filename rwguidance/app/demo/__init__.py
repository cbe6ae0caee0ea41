"""The main job: align two text-to-image models with a learned reward, and show it.

And a smaller one, where everything is exact: a model of real digits, and a mixture in the plane.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .digits import Row, align_digits
from .mixture import Panel, align_mixture, problem
from .pictures import Case, Settings, Task, run, write_csv

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Case", "Settings", "Task", "run", "run_digits"]


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
    write_csv(files[2], [asdict(row) for row in rows])
    write_csv(files[3], [{k: v for k, v in vars(p).items() if k != "draws"} for p in panels])
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
    for name in ("reward", "method"):
        table.add_column(name, no_wrap=True)
    for name in ("calls", "mean reward", "distance", "ESS", "s"):
        table.add_column(name, justify="right", no_wrap=True)
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
    table.add_column("samples of")
    for name in ("mean reward", "distance", "seconds"):
        table.add_column(name, justify="right")
    for panel in panels:
        seconds = f"{panel.seconds:.1f}" if panel.seconds else ""
        table.add_row(panel.title, f"{panel.reward:.3f}", f"{panel.distance:.3f}", seconds)
    return table
