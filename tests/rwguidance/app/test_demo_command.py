"""The command of the demo: what it loads and how much of it."""

import types

import pytest
from torch import nn

from rwguidance import rewards
from rwguidance.app import demo as runs
from rwguidance.app.commands import demo
from rwguidance.evaluation import embeddings, prompts

TEXTS = ("dark", "light", "lighter", "lightest")


@pytest.mark.parametrize(("quick", "expected"), [(True, TEXTS[:2]), (False, TEXTS)])
def test_a_quick_demo_has_two_prompts(monkeypatch, quick, expected):
    monkeypatch.setattr(rewards, "load", lambda name: nn.Identity())
    monkeypatch.setattr(prompts, "load", lambda name: types.SimpleNamespace(prompts=TEXTS))
    monkeypatch.setattr(embeddings, "load", lambda name: nn.Identity())
    assert tuple(demo._task(quick).prompts) == expected


class Stop(Exception):
    """Ends a run once it is known how large it is."""


@pytest.mark.parametrize("quick", [True, False])
def test_a_quick_demo_on_digits_is_the_smaller_one(monkeypatch, tmp_path, quick):
    def align(seed, say, **sizes):
        assert set(sizes) == ({"samples", "bank_size", "training_steps"} if quick else set())
        raise Stop

    monkeypatch.setattr(runs, "align_digits", align)
    with pytest.raises(Stop):
        runs.run_digits(tmp_path, quick=quick)
