"""A fingerprint changes with what a module computes, and with nothing else."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from rwguidance import DiscreteSchedule, NoiseModel, VPSchedule
from rwguidance.support.fingerprint import fingerprint


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


@dataclass(frozen=True)
class Settings:
    mean: float
    name_or_path: str = "here"


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        ((1.0, 2.0), [1.0, 2.0], (1.0, 3.0)),
        ({"a": 1.0}, {"a": 1.0}, {"a": 0.5}),
        ([{"a": (1,)}], [{"a": (1,)}], [{"a": (2,)}]),
        (Settings(1.0), Settings(1.0, "there"), Settings(2.0)),
        (VPSchedule(0.1, 20.0), VPSchedule(0.1, 20.0), VPSchedule(0.1, 30.0)),
        (torch.float16, torch.float16, torch.float32),
    ],
)
def test_options_may_be_collections(one, same, other):
    assert key(WEIGHT, one) == key(WEIGHT, same)
    assert key(WEIGHT, one) != key(WEIGHT, other)


def test_what_a_module_says_of_itself_enters_and_folders_and_devices_do_not():
    class Told(nn.Module):
        def __init__(self, text, folder, device):
            super().__init__()
            self.name_or_path = folder
            self.device = torch.device(device)
            self._text = text

        def extra_repr(self):
            return self._text

    assert fingerprint(Told("a", "x", "cpu")) == fingerprint(Told("a", "y", "meta"))
    assert fingerprint(Told("a", "x", "cpu")) != fingerprint(Told("b", "x", "cpu"))


@pytest.mark.parametrize("name", ["_active_adapter", "_disable_adapters"])
def test_adapters_that_do_not_act_change_it(name):
    one, other = nn.Identity(), nn.Identity()
    setattr(one, name, ["a"])
    setattr(other, name, ["b"])
    assert fingerprint(one) != fingerprint(other)


def test_offloaded_weights_enter():
    hooks = pytest.importorskip("accelerate")
    one, other = (nn.Sequential(Scaled(WEIGHT + i)) for i in range(2))
    before = [fingerprint(one), fingerprint(other)]
    for module in (one, other):
        hooks.cpu_offload(module, torch.device("cpu"))
        assert module[0].weight.is_meta
    assert [fingerprint(one), fingerprint(other)] == before


def test_every_entry_of_a_schedules_table_counts():
    """Else the draws of one model are taken for those of another."""

    class Still(NoiseModel):
        def noise(self, x_t, t, condition=None):
            return 0 * x_t

    table = torch.linspace(0.999, 0.01, 100, dtype=torch.float64)
    first = fingerprint(Still(DiscreteSchedule(table)))
    assert fingerprint(Still(DiscreteSchedule(table.clone()))) == first
    other = table.clone()
    other[37] += 1e-9
    assert fingerprint(Still(DiscreteSchedule(other))) != first
    assert fingerprint(Still(DiscreteSchedule(table.float().double()))) != first
