"""Settings of methods as options: stated once, in the dataclass and its docstring."""

import dataclasses
import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from torch import nn

from rwguidance.generation import (
    SMC,
    BestOfN,
    ChangeNetwork,
    Importance,
    Method,
    Network,
    NoiseChain,
    NoiseGradient,
    NoiseNetwork,
    OutputNetwork,
    PlugInMean,
    Pool,
    Posterior,
    Resample,
    SecondOrder,
    StraightFlow,
)
from rwguidance.generation.base import Guided
from rwguidance.generation.methods import METHODS
from rwguidance.generation.settings import (
    Option,
    build,
    flag,
    method_options,
    method_settings,
    summary,
)
from rwguidance.support.fingerprint import fingerprint


@dataclass(frozen=True)
class Walk(Guided):
    """Walks, as :class:`Importance` does
    not.

    Arguments:
        length: Number of steps, as many
            as :class:`~rwguidance.DDIM` takes.
        kind: Kind of the walk.
        rate: Rate, with the `length`: the longer, the smaller.
        map: Map, drawn.

    Returns:
        strict: Not a setting.
    """

    name: ClassVar[str] = "walk"

    length: int = field(metadata={"option": "bank"})
    kind: Literal["random", "self-avoiding"] = "random"
    rate: float | None = None
    strict: bool = False
    map: nn.Module | None = field(
        default=None, metadata={"read": partial(torch.load, weights_only=True)}
    )

    def estimator(self, run, prompt):
        raise NotImplementedError


def by_name(method):
    return {setting.field: setting for setting in method_settings(method)}


def test_every_method_stands_under_its_name_with_a_summary():
    assert set(METHODS.values()) == {
        Importance, Pool, Resample, SMC, Network, OutputNetwork, NoiseNetwork,
        ChangeNetwork, PlugInMean, SecondOrder, StraightFlow, Posterior,
        NoiseGradient, NoiseChain, BestOfN,
    }  # fmt: skip
    for name, method in METHODS.items():
        assert method.name == name
        assert summary(method).endswith(".")


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_every_field_of_a_method_is_a_setting_with_a_meaning(method):
    settings = method_settings(method)
    assert {s.field for s in settings} == {f.name for f in dataclasses.fields(method)}
    for setting in settings:
        assert setting.meaning.endswith("."), f"{method.__name__}.{setting.field} is not described"
        assert setting.method == method.name


def test_a_dataclass_is_all_that_a_method_needs():
    settings = by_name(Walk)
    assert list(settings) == ["length", "kind", "rate", "strict", "map", "scale", "window"]
    assert [s.kind for s in settings.values()] == [
        int, Literal["random", "self-avoiding"], float, bool, Path, float, tuple[float, float],
    ]  # fmt: skip
    assert [s.note for s in settings.values()] == [
        "required", "default random", "", "default no", "", "default 1", "default 0 1",
    ]  # fmt: skip
    assert settings["length"].option == "bank"
    assert settings["length"].meaning == "Number of steps, as many as `DDIM` takes."
    assert settings["rate"].meaning == "Rate, with the `length`: the longer, the smaller."
    assert settings["scale"].meaning == by_name(Importance)["scale"].meaning
    assert settings["strict"].meaning == ""
    assert summary(Walk) == "Walks, as `Importance` does not."


def test_an_option_of_several_methods_says_what_it_is_to_each():
    options = {option.name: option for option in method_options({**METHODS, "walk": Walk})}
    assert options["bank"].meanings == {
        by_name(Importance)["bank"].meaning: "importance, resample, default 64",
        by_name(Pool)["bank"].meaning: "pool, default 32",
        by_name(PlugInMean)["bank"].meaning: (
            "smc, plug-in, second-order, fmps, posterior, default 64"
        ),
        by_name(NoiseGradient)["bank"].meaning: "noise-gradient, default 64",
        by_name(NoiseChain)["bank"].meaning: "pcn, default 64",
        by_name(BestOfN)["n"].meaning: "best-of-n, default 16",
        by_name(Walk)["length"].meaning: "walk, required",
    }
    assert options["beta"].meanings["Temperature, in reward units."] == (
        "importance, pool, resample, smc, plug-in, second-order, fmps, posterior, noise-gradient, "
        "pcn"
    )
    assert options["scale"].help == (
        "Factor of the shift; 1 is exact (importance, pool, network, plug-in, second-order, fmps, "
        "posterior, walk, default 1)."
    )


def test_methods_agree_on_the_type_of_an_option():
    @dataclass(frozen=True)
    class Other(Walk):
        name = "other"

        rate: int = 1

    message = "--rate must have one type for all methods, got .*float.* for walk and .*int"
    with pytest.raises(TypeError, match=message):
        method_options({"walk": Walk, "other": Other})
    with pytest.raises(TypeError, match="--rate must have one type"):
        Option("rate", [by_name(Walk)["rate"], by_name(Other)["rate"]])


def test_a_default_may_be_made():
    @dataclass(frozen=True)
    class Made(Walk):
        span: tuple[int, int] = field(default_factory=lambda: (1, 2))

    assert by_name(Made)["span"].note == "default 1 2"


def test_a_setting_of_two_types_is_refused():
    @dataclass(frozen=True)
    class Either(Walk):
        rate: int | str = 1

    with pytest.raises(TypeError, match=r"setting rate must have one type, or that and None, got"):
        method_settings(Either)


def test_a_method_is_built_from_the_options_that_were_given(tmp_path):
    torch.save({"a": 1}, tmp_path / "map")
    given = {"bank": 3, "kind": None, "rate": 0.5, "map": tmp_path / "map", "scale": 2.0}
    assert build(Walk, given) == Walk(3, rate=0.5, map={"a": 1}, scale=2.0)
    assert build(BestOfN, {"bank": 3, "beta": None}) == BestOfN(3)
    assert build(Importance, {}) == Importance(kl=1.0)
    assert build(Importance, {"beta": 2.0}) == Importance(beta=2.0)
    assert build(Importance, {"kl": 2.0, "window": (0.5, 1.0)}) == Importance(
        kl=2.0, window=(0.5, 1.0)
    )


def test_an_option_of_another_method_is_refused_and_one_that_misses_named():
    message = "--prior-variance is not for --method best-of-n, which takes --bank, --beta"
    with pytest.raises(ValueError, match=message):
        build(BestOfN, {"prior_variance": 1.0})
    with pytest.raises(ValueError, match="--method walk needs --bank"):
        build(Walk, {"rate": 1.0})


def test_a_flag_has_hyphens():
    assert flag("prior_variance") == "--prior-variance"


def test_settings_that_json_holds_are_those_of_the_dataclass():
    assert Walk(3).settings() == {
        "length": 3, "kind": "random", "rate": None, "strict": False, "map": None,
        "scale": 1.0, "window": (0.0, 1.0),
    }  # fmt: skip

    parts = (1.0, torch.ones(2))
    assert Walk(3, map=parts).settings()["map"] == fingerprint(parts)

    class Bare(Method):
        name = "bare"

        def align(self, run, prompt, numbers, base, rewards):
            raise NotImplementedError

    with pytest.raises(TypeError, match="dataclass"):
        Bare().settings()


@pytest.mark.parametrize(
    ("kind", "name", "least"),
    [
        *((kind, "bank", 2) for kind in (Importance, PlugInMean, Pool, Posterior, Resample, SMC)),
        *((kind, "bank", 2) for kind in (NoiseChain, NoiseGradient, SecondOrder, StraightFlow)),
        *((kind, "pictures", 1) for kind in (Pool, Resample, SMC)),
        *((kind, "renew", 0) for kind in (Pool, Resample, SMC)),
        *((NoiseGradient, name, 1) for name in ("moves", "pilots", "through")),
        *((BestOfN, name, 2) for name in ("n", "draws")),
        *((Posterior, name, 2) for name in ("draws", "inner_steps")),
        (NoiseChain, "burn_in", 2),
        (NoiseChain, "moves", 1),
        (SecondOrder, "iterations", 1),
        (SMC, "particles", 2),
    ],
)
def test_numbers_begin_where_they_are_said_to(kind, name, least):
    assert getattr(kind(beta=1.0, **{name: least}), name) == least
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {least - 1}"):
        kind(beta=1.0, **{name: least - 1})


@pytest.mark.parametrize(
    ("kind", "name", "taken", "refused"),
    [
        (NoiseGradient, "size", (1e-9,), (0.0,)),
        (PlugInMean, "prior_variance", (1e-9,), (0.0,)),
        (NoiseChain, "acceptance", (1e-9, 1 - 1e-9), (0.0, 1.0)),
        (SMC, "eta", (1e-9, 1.0), (0.0, 1 + 1e-9)),
        (SMC, "threshold", (0.0, 1.0), (-1e-9, 1 + 1e-9)),
    ],
)
def test_ranges_end_where_they_are_said_to(kind, name, taken, refused):
    for value in taken:
        assert getattr(kind(beta=1.0, **{name: value}), name) == value
    for value in refused:
        with pytest.raises(ValueError, match=f"{name} must "):
            kind(beta=1.0, **{name: value})


@pytest.mark.parametrize("kind", [Importance, NoiseChain, Pool, Resample, SMC, StraightFlow])
def test_a_strength_is_less_than_the_logarithm_of_the_bank(kind):
    kind(kl=math.log(8) - 1e-9, bank=8)
    for kl in (math.log(8), 3.0):
        with pytest.raises(ValueError, match=r"kl must be less than log\(bank\) = 2.08 nats"):
            kind(kl=kl, bank=8)
    for wrong, message in (({}, "None and None"), ({"beta": 2.0, "kl": 1.0}, "2.0 and 1.0")):
        with pytest.raises(ValueError, match=f"^give beta or kl, one of them, got {message}$"):
            kind(**wrong)
