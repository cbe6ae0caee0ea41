"""From prompts to aligned pictures, as `rwguidance generate` makes them.

.. code-block:: python

    backbone = backbones.load("sdxl-turbo", device="cuda", dtype=torch.bfloat16)
    reward = rewards.load("pickscore", device="cuda")
    method = Importance(bank=64, kl=2.0)
    generate(backbone, reward, ["a red panda reading"], "out/panda", method, images=4)
"""

from ..store import Store
from .base import Method
from .methods import (
    SMC,
    BestOfN,
    Importance,
    Network,
    PlugInMean,
    Pool,
    Posterior,
    Resample,
    SecondOrder,
    StraightFlow,
)
from .networks import ChangeNetwork, NoiseNetwork, OutputNetwork
from .noise import NoiseChain, NoiseGradient
from .pairs import generate
from .results import Generated, Row

__all__ = [
    "SMC",
    "BestOfN",
    "ChangeNetwork",
    "Generated",
    "Importance",
    "Method",
    "Network",
    "NoiseChain",
    "NoiseGradient",
    "NoiseNetwork",
    "OutputNetwork",
    "PlugInMean",
    "Pool",
    "Posterior",
    "Resample",
    "Row",
    "SecondOrder",
    "Store",
    "StraightFlow",
    "generate",
]
