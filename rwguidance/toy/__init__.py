"""Toy laws and rewards with every quantity in closed form, for checking estimators against."""

from .laws import (
    Empirical,
    Gaussian,
    GaussianMixture,
    Law,
    Oracle,
    StepTilted,
    TiltableLaw,
    quadrature,
)
from .rewards import Bumps, Linear, NoClosedForm, Quadratic, Step

__all__ = [
    "Bumps",
    "Empirical",
    "Gaussian",
    "GaussianMixture",
    "Law",
    "Linear",
    "NoClosedForm",
    "Oracle",
    "Quadratic",
    "Step",
    "StepTilted",
    "TiltableLaw",
    "quadrature",
]
