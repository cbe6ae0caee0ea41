"""Tokenizers of pipelines that lost a part of their files are refused."""

import itertools
import json
import string
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import backbones
from backbones.tokenizers import check_tokenizers
from pipeline_cases import QUIET
from rwguidance.support.tokenizers import unmade_tokens

pytestmark = QUIET

LETTERS = string.ascii_letters + string.digits + "-_"
PAIRS = list(itertools.product(LETTERS, LETTERS))


def words():
    return {token: i for i, token in enumerate([*LETTERS, *map("".join, PAIRS), "<end>"])}


def tokenizer(merges=PAIRS, vocabulary=None):
    bpe = models.BPE(vocab=vocabulary or words(), merges=[tuple(pair) for pair in merges])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(bpe), pad_token="<end>")


def pipe(tokenizer, rows):
    embedding = torch.nn.Embedding.from_pretrained(torch.ones(rows, 1))
    encoder = SimpleNamespace(get_input_embeddings=lambda: embedding)
    return SimpleNamespace(components={"tokenizer_2": tokenizer, "text_encoder_2": encoder})


def test_whole_ones_pass_with_rows_that_round_sizes_up():
    for rows in (len(words()), len(words()) + 600):
        check_tokenizers(pipe(tokenizer(), rows), "here")
    check_tokenizers(pipe(tokenizer(PAIRS[:-100]), len(words())), "here")


def test_half_the_merges_are_refused():
    for rows in (len(words()), 0):
        with pytest.raises(
            ValueError,
            match=r"the tokenizer_2 of here must hold the merges .* none for 2148 tokens",
        ):
            check_tokenizers(pipe(tokenizer(PAIRS[:1948]), rows), "here")


def test_half_the_vocabulary_is_refused():
    some = dict(list(words().items())[:2000]) | {"<end>": 2000}
    merges = [pair for pair in PAIRS if "".join(pair) in some]
    with pytest.raises(
        ValueError, match=r"the tokenizer_2 of here must hold a vocabulary for the 4161 rows .*2001"
    ):
        check_tokenizers(pipe(tokenizer(merges, some), len(words())), "here")


def test_tokenizers_in_python_are_checked_as_well():
    whole, half = ({pair: i for i, pair in enumerate(PAIRS[:n])} for n in (4096, 1948))
    for ranks in (whole, half):
        slow = SimpleNamespace(
            get_vocab=words,
            get_added_vocab=lambda: {"<end>": 4160},
            encoder=words(),
            bpe_ranks=ranks,
        )
        if ranks is whole:
            check_tokenizers(pipe(slow, len(words())), "here")
            continue
        with pytest.raises(ValueError, match="none for 2148 tokens"):
            check_tokenizers(pipe(slow, len(words())), "here")


def of_size(count, lost=0):
    """A tokenizer with so many tokens, the last ones of them without the merges that make them."""

    made = itertools.islice(itertools.product(LETTERS, LETTERS, LETTERS), count - 4160)
    pairs = [*PAIRS, *((a + b, c) for a, b, c in made)]
    tokens = {token: i for i, token in enumerate([*LETTERS, *map("".join, pairs)])}
    ranks = {pair: i for i, pair in enumerate(pairs[: len(pairs) - lost])}
    get_vocab = lambda: tokens
    return SimpleNamespace(
        get_vocab=get_vocab, get_added_vocab=dict, encoder=tokens, bpe_ranks=ranks
    )


@pytest.mark.parametrize(("tokens", "share"), [(7000, 2048), (20_480, 2048), (30_000, 3000)])
def test_a_tenth_may_be_missing_or_2048(tokens, share):
    check_tokenizers(pipe(of_size(tokens - share), tokens), "here")
    with pytest.raises(ValueError, match=f"vocabulary for the {tokens} rows"):
        check_tokenizers(pipe(of_size(tokens - share - 1), tokens), "here")
    check_tokenizers(pipe(of_size(tokens, share), tokens), "here")
    with pytest.raises(ValueError, match=f"none for {share + 1} tokens"):
        check_tokenizers(pipe(of_size(tokens, share + 1), tokens), "here")


def test_without_an_encoder_merges_are_checked_alone():
    parts = {"tokenizer": of_size(4200), "text_encoder": None}
    check_tokenizers(SimpleNamespace(components=parts), "here")
    parts["tokenizer"] = of_size(4200, 2049)
    with pytest.raises(ValueError, match="none for 2049 tokens"):
        check_tokenizers(SimpleNamespace(components=parts), "here")


def test_the_end_of_a_word_is_no_character_of_its_own():
    tokens = {"a": 0, "b</w>": 1, "ab</w>": 2}
    slow = SimpleNamespace(get_added_vocab=dict, encoder=tokens, bpe_ranks={("a", "b</w>"): 0})
    assert unmade_tokens(slow) == []


def test_a_pipeline_is_refused_for_one_of_its_tokenizers(tmp_path):
    tiny = backbones.tiny("sdxl-turbo")
    tiny.tokenizer_2 = tokenizer()
    tiny.save_pretrained(tmp_path)
    backbones.load("sdxl-turbo", tmp_path)
    file = tmp_path / "tokenizer_2" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = content["model"]["merges"][:1948]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"the tokenizer_2 of .* must hold the merges"):
        backbones.load("sdxl-turbo", tmp_path)
