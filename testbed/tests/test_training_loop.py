"""The training loop: what an interrupted run goes on with, averages, and the learning rate."""

import dataclasses
import json

import pytest
import torch

from rwguidance.support.randomness import seeded
from rwguidance_testbed.training import loop
from rwguidance_testbed.training.ema import ExponentialMovingAverage
from rwguidance_testbed.training.options import BufferedOptions


class TestRun:
    def train(self, path, steps, restore):
        generator = torch.Generator().manual_seed(1)
        with seeded(0):
            layer = torch.nn.Linear(3, 1)
        optimizer = torch.optim.AdamW(layer.parameters())
        run = loop.Run(path, {"layer": layer}, optimizer, generator, {})
        assert run.restore() == restore
        loss = lambda: layer(torch.randn(4, 3, generator=generator)).square().mean()
        rate = lambda step: loop.learning_rate(step, 8, 0.1, 2)
        run.train(steps, 4, rate, loss, printed=3)
        return layer.weight.detach(), run

    def test_an_interrupted_run_ends_where_another_does(self, tmp_path):
        whole, _ = self.train(tmp_path / "whole", 8, restore=False)
        self.train(tmp_path / "parts", 5, restore=False)
        parts, run = self.train(tmp_path / "parts", 8, restore=True)
        assert torch.equal(whole, parts)
        assert (run.step, run.seen) == (8, 32)
        assert run.seconds > 0

    def test_a_file_of_another_run_is_refused(self, tmp_path):
        def make(optimizer=torch.optim.SGD, **made_with):
            with seeded(0):
                layer = torch.nn.Linear(1, 1)
            chosen = optimizer(layer.parameters(), lr=0.0)
            generator = torch.Generator()
            return loop.Run(tmp_path / "run", {"layer": layer}, chosen, generator, made_with)

        make(data=torch.zeros(3), peak=1.0).save()
        assert make(data=torch.zeros(3), peak=1.0).restore()
        for changed, names in (
            ({"data": torch.ones(3), "peak": 1.0}, "data"),
            ({"data": torch.zeros(3), "peak": 2.0}, "peak"),
            ({"data": torch.zeros(3)}, "peak"),
            ({"data": torch.zeros(3), "peak": 1.0, "optimizer": torch.optim.Adam}, "optimizer"),
        ):
            with pytest.raises(ValueError, match=f"made with another {names}: "):
                make(**changed).restore()

    def test_all_options_but_those_of_speed_and_length_decide(self):
        one = BufferedOptions(steps=1, batch=2, peak=0.1, kept=8)
        assert one.deciding == {"batch": 2, "peak": 0.1, "smoke": False, "kept": 8}
        others = {"steps": 2, "threads": 2, "resume": False, "compiled": True}
        assert dataclasses.replace(one, **others).deciding == one.deciding

    def test_lines_give_the_mean_of_the_losses_since_the_last_one(self, tmp_path, capsys):
        with seeded(0):
            layer = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
        run = loop.Run(tmp_path / "run", {"layer": layer}, optimizer, torch.Generator(), {})
        losses = iter([1.0, 2.0, 6.0, 5.0])
        loss = lambda: next(losses) + 0.0 * layer.weight.sum()
        run.train(4, 2, lambda step: 0.0, loss, printed=3)
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        found = [(line["step"], line["loss"], line["seen"]) for line in lines]
        assert found == [(3, 3.0, 6), (4, 5.0, 8)]

    @pytest.mark.parametrize(("every", "steps"), [(None, [4]), (2, [2, 4]), (3, [3, 4])])
    def test_what_is_learned_is_written_now_and_then_and_at_the_end(self, tmp_path, every, steps):
        with seeded(0):
            layer = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
        run = loop.Run(tmp_path / "run", {"layer": layer}, optimizer, torch.Generator(), {})
        written = []
        write = lambda: written.append(run.figures())
        run.train(4, 2, lambda step: 0.0, lambda: layer.weight.sum(), write, every)
        found = [(row["steps"], row["pictures_seen"]) for row in written]
        assert found == [(step, 2 * step) for step in steps]

    def test_averages_follow_the_weights_from_the_first_step(self, tmp_path):
        with seeded(0):
            layer = torch.nn.Linear(1, 1)
        average = ExponentialMovingAverage([layer], decay=0.9)
        start = expected = float(layer.weight.detach())
        optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        run = loop.Run(tmp_path / "run", {}, optimizer, torch.Generator(), {}, average)
        run.train(3, 2, lambda step: 0.5, lambda: -layer.weight.sum())
        for step in (1, 2, 3):  # the gradient is of length one, so that the weight rises by a half
            expected += (1 - (1 + step) / (10 + step)) * (start + 0.5 * step - expected)
        assert float(average.modules[0].weight) == pytest.approx(expected, rel=1e-5)
        assert float(average.modules[0].weight) < float(layer.weight.detach())


class TestExponentialMovingAverage:
    def test_averages_move_towards_weights_slower_and_slower(self):
        with seeded(0):
            layer = torch.nn.Linear(1, 1, bias=False)
        average = ExponentialMovingAverage([layer], decay=0.9)
        (copy,) = average.modules
        assert not copy.weight.requires_grad
        for step, share in ((0, 0.9), (100_000, 0.1)):
            with torch.no_grad():
                copy.weight.fill_(2.0)
                layer.weight.fill_(4.0)
            average.update(step)
            assert float(copy.weight) == pytest.approx((1 - share) * 2 + share * 4)
            assert float(layer.weight.detach()) == 4.0


class TestLearningRate:
    def test_the_learning_rate(self):
        rates = [loop.learning_rate(step, 100, 2.0, 10) for step in range(101)]
        assert rates[0] == pytest.approx(0.2)
        assert rates[9:71] == pytest.approx([2.0] * 62)
        assert rates[85] == pytest.approx(2 * (0.01 + 0.99 / 2))
        assert rates[100] == pytest.approx(0.02)
        assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
