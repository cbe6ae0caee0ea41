"""Options of the command line are a promise: tests/command_options.txt lists them."""

import ast
from pathlib import Path

from rwguidance.app import cli

ROOT = Path(__file__).parents[3]
OPTIONS = ROOT / "tests" / "command_options.txt"
COMMANDS = ROOT / "rwguidance" / "app" / "commands"

WORDS = ("help", "metavar", "rich_help_panel")
"""What an option says of itself may change; what it takes may not."""


def command_options():
    """Every option and argument of a command with its bounds and its default."""

    return [
        f"{path.stem}.{line}"
        for path in sorted(COMMANDS.glob("*.py"))
        for line in options(path.read_text(encoding="utf-8"), commands())
    ]


def commands():
    """Names of the functions that are commands."""

    return {command.callback.__name__ for command in cli.app.registered_commands}


def options(source, names):
    """The options of commands of a module, and those that several share."""

    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and (bounds := bounds_of(node.value)) is not None:
            yield f"{ast.unparse(node.targets[0])} ({bounds})"
        elif isinstance(node, ast.FunctionDef) and node.name in names:
            arguments = node.args.args
            without = len(arguments) - len(node.args.defaults)
            for i, argument in enumerate(arguments):
                bounds = argument.annotation and bounds_of(argument.annotation)
                default = ast.unparse(node.args.defaults[i - without]) if i >= without else "none"
                yield f"{node.name} {argument.arg} ({bounds or ''}) = {default}"


def bounds_of(annotation):
    """What `typer.Option` or `typer.Argument` is given in an annotation; None if there is none."""

    for node in ast.walk(annotation):
        called = isinstance(node, ast.Call) and ast.unparse(node.func)
        if called in ("typer.Option", "typer.Argument"):
            names = [ast.unparse(name) for name in node.args]
            named = [ast.unparse(one) for one in node.keywords if one.arg not in WORDS]
            return ", ".join([*names, *named])
    return None


def test_the_reader_of_options_reads():
    source = """
Seed = Annotated[int, typer.Option(help="Seed.", min=0)]
SHARED = 3
def walk(
    place: Annotated[Path, typer.Argument(metavar="PLACE")],
    steps: Annotated[int | None, typer.Option("--steps", "-s", min=1, help="Steps.")] = 5,
    seed: Seed = 0,
) -> None: ...
def _own(x: Annotated[int, typer.Option(min=2)] = 2) -> None: ...
"""
    assert list(options(source, {"walk"})) == [
        "Seed (min=0)",
        "walk place () = none",
        "walk steps ('--steps', '-s', min=1) = 5",
        "walk seed () = 0",
    ]


def test_options_and_their_defaults_change_on_purpose():
    listed, found = OPTIONS.read_text(encoding="utf-8").splitlines(), command_options()
    new, gone = sorted(set(found) - set(listed)), sorted(set(listed) - set(found))
    assert listed == found, (
        f"options or their defaults changed: now {new}, before {gone}. Lines that users have "
        "written may mean something else: say so in docs/migration.md, and write the list anew "
        "with `python tests/rwguidance/app/test_command_options.py`."
    )


def test_every_command_is_listed():
    text = OPTIONS.read_text(encoding="utf-8")
    assert {"generate", "toy"} < commands()
    assert not [name for name in commands() if f".{name} " not in text]


if __name__ == "__main__":
    OPTIONS.write_text("\n".join(command_options()) + "\n", encoding="utf-8")
    print(f"wrote {OPTIONS.relative_to(ROOT)}")
