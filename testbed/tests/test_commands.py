"""Commands: options and their descriptions come from a function and from dataclasses."""

import inspect
import re
import runpy
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from rwguidance_testbed import commands

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "adversarial",
    "black_box",
    "data",
    "distill",
    "effective_dimension",
    "flow",
    "network",
    "preferences",
    "towers",
    "turbo",
    "vae",
)


@dataclass(frozen=True, kw_only=True)
class Few:
    """Few settings.

    Arguments:
        steps: Steps in
            all.
        resume: Whether to go on.
    """

    steps: int
    resume: bool = True


@dataclass(frozen=True, kw_only=True)
class More(Few):
    """More settings.

    Arguments:
        rate: The rate.
        hidden: Nothing for a command.
    """

    rate: float = 0.5
    hidden: tuple[int, ...] = field(default=(1, 2), metadata={"option": False})


MORE = More(steps=3)


def call(*arguments):
    """The arguments that a command was called with, and the text that it printed."""

    found = []

    def work(kind: str, out: Path = Path("out"), start: Path | None = None, more: More = MORE):
        """Works a lot.

        Arguments:
            kind: Kind of the work.
            out: Folder to write to.
            start: Folder to start from.
            more: Settings.

        Raises:
            ValueError: Never.
        """

        found.append((kind, out, start, more))

    app = typer.Typer()
    app.command()(commands.as_command(work))
    result = CliRunner().invoke(app, arguments)
    return found, " ".join(result.output.replace("│", " ").split())


def test_arguments_are_options_and_a_dataclass_stands_for_its_fields():
    (found,), _ = call("this", "--steps", "7", "--no-resume", "--out", "there")
    assert found == ("this", Path("there"), None, More(steps=7, resume=False))
    (found,), _ = call("that", "--rate", "2.5", "--start", "here")
    assert found == ("that", Path("out"), Path("here"), More(steps=3, rate=2.5))


def test_help_is_what_the_docstrings_say():
    _, shown = call("--help")
    assert "Works a lot." in shown
    assert "Raises" not in shown
    for text in ("Kind of the work.", "Folder to write to.", "Steps in all.", "Whether to go on."):
        assert text in shown
    assert "The rate. [default: 0.5]" in shown
    assert "hidden" not in shown
    assert "--more" not in shown


def command_of(module):
    """The command that a module runs, as typer sees it."""

    described = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "run", described.append)
        runpy.run_module(module, run_name="__main__")
    return commands.as_command(described[0])


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_describes_all_of_its_options(name):
    command = command_of(f"rwguidance_testbed.{name}")
    for parameter in inspect.signature(command).parameters.values():
        (option,) = parameter.annotation.__metadata__
        assert option.help, f"{name}: {parameter.name}"
        assert option.help[0].isupper()
        assert option.help.endswith(".")


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_readme_names_what_is_registered_and_commands_that_exist():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    registered = re.findall(r'^([\w-]+) = "rwguidance_testbed\.plugins:', project, re.MULTILINE)
    assert len(registered) == 13
    for name in registered:
        assert f"| `{name}` |" in page, name
    lines = page.replace("\\\n", " ").splitlines()
    called = [line.split("#")[0].split()[2:] for line in lines if "    python -m " in line]
    training = set(COMMANDS) - {"effective_dimension"}
    assert {words[0] for words in called} == {f"rwguidance_testbed.{name}" for name in training}
    for module, *rest in called:
        options = inspect.signature(command_of(module)).parameters
        asked = [word.removeprefix("--").replace("-", "_") for word in rest if word[:2] == "--"]
        assert set(asked) <= set(options), module
