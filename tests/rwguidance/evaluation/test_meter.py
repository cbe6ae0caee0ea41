"""What is timed, by a clock that is set by hand."""

import types

import pytest
import torch

from pixel_law import Brightness, Law
from rwguidance.evaluation import meter
from rwguidance.evaluation.meter import Counted, Meter


@pytest.fixture
def clock(monkeypatch):
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(meter, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_what_is_shared_is_neither_timed_nor_counted(clock):
    law, reward = Law(), Counted(Brightness())
    found = Meter(law, reward, torch.device("cpu"))
    with found.measured():
        clock.now += 2
        law.decode(torch.zeros(3, 3, 1, 1))
        with found.shared():
            clock.now += 5
            law.decode(torch.zeros(4, 3, 1, 1))
            with found.shared():
                clock.now += 7
        clock.now += 1
        law.decode(torch.zeros(1, 3, 1, 1))
        with found.shared(when=False):
            clock.now += 0.5
            law.decode(torch.zeros(2, 3, 1, 1))
    assert found.seconds == 3.5
    assert found.decoder == 6
    with found.shared():
        clock.now += 1
    assert found.seconds == 3.5
    with found.measured():
        clock.now += 1
    assert found.seconds == 4.5


def test_costs_are_added_to_those_of_the_base(clock):
    base, own = (Meter(Law(), Counted(Brightness()), torch.device("cpu")) for _ in "ab")
    for one, seconds in ((base, 2.0), (own, 3.0)):
        with one.measured():
            clock.now += seconds
            one.backbone.decode(torch.zeros(3, 3, 1, 1))
    own.draws["a", 1] = 5
    assert own.costs()[:5] == (0, 3, 0, 5, 3.0)
    assert own.costs(base)[:5] == (0, 6, 0, 5, 5.0)
