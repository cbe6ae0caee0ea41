"""What is shown of names and errors of others is plain text in one line."""

import io
import os
import sys

import pytest
from rich.console import Console

from rwguidance.app import cli
from rwguidance.generation.failures import reason
from rwguidance.support.describe import error_text, plain_text, printable
from rwguidance.support.user_code import UserCodeError, load_object

STEERING = "a\x1b[2J\x1b]0;mine\x07\x9bK\rb\nc"


def test_characters_that_steer_a_terminal_are_escapes():
    assert printable(STEERING) == r"a\x1b[2J\x1b]0;mine\x07\x9bK b c"
    for text in ("a [b] [/c]", "\u732b\u3000\u72ac", "\U0001f469\u200d\U0001f52c é", "a  b"):
        assert printable(text) == text


def test_brackets_of_others_are_no_markup():
    screen = io.StringIO()
    Console(file=screen, width=80).print(plain_text("[/bold] [red]x\x1b[2J"))
    assert screen.getvalue() == "[/bold] [red]x\\x1b[2J\n"


class Odd(Exception):
    def __str__(self):
        raise SystemExit(3)


class Stopped(Exception):
    def __str__(self):
        raise KeyboardInterrupt


def test_an_error_without_a_text_is_told_by_its_class():
    assert error_text(Odd()) == "its text cannot be had"
    assert reason(Odd()) == "Odd: its text cannot be had"
    with pytest.raises(KeyboardInterrupt):
        error_text(Stopped())


def test_a_long_error_is_cut():
    assert error_text(ValueError("x" * 501)) == "x" * 500 + "..."
    assert error_text(ValueError("x" * 500)) == "x" * 500
    assert error_text(ValueError("x\n" * 200)) == ("x " * 200).strip()


def test_the_command_shows_an_error_in_one_plain_line(monkeypatch, capsys):
    def fail():
        raise ValueError(STEERING)

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(cli, "_print_whatever_comes", lambda: None)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == f"error: {printable(STEERING)}\n"


@pytest.mark.parametrize(
    "source", ["class Odd(BaseException): pass\nraise Odd('no')", "raise SystemExit(3)"]
)
def test_whatever_a_file_of_ones_own_raises_is_an_error_of_it(tmp_path, source):
    (tmp_path / "own.py").write_text(source)
    known = set(sys.modules)
    with pytest.raises(UserCodeError, match=r"own\.py cannot be imported: (Odd: no|SystemExit: 3)"):
        load_object(f"{tmp_path / 'own.py'}:X")
    assert not {name for name in set(sys.modules) - known if "_user_" in name}


def test_a_file_of_ones_own_that_is_none_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "own.py")
    with pytest.raises(UserCodeError, match=r"cannot be read \(.*must be a regular file, got a pi"):
        load_object(f"{tmp_path / 'own.py'}:X")
