r"""Losses whose minimizer is :math:`\log h_t`, or the shift itself.

All are functions of a network's output at a noised draw :math:`x_t` of a clean :math:`x_0 \sim p`
and of the log-weight of that draw. Averaged over draws, each one is minimized by a conditional
expectation given :math:`x_t`, so the network learns :math:`h_t` without ever seeing it. They return
one value per sample, so that any weighting of times can be applied on top.

=============================== ============================ ======================================
loss                            minimizer                    emphasis
=============================== ============================ ======================================
:func:`exp_mse`                 log h (the paper's choice)   weight h squared: only the top rewards
:func:`poisson`                 log h                        weight h
:func:`itakura_saito`           log h                        the same for every state and prompt
:func:`weighted_bce`            log h                        bounded curvature
:func:`contrastive`             log h + c(t, y)              blind to offsets per prompt
:func:`log_mse`                 E[log w given x_t], biased   least noise
:func:`marginal_residual`       shift                        weight h
:func:`centered_residual`       shift, given log h           least noise of the unbiased ones
=============================== ============================ ======================================
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .support import checks

__all__ = [
    "centered_residual",
    "contrastive",
    "exp_mse",
    "itakura_saito",
    "log_mse",
    "marginal_residual",
    "poisson",
    "weighted_bce",
]


def exp_mse(log_h: Tensor, log_w: Tensor) -> Tensor:
    r"""Squared error of the weights themselves, :math:`(e^f - w)^2`.

    Arguments:
        log_h: The network's f, in nats, with shape (B,).
        log_w: Log-weights of the clean draws, in nats, with shape (B,). Center them first: weights
            far from one make this loss overflow or vanish.

    References:
        | Reward-weighted guidance, arXiv:2602.00413; TGDP (Ouyang et al., 2024), arXiv:2405.16876
    """

    _check(log_h, log_w)
    return (log_h.exp() - log_w.exp()).square()


def poisson(log_h: Tensor, log_w: Tensor) -> Tensor:
    r"""Generalized Kullback-Leibler loss, :math:`e^f - w f`; convex in f. Arguments as
    :func:`exp_mse`."""

    _check(log_h, log_w)
    return log_h.exp() - log_w.exp() * log_h


def itakura_saito(log_h: Tensor, log_w: Tensor) -> Tensor:
    r"""Itakura-Saito loss, :math:`w e^{-f} + f`; the default. Arguments as :func:`exp_mse`.

    Depends on :math:`\log w - f` only, so it gives equal emphasis to states and prompts of high and
    of low reward, and offsets of the reward do no harm.
    """

    _check(log_h, log_w)
    return torch.exp(log_w - log_h) + log_h


def weighted_bce(log_h: Tensor, log_w: Tensor) -> Tensor:
    r"""Logistic loss, :math:`w \log(1 + e^{-f}) + \log(1 + e^f)`. Arguments as :func:`exp_mse`.

    The density-ratio classifier between noised draws of the tilted and of the base law, written
    with weighted draws of the base law alone.
    """

    _check(log_h, log_w)
    return log_w.exp() * softplus(-log_h) + softplus(log_h)


def contrastive(log_h: Tensor, log_w: Tensor) -> Tensor:
    r"""Contrastive energy prediction with unnormalized labels, :math:`-\sum_i w_i \log
    \mathrm{softmax}(f)_i`.

    Exact for every group size. With labels normalized over the group (as in public code) it would
    be biased towards zero for small groups.

    Arguments:
        log_h: The network's f, in nats, with shape (G, K): K >= 2 draws in each of G groups, all at
            the same time and under the same condition.
        log_w: Log-weights of the clean draws, in nats, with shape (G, K).

    Returns:
        The loss of each group, divided by K, with shape (G,).

    References:
        | Contrastive Energy Prediction (Lu et al., 2023), arXiv:2304.12824
    """

    _check(log_h, log_w)
    if log_h.ndim != 2 or log_h.shape[1] < 2:
        raise ValueError(
            f"log_h must have shape (G, K) with K >= 2 draws per group, got {tuple(log_h.shape)}"
        )
    return -(log_w.exp() * log_h.log_softmax(1)).mean(1)


def log_mse(log_h: Tensor, log_w: Tensor) -> Tensor:
    r"""Squared error of the log-weights, :math:`(f - \log w)^2`. Biased.

    Its minimizer :math:`E[\log w | x_t]` lies below :math:`\log h_t` by about half the variance of
    :math:`\log w` given :math:`x_t` (Jensen). It gives the first-order tilt, with little noise.
    Arguments as :func:`exp_mse`, but every weight must be positive.
    """

    _check(log_h, log_w)
    return (log_h - log_w).square()


def marginal_residual(shift: Tensor, mean: Tensor, x_0: Tensor, log_w: Tensor) -> Tensor:
    r"""Weighted regression of the clean draw (MRGM), :math:`w \, \|G + D - x_0\|^2 / d`.

    Arguments:
        shift: The network's G, in data units, with shape (B, \*event).
        mean: The base model's posterior mean D, in data units, with shape (B, \*event).
        x_0: The clean draws, in data units, with shape (B, \*event).
        log_w: Log-weights of the clean draws, in nats, with shape (B,). Center them first.

    References:
        | On the Guidance of Flow Matching (Feng et al., 2025), arXiv:2502.02150
        | Energy-Weighted Flow Matching (Zhang et al., 2025), arXiv:2503.04975
    """

    _check_states(shift, mean, x_0, log_w)
    return log_w.exp() * (shift + mean - x_0).square().flatten(1).mean(1)


def centered_residual(
    shift: Tensor, mean: Tensor, x_0: Tensor, log_w: Tensor, log_h: Tensor
) -> Tensor:
    r"""Regression of the centered residual, :math:`\|G - (w / h - 1)(x_0 - D)\|^2 / d`.

    Both factors of the target have conditional mean zero, which makes it the least noisy of the
    exact targets.

    Arguments:
        shift: The network's G, in data units, with shape (B, \*event).
        mean: The base model's posterior mean D, in data units, with shape (B, \*event).
        x_0: The clean draws, in data units, with shape (B, \*event).
        log_w: Log-weights of the clean draws, in nats, with shape (B,).
        log_h: :math:`\log h_t(x_t)`, in nats, with shape (B,), known or learned; not trained here.
    """

    _check_states(shift, mean, x_0, log_w)
    _check(log_h, log_w)
    ratio = torch.expm1(log_w - log_h.detach()).reshape(-1, *(1,) * (shift.ndim - 1))
    return (shift - ratio * (x_0 - mean)).square().flatten(1).mean(1)


def _check(log_h: Tensor, log_w: Tensor) -> None:
    checks.tensor("log_h", log_h)
    checks.tensor("log_w", log_w)
    if log_h.shape != log_w.shape:
        raise ValueError(
            "log_h and log_w must have the same shape, "
            f"got {tuple(log_h.shape)} and {tuple(log_w.shape)}"
        )


def _check_states(shift: Tensor, mean: Tensor, x_0: Tensor, log_w: Tensor) -> None:
    for name, value in (("shift", shift), ("mean", mean), ("x_0", x_0)):
        checks.states(name, value)
    checks.tensor("log_w", log_w, (len(x_0),))
    if not shift.shape == mean.shape == x_0.shape:
        raise ValueError(
            "shift, mean and x_0 must have the same shape, "
            f"got {tuple(shift.shape)}, {tuple(mean.shape)} and {tuple(x_0.shape)}"
        )
