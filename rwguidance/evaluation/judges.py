"""What looks at the pictures of an evaluation: rewards, embeddings, and how they appear."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from ..generation.failures import reason, summarize
from ..generation.run import Run, Scores
from ..support.fingerprint import fingerprint_or_reason
from ..tilt import RewardFunction
from .appearance import APPEARANCE

__all__ = ["Judges", "Looks", "join"]

Embedding = Callable[[Tensor], Tensor]
"""Maps images in [0, 1], with shape (B, 3, H, W), to embeddings with shape (B, D)."""


@dataclass(frozen=True)
class Looks:
    """Rewards and embeddings of B pictures, on the CPU.

    Arguments:
        rewards: Rewards and appearance by name, float64, with shape (B,); NaN where one failed.
        embeddings: Embeddings by name, float32, with shape (B, D), without those that failed.
        errors: Reasons for which something failed, by its name.
    """

    rewards: Mapping[str, Tensor]
    embeddings: Mapping[str, Tensor]
    errors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Judges:
    """Rewards and embeddings by name.

    Arguments:
        run: A run, which scores pictures.
        rewards: Rewards by name, the one that is aligned to first.
        embeddings: Embeddings by name.
    """

    run: Run
    rewards: Mapping[str, RewardFunction]
    embeddings: Mapping[str, Embedding]

    @cached_property
    def runs(self) -> Mapping[str, Run]:
        """Runs that score by each of the rewards."""

        return {name: replace(self.run, reward=reward) for name, reward in self.rewards.items()}

    @cached_property
    def keys(self) -> Mapping[str, Mapping[str, tuple[str | None, str]]]:
        """Fingerprints by kind, `rewards` or `embeddings`, and name; or None and the reason."""

        return {
            kind: {name: fingerprint_or_reason(value) for name, value in values.items()}
            for kind, values in (("rewards", self.rewards), ("embeddings", self.embeddings))
        }

    def look(self, images: Tensor, prompt: str, known: Scores | None = None) -> Looks:
        """Returns what is seen of pictures of one prompt; what fails is left out and stated.

        Arguments:
            images: Images in [0, 1], with shape (B, 3, H, W).
            prompt: The prompt.
            known: Their scores by the first reward, if they are known.
        """

        rewards, embeddings, errors = {}, {}, {}
        for place, (name, run) in enumerate(self.runs.items()):
            scores = run.score(images, prompt) if known is None or place else known
            rewards[name] = scores.values
            if scores.errors:
                errors[name] = summarize(scores.errors, len(images))
        for name, number in APPEARANCE.items():
            rewards[name] = number(images).cpu()
        for name, embedding in self.embeddings.items():
            try:
                with torch.no_grad():
                    embeddings[name] = _checked(embedding(images), len(images))
            except Exception as error:  # whatever it raises, the rewards are there
                errors[name] = reason(error)
        return Looks(rewards, embeddings, errors)


def join(parts: list[Looks]) -> Looks:
    """Returns looks at several batches as one, without embeddings that failed in any of them."""

    def columns(kind: str) -> Iterator[tuple[str, Tensor]]:
        for name in getattr(parts[0], kind):
            values = [getattr(part, kind).get(name) for part in parts]
            if all(value is not None for value in values):
                yield name, torch.cat(values)

    errors = {name: why for part in parts for name, why in part.errors.items()}
    return Looks(dict(columns("rewards")), dict(columns("embeddings")), errors)


def _checked(values: Tensor, n: int) -> Tensor:
    if not isinstance(values, Tensor) or values.ndim != 2 or len(values) != n:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"an embedding must return one row per image, shape ({n}, D), got {got}")
    if not bool(values.isfinite().all()):
        raise ValueError("an embedding must be finite, got NaN or inf")
    return values.float().cpu()
