"""The command `rwguidance prompts`, and the option of other commands that names prompts."""

from typing import TYPE_CHECKING, Annotated

import typer

from ...support.describe import printable
from .options import Seed, plain_warnings

if TYPE_CHECKING:
    from ...evaluation import PromptSet

_WHAT = (
    "A name that `rwguidance prompts` lists, NAME=PATH for one whose files are yours, or a file: "
    ".txt with a prompt per line, .csv, .tsv, .json, .jsonl or .parquet"
)

PromptsOption = Annotated[
    str | None,
    typer.Option(help=f"{_WHAT}.", metavar="NAME[=PATH]|FILE", show_default=False),
]
PromptColumn = Annotated[str, typer.Option(help="The column of the prompts in a file of yours.")]


def list_prompts(
    name: Annotated[
        str | None,
        typer.Argument(
            help=f"Print these prompts. {_WHAT}.", metavar="NAME[=PATH]|FILE", show_default=False
        ),
    ] = None,
    subset: Annotated[
        int | None,
        typer.Option(help="So many of them, picked by the seed.", min=1, show_default=False),
    ] = None,
    seed: Seed = 0,
    prompt_column: PromptColumn = "prompt",
) -> None:
    """List the sets of prompts with their licenses and where to get them, or print one.

    Prompts are printed one per line, as a .txt file has them.
    """

    from rwguidance.evaluation import prompts

    if name is None:
        if subset is not None:
            raise ValueError("subset needs a set of prompts to pick from, got none")
        with plain_warnings():
            typer.echo(prompts.available())
        return
    found = read_prompt_set(name, prompt_column)
    for prompt in (found if subset is None else found.subset(subset, seed)).prompts:
        typer.echo(" ".join(prompt.splitlines()))


def read_prompt_set(text: str, column: str) -> "PromptSet":
    """Returns the prompts that an option names, and prints its notes to the error stream."""

    from rwguidance.evaluation import prompts

    found = prompts.find(text, column)
    for note in found.notes:
        typer.echo(f"note: {printable(note)}", err=True)
    return found
