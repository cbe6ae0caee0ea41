"""The mixture of the demo: its law, what every estimator makes of it, and the picture."""

import time

import matplotlib.figure
import numpy
import pytest
import torch

from common import assert_within
from rwguidance.app.demo.figures import draw_mixture
from rwguidance.app.demo.mixture import align_mixture, problem


def test_six_gaussians_lie_on_a_circle_and_along_it():
    law, tilt = problem()
    assert tilt.betas == (0.8,)
    x = law.sample(60_000, torch.Generator().manual_seed(0))
    radius = x.norm(dim=1)
    # Outward N(2, 0.02), along the circle N(0, 0.12): the radius has 4 + 0.02 + 0.12 as its square.
    assert_within(radius.square().mean(), 4.14, radius.square().std() / len(x) ** 0.5)
    centers = 2 * torch.stack([_on_circle(i / 6) for i in range(6)])
    nearest = torch.cdist(x, centers).argmin(1)
    for i, center in enumerate(centers):
        mine = x[nearest == i]
        assert len(mine) == pytest.approx(10_000, rel=0.05)
        outward = center / 2
        across = torch.stack((-outward[1], outward[0]))
        away = mine - center
        assert float((away @ outward).var()) == pytest.approx(0.02, rel=0.1)
        assert float((away @ across).var()) == pytest.approx(0.12, rel=0.1)
    reward = tilt.score(torch.tensor([[1.2, 0.9], [2.2, 0.9], [1.2, 2.9]]))
    assert reward.tolist() == pytest.approx([0.0, -0.4, -1.6])


def _on_circle(turn: float) -> torch.Tensor:
    angle = torch.tensor(2 * torch.pi * turn, dtype=torch.float64)
    return torch.stack((angle.cos(), angle.sin()))


@pytest.fixture(scope="module")
def panels():
    said: list[str] = []
    started = time.perf_counter()
    found = align_mixture(300, bank_size=500, training_steps=1, steps=6, say=said.append)
    elapsed = time.perf_counter() - started
    assert said == ["a mixture in the plane: every estimator"]
    assert all(panel.seconds >= 0 for panel in found)
    assert sum(panel.seconds for panel in found) < elapsed
    return {panel.title: panel for panel in found}


def test_every_estimator_has_a_panel(panels):
    assert list(panels) == [
        "base law",
        "exact target",
        "exact shift",
        "importance sampling",
        "network for log h",
        "network for the shift",
        "plug-in",
        "plug-in, damped",
    ]
    assert [panel.seconds > 0 for panel in panels.values()] == [False] * 2 + [True] * 6


def test_the_exact_shift_reaches_the_target_that_the_base_law_misses(panels):
    law, tilt = problem()
    draws = law.tilted(tilt).sample(20_000, torch.Generator().manual_seed(1))
    rewards = tilt.score(draws)
    error = rewards.std() / len(panels["exact target"].draws) ** 0.5
    for title in ("exact target", "exact shift", "importance sampling"):
        panel = panels[title]
        assert panel.draws.shape == (300, 2)
        assert panel.reward == pytest.approx(float(tilt.score(panel.draws).mean()))
        assert_within(panel.reward, float(rewards.mean()), error)
        assert panel.distance < 0.25 < panels["base law"].distance
    assert panels["plug-in, damped"].reward < panels["plug-in"].reward


def test_a_panel_shows_its_draws_over_the_law_to_reach(panels, tmp_path, monkeypatch):
    figures = []
    save = lambda figure, path, dpi: figures.append((figure, dpi)) or path.touch()
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", save)
    law, tilt = problem()
    asked = []
    target = law.tilted(tilt)
    monkeypatch.setattr(law, "log_prob", _noting(law, "base", asked))
    monkeypatch.setattr(target, "log_prob", _noting(target, "target", asked))
    shown = [panels[title] for title in ("base law", "exact target", "exact shift", "plug-in")]
    draw_mixture([*shown, shown[-1]], law, target, tmp_path / "mixture.png")
    ((figure, dpi),) = figures
    assert (tmp_path / "mixture.png").exists()
    assert dpi == 140
    assert figure.get_size_inches().tolist() == pytest.approx([12.4, 6.8])  # two rows of four
    assert asked == ["base"] + ["target"] * 4
    for axis, panel in zip(figure.axes, shown, strict=False):
        (points,) = axis.lines
        assert numpy.array_equal(points.get_xydata(), panel.draws.numpy())
        title = f"{panel.title}\nreward {panel.reward:.2f}, distance {panel.distance:.2f}"
        assert axis.get_title() == title
        assert (axis.get_xlim(), axis.get_ylim()) == ((-3.1, 3.1), (-3.1, 3.1))
    colors = [axis.lines[0].get_color() for axis in figure.axes[:4]]
    assert colors == ["#6b7280"] + ["#c2410c"] * 3  # gray alone, as in the other pictures


def _noting(law, name, asked):
    log_prob = law.log_prob

    def noting(x):
        asked.append(name)
        assert x.abs().max() == pytest.approx(3.1)
        return log_prob(x)

    return noting
