"""Vocabularies of tokenizers, checked for being whole, and for being those that were published.

Half a file of merges loads without a word and changes every score, and so does half a vocabulary,
or one in which a word was exchanged.
"""

import hashlib
import json
from typing import Any

from rwguidance.support.tokenizers import merges_of, model_of, unmade_tokens

__all__ = ["check_published", "check_vocabulary", "vocabulary_digest"]

_PUBLISHED = {
    ("BPE", 49408): ("CLIP", "dbd7933fb5292543797293a27def5e74de2dd069ab30a560d2ab4fbd99c36059"),
    ("WordPiece", 30524): (
        "bert-base-uncased",
        "6abd66588deb60f83c0624b8025c943d7f4bab04ed230a5d79e5ba1aec46640b",
    ),
}
"""Models by the kind of their tokenizers and the rows of their embeddings, and the digests of them.

The rows of the second are those of BLIP, which has two tokens more.
"""

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
    if model_of(tokenizer).get("type") == "BPE":
        _check_merges(tokenizer, where)


def check_published(tokenizer: Any, rows: int, where: object) -> None:
    """Checks that the tokenizer of a published model is that model's, whatever files it came in.

    A model is known by the kind of its tokenizer and the size of its embedding; others pass.

    Arguments:
        tokenizer: A fast tokenizer of transformers.
        rows: Number of rows of the embedding of tokens.
        where: Origin of the tokenizer, for the message.

    Raises:
        ValueError: If it has other tokens, numbers or merges than were published.
    """

    kind = str(model_of(tokenizer).get("type"))
    name, digest = _PUBLISHED.get((kind, rows), ("", ""))
    if name and vocabulary_digest(tokenizer) != digest:
        raise ValueError(
            f"{where} must hold the tokenizer of {name}, whose embedding has {rows} rows, and has "
            "other tokens or merges: fetch it again, or pass verify=False for a model of your own"
        )


def vocabulary_digest(tokenizer: Any) -> str:
    """Returns the SHA-256 of tokens, their numbers and merges, 64 hexadecimal digits.

    It does not depend on the files and the version of transformers that they came by, nor on tokens
    that were added.

    Arguments:
        tokenizer: A fast tokenizer of transformers.
    """

    model = model_of(tokenizer)
    tokens = sorted(model["vocab"].items(), key=lambda item: item[1])
    content = [model.get("type"), tokens, [list(pair) for pair in merges_of(model)]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _check_merges(tokenizer: Any, where: object) -> None:
    model = model_of(tokenizer)
    made = {"".join(pair) for pair in merges_of(model)}
    lost, stray = unmade_tokens(tokenizer), made - set(model["vocab"])
    if lost or stray:
        raise ValueError(
            f"{where} must hold the merges of its whole vocabulary and no others, got none for "
            f"{len(lost)} tokens, and {len(stray)} that make none: a file is cut off"
        )
