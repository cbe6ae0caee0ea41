"""The command `rwguidance toy`."""

from enum import Enum
from typing import Annotated

import typer

from .options import Seed


class LawName(str, Enum):
    """The laws of `rwguidance toy`."""

    gaussian = "gaussian"
    mixture = "mixture"


class RewardName(str, Enum):
    """The rewards of `rwguidance toy`."""

    linear = "linear"
    quadratic = "quadratic"


class PathName(str, Enum):
    """The noise paths of `rwguidance toy`."""

    vp = "vp"
    cosine = "cosine"
    rectified = "rectified"


def toy(
    law: Annotated[LawName, typer.Option(help="Law of the base model.")] = LawName.mixture,
    reward: Annotated[RewardName, typer.Option(help="Reward to tilt by.")] = RewardName.linear,
    path: Annotated[PathName, typer.Option(help="Noise path.")] = PathName.rectified,
    dim: Annotated[int, typer.Option(help="Dimension of the states.", min=1, max=256)] = 2,
    beta: Annotated[float, typer.Option(help="Temperature, in reward units; positive.")] = 1.0,
    bank: Annotated[int, typer.Option(help="Draws for importance sampling.", min=2)] = 4096,
    batch: Annotated[int, typer.Option(help="States per time.", min=1)] = 512,
    training_steps: Annotated[
        int, typer.Option(help="Steps for each guidance network; 0 leaves them out.", min=0)
    ] = 1000,
    seed: Seed = 0,
) -> None:
    """Compare every estimator with the closed form, time by time, on a toy law."""

    from ..demo.comparison import compare

    compare(
        law=law.value,
        reward=reward.value,
        path=path.value,
        dim=dim,
        beta=beta,
        bank_size=bank,
        batch=batch,
        training_steps=training_steps,
        seed=seed,
    )
