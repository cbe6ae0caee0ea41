"""A fingerprint changes with what a thing depends on, and with nothing else."""

import functools
from dataclasses import dataclass

import numpy
import pytest
import torch
from torch import nn

from rwguidance import DiscreteSchedule, NoiseModel, Tilt, VPSchedule
from rwguidance.losses import itakura_saito, log_mse
from rwguidance.support import digests
from rwguidance.support.fingerprint import (
    Undescribed,
    _Describer,
    fingerprint,
    fingerprint_or_reason,
)
from rwguidance.support.user_code import load_object


class Scaled(nn.Module):
    depends_on = ("factor", "batch")

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


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float64, torch.long, torch.bool, torch.complex64],
)
def test_every_entry_of_every_dtype_counts(dtype):
    values = (torch.arange(12).reshape(3, 4) % 2).to(dtype)
    keys = {fingerprint(values)}
    for i in range(12):
        other = values.clone()
        other.view(-1)[i] = int(other.view(-1)[i].real) == 0
        keys.add(fingerprint(other))
    assert len(keys) == 13
    assert fingerprint(values.clone()) in keys
    assert fingerprint(torch.empty(0, dtype=dtype)) != fingerprint(torch.empty(0, 1, dtype=dtype))


def test_the_order_in_memory_does_not_count():
    x = torch.arange(24.0).reshape(2, 3, 4)
    transposed = x.transpose(0, 2).contiguous().transpose(0, 2)
    assert not transposed.is_contiguous()
    assert fingerprint(transposed) == fingerprint(x)
    assert fingerprint(x.conj()) == fingerprint(x)
    z = torch.complex(x, x + 1)
    assert fingerprint(z.conj()) == fingerprint(z.conj().resolve_conj()) != fingerprint(z)


def test_arrays_count_as_tensors_do():
    x = numpy.arange(24.0).reshape(4, 6)
    x.flags.writeable = False
    assert fingerprint(x) == fingerprint(x.T.copy().T)
    other = x.copy()
    other[3, 5] += 1
    assert fingerprint(other) != fingerprint(x)


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("contiguous", [True, False])
def test_of_large_tensors_every_kth_entry_and_the_last_count(monkeypatch, contiguous, array):
    monkeypatch.setattr(digests, "WHOLE", 80)
    monkeypatch.setattr(digests, "_BLOCK", 3)  # entries that are picked at once
    make = lambda: torch.zeros(6, 8) if contiguous else torch.zeros(8, 6).T
    small = torch.zeros(3)
    key = lambda x: fingerprint((x.numpy() if array else x, small))
    plain = key(make())
    seen = []
    for i in range(48):
        x = make()
        x[i // 8, i % 8] = 1
        if key(x) != plain:
            seen.append(i)
    # 51 entries of 4 bytes are 204, two and a half times 80: every third counts.
    assert seen == [*range(0, 48, 3), 47]
    assert key(torch.zeros(8, 6)) != plain


@pytest.mark.parametrize("whole", [1000, 80])
def test_how_many_entries_are_read_at_once_does_not_count(whole, monkeypatch):
    monkeypatch.setattr(digests, "WHOLE", whole)
    x = torch.arange(48.0).reshape(6, 8)
    keys = lambda: [fingerprint(value) for value in (x, x.T, x.numpy())]
    together = keys()
    monkeypatch.setattr(digests, "_BLOCK", 5)
    assert keys() == together


def test_up_to_64_mebibytes_all_count():
    assert digests.WHOLE == 2**26


def test_what_holds_itself_is_described_by_how_far_up_it_is():
    inner = ["a"]
    inner.append(inner)
    around = lambda steps: ("around", str(steps))
    own = _Describer(()).describe(inner, "")
    assert own[1][1] == around(1)
    for depth, outer in ((1, [inner]), (2, [[inner]])):
        found = _Describer(()).describe(outer, "")
        for _ in range(depth):
            (found,) = found[1]
        assert found == own  # wherever it is
    outer = [["a"]]
    outer[0].append(outer)
    assert _Describer(()).describe(outer, "")[1][0][1][1] == around(2)
    assert fingerprint(outer) != fingerprint([inner])


def test_of_exactly_as_many_bytes_all_count(monkeypatch):
    monkeypatch.setattr(digests, "WHOLE", 40)
    for i in range(10):
        x = torch.zeros(10)
        x[i] = 1
        assert fingerprint(x) != fingerprint(torch.zeros(10))


def test_a_large_tensor_is_not_copied(monkeypatch):
    monkeypatch.setattr(digests, "WHOLE", 2**16)
    x = torch.zeros(2**13, 2**10)  # 32 MB
    for tensor in (x, x.T):
        with torch.profiler.profile(profile_memory=True) as profile:
            fingerprint(tensor)
        most = max((e.self_cpu_memory_usage for e in profile.events()), default=0)
        assert 0 < most < x.nbytes / 8


@dataclass(frozen=True)
class Settings:
    mean: float
    name: str = "here"


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        ((1.0, 2.0), [1.0, 2.0], (1.0, 3.0)),
        ({"a": 1.0}, {"a": 1.0}, {"a": 0.5}),
        ([{"a": (1,)}], [{"a": (1,)}], [{"a": (2,)}]),
        (Settings(1.0), Settings(1.0, "here"), Settings(1.0, "there")),
        ({1, 2}, {2, 1}, {1, 3}),
        (numpy.float32(2.0), numpy.float32(2.0), numpy.float32(3.0)),
        ("a", "a", b"a"),
        (1, 1, 1.0),
        (True, True, 1),
        (0.0, 0.0, -0.0),
        ("\ud800", "\ud800", "\ud801"),
        ({1: "a"}, {1: "a"}, {"1": "a"}),
        ({"a": 1.0, "b": 1.0}, {"b": 1.0, "a": 1.0}, {"a": 1.0, "c": 1.0}),
        ((("a",), "b"), (("a",), "b"), ("a", ("b",))),
        (VPSchedule(0.1, 20.0), VPSchedule(0.1, 20.0), VPSchedule(0.1, 30.0)),
        (torch.float16, torch.float16, torch.float32),
    ],
)
def test_options_may_be_collections(one, same, other):
    assert key(WEIGHT, one) == key(WEIGHT, same)
    assert key(WEIGHT, one) != key(WEIGHT, other)


class Silent(nn.Module):
    pass


class Heir(Scaled):
    pass


class Part:
    depends_on = ("size",)

    def __init__(self, size):
        self.size = size

    def method(self, x):
        return self.size * x


def loose(x):
    return x


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Silent(), r"Silent does not say .*write `depends_on = \(\.\.\.\)` in that class"),
        (Heir(WEIGHT), "Heir does not say"),  # it may have changed a method
        (nn.Sequential(nn.LayerNorm(2), Silent()), r"Silent \(1\) does not say"),
        (lambda x: x, "the function .*lambda.* cannot say"),
        (loose, "the function loose cannot say"),
        (Part(loose), r"the function loose \(size\)"),
        (Scaled(WEIGHT, {"f": [loose]}), r"loose \(factor\['f'\]\[0\]\)"),
        (object(), "builtins.object does not say"),
        (torch.ones(2).to_sparse(), "dense"),
    ],
)
def test_what_does_not_say_is_undescribed(value, message):
    with pytest.raises(Undescribed, match=message):
        fingerprint(value)
    key, reason = fingerprint_or_reason(value)
    assert key is None
    assert "\n" not in reason


def test_an_unknown_attribute_is_a_mistake_of_the_class():
    class Wrong:
        depends_on = ("absent",)

    class One:
        depends_on = "size"

    with pytest.raises(TypeError, match="no absent") as error:
        fingerprint(Wrong())
    assert not isinstance(error.value, Undescribed)
    with pytest.raises(TypeError, match=r"tuple of names .*'size'"):
        fingerprint(One())
    One.depends_on = ("size", 3)
    with pytest.raises(TypeError, match=r"tuple of names .*\('size', 3\)"):
        fingerprint(One())


def test_bound_methods_and_partial_functions_count_with_what_they_are_bound_to():
    assert fingerprint(Part(1).method) == fingerprint(Part(1).method) != fingerprint(Part(2).method)
    one, two = (functools.partial(nn.functional.softplus, beta=b) for b in (1, 2))
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint(itakura_saito) != fingerprint(log_mse)


def test_circles_end():
    parts = [Part(1), Part(1), Part(2)]
    for part in parts:
        part.size = [part, part.size]
    keys = [fingerprint(part) for part in parts]
    assert keys[0] == keys[1] != keys[2]


def test_a_shared_part_counts_as_equal_parts_do():
    part = Scaled(WEIGHT)
    shared = nn.ModuleList([part, part])
    assert fingerprint(shared) == fingerprint(nn.ModuleList([part, Scaled(WEIGHT)]))


def test_private_attributes_and_devices_of_foreign_modules_do_not_count():
    one, other = nn.LayerNorm(2), nn.LayerNorm(2)
    other.place = torch.device("meta")
    other._note = "x"
    other.name_or_path = "elsewhere"
    assert fingerprint(one) == fingerprint(other)
    other.scale = 2.0
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(nn.LeakyReLU(0.1)) != fingerprint(nn.LeakyReLU(0.2))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(USER)
    return path


USER = """
import torch

class Plain:
    def __init__(self, size=1):
        self.size = size

class Net(torch.nn.Module):
    def __init__(self, value=1.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((2,), value))
        self.value = value

def score(x, c=None, *, factor=2.0):
    return x

def made(factor):
    return lambda x: factor * x

first, second = made(1), made(2)
instance = Plain(3)
"""


def test_objects_of_a_users_file_count_by_its_digest_with_options_and_tensors(file):
    load = lambda name: load_object(f"{file}:{name}")
    plain, net = load("Plain"), load("Net")
    parts = {
        "class": plain,
        "object": plain(),
        "option": plain(2),
        "instance": load("instance"),
        "module": net(),
        "tensor": net(2.0),
        "function": load("score"),
        "closure": load("first"),
        "other closure": load("second"),
        "in a tilt": Tilt(load("score"), 1.0),
    }
    keys = {name: fingerprint(part) for name, part in parts.items()}
    assert len(set(keys.values())) == len(keys)
    assert fingerprint(plain(2)) == keys["option"]
    assert fingerprint(net()) == keys["module"]
    file.write_text(USER + "# changed\n")
    assert fingerprint(load("score")) != keys["function"]
    assert fingerprint(load("Net")()) != keys["module"]


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
        depends_on = ("schedule",)

        def noise(self, x_t, t, condition=None):
            return 0 * x_t

    table = torch.linspace(0.999, 0.01, 100, dtype=torch.float64)
    first = fingerprint(Still(DiscreteSchedule(table)))
    assert fingerprint(Still(DiscreteSchedule(table.clone()))) == first
    other = table.clone()
    other[37] += 1e-9
    assert fingerprint(Still(DiscreteSchedule(other))) != first
    assert fingerprint(Still(DiscreteSchedule(table.float().double()))) != first
