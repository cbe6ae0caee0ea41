"""A fingerprint changes with what a module computes, and with nothing else."""

import pytest
import torch
from torch import nn

from rwguidance.fingerprint import fingerprint


class Scaled(nn.Module):
    def __init__(self, weight, factor=1.0, batch=8):
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.factor = factor
        self.batch = batch


WEIGHT = torch.arange(200.0).reshape(10, 20)


def key(weight=WEIGHT, *arguments):
    return fingerprint(Scaled(weight, *arguments), ignore=("batch",))


def test_equal_modules_have_equal_fingerprints():
    assert key() == key()
    assert len(key()) == 64
    assert key(WEIGHT, 1.0, 3) == key()


@pytest.mark.parametrize(
    "other",
    [
        lambda: key(WEIGHT + 1),
        lambda: key(WEIGHT, 2.0),
        lambda: key(WEIGHT.double()),
        lambda: key(WEIGHT.reshape(20, 10)),
        lambda: fingerprint(nn.Sequential(Scaled(WEIGHT)), ignore=("batch",)),
        lambda: fingerprint(Scaled(WEIGHT), ignore=()),
        lambda: key(torch.empty(10, 20, device="meta")),
    ],
)
def test_what_differs_in_anything_else_has_another(other):
    assert other() != key()


def test_half_precision_and_integers_have_one():
    module = nn.Module()
    module.register_buffer("a", torch.ones(3, dtype=torch.bfloat16))
    module.register_buffer("b", torch.ones(3, dtype=torch.long))
    module.register_buffer("c", torch.empty(0))
    module.register_buffer("d", torch.tensor(2.0))
    assert fingerprint(module) == fingerprint(module)
