"""`rwguidance toy`: every estimator against the closed form, time by time."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...bank import Bank
from ...estimators import (
    ConditionalExpectation,
    ImportanceSampling,
    LearnedExpectation,
    LearnedShift,
    PlugIn,
    TargetESS,
)
from ...models import Model
from ...networks import ExpectationMLP, ShiftMLP
from ...schedules import CosineSchedule, RectifiedSchedule, Schedule, VPSchedule
from ...tilt import Tilt
from ...toy import Gaussian, GaussianMixture, Linear, Oracle, Quadratic
from ...training import ExpectationObjective, ShiftObjective, train

__all__ = ["compare"]

_TIMES = (1.0, 0.9, 0.7, 0.4, 0.1)
_PATHS: dict[str, Callable[[], Schedule]] = {
    "vp": VPSchedule,
    "cosine": CosineSchedule,
    "rectified": RectifiedSchedule,
}


def compare(
    law: str,
    reward: str,
    path: str,
    dim: int,
    beta: float,
    bank_size: int,
    batch: int,
    training_steps: int,
    seed: int,
) -> None:
    """Prints the relative error of each estimator's shift; arguments as the command's options."""

    from rich.console import Console
    from rich.table import Table

    generator = torch.Generator().manual_seed(seed)
    prior = _law(law, dim, generator)
    tilt = Tilt(_reward(reward, dim), beta)
    schedule = _PATHS[path]()
    model = prior.model(schedule)
    bank = Bank(prior.sample(bank_size, generator).float()).scored(tilt)
    x_0 = prior.sample(batch, generator).float()
    noise = torch.randn(x_0.shape, generator=generator)

    estimators = _estimators(prior, model, bank, tilt, training_steps, seed)
    importance = estimators["importance"]

    table = Table(
        title=f"Relative error of the shift ({law} in {dim} dimensions, {reward} reward, "
        f"beta={beta:g}, {path} path; a bank of {bank_size}).\n- means undefined there. Below: "
        "medians of the diagnostics of importance sampling."
    )
    table.add_column("estimator", no_wrap=True)
    for t in _TIMES:
        table.add_column(f"t={t:g}", justify="right", no_wrap=True)
    states = [schedule.perturb(x_0, t, noise) for t in _TIMES]
    for name, estimator in estimators.items():
        errors = []
        for t, x_t in zip(_TIMES, states, strict=True):
            exact = prior.shift(tilt, x_t, t, schedule)
            errors.append(_relative_error(estimator, model, x_t, t, exact))
        table.add_row(name, *errors)
    table.add_section()
    for name in ("ess", "ess_tilted", "pareto_k"):
        values = [
            importance(model, x_t, t).diagnostics[name].median()
            for t, x_t in zip(_TIMES, states, strict=True)
        ]
        table.add_row(name, *(f"{value:.3g}" for value in values))
    Console().print(table)


def _estimators(
    prior: GaussianMixture, model: Model, bank: Bank, tilt: Tilt, training_steps: int, seed: int
) -> dict[str, ConditionalExpectation]:
    """The estimators by name, in the order of the table; networks only if they are trained."""

    estimators: dict[str, ConditionalExpectation] = {
        "exact": Oracle(prior, tilt),
        "importance": ImportanceSampling(bank, tilt, pareto_k=True),
        "  TargetESS(0.05)": ImportanceSampling(bank, tilt, TargetESS(0.05)),
        "plug-in": PlugIn(tilt),
        "  no Jacobian": PlugIn(tilt, jacobian=False),
    }
    if training_steps:
        event = tuple(bank.x_0.shape[1:])
        scalar = ExpectationMLP(event, width=128, seed=seed)
        objective = ExpectationObjective(model, bank, tilt)
        train(scalar, objective, training_steps, seed=seed, progress=True)
        vector = ShiftMLP(event, model.schedule, width=128, seed=seed)
        centered = ShiftObjective(model, bank, tilt, scalar)
        train(vector, centered, training_steps, seed=seed, progress=True)
        estimators["network, log h"] = LearnedExpectation(scalar)
        estimators["network, shift"] = LearnedShift(vector)
    return estimators


def _relative_error(
    estimator: ConditionalExpectation, model: Model, x_t: Tensor, t: float, exact: Tensor
) -> str:
    by_gradient = isinstance(estimator, LearnedExpectation) or (
        isinstance(estimator, PlugIn) and estimator.jacobian
    )
    if by_gradient and float(model.schedule.at(t, like=x_t).alpha) == 0:
        return "-"  # there an input gradient does not determine the shift
    with torch.no_grad():
        shift = estimator(model, x_t, t).shift
    return f"{float((shift - exact).norm() / exact.norm()):.3f}"


def _law(name: str, dim: int, generator: torch.Generator) -> GaussianMixture:
    eye = torch.eye(dim, dtype=torch.float64)
    if name == "gaussian":
        return Gaussian(torch.zeros(dim), eye)
    means = torch.randn(4, dim, generator=generator, dtype=torch.float64)
    return GaussianMixture(
        torch.zeros(4), 1.5 * means / means.norm(dim=1, keepdim=True), 0.2 * eye[None]
    )


def _reward(name: str, dim: int) -> Linear | Quadratic:
    first = torch.eye(dim, dtype=torch.float64)[0]
    if name == "linear":
        return Linear(first)
    return Quadratic(first, torch.eye(dim, dtype=torch.float64))
