"""Trainings from end to end: prepared data in, a network, its card and its report out.

.. code-block:: python

    job = Training(data="out/draws", out="out/network", settings=PRESETS["recommended"])
    fit(job, backbone, {"pickscore": pickscore})

The folder is what :meth:`rwguidance.networks.GuidanceNetwork.save_pretrained` writes, with log.csv,
report.json and report.html, and pictures of held-out prompts. The same call goes on after an
interruption.
"""

from .preferences import RewardFindings, fit_reward
from .report import Findings
from .run import fit
from .settings import OBJECTIVES, PRESETS, Settings
from .unseen import Level, agreement
from .work import Training

__all__ = [
    "OBJECTIVES",
    "PRESETS",
    "Findings",
    "Level",
    "RewardFindings",
    "Settings",
    "Training",
    "agreement",
    "fit",
    "fit_reward",
]
