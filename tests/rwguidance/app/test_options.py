"""Options that commands share: how their values are read."""

import pytest

from rwguidance.app.cli import _options, _paths


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
