"""Checks of arguments: what they take, and that their errors name argument, expectation, value."""

import math
import re

import numpy as np
import pytest
import torch

from rwguidance.support import checks

NAN = torch.tensor([[0.0, 1.0], [math.nan, 1.0], [0.0, math.inf]])

PASS = {
    "an int for a number": (lambda: checks.number("a", 1), 1.0),
    "a NumPy number": (lambda: checks.number("a", np.float32(0.5), 0, 1), 0.5),
    "a tensor of shape ()": (lambda: checks.number("a", torch.tensor(0.5)), 0.5),
    "a bound itself": (lambda: checks.number("a", 1, 0, 1), 1.0),
    "a NumPy integer": (lambda: checks.integer("a", np.int32(3), 1), 3),
    "an integer tensor": (lambda: checks.integer("a", torch.tensor(3)), 3),
    "a choice": (lambda: checks.choice("a", "x", ("x", "y")), "x"),
    "None, optional": (lambda: checks.optional(checks.integer, "a", None, 1), None),
    "a value, optional": (lambda: checks.optional(checks.number, "a", 2, above=0), 2.0),
    "False": (lambda: checks.flag("a", False), False),
    "a device": (lambda: checks.device("a", "cpu"), torch.device("cpu")),
    "a dtype": (lambda: checks.floating_dtype("a", "bfloat16"), torch.bfloat16),
    "no device": (lambda: checks.device("a", None), None),
}

FAIL = {
    "a boolean number": (lambda: checks.number("a", True), TypeError, "a must be a number, got bo"),
    "a string": (lambda: checks.number("a", "1"), TypeError, "a must be a number, got str '1'"),
    "None": (lambda: checks.number("a", None), TypeError, "a must be a number, got None"),
    "a vector": (lambda: checks.number("a", NAN[0]), TypeError, "a must be a number, got Tensor "),
    "one of a vector": (lambda: checks.number("a", NAN[0, :1]), TypeError, "a must be a number"),
    "a boolean tensor": (
        lambda: checks.number("a", torch.tensor(True)),
        TypeError,
        "got bool True",
    ),
    "a complex": (lambda: checks.number("a", 1j), TypeError, "a must be a number, got complex"),
    "NaN": (lambda: checks.number("a", math.nan), ValueError, "a must be finite, got nan"),
    "inf": (
        lambda: checks.number("a", math.inf, above=0),
        ValueError,
        "positive and finite, got i",
    ),
    "zero": (lambda: checks.number("a", 0, above=0), ValueError, "a must be positive and finite"),
    "below": (lambda: checks.number("a", -1, 0), ValueError, "a must be at least 0, got -1.0"),
    "outside": (
        lambda: checks.number("a", 0, high=1, above=0),
        ValueError,
        r"lie in \(0, 1\], got 0",
    ),
    "the open end": (lambda: checks.number("a", 1, 0, below=1), ValueError, r"in \[0, 1\), got 1"),
    "a float": (lambda: checks.integer("a", 2.0), TypeError, "a must be an integer, got float 2.0"),
    "none at all": (lambda: checks.integer("a", 0, 1), ValueError, "a must be at least 1, got 0"),
    "another choice": (lambda: checks.choice("a", 1, ("x",)), ValueError, "one of 'x', got int 1"),
    "1 for True": (lambda: checks.flag("a", 1), TypeError, "a must be True or False, got int 1"),
    "a class": (
        lambda: checks.instance("a", int, int, "an int"),
        TypeError,
        "a must be an int, got the class int",
    ),
    "no function": (lambda: checks.function("a", 3), TypeError, "a must be callable, got int 3"),
    "a list of states": (
        lambda: checks.states("a", [[1.0]]),
        TypeError,
        r"\(B, \*event\), got list",
    ),
    "integer states": (
        lambda: checks.states("a", NAN.long()),
        TypeError,
        "got Tensor of torch.int64",
    ),
    "sparse states": (
        lambda: checks.states("a", torch.zeros(2, 2).to_sparse()),
        ValueError,
        "a must be a dense tensor .* got one of layout torch.sparse_coo",
    ),
    "states on meta": (
        lambda: checks.states("a", torch.zeros(2, 2, device="meta")),
        ValueError,
        "a must be a dense tensor .* got one of the meta device",
    ),
    "states of nothing": (
        lambda: checks.states("a", torch.zeros(2, 0)),
        ValueError,
        r"a must be .* not empty, got shape \(2, 0\)",
    ),
    "NaN states": (
        lambda: checks.states("a", NAN, finite=True),
        ValueError,
        "a must be finite, got NaN or inf in items 1, 2",
    ),
    "no time": (lambda: checks.times("a", None), TypeError, "a must be a number or .*got None"),
    "a time in words": (lambda: checks.times("a", "0.5"), TypeError, "a must be .*got str '0.5'"),
    "times in words": (lambda: checks.times("a", ["x"]), ValueError, "a must be .*got list"),
    "times in columns": (
        lambda: checks.times("a", [[0.1], [0.2]]),
        ValueError,
        r"a must have shape \(\) or \(B,\), got \(2, 1\)",
    ),
    "too many times": (
        lambda: checks.times("a", [0.1, 0.2], 3),
        ValueError,
        r"a must have shape \(\) or \(3,\), got \(2,\)",
    ),
    "ragged times": (lambda: checks.times("a", [[0.1], 0.2]), (TypeError, ValueError), "got list"),
    "boolean times": (lambda: checks.times("a", torch.tensor(True)), TypeError, "torch.bool"),
    "a late time": (lambda: checks.times("a", 2), ValueError, r"a must lie in \[0, 1\] .*got 2"),
    "a seed": (lambda: checks.generator("a", 0), TypeError, "a must be a torch.Generator.*got int"),
    "a generator and a seed": (
        lambda: checks.generator("a", [torch.Generator(), 0]),
        TypeError,
        "a must be a torch.Generator.*got list",
    ),
    "five bad items": (
        lambda: checks.states("a", torch.full((5, 1), NAN[0, 1] / 0), finite=True),
        ValueError,
        "in items 0, 1, 2, 3, 4$",
    ),
    "one bad item": (
        lambda: checks.states("a", NAN[:2], finite=True),
        ValueError,
        "got NaN or inf in item 1$",
    ),
    "seven bad items": (
        lambda: checks.states("a", torch.cat([NAN, NAN, NAN, NAN[2:]]), finite=True),
        ValueError,
        "in items 1, 2, 4, 5, 7 and 2 more$",
    ),
    "seeds": (lambda: checks.generator("a", [0]), TypeError, "a must be a torch.Generator.*got li"),
    "no such device": (
        lambda: checks.device("a", "cudaX"),
        ValueError,
        "a 'cudaX' cannot be used: .*device",
    ),
    "a device of 3": (lambda: checks.device("a", 3.0), TypeError, "a must be a torch.device"),
    "an integer dtype": (
        lambda: checks.floating_dtype("a", "int8"),
        ValueError,
        "a must be floating",
    ),
    "no dtype": (lambda: checks.floating_dtype("a", "nn"), ValueError, "a must be floating .*'nn'"),
}


@pytest.mark.parametrize("case", list(PASS))
def test_right_values_come_back_plain(case):
    call, expected = PASS[case]
    value = call()
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize("case", list(FAIL))
def test_wrong_values_are_refused_by_name(case):
    call, error, message = FAIL[case]
    with pytest.raises(error) as caught:
        call()
    assert re.search(message, str(caught.value)), caught.value
    assert str(caught.value).startswith("a ")


RANGES = [
    ((None, None, None, None), math.inf, "be finite"),
    ((2, None, None, None), 1.5, "be at least 2"),
    ((None, 2, None, None), 2.5, "be at most 2"),
    ((None, None, 0, None), 0.0, "be positive and finite"),
    ((None, None, 1, None), 1.0, "be finite and above 1"),
    ((None, None, None, 2), 2.0, "be below 2"),
    ((0, 1, None, None), 1.5, "lie in [0, 1]"),
    ((None, 1, 0, None), 0.0, "lie in (0, 1]"),
    ((0, None, None, 1), 1.0, "lie in [0, 1)"),
    ((None, None, 0, 1), 1.0, "lie in (0, 1)"),
]


@pytest.mark.parametrize(("bounds", "value", "text"), RANGES, ids=[text for *_, text in RANGES])
def test_the_range_that_is_allowed_is_told(bounds, value, text):
    low, high, above, below = bounds
    with pytest.raises(ValueError, match=re.escape(f"a must {text}, got {value}")):
        checks.number("a", value, low, high, above=above, below=below)
    for bound in {low, high} - {None}:
        assert checks.number("a", bound, low, high, above=above, below=below) == bound


def test_half_precision_holds_numbers_and_eight_bits_do_not():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        checks.states("a", torch.ones(2, 1, dtype=dtype))
    with pytest.raises(TypeError, match="a must be a floating-point tensor"):
        checks.states("a", torch.ones(2, 1).to(torch.float8_e4m3fn))


def test_times_keep_every_digit_of_a_float():
    for value in (
        0.1,
        [0.1, 0.3],
        np.array([0.1, 0.3]),
        torch.tensor([0.1, 0.3], dtype=torch.float64),
    ):
        t = checks.times("t", value)
        assert t.dtype == torch.float64
        assert t.flatten()[0].item() == 0.1


def test_a_sequence_of_generators_passes():
    checks.generator("a", None)
    checks.generator("a", torch.Generator())
    checks.generator("a", [torch.Generator()])


def test_a_message_shows_no_more_than_the_beginning_of_a_string():
    assert len(checks.described("x" * 1000)) < 80
