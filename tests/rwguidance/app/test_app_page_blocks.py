"""The page as gradio is asked for it, by a stand-in that notes what it is asked."""

import os
import sys
import types
from pathlib import Path

import pytest
from PIL import Image

from rwguidance.app.commands.app import _examples
from rwguidance.app.commands.sources import Sources
from rwguidance.app.page.blocks import Bounded, _captioned, _large, opened_page, page
from rwguidance.app.page.requests import LEAST_NATS, OFFERED, Limits
from rwguidance.evaluation import prompts
from rwguidance.generation.choice import AUTO


class Part:
    """A component, or an event of one: any attribute is another part."""

    def __init__(self, kind, given, settings):
        self.kind, self.given, self.settings = kind, given, settings

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __getattr__(self, name):
        return (self, name)


class Blocks(Part):
    def queue(self, **settings):
        self.queued = settings

    def launch(self, **settings):
        self.launched = settings
        return None, "http://127.0.0.1:7860", None

    def close(self, **settings):
        self.closed = settings


@pytest.fixture
def parts(monkeypatch):
    """All parts of the page, in the order in which they were made."""

    made = []

    def maker(kind):
        def make(*given, **settings):
            made.append((Blocks if kind == "Blocks" else Part)(kind, given, settings))
            return made[-1]

        return make

    gradio = types.ModuleType("gradio")
    gradio.__getattr__ = maker
    gradio.themes = types.SimpleNamespace(Default=lambda **fonts: fonts)
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    return made


class Studio:
    """Two models and two rewards; makes nothing."""

    limits = Limits(pictures=3, steps=20, nats=2.5, letters=80, waiting=5)
    backbones = types.MappingProxyType({"flow": None, "turbo": None})
    rewards = types.MappingProxyType({"red": None, "light": None})
    closed = False

    def make(self, request, report):
        report("pictures", 1, 4)
        raise ValueError(f"no {request.images} pictures of <{request.prompt}>")

    def close(self):
        self.closed = True


def of(parts, kind, **settings):
    """The one part of a kind with such settings."""

    fits = lambda part: part.kind == kind and settings.items() <= part.settings.items()
    (found,) = filter(fits, parts)
    return found


def test_every_control_has_its_range_and_what_it_begins_with(parts):
    page(Studio(), Sources(), ["a cat", "a dog"])
    prompt = of(parts, "Textbox").settings
    assert (prompt["value"], prompt["max_length"], prompt["max_lines"]) == ("a cat", 80, 1)
    assert of(parts, "Examples").given[0] == ["a cat", "a dog"]
    nats = of(parts, "Slider", label="Strength, in nats")
    assert nats.given == (LEAST_NATS, 2.5, 1.0)
    assert nats.settings["step"] == 0.05
    model = of(parts, "Dropdown", label="Model")
    assert model.given == (["flow", "turbo"],)
    assert (model.settings["value"], model.settings["visible"]) == ("flow", True)
    weights = [part for part in parts if part.settings.get("elem_id", "").startswith("weight-")]
    assert [part.settings["label"] for part in weights] == ["red", "light"]
    assert [part.given for part in weights] == [(-1, 1, 1.0), (-1, 1, 0.0)]
    assert {part.settings["step"] for part in weights} == {0.05}
    method = of(parts, "Dropdown", label="Method")
    assert (method.given, method.settings["value"]) == ((OFFERED,), AUTO)
    images = of(parts, "Slider", label="Pictures")
    assert (images.given, images.settings["step"]) == ((1, 3, 3), 1)
    steps = of(parts, "Number", label="Steps")
    bounds = {name: steps.settings[name] for name in ("precision", "minimum", "maximum")}
    assert (steps.given, bounds) == ((None,), {"precision": 0, "minimum": 1, "maximum": 20})
    seed = of(parts, "Number", label="Seed")
    assert (seed.given, seed.settings["precision"], seed.settings["minimum"]) == ((0,), 0, 0)
    rewards, method, lines = [part for part in parts if part.kind == "Accordion"]
    assert [part.settings["open"] for part in (rewards, method, lines)] == [True, False, False]


def test_one_model_is_no_choice_and_a_single_example_no_list(parts):
    studio = Studio()
    studio.backbones = {"flow": None}
    studio.limits = Limits(pictures=8, nats=0.5)
    page(studio, Sources(), ["a cat"])
    assert of(parts, "Textbox").settings["value"] == "a cat"
    assert not of(parts, "Dropdown", label="Model").settings["visible"]
    assert of(parts, "Slider", label="Strength, in nats").given == (LEAST_NATS, 0.5, 0.5)
    assert of(parts, "Slider", label="Pictures").given == (1, 8, 4)
    assert "Examples" not in {part.kind for part in parts}


def test_examples_are_the_first_four_prompts_of_the_demo(monkeypatch):
    texts = types.SimpleNamespace(prompts=tuple("abcdef"))
    monkeypatch.setattr(prompts, "load", {"emoji-demo": texts}.__getitem__)
    assert _examples() == ["a", "b", "c", "d"]


def test_a_page_without_examples_has_an_empty_prompt(parts):
    page(Studio(), Sources())
    assert of(parts, "Textbox").settings["value"] == ""


def test_a_click_is_answered_where_pictures_and_words_are_shown(parts):
    blocks = page(Studio(), Sources())
    assert blocks.queued == {"max_size": 5, "api_open": False}
    assert blocks.settings["delete_cache"] == (600, 600)
    assert blocks.settings["analytics_enabled"] is False
    on = of(parts, "on")
    triggers, make, inputs, outputs = on.given
    assert [(part.kind, event) for part, event in triggers] == [
        ("Button", "click"), ("Textbox", "submit"), ("Slider", "release")
    ]  # fmt: skip
    labels = ["Prompt", "Model", "Strength, in nats", "Method", "Pictures", "Steps", "Seed"]
    assert [part.settings["label"] for part in inputs] == [*labels, "red", "light"]
    assert triggers[2][0] is inputs[2]
    assert [part.kind for part in outputs] == ["Gallery", "HTML", "Code", "Code"]
    gallery, said, command, python = outputs
    assert (gallery.settings["columns"], gallery.settings["interactive"]) == (4, False)
    assert said.given[0].startswith("<p class='rwg-note'>")
    assert (command.settings["language"], python.settings["language"]) == ("shell", "python")
    assert [part.settings["interactive"] for part in (command, python)] == [False] * 2
    assert on.settings == {
        "show_progress_on": gallery,
        "trigger_mode": "always_last",
        "concurrency_limit": 1,
        "api_visibility": "private",
    }
    told = []
    progress = lambda done, desc: told.append((done, desc))
    values = ["a cat", "flow", 1.0, AUTO, 2, None, 0, 1.0, 0.0]
    error = "<p class='rwg-error'>no 2 pictures of &lt;a cat&gt;</p>"
    assert make(*values, progress=progress) == ([], error, "", "")
    assert told == [((1, 4), "pictures")]


@pytest.mark.parametrize("before", [None, "elsewhere"])
def test_nothing_is_shared_beyond_the_host_and_nothing_is_left(parts, monkeypatch, before):
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    if before:
        monkeypatch.setenv("GRADIO_TEMP_DIR", before)
    studio = Studio()
    with opened_page(studio, Sources(), host="127.0.0.1", port=8000) as address:
        assert address == "http://127.0.0.1:7860"
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.is_dir()
        assert not studio.closed
    launched = of(parts, "Blocks").launched
    assert (launched["server_name"], launched["server_port"]) == ("127.0.0.1", 8000)
    off = ("share", "show_error", "ssr_mode", "pwa", "mcp_server", "enable_monitoring")
    assert not any(launched[name] for name in off)
    assert launched["quiet"]
    assert launched["prevent_thread_lock"]
    assert launched["max_file_size"] == 1
    assert launched["footer_links"] == []
    assert launched["app_kwargs"] == {"middleware": [(Bounded, [], {})]}
    assert not any("http" in font for fonts in launched["theme"].values() for font in fonts)
    assert of(parts, "Blocks").closed == {"verbose": False}
    assert studio.closed
    assert not folder.exists()
    assert os.environ.get("GRADIO_TEMP_DIR") == before


@pytest.mark.parametrize(
    ("size", "shown"),
    [((3, 2), (255, 170)), ((64, 64), (256, 256)), ((127, 9), (254, 18)), ((128, 5), (128, 5))],
)
def test_pictures_below_128_pixels_are_shown_larger_by_whole_pixels(size, shown):
    picture = Image.new("RGB", size, "red")
    picture.putpixel((0, 0), (0, 0, 255))
    large = _large(picture)
    assert large.size == shown
    factor = shown[0] // size[0]
    assert large.crop((0, 0, factor, factor)).getcolors() == [(factor**2, (0, 0, 255))]
    assert large.getpixel((factor, 0)) == (255, 0, 0)


def test_captions_say_which_picture_it_is_and_its_reward_if_it_has_one():
    pair = (Image.new("RGB", (200, 200), "red"), Image.new("RGB", (200, 200), "blue"))
    answer = types.SimpleNamespace(
        pairs=[pair], rows=[types.SimpleNamespace(rewards=(0.12345, None))]
    )
    assert _captioned(answer) == [(pair[0], "base 0.123"), (pair[1], "aligned no reward")]
