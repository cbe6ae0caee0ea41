"""What tokenizers of transformers hold: tokens, and the pairs of them that are merged."""

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["merges_of", "model_of", "unmade_tokens"]


def model_of(tokenizer: Any) -> Mapping[str, Any]:
    """Returns what a tokenizer was made of, as the library `tokenizers` writes it.

    It is empty if the tokenizer says nothing, as one around a model of sentencepiece.

    Arguments:
        tokenizer: A tokenizer of transformers: a fast one, or one in Python that merges pairs.
    """

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        model: dict[str, Any] = json.loads(backend.to_str())["model"]
        return model
    pairs, tokens = (getattr(tokenizer, name, None) for name in ("bpe_ranks", "encoder"))
    if pairs is None or tokens is None:
        return {}
    end = "</w>" if any(token.endswith("</w>") for token in tokens) else ""
    return {"type": "BPE", "vocab": tokens, "merges": list(pairs), "end_of_word_suffix": end}


def merges_of(model: Mapping[str, Any]) -> list[Any]:
    """Returns the pairs that are merged, which versions of tokenizers write in two ways.

    Arguments:
        model: What :func:`model_of` returns.
    """

    pairs = model.get("merges", [])
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in pairs]


def unmade_tokens(tokenizer: Any) -> list[str]:
    """Returns the tokens of several characters that no pair makes, sorted, without added ones.

    Arguments:
        tokenizer: A tokenizer of transformers. If it merges no pairs, there are none.
    """

    model = model_of(tokenizer)
    if model.get("type") != "BPE":
        return []
    made = {"".join(pair) for pair in merges_of(model)}
    end = model.get("end_of_word_suffix") or ""
    single = lambda token: len(token.removesuffix(end) if end else token) <= 1
    known = made.union(tokenizer.get_added_vocab())
    return sorted(token for token in model["vocab"] if token not in known and not single(token))
