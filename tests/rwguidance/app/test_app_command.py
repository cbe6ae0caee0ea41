"""`rwguidance app`: what is loaded for the page, what bounds it, and what is said."""

import sys
import types
from contextlib import contextmanager

import pytest

from rwguidance.app import page
from rwguidance.app.commands import app
from rwguidance.app.commands.sources import Sources
from rwguidance.app.page import Limits, blocks


@pytest.fixture
def opened(monkeypatch):
    """What the page was opened with; it is closed at once, as by Ctrl+C."""

    found = []

    @contextmanager
    def opened_page(studio, sources, examples, host, port):
        found.append((studio, sources, list(examples), host, port))
        yield "http://there"

    def stop(seconds):
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "gradio", types.ModuleType("gradio"))
    monkeypatch.setattr(blocks, "opened_page", opened_page)
    monkeypatch.setattr(page, "Studio", lambda *given: given)
    monkeypatch.setattr(app.time, "sleep", stop)
    monkeypatch.setattr(Sources, "check", lambda self, *names: None)
    for kind in ("reward", "backbone"):
        monkeypatch.setattr(Sources, kind, lambda self, name, kind=kind: f"{kind} {name}")
    return found


def test_a_page_is_opened_of_what_is_named(opened, capsys):
    app.open_app(
        ["a"], ["r", "s"], path=["a=there"], option=["r:scale=2"], batch_size=3, host="0.0.0.0",
        port=7000, max_pictures=2, max_steps=5, max_calls=90, max_waiting=3,
    )  # fmt: skip
    (((models, judges, limits, batch_size), sources, examples, host, port),) = opened
    assert models == {"a": "backbone a"}
    assert judges == {"r": "reward r", "s": "reward s"}
    assert limits == Limits(pictures=2, steps=5, calls=90, waiting=3)
    assert (batch_size, examples, host, port) == (3, [], "0.0.0.0", 7000)
    assert (sources.paths, sources.options) == ({"a": "there"}, {"r": {"scale": 2}})
    said = capsys.readouterr()
    assert said.out == "the page is at http://there until you press Ctrl+C\nclosed\n"
    assert said.err == "note: everyone who reaches this machine reaches the page\n"


def test_without_names_the_page_has_the_models_and_prompts_of_the_test_bed(opened, capsys):
    app.open_app()
    (((models, judges, limits, batch_size), _, examples, host, port),) = opened
    assert list(models) == list(app._BACKBONES)
    assert list(judges) == list(app._REWARDS)
    assert examples == app._examples()
    assert (limits, batch_size, host, port) == (Limits(), 4, "127.0.0.1", None)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("named", [{"backbone": ["a"]}, {"reward": ["r"]}])
def test_prompts_of_the_test_bed_are_for_its_own_models_and_rewards(opened, named):
    app.open_app(**named)
    (((models, judges, *_), _, examples, *_),) = opened
    assert list(models) == named.get("backbone", app._BACKBONES)
    assert list(judges) == named.get("reward", app._REWARDS)
    assert examples == []


def test_files_of_a_user_are_refused(opened):
    with pytest.raises(ValueError, match=r"names of the lists, and no files, got 'mine\.py:m'"):
        app.open_app(["a"], ["mine.py:m"])
    assert opened == []
