"""Which prompts the tokenizers of a pipeline cut."""

import warnings
from types import SimpleNamespace

import pytest

from backbones.calls import warn_of_cut


class Letters:
    """A tokenizer of single letters."""

    def __init__(self, longest):
        self.model_max_length = longest

    def __call__(self, text):
        return {"input_ids": list(text)}


class Pipe(SimpleNamespace):
    def __call__(self, prompt, max_sequence_length=100):
        raise NotImplementedError


def cut(*limits, length, **call):
    """What is said of a prompt that a pipeline with tokenizers of these limits cuts."""

    pipe = Pipe(components={f"tokenizer_{i}": Letters(limit) for i, limit in enumerate(limits)})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warn_of_cut(pipe, ["x" * length], call)
    return [str(warning.message) for warning in told]


@pytest.mark.parametrize(
    ("limits", "longest", "call"),
    [
        ([77], 77, {}),
        ([77], 77, {"max_sequence_length": 60}),
        ([78], 60, {"max_sequence_length": 60}),
        ([77, 512], 100, {}),
        ([77, 512], 200, {"max_sequence_length": 200}),
        ([77, 512], 512, {"max_sequence_length": 600}),
        ([77, 70], 77, {}),
    ],
)
def test_a_prompt_is_cut_beyond_the_longest_that_some_tokenizer_takes(limits, longest, call):
    assert not cut(*limits, length=longest, **call)
    (told,) = cut(*limits, length=longest + 1, **call)
    assert f"{'x' * 40!r}..., which has {longest + 1} tokens, to {longest}:" in told


def test_without_a_tokenizer_nothing_is_cut():
    assert not cut(length=1000)
