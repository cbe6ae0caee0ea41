"""What a training reads of prepared data: banks, conditions, and temperatures of the tilts."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from ..backbone import TextToImage
from ..bank import Bank
from ..preparation import Prepared
from ..support.conditions import take
from ..support.files import expanded
from ..temperature import beta_for_kl
from ..tilt import RewardFunction, Tilt
from ..training import Encoder
from .settings import Settings

__all__ = ["Encode", "Encoded", "OfPrompts", "Stored", "read_bank", "rewards_of", "tilts_of"]

PREFERENCE = "preference"
"""Name of the reward that is the share of its pairs which a picture wins."""

_FEW = 8
"""Draws of a prompt below which the divergence of their law alone says little."""


class Stored(nn.Module):
    """A reward of which the values of prepared pictures are known, and nothing else.

    Arguments:
        name: Its name.
        key: What its values depend on.
    """

    depends_on = ("key",)

    def __init__(self, name: str, key: str) -> None:
        super().__init__()
        self.name = name
        self.key = key

    def forward(self, images: Tensor, prompts: Any) -> Tensor:
        raise ValueError(f"the reward {self.name} must be loaded to score new pictures")


class OfPrompts(nn.Module):
    """A reward that takes prompts, for conditions that iterate over prompts.

    Arguments:
        reward: The reward.
    """

    depends_on = ("reward",)

    def __init__(self, reward: RewardFunction) -> None:
        super().__init__()
        self.reward = reward

    def forward(self, images: Tensor, condition: Any) -> Tensor:
        return self.reward(images, list(condition))


class Restores(Protocol):
    """A condition that makes others of stored embeddings."""

    def restored(self, prompts: Sequence[str], embeddings: dict[str, Tensor]) -> Any:
        """Returns the condition of prompts with these embeddings."""


def _restores(condition: Any) -> TypeGuard[Restores]:
    return callable(getattr(condition, "restored", None)) and getattr(condition, "storable", True)


class Encode:
    """A function from prompts to their condition, of the embeddings that were prepared.

    All of them are read at once. A model whose conditions cannot be made of embeddings encodes the
    prompts of every batch.

    Arguments:
        data: The prepared data.
        backbone: The model.
        prompts: The prompts that will be asked for.
    """

    depends_on = ("key",)

    @torch.no_grad()
    def __init__(self, data: Prepared, backbone: TextToImage, prompts: Sequence[str]) -> None:
        self.key = str(sorted(data.about["prompt drawer"].items()))
        self.backbone = backbone
        self.like = backbone.condition(list(prompts[:1]))
        self.places: dict[str, int] = {}
        self.embeddings: dict[str, Tensor] = {}
        if _restores(self.like) and data.about["embeddings"]:
            self.places = {prompt: i for i, prompt in enumerate(prompts)}
            self.embeddings = data.embeddings(prompts)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Any]) -> Any:
        distinct = list(dict.fromkeys(prompts))
        rows = [distinct.index(prompt) for prompt in prompts]
        if not self.places:
            return take(self.backbone.condition(distinct), rows)
        places = [self.places[prompt] for prompt in prompts]
        found = {name: values[places] for name, values in self.embeddings.items()}
        return self.like.restored(list(prompts), found)

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of pooled and token embeddings, as networks name them; none that is not there."""

        shown = getattr(self.like, "embeddings", {})
        names = {"text": "pooled", "tokens": "text"}
        return {key: shown[name].shape[-1] for key, name in names.items() if name in shown}


class Encoded:
    """Conditions of prompts, encoded when some of them are taken out by a list of numbers.

    Arguments:
        prompts: The prompts.
        encode: A function that encodes some of them.
    """

    depends_on = ("prompts", "encode")

    def __init__(self, prompts: Sequence[str], encode: Encoder) -> None:
        self.prompts = tuple(prompts)
        self.encode = encode

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.prompts)

    def __getitem__(self, index: Sequence[int]) -> Any:
        return self.encode([self.prompts[i] for i in index])


def rewards_of(data: Prepared) -> dict[str, str]:
    """Returns the rewards that prepared data has, by name, with what they depend on."""

    known = dict(data.about["rewards"])
    return known if data.about["kind"] == "draws" else {**known, PREFERENCE: PREFERENCE}


def read_bank(data: Prepared, reward: str, prompts: Sequence[str]) -> Bank:
    """Returns the draws of prompts, or the pictures of their pairs, as one bank in memory.

    Pictures of pairs count as draws, whatever made them. A picture without a reward is left out.

    Arguments:
        data: The prepared data.
        reward: Name of one of its rewards, see :func:`rewards_of`.
        prompts: The prompts, some of one split.

    Raises:
        ValueError: If there is no such reward, or there are no draws.
        Damaged: If a file of the data is damaged; names it.
    """

    if reward not in rewards_of(data):
        known = ", ".join(rewards_of(data)) or "none"
        raise ValueError(f"reward must be one of those that were prepared, {known}, got {reward!r}")
    if not prompts:
        raise ValueError("prompts must be one at least, got none")
    if data.about["kind"] == "pairs":
        return _of_pairs(data, reward, set(prompts))
    banks = [data.bank(prompt, reward) for prompt in prompts]
    return Bank(
        torch.cat([bank.x_0 for bank in banks]),
        [prompt for prompt, bank in zip(prompts, banks, strict=True) for _ in range(len(bank))],
        torch.cat([bank.rewards for bank in banks if bank.rewards is not None]),
    )


def _of_pairs(data: Prepared, reward: str, prompts: set[str]) -> Bank:
    wins: dict[tuple[int, int], list[float]] = {}
    owners: dict[tuple[int, int], str] = {}
    shelves = data.pairs("train").shelves
    for split in ("train", "validation"):
        for pair in data.pairs(split).pairs:
            if pair.prompt in prompts:
                sides = ((pair.first, pair.preference), (pair.second, 1 - pair.preference))
                for number, win in sides:
                    wins.setdefault((pair.source, number), []).append(win)
                    owners[pair.source, number] = pair.prompt
    states, values, owned = [], [], []
    for (source, number), prompt in owners.items():
        row, found = range(number, number + 1), wins[source, number]
        value = torch.tensor([sum(found) / len(found)], dtype=torch.float64)
        if reward != PREFERENCE:
            value = shelves[source].rewards[reward].read(row)
        if not bool(value.isnan()):
            states.append(shelves[source].latents.read(row))
            values.append(value)
            owned.append(prompt)
    if not states:
        raise ValueError(f"data must hold pictures with the reward {reward}, got none")
    return Bank(torch.cat(states), owned, torch.cat(values))


def tilts_of(
    bank: Bank,
    reward: RewardFunction,
    settings: Settings,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> dict[float, Tilt]:
    """Returns the tilts of a training by strength, in nats.

    The divergence is its mean over prompts, as :meth:`rwguidance.Tilt.for_kl` has it. Where prompts
    have few draws, it is that of rewards less the mean of their prompt, of all prompts together.

    Arguments:
        bank: Draws with rewards.
        reward: The reward.
        settings: The strengths, or the temperature.
        decode: A function from states to what the reward looks at.

    Raises:
        ValueError: If the draws cannot reach a strength; states the range that they can.
    """

    assert bank.rewards is not None
    groups = [bank.rewards[rows] for rows in bank.rows.values()]
    if len(bank) < _FEW * len(groups):
        groups = [torch.cat([_deviations(values) for values in groups])]
    if settings.beta is not None:
        tilt = Tilt(reward, settings.beta, decode)
        return {round(_divergence(groups, settings.beta), 3) or 0.001: tilt}
    return {nats: Tilt(reward, beta_for_kl(groups, nats), decode) for nats in settings.nats}


def _deviations(values: Tensor) -> Tensor:
    """Returns values less their mean, as wide as those less the mean of the law."""

    n = int(values.isfinite().sum())
    return (values - _finite_mean(values)) * (n / max(n - 1, 1)) ** 0.5


def _finite_mean(values: Tensor) -> Tensor:
    finite = values[values.isfinite()]
    return finite.mean() if len(finite) else values.new_zeros(())


def _divergence(groups: Sequence[Tensor], beta: float) -> float:
    """Returns the mean divergence of groups of draws tilted by their rewards, in nats."""

    found = []
    for values in groups:
        log_w = (values.double() / beta).log_softmax(0)
        log_w = log_w[log_w.isfinite()]
        found.append(float((log_w.exp() * log_w).sum()) + math.log(len(values)))
    return sum(found) / len(found)


def data_at(folder: Path | str) -> Prepared:
    """Returns prepared data, which has prompts for training and for validation.

    Raises:
        ValueError: If it has none for one of the two.
    """

    data = Prepared(expanded(folder))
    for name in ("train", "validation"):
        if not data.split(name):
            raise ValueError(
                f"data must have prompts for {name}, but all {len(data.prompts)} of {folder} are "
                "of the other split: prepare more prompts, or another share with --validation"
            )
    return data
