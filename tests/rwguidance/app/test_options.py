"""Options that commands share: how their values are read."""

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import typer
from typer.testing import CliRunner

from rwguidance.app.cli import _options, _paths
from rwguidance.app.commands.options import plain_warnings, takes_settings
from rwguidance.generation.base import Guided
from rwguidance.generation.settings import method_options


@pytest.mark.parametrize(
    ("entries", "options"),
    [
        (None, {}),
        (["clipscore:scaling=logit"], {"clipscore": {"scaling": "logit"}}),
        (["remote:url=http://127.0.0.1:1/"], {"remote": {"url": "http://127.0.0.1:1/"}}),
        (["sdxl:steps=6", "sdxl:height=512"], {"sdxl": {"steps": 6, "height": 512}}),
        (["a:x=true", "b:x=1.5", "a:y=[1, 2]"], {"a": {"x": True, "y": [1, 2]}, "b": {"x": 1.5}}),
        (["a:x=first", "a:x=last"], {"a": {"x": "last"}}),
        (["a:x="], {"a": {"x": ""}}),
    ],
)  # fmt: skip
def test_options_are_read_by_name_and_key(entries, options):
    assert _options(entries) == options


@pytest.mark.parametrize("entry", ["a", "a:x", "a=1", ":x=1", "a:=1"])
def test_an_option_without_name_key_or_value_is_refused(entry):
    with pytest.raises(ValueError, match="option must be NAME:KEY=VALUE, got '" + entry):
        _options([entry])


def test_paths_are_read_by_name():
    assert _paths(None) == {}
    assert _paths(["a=folder", "b=hf://x/y"]) == {"a": "folder", "b": "hf://x/y"}
    assert _paths(["a=x=y"]) == {"a": "x=y"}


@pytest.mark.parametrize("entries", [["a"], ["=x"], ["a="], ["a=x", "a=y"]])
def test_a_path_without_name_or_given_twice_is_refused(entries):
    with pytest.raises(ValueError, match="path must be NAME=PATH, once per name"):
        _paths(entries)


@dataclass(frozen=True)
class Walk(Guided):
    """Walks.

    Arguments:
        length: Number of steps.
        kind: Kind of the walk.
        strict: Whether to stop at walls.
    """

    name: ClassVar[str] = "walk"

    length: int
    kind: Literal["random", "straight"] = "random"
    strict: bool | None = None


@pytest.fixture
def walk():
    """A command with the options of one method, and what it was given."""

    app, given = typer.Typer(), {}

    @app.command()
    @takes_settings(method_options({"walk": Walk}), "Settings")
    def command(seed: int = 0, **settings: Any) -> None:
        given.update(settings, seed=seed)

    def walk(*arguments):
        given.clear()
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
        return result, dict(given)

    return walk


def test_settings_are_options_of_a_command(walk):
    none = dict.fromkeys(("length", "kind", "strict", "scale", "window"))
    assert walk()[1] == {"seed": 0, **none}
    arguments = "--seed 3 --length 7 --kind straight --no-strict --scale 0.5 --window 0.1 1"
    assert walk(*arguments.split())[1] == {
        "seed": 3, "length": 7, "kind": "straight", "strict": False, "scale": 0.5,
        "window": (0.1, 1.0),
    }  # fmt: skip
    assert walk("--kind", "crooked")[0].exit_code == 2
    assert walk("--length", "many")[0].exit_code == 2


def test_the_help_of_a_setting_is_its_meaning(walk):
    help = walk("--help")[0].output
    for option in method_options({"walk": Walk}):
        assert option.help in help
    assert "Number of steps (walk, required)." in help


def test_a_warning_is_one_plain_line(capsys):
    with plain_warnings():
        warnings.warn("a plug-in fails\x1b[31m", RuntimeWarning, stacklevel=1)
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith("warning: a plug-in fails")
    assert "\x1b" not in said.err
