"""Packages that break, hang or reach for names that are not theirs end nothing but themselves."""

import sys

import pytest
from test_registry import GROUP, install

import rewards.registry
import rwguidance.support.registry as module
from rwguidance.support.registry import BrokenEntryPoint, Registry


@pytest.mark.parametrize(
    "source",
    [
        "raise SystemExit(3)",
        "class Odd(BaseException): pass\nraise Odd('no')",
        "import sys\nsys.exit()",
        "class Odd(Exception):\n    def __str__(self): raise SystemExit(3)\nraise Odd()",
        "class Odd(Exception):\n    def __str__(self): return 3\nraise Odd()",
    ],
)
def test_whatever_a_package_raises_is_contained(tmp_path, monkeypatch, source):
    install(tmp_path, monkeypatch, "leaving", {"gone": "leaving:X"}, source)
    registry = Registry("thing", GROUP)
    registry.register("mine")(1)
    with pytest.warns(RuntimeWarning, match="thing 'gone' is provided by .* of leaving, which fai"):
        assert registry.available() == {"mine": 1}
    with pytest.raises(BrokenEntryPoint, match="which fails"):
        registry.load("gone")


def test_what_a_package_says_is_one_short_line_without_escapes(tmp_path, monkeypatch):
    source = "raise ValueError('\x1b[2J\\n' + 'again\\n' * 100_000)"
    install(tmp_path, monkeypatch, "loud", {"much": "loud:X"}, source)
    with pytest.raises(BrokenEntryPoint) as caught:
        Registry("thing", GROUP).load("much")
    text = str(caught.value)
    assert text.endswith("...")
    assert len(text) < 700
    assert text.isprintable()
    assert r"ValueError: \x1b[2J again again" in text


def test_a_package_that_hangs_is_given_up(tmp_path, monkeypatch):
    source = "import threading\nthreading.Event().wait(20)"
    install(tmp_path, monkeypatch, "hanging", {"slow": "hanging:X"}, source)
    monkeypatch.setattr(module, "_LONGEST_IMPORT", 0.2)
    registry = Registry("thing", GROUP)
    registry.register("mine")(1)
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="hanging was not imported within 0.2 seconds"):
            assert registry.available() == {"mine": 1}
    with pytest.raises(BrokenEntryPoint, match="not imported within"):
        registry.load("slow")


def test_a_package_cannot_take_a_name_of_the_library(tmp_path, monkeypatch):
    group = "rwguidance.rewards"
    source = "raise RuntimeError('I was imported')"
    jpeg = rewards.registry._registry.load("jpeg")  # before the library itself sees the package
    install(tmp_path, monkeypatch, "taker", {"jpeg": "taker:X"}, source, group)
    registry = Registry("reward", group)
    registry.register("jpeg")(jpeg)
    assert registry.load("jpeg") is jpeg
    assert "taker" not in sys.modules
    with pytest.warns(RuntimeWarning, match="'jpeg' is this library's own: .* of taker cannot"):
        assert registry.available()["jpeg"] is jpeg
