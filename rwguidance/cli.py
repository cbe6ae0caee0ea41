"""The command line. The only file of the core that may join the three packages, and only lazily."""

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Reward-weighted guidance: sample p(x|y) exp(r(x,y)/beta) from a frozen model.",
)


class LawName(str, Enum):
    """The laws of `rwguidance toy`."""

    gaussian = "gaussian"
    mixture = "mixture"


class RewardName(str, Enum):
    """The rewards of `rwguidance toy`."""

    linear = "linear"
    quadratic = "quadratic"


class PathName(str, Enum):
    """The noise paths of `rwguidance toy`."""

    vp = "vp"
    cosine = "cosine"
    rectified = "rectified"


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from . import __version__

        typer.echo(__version__)
        raise typer.Exit()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for pictures and tables.")] = Path("out/demo"),
    seed: Annotated[int, typer.Option(help="Seed of everything.", min=0)] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A small run, in seconds.")] = False,
) -> None:
    """Align an exact model of handwritten digits, and a mixture in the plane, and show it."""

    import torch

    from .demo import run

    torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
    run(out, seed=seed, quick=quick)


@app.command()
def toy(
    law: Annotated[LawName, typer.Option(help="Law of the base model.")] = LawName.mixture,
    reward: Annotated[RewardName, typer.Option(help="Reward to tilt by.")] = RewardName.linear,
    path: Annotated[PathName, typer.Option(help="Noise path.")] = PathName.rectified,
    dim: Annotated[int, typer.Option(help="Dimension of the states.", min=1, max=256)] = 2,
    beta: Annotated[float, typer.Option(help="Temperature, in reward units; positive.")] = 1.0,
    bank: Annotated[int, typer.Option(help="Draws for importance sampling.", min=2)] = 4096,
    batch: Annotated[int, typer.Option(help="States per time.", min=1)] = 512,
    training_steps: Annotated[
        int, typer.Option(help="Steps for each guidance network; 0 leaves them out.", min=0)
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of everything.", min=0)] = 0,
) -> None:
    """Compare every estimator with the closed form, time by time, on a toy law."""

    from .demo.comparison import compare

    compare(
        law=law.value,
        reward=reward.value,
        path=path.value,
        dim=dim,
        beta=beta,
        bank_size=bank,
        batch=batch,
        training_steps=training_steps,
        seed=seed,
    )


def main() -> None:
    """Runs the command line: exit code 0, or 1 with one line for an error the user can mend."""

    try:
        app()
    except (ValueError, TypeError, ImportError, OSError, FloatingPointError) as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(1)
