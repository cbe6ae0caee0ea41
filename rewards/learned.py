r"""Rewards that were trained on pairs: a weighted sum of a tower's features, in a folder.

.. math:: r(x, y) = v^\top f(x, y) + c, \qquad
    P(x \text{ preferred to } x') = \sigma(r(x, y) - r(x', y))

The features are those of :meth:`rewards.towers.EmbeddingReward.features`, of a reward by name. A
folder holds the weights and the name of that reward, where its own weights were and what they are,
and no code. ``rewards.load("folder")`` reads it.
"""

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwguidance.support import checks
from rwguidance.support.files import expanded, replacing
from rwguidance.support.fingerprint import fingerprint
from rwguidance.support.tensors import read_tensor_file, write_tensor_file

from .base import Reward, RewardSpec
from .loading import PathLike, read_config
from .towers import AffineHead, EmbeddingReward

__all__ = ["LearnedReward", "is_learned", "learned", "learned_spec"]

_WEIGHTS, _CONFIG, _CARD = "model.safetensors", "config.json", "README.md"
_KIND = "LearnedReward"


class LearnedReward(Reward):
    """A weighted sum of the features of a tower, in the units in which differences are log-odds.

    Arguments:
        name: Name of the reward.
        tower: The reward of two towers.
        weights: Weights of its features, with shape (F,).
        bias: What is added.
        usual: Smallest and largest value that is usual.

    Raises:
        TypeError: If the tower is no reward of two towers.
        ValueError: If the weights have another shape or are not finite, or the range is empty.
    """

    depends_on = ("tower",)

    def __init__(
        self,
        name: str,
        tower: EmbeddingReward,
        weights: Tensor,
        bias: float = 0.0,
        usual: tuple[float, float] = (-2.0, 2.0),
    ) -> None:
        super().__init__()
        checks.instance("tower", tower, EmbeddingReward, "a reward of two towers")
        if weights.ndim != 1 or not bool(weights.isfinite().all()):
            raise ValueError(
                f"weights must be finite, with shape (F,), got shape {tuple(weights.shape)}"
            )
        self.tower = tower
        self.head = AffineHead({"0.weight": weights[None], "0.bias": torch.tensor([bias])}, name)
        self.spec = _spec(name, tower.spec, usual)
        self.straight_through = tower.straight_through

    def preprocess(self, images: Tensor) -> Tensor:
        return self.tower.preprocess(images)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        features = self.tower.pair_features(images, prompts)
        self.head.check_width(features.shape[-1], self.spec.name)
        values: Tensor = self.head(features)
        return values

    def logits(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.forward(images, prompts)

    def save_pretrained(
        self,
        folder: PathLike,
        path: str | None = None,
        options: Mapping[str, Any] | None = None,
        card: str = "",
    ) -> None:
        """Writes model.safetensors, config.json and README.md into a folder, made if needed.

        Arguments:
            folder: The folder.
            path: Where the weights of the tower are; None is where they were published.
            options: Keywords of the tower's constructor, in values that JSON can hold.
            card: What README.md says.

        Raises:
            OSError: If a file cannot be written.
        """

        folder = expanded(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "reward": _KIND,
            "tower": self.tower.spec.name,
            "path": path,
            "options": dict(options or {}),
            "key": fingerprint(self.tower),
            "usual": list(self.spec.typical_range),
        }
        tensors = {"weight": self.head.weight.cpu(), "bias": self.head.bias.cpu().reshape(1)}
        write_tensor_file(folder / _WEIGHTS, tensors, {"format": "pt"})
        for name, text in ((_CARD, card), (_CONFIG, json.dumps(config, indent=1) + "\n")):
            with replacing(folder / name) as partial:
                partial.write_bytes(text.encode())


def _spec(name: str, tower: RewardSpec, usual: Sequence[float]) -> RewardSpec:
    return RewardSpec(
        name=name,
        title=f"learned from pairs, on {tower.title}",
        differentiable=tower.differentiable,
        needs_prompt=True,
        code_license=tower.code_license,
        weights_license=tower.weights_license,
        commercial_use=tower.commercial_use,
        formula="a weighted sum of products of unit embeddings, and of that of the image",
        preprocessing=tower.preprocessing,
        context_length=tower.context_length,
        typical_range=(float(usual[0]), float(usual[1])),
        published_scale="differences are log-odds of being preferred",
        citation=tower.citation,
    )


def is_learned(name: Any) -> bool:
    """Returns whether a name is that of a folder of :meth:`LearnedReward.save_pretrained`."""

    if not isinstance(name, str) or os.sep not in name:
        return False
    return (expanded(name) / _CONFIG).is_file() and _config(expanded(name)).get("reward") == _KIND


def learned_spec(folder: str) -> RewardSpec:
    """Returns the facts about the reward in a folder; loads nothing.

    Raises:
        ValueError: If the folder is damaged.
        LookupError: If its tower is unknown; lists those that exist.
    """

    from .registry import spec

    config = _config(expanded(folder))
    try:
        return _spec(expanded(folder).name, spec(config["tower"]), config["usual"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{expanded(folder) / _CONFIG} is damaged: {error}") from error


def learned(folder: str) -> Callable[..., LearnedReward]:
    """Returns a function that reads the reward in a folder.

    Arguments:
        folder: The folder.

    Returns:
        A function of `path`, where the weights of its tower are if not where they were, and of
        keywords that take the place of those of the tower. It raises FileNotFoundError if these
        weights are not there, and ValueError if the folder is damaged, or they are others.
    """

    return functools.partial(_read, folder)


def _read(folder: str, path: PathLike | None = None, **options: Any) -> LearnedReward:
    from .registry import load

    place, spec = expanded(folder), learned_spec(folder)
    config = _config(place)
    tensors, _ = read_tensor_file(place / _WEIGHTS)
    if not isinstance(config.get("options"), dict) or not {"weight", "bias"} <= set(tensors):
        raise ValueError(f"{place} is damaged: it lacks options, weight or bias")
    found = config.get("path") if path is None else path
    tower: Any = load(config["tower"], found, **{**config["options"], **options})
    if fingerprint(tower) != config.get("key"):
        raise ValueError(
            f"{place} was trained on another {config['tower']} than that of {found or 'the hub'}: "
            "give the place of the same weights as path, and the same options"
        )
    return LearnedReward(
        spec.name, tower, tensors["weight"], float(tensors["bias"]), spec.typical_range
    )


def _config(folder: Path) -> dict[str, Any]:
    return read_config(folder / _CONFIG)
