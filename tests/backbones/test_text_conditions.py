"""Conditions: prompts with their embeddings, encoded once, and refused where they do not fit."""

import logging

import pytest
import torch
from torch.testing import assert_close

import backbones
from common import assert_rounds_to
from pipeline_cases import QUIET, build

pytestmark = QUIET


def counted(monkeypatch, pipe):
    calls = []
    original = type(pipe).encode_prompt

    def encode_prompt(self, *args, **kwargs):
        calls.append(args[0] if args else kwargs["prompt"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(pipe), "encode_prompt", encode_prompt)
    return calls


def equal(a, b):
    return a.prompts == b.prompts and all(
        torch.equal(v, b.stacked()[k]) for k, v in a.stacked().items()
    )


@pytest.mark.parametrize("key", ["sdxl-cfg", "sd3-cfg", "flux"])
def test_a_condition_is_a_sequence_of_prompts_with_their_embeddings(key, monkeypatch):
    pipe, backbone, _, _ = build(key)
    calls = counted(monkeypatch, pipe)
    condition = backbone.condition(["a", "bc", "a", "a"])
    assert calls == [["a", "bc"]]  # once, and each prompt once
    assert list(condition) == ["a", "bc", "a", "a"]
    assert len(condition) == 4
    for name, value in condition.stacked().items():
        value = value[-4:]
        assert not value.requires_grad
        assert torch.equal(value[0], value[2])
        assert not torch.equal(value[0], value[1]), name
    assert equal(condition[[1, 3]], condition[1::2])
    assert equal(backbones.TextCondition.cat([condition[:1], condition[1:]]), condition)
    assert equal(condition[[-1]], condition[3:])
    assert list(condition[[]]) == []
    with pytest.raises(TypeError, match="index must be a slice or a sequence of integers, got 1"):
        condition[1]
    with pytest.raises(TypeError, match="index must be a slice or a sequence of integers, got"):
        condition[[0, "1"]]


def test_a_batch_comes_in_the_precision_that_is_asked():
    embeddings = {"text": torch.ones(1, 2, 3), "mask": torch.ones(1, 2, dtype=torch.bool)}
    condition = backbones.TextCondition(("a",), embeddings)
    dtypes = lambda batch: [value.dtype for value in batch.values()]
    assert dtypes(condition.stacked(torch.bfloat16)) == [torch.bfloat16, torch.bool]
    assert dtypes(condition.stacked()) == [torch.float32, torch.bool]


@pytest.mark.parametrize("key", ["sdxl-cfg", "sd3-cfg"])
def test_negative_prompts_belong_to_their_prompts(key):
    _, backbone, _, _ = build(key)
    both = backbone.condition(["a", "a", "b"], ["x", "y", "x"])
    for name, value in both.negative.items():
        # Encoded in two rows of a batch, by sums of 32 to 128 products, some ten after another.
        assert_rounds_to(value[0], value[2], terms=1024)
        assert float((value[0] - value[1]).abs().max()) > 1e-3, name
    one = backbone.condition(["a", "b"], "x")
    assert_close(one.negative["text"], both.negative["text"][[0, 2]])
    assert_close(one.embeddings["text"], both.embeddings["text"][[0, 2]])


def test_conditions_that_do_not_fit():
    pipe = backbones.tiny("sdxl-turbo")
    plain, guided = (backbones.from_pipeline(pipe, scale) for scale in (None, 3.0))
    x_t = torch.zeros(2, 4, 8, 8)
    with pytest.raises(TypeError, match=r"backbone\.condition\(prompts\) returns, got NoneType"):
        plain(x_t, 0.5)
    with pytest.raises(TypeError, match="returns, got list"):
        plain(x_t, 0.5, ["a", "b"])
    with pytest.raises(ValueError, match="one prompt per sample, 2, got 1"):
        plain(x_t, 0.5, plain.condition(["a"]))
    with pytest.raises(ValueError, match=r"has no classifier-free guidance, but .* encoded with;"):
        plain(x_t, 0.5, guided.condition(["a", "b"]))
    with pytest.raises(ValueError, match=r"has classifier-free guidance, but .* encoded without;"):
        guided(x_t, 0.5, plain.condition(["a", "b"]))
    with pytest.raises(ValueError, match=r"negative_prompts take classifier-free .*_scale=None\)"):
        plain.condition(["a"], "b")
    with pytest.raises(ValueError, match="negative_prompts must hold one item per sample, 1, got"):
        guided.condition(["a"], ["b", "c"])
    with pytest.raises(TypeError, match=r"prompts must hold one hashable item per sample.*got str"):
        plain.condition("a cat")
    with pytest.raises(TypeError, match="prompts must be strings, got int"):
        plain.condition([1])
    with pytest.raises(ValueError, match="prompts must hold at least one string"):
        plain.condition([])
    with pytest.raises(ValueError, match=r"at least one condition, all with .* got 2, 1 of them"):
        backbones.TextCondition.cat([plain.condition(["a"]), guided.condition(["a"])])
    with pytest.raises(
        ValueError, match=r"embeddings\['x'\] must have one entry per prompt, 1, go"
    ):
        backbones.TextCondition(("a",), {"x": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="negative must hold tensors like those of embeddings"):
        backbones.TextCondition(("a",), {"x": torch.zeros(1, 3)}, {"y": torch.zeros(1, 3)})


@pytest.mark.parametrize("key", ["sdxl", "sd3", "flux"])
def test_the_pipeline_warns_of_what_it_cuts(key):
    pipe, backbone, _, _ = build(key)
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logger = logging.getLogger(type(pipe).__module__)
    logger.addHandler(handler)
    try:
        backbone.condition(["a cat"])
        assert heard == []
        backbone.condition(["a" * 75 + "THE END"])
    finally:
        logger.removeHandler(handler)
    assert any("truncated" in message and "THE END" in message for message in heard)
