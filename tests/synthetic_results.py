"""Results of an evaluation whose laws are normal: what a table must say of them is known.

Pictures are their embedding, N(0, I) under the model. The reward that is aligned to is the first
entry, times `SLOPE`; one more reward rises with it and one falls. The exactly tilted law at d nats
is N(sqrt(2 d) e_1, I), whichever the slope.
"""

import math

import torch

from rwguidance.evaluation.results import BASE, COSTS, Cell, Failure, Pictures, Results
from rwguidance.evaluation.targets import Draws

SLOPE = 3.0
DIMENSIONS = 4


def rewards_of(x):
    return {"aligned": SLOPE * x[..., 0], "follows": 0.5 * x[..., 0], "falls": -x[..., 0]}


def shift_of(nats):
    """The mean of the tilted law at a strength, along the first axis."""

    return math.sqrt(2 * nats)


def pictures(x, network=4.0):
    p, m = x.shape[:2]
    costs = (network * m, m, m, 0.0, 0.5 * m, 2.0**20)
    return Pictures(
        rewards_of(x),
        {"itself": x},
        {name: torch.full((p,), float(cost)) for name, cost in zip(COSTS, costs, strict=True)},
        [{} for _ in range(p)],
    )


def synthetic(prompts=8, images=4, draws=400, strengths=(0.25, 1.0), seed=0, shifts=None):
    """Results with a method that is exact, and one that goes twice as far.

    `shifts` gives other methods: functions from (noise, nats, generator) to states, by label.
    """

    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(
        *shape, DIMENSIONS, generator=generator, dtype=torch.float64
    )
    axis = torch.eye(DIMENSIONS, dtype=torch.float64)[0]
    methods = shifts or {
        "exact": lambda x, nats: x + shift_of(nats) * axis,
        "overshoots": lambda x, nats: x + 2 * shift_of(nats) * axis,
    }
    base = normal(prompts, images)
    cells = {BASE: pictures(base)}
    for label, move in methods.items():
        for nats in strengths:
            cells[Cell(label, nats)] = pictures(move(base, nats))
    targets = []
    for x in normal(prompts, draws):
        targets.append(Draws(rewards_of(x), {"itself": x}, strengths))
    return Results(
        plan={"seed": seed},
        prompts=[f"prompt {i}" for i in range(prompts)],
        aligned="aligned",
        rewards=("aligned", "follows", "falls"),
        embeddings=("itself",),
        strengths=strengths,
        cells=cells,
        draws=targets,
        failures=(Failure("prompt 0", "overshoots at 1 nats", "a reason"),),
    )
