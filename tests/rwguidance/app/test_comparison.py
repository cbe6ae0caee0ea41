"""The table of `rwguidance toy`: which numbers it shows."""

import types

import torch

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
