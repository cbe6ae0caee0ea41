"""The tokenizer of the test bed: byte-pair encoding as CLIP's, learned from names and tags."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rwguidance.support.outside import require

from .data import Drawings, load_names, sources
from .scenes import COLORS, KIND_WORDS

__all__ = ["CONTEXT_LENGTH", "text_config", "tokenize", "tokenizer_corpus", "train_tokenizer"]

CONTEXT_LENGTH = 16
"""Tokens of a prompt, start and end counted in; longer ones are truncated."""

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def tokenizer_corpus(drawings: Drawings) -> list[str]:
    """Returns the texts to learn from: words of captions a hundred times, names and tags once."""

    own = load_names()
    often = [
        *own["train"],
        *own["held_out"],
        *COLORS,
        *KIND_WORDS.values(),
        *(row["words"] for row in sources()["styles"]),
        "a small large on an background style",
    ]
    seldom = {text for entry in drawings.entries for text in (entry.name, *entry.tags)}
    return often * 100 + sorted(seldom)


def train_tokenizer(corpus: Iterable[str], folder: Path, size: int = 2048) -> Any:
    """Learns a tokenizer, writes it as CLIP's is written and returns it as read from there.

    Every byte is a token, within a word and at its end, so that every text has tokens.

    Arguments:
        corpus: Texts to learn from.
        folder: Folder of ``vocab.json``, ``merges.txt`` and the configuration.
        size: Largest size of the vocabulary.
    """

    tokenizers = require("tokenizers", "the test bed needs", "backbones")
    transformers = require("transformers", "the test bed needs", "backbones")
    pre, norm = tokenizers.pre_tokenizers, tokenizers.normalizers
    alphabet = sorted(pre.ByteLevel.alphabet())
    learner = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = norm.Sequence([norm.NFC(), norm.Lowercase()])
    learner.pre_tokenizer = pre.Sequence(
        [
            pre.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    letters = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size - 2,
        # In this order from the start: else ties would be decided by the order of a hash table,
        # and every run would learn another tokenizer.
        special_tokens=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(corpus, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    tokens = dict.fromkeys([*letters, *(a + b for a, b in merges), _START, _END])
    vocabulary = {token: i for i, token in enumerate(tokens)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_bytes(json.dumps(vocabulary).encode())
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_bytes(("\n".join(lines) + "\n").encode())
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    config = {**special, "model_max_length": CONTEXT_LENGTH, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_bytes(json.dumps(config).encode())
    (folder / "special_tokens_map.json").write_bytes(json.dumps(special).encode())
    return transformers.CLIPTokenizer.from_pretrained(folder)


def tokenize(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """Returns tokens of captions, truncated to the context length, with shape (B, 16).

    There is no mask: text towers as CLIP's do not look ahead, and their embedding is read at the
    end of the caption.

    Arguments:
        tokenizer: Tokenizer that :func:`train_tokenizer` returned.
        captions: The captions.
    """

    tokens: Tensor = tokenizer(
        list(captions),
        padding="max_length",
        max_length=CONTEXT_LENGTH,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return tokens


def text_config(tokenizer: Any, width: int, dimension: int) -> dict[str, Any]:
    """Returns the settings of a CLIP text model of two layers that reads this tokenizer's tokens.

    Arguments:
        tokenizer: The tokenizer.
        width: Width of the layers, a multiple of 32.
        dimension: Length of the embedding of a caption.
    """

    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "projection_dim": dimension,
        "num_hidden_layers": 2,
        "num_attention_heads": width // 32,
        "max_position_embeddings": CONTEXT_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
