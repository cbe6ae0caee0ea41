"""The command line, which joins the commands: each of them is a file of its own."""

import io
import sys
from typing import Annotated

import typer

from ..support.describe import printable
from .commands.app import open_app
from .commands.backbones import list_backbones
from .commands.demo import demo
from .commands.evaluate import evaluate
from .commands.generate import generate
from .commands.options import PartialCommand

# Scripts import these two under their old names.
from .commands.options import parse_options as _options  # noqa: F401
from .commands.options import parse_paths as _paths  # noqa: F401
from .commands.prepare import prepare
from .commands.prompts import list_prompts
from .commands.rewards import list_rewards
from .commands.score import score
from .commands.toy import toy
from .commands.train import train
from .commands.train_reward import train_reward

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Reward-weighted guidance: sample p(x|y) exp(r(x,y)/beta) from a frozen model.",
)
app.command()(demo)
app.command("app")(open_app)
app.command()(toy)
app.command("rewards")(list_rewards)
app.command(cls=PartialCommand)(score)
app.command("backbones")(list_backbones)
app.command("prompts")(list_prompts)
app.command(cls=PartialCommand)(generate)
app.command(cls=PartialCommand)(evaluate)
app.command(cls=PartialCommand)(prepare)
app.command(cls=PartialCommand)(train)
app.command("train-reward", cls=PartialCommand)(train_reward)


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from .. import __version__

        typer.echo(__version__)
        raise typer.Exit()


_MISTAKES = (ValueError, TypeError, ImportError, OSError, FloatingPointError)


def main() -> None:
    """Runs the command line: exit code 0, or 1 with one line for an error the user can mend."""

    _print_whatever_comes()
    try:
        app()
    except Exception as error:
        # A name that is unknown is a LookupError; a KeyError or an IndexError is ours.
        if not isinstance(error, _MISTAKES) and type(error) is not LookupError:
            raise
        typer.secho(f"error: {printable(str(error))}", fg=typer.colors.RED, err=True)
        sys.exit(1)


def _print_whatever_comes() -> None:
    """Makes letters that the terminal or pipe cannot encode appear as escapes, not as errors."""

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
