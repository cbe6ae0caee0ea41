"""Taking samples out of conditions of any type."""

import pytest
import torch

import backbones
from rwguidance import Bank
from rwguidance.support.conditions import (
    condition_keys,
    describe_keys,
    has_half_surrogate,
    lookup,
    string_keys,
    take,
)


def test_conditions_are_indexed_whatever_holds_them():
    nested = {"labels": torch.tensor([1, 2, 3]), "names": ("a", "b", "c"), "none": None}
    picked = take(nested, [2, 0, 2])
    assert picked["labels"].tolist() == [3, 1, 3]
    assert picked["names"] == ["c", "a", "c"]
    assert picked["none"] is None
    text = backbones.TextCondition(("a", "b"), {"text": torch.arange(2.0)})
    assert list(take(text, [1, 1])) == ["b", "b"]
    assert take(text, [1, 1]).embeddings["text"].tolist() == [1, 1]


@pytest.mark.parametrize("condition", ["a prompt", 3, object()])
def test_what_cannot_be_indexed_is_refused(condition):
    with pytest.raises(TypeError, match="condition must be None, a tensor, a sequence"):
        take(condition, [0])


def test_what_was_encoded_once_is_looked_up():
    text = backbones.TextCondition(("a", "b"), {"text": torch.arange(2.0)})
    found = lookup(text)(["b", "a", "b"])
    assert list(found) == ["b", "a", "b"]
    assert found.embeddings["text"].tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match=r"nothing was encoded for 'c', only for 'a', 'b'"):
        lookup(text)(["a", "c"])


def test_five_conditions_are_named_and_the_others_counted():
    assert describe_keys("abcde") == "'a', 'b', 'c', 'd', 'e'"
    assert describe_keys("abcdef") == "'a', 'b', 'c', 'd', 'e' and 1 more"
    assert describe_keys("abc", limit=1) == "'a' and 2 more"


@pytest.mark.parametrize("code", [0xD800, 0xDBFF, 0xDC00, 0xDFFF])
def test_half_a_surrogate_is_found_among_other_letters(code):
    half = chr(code)
    with pytest.raises(UnicodeEncodeError):
        half.encode()
    assert has_half_surrogate(f"a {half} b")
    assert not has_half_surrogate("a \ud7ff \ue000 \U0001f34e")
    assert not has_half_surrogate("")


@pytest.mark.parametrize("kind", [set, frozenset])
def test_what_has_no_order_is_refused(kind):
    with pytest.raises(TypeError, match=f"prompts must have an order.*got {kind.__name__}"):
        condition_keys(kind("ab"), 2, "prompts")
    with pytest.raises(TypeError, match=f"condition must have an order.*got {kind.__name__}"):
        string_keys(kind("ab"), 2)
    with pytest.raises(TypeError, match="condition must have an order"):
        Bank(torch.zeros(2, 3), condition=kind("ab"))
    assert condition_keys(dict.fromkeys("ab").keys(), 2) == ("a", "b"), "those of a dict have one"
