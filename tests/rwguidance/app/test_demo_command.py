"""The command of the demo: what it loads and how much of it."""

import types

import pytest
from torch import nn

from rwguidance import backbones, networks, rewards
from rwguidance.app import demo as runs
from rwguidance.app.commands import demo
from rwguidance.evaluation import embeddings, prompts
from rwguidance.generation import BestOfN, Importance, NoiseGradient

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


@pytest.mark.parametrize("bank", [8, 64])
def test_models_take_their_steps_and_methods_the_settings_of_the_demo(monkeypatch, bank):
    monkeypatch.setattr(backbones, "load", lambda name: nn.Identity())
    monkeypatch.setattr(networks, "load", lambda name: nn.Identity())
    flow, turbo = demo._flow(bank), demo._turbo(bank)
    assert (flow.name, flow.steps, turbo.name, turbo.steps) == ("emoji-flow", 4, "emoji-turbo", 1)
    guided = Importance(kl=1.0, bank=bank, leave_one_out=True)
    assert flow.methods == {"importance": guided, "best of 4": BestOfN(4)}
    assert list(turbo.methods) == ["noise gradient", "network", "best of 4"]
    assert turbo.methods["noise gradient"] == NoiseGradient(kl=1.0, bank=bank, size=0.65)
    assert turbo.methods["best of 4"] == BestOfN(4)
