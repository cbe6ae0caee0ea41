"""The training loop: what an interrupted run goes on with, averages, and the learning rate."""

import json

import pytest
import torch

from rwguidance.support.randomness import seeded
from rwguidance_testbed.training import loop


class TestRun:
    def train(self, path, steps, restore):
        generator = torch.Generator().manual_seed(1)
        with seeded(0):
            layer = torch.nn.Linear(3, 1)
        optimizer = torch.optim.AdamW(layer.parameters())
        run = loop.Run(path, {"layer": layer}, optimizer, generator)
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
            return loop.Run(tmp_path / "run", {"layer": layer}, chosen, generator, 120, made_with)

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

    def test_lines_give_the_mean_of_the_losses_since_the_last_one(self, tmp_path, capsys):
        with seeded(0):
            layer = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
        run = loop.Run(tmp_path / "run", {"layer": layer}, optimizer, torch.Generator())
        losses = iter([1.0, 2.0, 6.0, 5.0])
        steps: list[int] = []
        loss = lambda: next(losses) + 0.0 * layer.weight.sum()
        run.train(4, 2, lambda step: 0.0, loss, steps.append, printed=3)
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        found = [(line["step"], line["loss"], line["seen"]) for line in lines]
        assert found == [(3, 3.0, 6), (4, 5.0, 8)]
        assert steps == [1, 2, 3, 4]

    def test_averages_move_towards_weights_slower_and_slower(self):
        average, weight = torch.tensor([2.0]), torch.tensor([4.0])
        loop.move_averages([average], [weight], 0)  # a tenth remains
        assert float(average) == pytest.approx(0.1 * 2 + 0.9 * 4)
        average = torch.tensor([2.0])
        loop.move_averages([average], [weight], 100_000, 0.9)
        assert float(average) == pytest.approx(0.9 * 2 + 0.1 * 4)
        assert float(weight) == 4.0

    def test_the_learning_rate(self):
        rates = [loop.learning_rate(step, 100, 2.0, 10) for step in range(101)]
        assert rates[0] == pytest.approx(0.2)
        assert rates[9:71] == pytest.approx([2.0] * 62)
        assert rates[85] == pytest.approx(2 * (0.01 + 0.99 / 2))
        assert rates[100] == pytest.approx(0.02)
        assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
