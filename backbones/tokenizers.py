"""Tokenizers of pipelines, checked for being whole.

Half a vocabulary or half the merges load without a word, and every picture is of another prompt.
Models differ in how many rows of their embeddings they leave unused, so what is lost in a whole
share is told, and a single token is not.
"""

from typing import Any

from rwguidance.support.tokenizers import model_of, unmade_tokens

__all__ = ["check_tokenizers"]

_SHARE = 0.1
"""Share of the tokens that may be missing; published models lack less than three in a hundred."""

_FEW = 2048
"""Missing tokens that are not noticed, as of models for tests, and of those that read bytes."""


def check_tokenizers(pipe: Any, where: object) -> None:
    """Checks the tokenizers of a pipeline against their text encoders, and their merges.

    Arguments:
        pipe: A pipeline of diffusers.
        where: Origin of the pipeline, for the message.

    Raises:
        ValueError: If one has far fewer tokens than its encoder has rows, or no merges that make
            many of its tokens; names it.
    """

    for name, tokenizer in pipe.components.items():
        if name.startswith("tokenizer") and hasattr(tokenizer, "get_vocab"):
            encoder = pipe.components.get(name.replace("tokenizer", "text_encoder"))
            _check(tokenizer, _rows(encoder), f"the {name} of {where}")


def _check(tokenizer: Any, rows: int, what: str) -> None:
    count = len(tokenizer.get_vocab())
    if _lacks(rows - count, rows):
        raise ValueError(
            f"{what} must hold a vocabulary for the {rows} rows of its text encoder, got {count} "
            "tokens: a file is cut off, or of another model"
        )
    lost = unmade_tokens(tokenizer)
    if _lacks(len(lost), len(model_of(tokenizer).get("vocab", ()))):
        raise ValueError(
            f"{what} must hold the merges of its whole vocabulary, got none for {len(lost)} "
            f"tokens, such as {lost[0]!a}: a file is cut off"
        )


def _lacks(missing: int, tokens: int) -> bool:
    return missing > max(_FEW, _SHARE * tokens)


def _rows(encoder: Any) -> int:
    """Rows of the embedding of tokens; 0 if there is none, or it is not to be had."""

    try:
        return int(encoder.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):
        return 0
