"""The toys: laws, rewards and draws of the exactly tilted laws."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

import rwguidance as rw
from rwguidance import toy
from rwguidance.diagnostics import sliced_wasserstein

from ..strong_tilts import LAWS as DAMPING
from ..strong_tilts import law_of, w2

DTYPE = torch.float64


@dataclass(frozen=True)
class Problem:
    """A law and a reward; the temperature is that of the tilt.

    Arguments:
        law: The law of the model.
        reward: The reward.
        beta: Temperature, in reward units.
        distance: Distance of two sets of as many states.
    """

    law: toy.GaussianMixture | toy.Empirical
    reward: Callable[..., Tensor]
    beta: float
    distance: Callable[[Tensor, Tensor], float]

    def target(self, n: int, generator: Generator) -> Tensor:
        """Exact draws of the tilted law, by its closed form or by rejection."""

        tilt = rw.Tilt(self.reward, self.beta)
        try:
            return self.law.tilted(tilt).sample(n, generator)
        except toy.NoClosedForm:
            found, count = [], 0
            while count < n:
                x = self.law.sample(4 * n, generator)
                log_u = torch.rand(len(x), generator=generator, dtype=DTYPE).log()
                found.append(x[log_u < tilt(x)])  # rewards of the planes are at most 0
                count += len(found[-1])
            return torch.cat(found)[:n]


def damping(name: str, strength: float) -> Callable[[int], Problem]:
    reward = toy.Quadratic(torch.tensor([0.0, 2.5], dtype=DTYPE), 2 * torch.eye(2, dtype=DTYPE))
    return lambda seed: Problem(law_of(name), reward, 1 / strength, w2)


def das() -> Problem:
    """Nine modes of variance 0.3 on a grid; the reward tells rows from columns."""

    grid = torch.tensor([-4.0, 0.0, 4.0], dtype=DTYPE)
    law = toy.GaussianMixture(
        torch.zeros(9), torch.cartesian_prod(grid, grid), 0.3 * torch.eye(2, dtype=DTYPE)[None]
    )
    precision = torch.diag(torch.tensor([0.02, 2.0], dtype=DTYPE))
    return Problem(law, toy.Quadratic(torch.zeros(2), precision), 1.0, w2)


def high(seed: int) -> Problem:
    """Forty components with means at random in 30 dimensions, others for each seed."""

    generator = Generator().manual_seed(seed)
    means = 40 * torch.rand(40, 30, generator=generator, dtype=DTYPE) - 20
    law = toy.GaussianMixture(torch.zeros(40), means, torch.eye(30, dtype=DTYPE)[None])
    sliced = lambda x, y: sliced_wasserstein(x, y, 64, Generator().manual_seed(0))
    return Problem(law, toy.Quadratic(torch.zeros(30), torch.eye(30)), 200.0, sliced)


def eight_gaussians() -> Problem:
    """A reward of steps, which has no gradient: minus the number of the sector, 0 to 7."""

    angles = torch.arange(8, dtype=DTYPE) * math.pi / 4
    means = torch.stack((angles.cos(), angles.sin()), dim=1)
    law = toy.GaussianMixture(torch.zeros(8), means, 0.01 * torch.eye(2, dtype=DTYPE)[None])

    def reward(x: Tensor, condition: Any = None) -> Tensor:
        angle = torch.atan2(x[:, 0], x[:, 1]).detach()
        sector = ((angle + math.pi - math.pi / 8) / (math.pi / 4)).floor()
        return -sector.remainder(8)

    return Problem(law, reward, 1.0, w2)


def s_curve() -> Problem:
    """Points along an S, blurred by 0.05; the reward falls off its diagonal."""

    u = torch.linspace(-1.5 * math.pi, 1.5 * math.pi, 1000, dtype=DTYPE)
    points = torch.stack((u.sin(), u.sign() * (u.cos() - 1) / 2), dim=1)
    reward = lambda x, condition=None: -5 * (x[:, 0] - x[:, 1]).abs()
    return Problem(toy.Empirical(points, 0.05), reward, 1.0, w2)


def moons() -> Problem:
    """Points along two half circles, blurred; the reward is minus three on one of them.

    Which one a state is on is told by the nearer circle, smoothly.
    """

    u = torch.linspace(0, math.pi, 500, dtype=DTYPE)
    outer = torch.stack((u.cos(), u.sin()), dim=1)
    inner = torch.stack((1 - u.cos(), 0.5 - u.sin()), dim=1)
    moved = lambda x: (x - torch.tensor([0.5, 0.25], dtype=DTYPE)) / 1.5
    outer, inner = moved(outer), moved(inner)

    def reward(x: Tensor, condition: Any = None) -> Tensor:
        near = [(-torch.cdist(x, one).square() / 0.02).logsumexp(1) for one in (outer, inner)]
        return -3 * (near[1] - near[0]).sigmoid()

    return Problem(toy.Empirical(torch.cat((outer, inner)), 0.03), reward, 1.0, w2)


FAMILIES: dict[str, dict[str, Callable[[int], Problem]]] = {
    "damping": {
        f"{name}, {strength}": damping(name, strength) for name in DAMPING for strength in (1, 3)
    },
    "planes": {
        "eight Gaussians": lambda seed: eight_gaussians(),
        "S-curve": lambda seed: s_curve(),
        "moons": lambda seed: moons(),
    },
    "DAS": {"nine modes": lambda seed: das()},
    "30-D": {"forty modes": high},
}
"""Problems by families, each of a seed, which matters for the last alone."""
