"""All figures of a trained network, from held-out prompts, and the pictures it makes of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import TextToImage
from ..evaluation import Results, evaluate
from ..evaluation.judges import Embedding
from ..generation.extensions import sampling_times
from ..generation.networks import ChangeNetwork, Network, OutputNetwork
from ..generation.run import Report
from ..networks.guidance import GuidanceNetwork
from ..noise_space.networks import change_of
from ..store import Store
from ..support.randomness import generator_for
from ..tilt import RewardFunction
from .held_out import HeldOut
from .problem import FEW_STEPS, estimator_of
from .unseen import LEAST, SHUFFLES, Level, agreement

__all__ = [
    "THUMBNAIL",
    "Thumbnail",
    "agreements",
    "levels_of",
    "make_pictures",
    "weights_explained",
]

THUMBNAIL = "thumbnail"
"""Name of the embedding that pictures are compared in if there is no other."""

_CHANGES = {"change": OutputNetwork, "changes": ChangeNetwork}
"""Methods of networks for changes, by their output."""


class Thumbnail(nn.Module):
    """Means of blocks of pixels, eight by eight, as an embedding."""

    depends_on = ()

    def forward(self, images: Tensor) -> Tensor:
        """Returns the embeddings of images, with shape (B, 192)."""

        return F.adaptive_avg_pool2d(images, 8).flatten(1)


def levels_of(network: GuidanceNetwork, times: Tensor) -> list[float]:
    """Returns the noise levels at which a network is looked at.

    Arguments:
        network: The network.
        times: Times of a run.
    """

    if network.output in _CHANGES:
        return [float("nan")]
    visited = [float(t) for t in times[:-1]]
    if len(visited) > FEW_STEPS:
        visited = [visited[0], *(t for t in (0.9, 0.7, 0.5, 0.3, 0.1) if t < visited[0])]
    return [t for t in visited if t <= _highest(network, times)]


def _highest(network: GuidanceNetwork, times: Tensor) -> float:
    """Returns the first time of a run at which the network knows the shift.

    The gradient of log h does not determine it where the path has no signal.
    """

    alpha = network.schedule.alpha(times)
    known = times[alpha > 0] if network.output == "log_h" else times
    return float(known[0])


def agreements(
    network: GuidanceNetwork, held_out: HeldOut, shuffles: int = SHUFFLES
) -> dict[float, list[Level]]:
    """Returns the agreement with banks of held-out prompts, at every strength and level.

    Arguments:
        network: The network.
        held_out: Draws of held-out prompts; those of too few draws are left out.
        shuffles: Number of shuffles of the rewards, see :func:`agreement`.

    Returns:
        The levels by strength; none if no prompt has draws enough.
    """

    many = held_out.with_draws(LEAST)
    if not many:
        return {}
    bank, times = held_out.of(many).bank, held_out.times
    start, levels = float(times[0]), levels_of(network, times)
    found = {}
    for nats, tilt in held_out.tilts.items():

        def output(
            model: Any, x_t: Tensor, t: Tensor, condition: Any, nats: float = nats
        ) -> Tensor:
            if network.output in _CHANGES:
                module: Any = network.at(nats) if network.strength else network
                return change_of(module, x_t, 0.0, condition)
            return estimator_of(network, nats)(model, x_t, t, condition).shift

        about = (levels, start, held_out.encode, held_out.seed, shuffles)
        found[nats] = agreement(output, network.schedule, bank, tilt, *about)
    return found


@torch.no_grad()
def weights_explained(
    network: GuidanceNetwork, held_out: HeldOut, batch_size: int = 64
) -> dict[float, dict[float, float]]:
    r"""Returns the share of the variance of weights that a network for log h explains.

    That is :math:`1 - E (w - e^f)^2 / E (w - 1)^2`, with weights of mean one under each prompt:
    0 for a constant, less than 0 for worse than that.

    Arguments:
        network: A network for log h.
        held_out: Draws of held-out prompts.
        batch_size: Number of states that the network sees at once.

    Returns:
        The shares by strength and level.
    """

    bank, generator = held_out.bank, generator_for(held_out.seed, "weights")
    assert bank.rewards is not None
    noise = torch.randn(bank.x_0.shape, generator=generator).to(bank.x_0)
    found: dict[float, dict[float, float]] = {}
    for nats, tilt in held_out.tilts.items():
        log_w = tilt.weigh(bank.rewards).double().cpu()
        w = torch.cat([log_w[r].softmax(0) * (r.stop - r.start) for r in bank.rows.values()])
        module: Any = network.at(nats) if network.strength else network
        found[nats] = {}
        for t in levels_of(network, held_out.times):
            x_t = network.schedule.perturb(bank.x_0, t, noise)
            log_h = []
            for first in range(0, len(x_t), batch_size):
                some = slice(first, first + batch_size)
                at = torch.full((len(x_t[some]),), t, dtype=torch.float64, device=x_t.device)
                condition = held_out.encode(list(bank.condition[some]))
                log_h.append(module(x_t[some], at, condition))
            error = (w - torch.cat(log_h).double().cpu().exp()).square().mean()
            found[nats][t] = float(1 - error / (w - 1).square().mean())
    return found


def make_pictures(
    network: GuidanceNetwork,
    backbone: TextToImage,
    rewards: Mapping[str, RewardFunction],
    prompts: Sequence[str],
    strengths: Sequence[float],
    folder: Path,
    steps: int | None,
    images: int = 4,
    target_draws: int = 64,
    embeddings: Mapping[str, Embedding] | None = None,
    batch_size: int = 8,
    report: Report = lambda stage, done, total: None,
) -> Results:
    """Makes pictures of held-out prompts with the network and without, and judges them.

    It is an evaluation (:func:`rwguidance.evaluation.evaluate`) with draws of its own for the
    tilted law, and goes on where it stopped.

    Arguments:
        network: The calibrated network.
        backbone: The model.
        rewards: Rewards by name, the one that was trained for first; no training saw the others.
        prompts: The prompts.
        strengths: Strengths, in nats.
        folder: The folder of the evaluation.
        steps: Number of steps; None is what the model's authors recommend.
        images: Number of pictures of each prompt.
        target_draws: Number of draws that stand for the tilted law.
        embeddings: Embeddings in which laws are compared, by name; None for :class:`Thumbnail`.
        batch_size: Number of pictures that are made at once.
        report: Is told about progress.
    """

    kind = _CHANGES.get(network.output, Network)
    options: dict[str, Any] = {"strength": strengths[0] if network.strength else None}
    if kind is Network:
        options["window"] = (0.0, _highest(network, sampling_times(backbone, steps)))
    method = kind(network, **options)
    (aligned, reward), *others = rewards.items()
    return evaluate(
        backbone,
        reward,
        prompts,
        folder,
        {"network": method},
        aligned=aligned,
        held_out=dict(others),
        embeddings=embeddings or {THUMBNAIL: Thumbnail()},
        strengths=strengths,
        images=images,
        steps=steps,
        batch_size=batch_size,
        target_draws=target_draws,
        shown=len(prompts),
        restart=True,
        store=Store(folder / "draws"),
        report=report,
    )
