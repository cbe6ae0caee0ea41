"""What the benchmarks compute beside the library: a pooled kernel, errors, tables."""

import math
from pathlib import Path

import torch
from still_backbone import Still, red

import rwguidance as rw
from common import assert_within
from rwguidance import toy
from rwguidance.statistics import ratio_and_error
from rwguidance.support.randomness import normal
from rwguidance.testing import check_estimator

ROOT = Path(__file__).parents[2]


class TestPooled:
    law = toy.Gaussian(torch.zeros(48), torch.eye(48))

    def ingredients(self, generator):
        x_0 = self.law.sample(40, generator).float().reshape(40, 3, 4, 4)
        keys = ["a"] * 20 + ["b"] * 20
        bank = rw.Bank(x_0, keys, normal((40,), generator))
        states = normal((4, 3, 4, 4), generator)
        return Still(), bank, rw.Tilt(red, 1.0), states, ["a", "b", "b", "a"]

    def test_of_single_positions_it_is_plain_importance_sampling(self, bench, generator):
        model, bank, tilt, x_t, keys = self.ingredients(generator)
        for t in (1.0, 0.9, 0.6):
            found = bench.own_methods.PooledKernel(bank, tilt, 1)(model, x_t, t, keys)
            exact = rw.ImportanceSampling(bank, tilt, pareto_k=True)(model, x_t, t, keys)
            assert torch.allclose(found.shift, exact.shift, atol=1e-5)
            assert torch.allclose(found.log_h, exact.log_h, atol=1e-4)
            for name in ("ess", "ess_tilted", "pareto_k"):
                expected = exact.diagnostics[name]
                assert torch.allclose(found.diagnostics[name], expected, rtol=1e-3, equal_nan=True)

    def test_its_weights_are_those_of_pooled_states_and_draws(self, bench, generator):
        model, bank, tilt, x_t, keys = self.ingredients(generator)
        pool = lambda x: 2 * torch.nn.functional.avg_pool2d(x, 2)
        small = rw.Bank(pool(bank.x_0), bank.condition, bank.rewards)
        for t in (0.9, 0.5):
            found = bench.own_methods.PooledKernel(bank, tilt, 2)(model, x_t, t, keys)
            exact = rw.ImportanceSampling(small, tilt)(model, pool(x_t), t, keys)
            assert torch.allclose(found.log_h, exact.log_h, atol=1e-4)
            assert torch.allclose(pool(found.shift), exact.shift, atol=1e-5)
            full = rw.ImportanceSampling(bank, tilt)(model, x_t, t, keys)
            assert bool((found.diagnostics["ess"] > full.diagnostics["ess"]).all())

    def test_it_is_an_estimator(self, bench, generator):
        model, bank, tilt, x_t, keys = self.ingredients(generator)
        check_estimator(
            bench.own_methods.PooledKernel(bank, tilt, 2), model, x_t=x_t, condition=keys
        )


class TestArithmetic:
    def test_a_share_has_the_error_that_it_shows(self, bench, generator):
        shares, errors = [], []
        for _ in range(800):
            target = 2 + normal((50,), generator, dtype=torch.float64)
            gain = 0.7 * target + 0.4 * normal((50,), generator, dtype=torch.float64)
            share, error = ratio_and_error(gain, target)
            shares.append(share)
            errors.append(error)
        shares = torch.tensor(shares, dtype=torch.float64)
        assert_within(shares.mean(), 0.7, shares.std() / math.sqrt(800))
        # A standard deviation of 800 numbers is known to 1 / sqrt(1600).
        assert_within(sum(errors) / 800, shares.std(), shares.std() / 40)


class TestFigures:
    PAGE = (
        "before\n<!-- figures: one -->\nold\n<!-- end -->\n"
        "after\n<!-- figures: two -->\n<!-- end -->\n"
    )

    def test_tables_are_put_between_their_marks(self, bench):
        assert bench.figures.names_in(self.PAGE) == ["one", "two"]
        page = bench.figures.put(self.PAGE, {"one": "| a |\n"})
        assert page == self.PAGE.replace("\nold\n", "\n\n| a |\n\n")
        assert bench.figures.put(page, {"one": "| a |", "three": "| b |"}) == page
        assert "| c |" in bench.figures.put(page, {"two": "| c |"})

    def test_all_marks_are_of_tables_that_are_made(self, bench):
        found = [
            name
            for page in bench.figures.PAGES
            for name in bench.figures.names_in((ROOT / page).read_text(encoding="utf-8"))
        ]
        fixed = {"demo", "generators", "proxies"}
        assert fixed <= set(found)
        assert all(name.startswith("results of emoji ") for name in set(found) - fixed)

    def test_the_table_of_the_demo(self, bench):
        row = {
            "model": "emoji-flow",
            "method": "base",
            "proxy": "2.961",
            "proxy error": "0.37",
            "share": "",
            "share error": "",
            "gold": "10.1",
            "gold error": "0.26",
            "match": "0.631",
            "match error": "0.11",
            "judge energy": "0.31",
            "judge energy error": "0.06",
            "calls": "4.0",
            "shared calls": "0.0",
        }
        guided = {
            **row,
            "method": "importance",
            "proxy": "0.5",
            "share": "0.75",
            "share error": "0.25",
            "match": "-0.02",
            "shared calls": "8.0",
        }
        lines = bench.figures.demo_table([row, guided]).splitlines()
        expected = "2.96 ± 0.37 |  | 10.10 ± 0.26 | 63.1 ± 11.0 | 31 ± 6 | 4 |"
        assert lines[2] == f"| emoji-flow, base | {expected}"
        expected = "+0.50 ± 0.37 | 0.75 ± 0.25 | +10.10 ± 0.26 | -2.0 ± 11.0 | 31 ± 6 | "
        assert lines[3] == f"| emoji-flow, importance | {expected}4, and 8 once per prompt |"
        assert len({line.count("|") for line in lines}) == 1
