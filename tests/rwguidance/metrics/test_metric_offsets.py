"""Distances know differences alone: what all rows or all log-weights share changes no figure."""

from dataclasses import fields, is_dataclass

import numpy
import pytest
import torch

from common import randn
from rwguidance import metrics
from rwguidance.metrics import Sample

OFFSET = 2.0**24
"""Double precision has steps of 4e-9 here, single precision of 2: more than any difference."""

GROUPS = [f"prompt {i % 4}" for i in range(48)]


def moved(seed, offset, features=0.0):
    """Weighted rows of four groups; features lie on a grid that the offset leaves exact."""

    x = (randn(seed, 48, 3) * 2**20).round() / 2**20
    return Sample(x + features, randn(seed + 1, 48) + offset, GROUPS)


def share(x, y):
    rewards = [Sample(s.features[:, :1], s.log_weights, GROUPS) for s in (x, y)]
    base = Sample(rewards[0].features - 1, None, GROUPS)
    return metrics.share_of_target(rewards[0], base, Sample(rewards[1].features + 3, None, GROUPS))


FIGURES = {
    "energy": metrics.energy_distance,
    "energy, pooled": lambda x, y: metrics.energy_distance(x, y, pooled=True),
    "Gaussian kernel": lambda x, y: metrics.kernel_distance(x, y, metrics.gaussian_kernel(0.8)),
    "Gaussian kernel, pooled": lambda x, y: metrics.kernel_distance(
        x, y, metrics.gaussian_kernel(0.8), pooled=True
    ),
    "spread": lambda x, y: metrics.pairwise_distance(x),
    "distinct": lambda x, y: metrics.distinct(Sample(x.features, None, GROUPS), 1.0),
    "Frechet": metrics.frechet_distance,
    "precision and recall": lambda x, y: metrics.precision_recall(
        Sample(x.features, None, GROUPS), Sample(y.features, None, GROUPS)
    ),
    "their curve": lambda x, y: metrics.precision_recall_curve(x, y, k=3),
    "share": share,
}


def numbers(found):
    """All numbers of a result, in one list."""

    if isinstance(found, torch.Tensor):
        return found.double().flatten().tolist()
    if isinstance(found, int | float):
        return [float(found)]
    if is_dataclass(found):
        return [number for part in fields(found) for number in numbers(getattr(found, part.name))]
    if isinstance(found, tuple):
        return [number for part in found for number in numbers(part)]
    return []


@pytest.mark.parametrize("of", ["features", "log-weights"])
@pytest.mark.parametrize("name", FIGURES)
def test_what_all_have_in_common_changes_nothing(name, of):
    features, offset = (OFFSET, 0.0) if of == "features" else (0.0, OFFSET)
    near = FIGURES[name](moved(0, 0.0), moved(2, 0.0))
    far = FIGURES[name](moved(0, offset, features), moved(2, offset, features))
    assert len(numbers(near)) > 1
    numpy.testing.assert_allclose(numbers(far), numbers(near), rtol=1e-5, atol=1e-6)
