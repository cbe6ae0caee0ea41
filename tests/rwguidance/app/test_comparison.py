"""The table of `rwguidance toy`: which numbers it shows."""

import types

import pytest
import torch

from common import assert_within
from rwguidance.app.demo import comparison
from rwguidance.app.demo.comparison import compare

SETTINGS = {
    "law": "mixture", "path": "rectified", "dim": 2, "beta": 1.0, "bank_size": 50, "batch": 4,
    "training_steps": 0, "seed": 0,
}  # fmt: skip


graphs = []


class Told:
    """An estimator without a shift, of which some diagnostics are known."""

    def __init__(self, *arguments, **settings):
        pass

    def __call__(self, model, x_t, t):
        graphs.append(torch.is_grad_enabled())
        values = {"ess": [1.0, 2.0, 9.0, 3.5], "ess_tilted": [4.0] * 4, "pareto_k": [0.25] * 4}
        found = {name: torch.tensor(value) for name, value in values.items()}
        return types.SimpleNamespace(shift=torch.zeros_like(x_t), diagnostics=found)


def cells(capsys, **changes):
    compare(**{**SETTINGS, **changes})
    lines = capsys.readouterr().out.replace("\u2502", "|").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    return {row[0]: row[1:] for row in rows if row}


def test_diagnostics_are_medians_and_no_shift_is_all_of_the_error(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(comparison, "ImportanceSampling", Told)
    graphs.clear()
    found = cells(capsys, reward="linear")
    assert not any(graphs[:5])  # errors are numbers, of networks that learn, too
    assert found["ess"] == ["2"] * 5  # the lower one in the middle
    assert found["ess_tilted"] == ["4"] * 5
    assert found["pareto_k"] == ["0.25"] * 5
    assert found["importance"] == ["1.000"] * 5
    assert found["exact"] == ["0.000"] * 5


def test_normal_laws_and_quadratic_rewards_are_compared_too(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    found = cells(capsys, law="gaussian", reward="quadratic", path="vp", bank_size=4000, batch=64)
    assert found["exact"] == ["0.000"] * 5
    assert all(float(error) < 0.2 for error in found["importance"][:3])
    assert found["ess"][0].startswith(("3", "4e+03"))


def test_means_of_the_mixture_lie_on_a_sphere():
    law = comparison._law("mixture", 5, torch.Generator().manual_seed(0))
    x = law.sample(40_000, torch.Generator().manual_seed(1))
    # E |x|^2 is that of the means, 1.5^2, and the variance of five entries.
    squares = x.square().sum(1)
    assert_within(squares.mean(), 2.25 + 5 * 0.2, squares.std() / 200)
    shares = law.log_weights.exp()
    assert shares.tolist() == [0.25] * 4
    assert law.means.norm(dim=1).tolist() == pytest.approx([1.5] * 4)
    unit = comparison._law("gaussian", 3, torch.Generator())
    draws = unit.sample(20_000, torch.Generator().manual_seed(2))
    assert torch.allclose(torch.cov(draws.T), torch.eye(3, dtype=torch.float64), atol=0.05)
    assert float(draws.mean(0).abs().max()) < 0.05
