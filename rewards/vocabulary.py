"""Vocabularies of tokenizers, checked for being whole.

Half a file of merges loads without a word and changes every score, and so does half a vocabulary.
"""

import json
from typing import Any

__all__ = ["check_vocabulary"]

_PADDING = 128
"""Rows of an embedding beyond its vocabulary, fewer than that, which round its size up."""


def check_vocabulary(tokenizer: Any, rows: int, where: object) -> None:
    """Checks that a tokenizer is whole: its numbers against the embedding, its merges against both.

    Arguments:
        tokenizer: A fast tokenizer of transformers.
        rows: Number of rows of the embedding of tokens.
        where: Origin of the tokenizer, for the message.

    Raises:
        ValueError: If it has numbers without a row, or rows without a number; if tokens are missing
            that its merges make, or merges that make its tokens.
    """

    numbers = sorted(tokenizer.get_vocab().values())
    if not numbers or numbers[-1] >= rows or rows - len(numbers) >= _PADDING:
        raise ValueError(
            f"{where} must hold a vocabulary for {rows} rows of an embedding, got {len(numbers)} "
            f"tokens up to number {numbers[-1] if numbers else None}: a file is cut off, or of "
            "another model"
        )
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model.get("type") == "BPE":
        _check_merges(model, set(tokenizer.get_added_vocab()), where)


def _check_merges(model: Any, added: set[str], where: object) -> None:
    vocabulary = set(model["vocab"])
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    made = {"".join(pair) for pair in pairs}
    end = model.get("end_of_word_suffix") or ""
    single = lambda token: len(token.removesuffix(end) if end else token) <= 1
    lost = sorted(t for t in vocabulary - made - added if not single(t))
    if lost or not made <= vocabulary:
        raise ValueError(
            f"{where} must hold the merges of its whole vocabulary and no others, got none for "
            f"{len(lost)} tokens, and {len(made - vocabulary)} that make none: a file is cut off"
        )
