r"""Estimators of :math:`h_t(x_t) = E[w(x_0) | x_t]` and of the shift it causes."""

from .base import ConditionalExpectation, Estimate
from .fmps import FMPS
from .importance import ImportanceSampling
from .kernels import Kernel, LeaveOneOut, TargetESS, Tempered
from .learned import LearnedExpectation, LearnedShift
from .look_ahead import LookAhead
from .plug_in import PlugIn
from .posterior import PosteriorSampling
from .posterior_draws import FlowMap, InnerFlow, PosteriorDraws, Renoising
from .second_order import SecondOrderPlugIn

__all__ = [
    "FMPS",
    "ConditionalExpectation",
    "Estimate",
    "FlowMap",
    "ImportanceSampling",
    "InnerFlow",
    "Kernel",
    "LearnedExpectation",
    "LearnedShift",
    "LeaveOneOut",
    "LookAhead",
    "PlugIn",
    "PosteriorDraws",
    "PosteriorSampling",
    "Renoising",
    "SecondOrderPlugIn",
    "TargetESS",
    "Tempered",
]
