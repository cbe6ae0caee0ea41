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


@pytest.mark.parametrize(("quick", "bank", "images"), [(True, 8, 2), (False, 64, None)])
def test_a_quick_demo_draws_the_smaller_banks(monkeypatch, tmp_path, quick, bank, images):
    seen = {}

    def run(cases, task, out, settings, seed):
        seen.update(banks=cases, settings=settings)

    monkeypatch.setattr(demo, "_task", lambda quick: None)
    monkeypatch.setattr(demo, "_flow", lambda bank: bank)
    monkeypatch.setattr(demo, "_turbo", lambda bank: bank)
    monkeypatch.setattr(runs, "run", run)
    demo.demo(out=tmp_path, quick=quick)
    assert seen["banks"] == [bank, bank]
    assert (seen["settings"] == runs.Settings()) == (not quick)
    assert images in (None, seen["settings"].images)
