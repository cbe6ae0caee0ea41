"""Runs that end by the clock, their rates and their steps."""

import pytest
import torch
from interruption import Clock
from torch import nn

from rwguidance.support.randomness import seeded
from rwguidance_testbed.training import timed
from rwguidance_testbed.training.balance import slope_of_size
from rwguidance_testbed.training.capture import captured
from rwguidance_testbed.training.options import compute_on
from rwguidance_testbed.training.timed import TimedRun, adam, descend, rate_after, set_rate

CPU = torch.device("cpu")


def run_of(path, interval=120.0):
    with seeded(0):
        network = nn.Linear(2, 1)
    optimizer = adam(network.parameters(), CPU, (0.9, 0.99))
    return TimedRun(path, {"network": network}, {"network": optimizer}, torch.Generator(), interval)


def learn(run, minutes, count=None):
    """Takes steps on random batches, at most so many."""

    optimizer, network = run.optimizers["network"], run.modules["network"]
    shares = []
    for share in run.steps(minutes, {"loss": torch.tensor(1.0)}):
        shares.append(share)
        set_rate(optimizer, rate_after(share, 0.1))
        batch = torch.randn(8, 2, generator=run.generator)
        descend(optimizer, (network(batch) - batch.sum(1, keepdim=True)).square().mean())
        if len(shares) == count:
            break
    return shares


class TestTimedRun:
    def test_a_run_ends_when_its_time_is_over(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(timed, "time", Clock(6.0))
        shares = learn(run_of(tmp_path / "state"), minutes=1.0)
        # Steps of six seconds each; the clock is read once more at the start.
        assert shares == pytest.approx([i / 10 for i in range(10)])
        assert '"loss": 1.0' in capsys.readouterr().out

    def test_a_run_without_time_takes_one_step(self, tmp_path):
        run = run_of(tmp_path / "state")
        assert learn(run, minutes=1e-9) == [0.0]
        assert run.step == 1

    def test_a_run_that_was_interrupted_goes_on_exactly(self, tmp_path, monkeypatch):
        found = []
        for cut in (None, 4):
            monkeypatch.setattr(timed, "time", Clock(6.0))
            run = run_of(tmp_path / str(cut), interval=0.0)
            if cut is not None:
                learn(run, 1.0, count=cut)
                run = run_of(tmp_path / str(cut), interval=0.0)
                assert run.restore()
                # The step in which it was cut off was not saved.
                assert (run.step, run.seconds) == (cut - 1, 6.0 * (cut - 1))
            learn(run, 1.0)
            found.append((run.step, run.modules["network"].weight.detach().clone()))
        assert found[0][0] == found[1][0]
        assert torch.equal(found[0][1], found[1][1])

    def test_there_may_be_nothing_to_go_on_from(self, tmp_path):
        assert not run_of(tmp_path / "state").restore()


def test_the_rate_rises_stays_and_falls():
    rates = [rate_after(share, 2.0) for share in (0.0, 0.01, 0.02, 0.5, 0.6, 0.8, 1.0)]
    assert rates == pytest.approx([0.02, 1.02, 2.0, 2.0, 2.0, 1.01, 0.02], abs=1e-9)


def test_a_step_goes_down_and_leaves_other_parameters_alone():
    mine, other = (nn.Parameter(torch.tensor([3.0])) for _ in range(2))
    optimizer = adam([mine], CPU, (0.9, 0.99))
    set_rate(optimizer, 0.5)
    descend(optimizer, (mine * other).sum())
    assert mine.item() == pytest.approx(2.5)
    assert other.grad is None
    assert other.item() == 3.0


def test_slopes_have_the_size_that_is_wanted_and_their_direction():
    where = torch.tensor([1.0, 2.0, -4.0], requires_grad=True)
    slope = slope_of_size(where.square().sum(), where, torch.tensor(0.5))
    assert float(slope.square().mean().sqrt()) == pytest.approx(0.5)
    assert torch.allclose(slope / slope[0], torch.tensor([1.0, 2.0, -4.0]))
    assert torch.equal(slope_of_size((0 * where).sum(), where, torch.tensor(0.5)), torch.zeros(3))


def test_on_a_cpu_a_step_is_taken_as_it_is():
    step = lambda: None
    assert captured(step, torch.Generator()) is step
    assert compute_on("cpu", torch.get_num_threads()) == CPU
