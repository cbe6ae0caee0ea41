"""Toy laws and rewards with every quantity in closed form, for checking estimators against."""

from .empirical import Empirical
from .hermite import quadrature
from .law import Law, TiltableLaw
from .mixtures import Gaussian, GaussianMixture, StepTilted
from .oracle import Oracle
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
