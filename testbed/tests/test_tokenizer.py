"""The tokenizer that is learned from names and tags."""

import re

import pytest

from rwguidance_testbed.data import load_names
from rwguidance_testbed.scenes import COLORS
from rwguidance_testbed.tokenizer import (
    CONTEXT_LENGTH,
    tokenize,
    tokenizer_corpus,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer(emoji_drawings, tmp_path_factory):
    return train_tokenizer(tokenizer_corpus(emoji_drawings), tmp_path_factory.mktemp("tokenizer"))


class TestTokenizer:
    def test_words_of_captions_are_tokens(self, tokenizer):
        names = load_names()
        for name in [*names["train"], *names["held_out"], *COLORS]:
            tokens = tokenizer.convert_ids_to_tokens(tokenizer(name).input_ids)
            assert tokens[0] == "<|startoftext|>"
            assert tokens[-1] == "<|endoftext|>"
            assert [t.removesuffix("</w>") for t in tokens[1:-1]] == re.findall(
                r"[a-z]+|\d|-", name
            )

    def test_every_text_has_tokens(self, tokenizer):
        for text in ("xylophone", "zürich 42!", "日本"):
            ids = tokenizer(text).input_ids
            assert tokenizer.eos_token_id not in ids[:-1]
            decoded = tokenizer.decode(ids, skip_special_tokens=True)
            assert decoded.replace(" ", "") == text.replace(" ", "")

    def test_prompts_have_one_length(self, tokenizer):
        ids = tokenize(tokenizer, ["", "red " * 40])
        assert ids.shape == (2, CONTEXT_LENGTH)
        assert ids[0].tolist() == [tokenizer.bos_token_id] + 15 * [tokenizer.eos_token_id]
        assert ids[1, -1] == tokenizer.eos_token_id

    def test_learned_again_it_is_the_same(self, squares, square_tokenizer, tmp_path):
        train_tokenizer(tokenizer_corpus(squares), tmp_path)
        for name in ("vocab.json", "merges.txt"):
            assert (tmp_path / name).read_bytes() == (square_tokenizer / name).read_bytes()
