r"""Terms that choose among imperfect guidance networks. Each returns one value per sample.

A scalar network can fit :math:`\log h_t` well on average and still have a wild input gradient,
which is what guidance uses. The terms here look at that gradient, or tie the network to other
knowledge. The last one is of states instead of networks: how likely a frozen model finds them.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .models import Model, check_is_model
from .prediction import Prediction
from .schedules import as_times
from .support import checks

__all__ = ["consistency", "cycle", "flow_prior", "gradient_penalty"]


def consistency(guided: Prediction, noise: Tensor, log_w: Tensor | None = None) -> Tensor:
    r"""Denoising loss of the *guided* prediction,
    :math:`w \, \|\tilde\epsilon(x_t) - \epsilon\|^2 / d`.

    Written in noise (eps) space, where low signal-to-noise ratios are not amplified. With weights,
    its minimizer over all shifts is the exact one, so adding it does not move the optimum: it
    penalizes the gradient where it is used. Without weights, on preferred samples only, the optimum
    moves to the law of the preferred samples: that variant is biased.

    Arguments:
        guided: The base prediction shifted by the network, with gradients to the network.
        noise: The noise that made the states, with shape (B, \*event).
        log_w: Log-weights of the clean draws, in nats, with shape (B,), if they come from the base
            law; None if they are preferred samples or draws of the tilted law.

    References:
        | Reward-weighted guidance, arXiv:2602.00413; TGDP (Ouyang et al., 2024), arXiv:2405.16876
    """

    checks.instance("guided", guided, Prediction, "a Prediction")
    checks.tensor("noise", noise, tuple(guided.noise.shape))
    checks.optional(checks.tensor, "log_w", log_w, (len(noise),))
    error = (guided.noise - noise).square().flatten(1).mean(1)
    return error if log_w is None else log_w.exp() * error


def cycle(log_h: Tensor, log_ratio: Tensor, log_w: Tensor | None = None) -> Tensor:
    r"""Agreement with a classifier of noised samples, :math:`w \, (f - \log \rho)^2`.

    A classifier that tells noised draws of the tilted law from noised draws of the base law has the
    logit :math:`\log \rho = \log h_t - \log Z`. Both sides are functions of :math:`x_t`, so the
    difference is free of noise, and as exact as the classifier.

    Arguments:
        log_h: The network's f, in nats, with shape (B,).
        log_ratio: The classifier's logit, in nats, with shape (B,); not trained here.
        log_w: Log-weights of the clean draws, in nats, with shape (B,), which weight them towards
            the tilted law; None if they follow it.

    References:
        | TGDP (Ouyang et al., 2024), arXiv:2405.16876
    """

    checks.tensor("log_h", log_h)
    checks.tensor("log_ratio", log_ratio, tuple(log_h.shape))
    checks.optional(checks.tensor, "log_w", log_w, tuple(log_h.shape))
    error = (log_h - log_ratio.detach()).square()
    return error if log_w is None else log_w.exp() * error


def gradient_penalty(gradient: Tensor, sigma: Tensor) -> Tensor:
    r"""Size of the guidance in noise space, :math:`\|\sigma_t \nabla f(x_t)\|^2 / d`.

    Biased towards no guidance.

    Arguments:
        gradient: Input gradient of the network, with shape (B, \*event).
        sigma: Noise scale, broadcastable to `gradient`.
    """

    checks.states("gradient", gradient)
    checks.tensor("sigma", sigma)
    return (sigma * gradient).square().flatten(1).mean(1)


def differentiable_gradient(log_h: Tensor, x_t: Tensor) -> Tensor:
    r"""Input gradient of a network, which carries gradients to the network's parameters.

    Arguments:
        log_h: The network's f, in nats, with shape (B,).
        x_t: The states it was computed from, with shape (B, \*event), which record gradients.
    """

    (gradient,) = torch.autograd.grad(log_h.sum(), x_t, create_graph=True)
    return gradient


def flow_prior(
    model: Model, x_0: Tensor, t: float | Tensor, noise: Tensor, condition: Any = None
) -> Tensor:
    r"""Surrogate of :math:`-\log p(x_0)` under a frozen flow, by one call of it and no solver.

    The error of the model on noised states, less that of a standard normal law,

    .. math:: \frac12 \Big| \frac{d \lambda_t}{dt} \Big| \Big( \|\epsilon - \hat\epsilon(x_t)\|^2
        - \frac{\alpha_t^2}{\alpha_t^2 + \sigma_t^2} \|\epsilon\|^2 \Big)
        + \frac d2 \log 2 \pi e, \qquad \lambda_t = \log \frac{\alpha_t^2}{\sigma_t^2},

    has the mean :math:`-\log p(x_0)` exactly over t uniform in (0, 1) and standard normal noise, if
    the model predicts means of p and the path reaches from data to noise; what a path leaves out at
    its ends is left out. Of a trained model it is an evidence bound up to the error of its fit, and
    of one with guidance or distilled from others it is a heuristic. Single values scatter, most for
    t near 0: take many pairs (t, noise), or the same ones for states that are compared.

    Its gradient in the state regularizes latents, and noise through :math:`x_0 = G(z)`; it passes
    through the model, whose parameters should be frozen. On the rectified path the method's paper
    leaves the weight of the error of the velocity, :math:`(1 - t) / t`, out, and so the unit.

    Arguments:
        model: The model of p.
        x_0: Clean states, with shape (B, \*event).
        t: Times in (0, 1), a number or a tensor of shape () or (B,).
        noise: Standard normal noise, with shape (B, \*event).
        condition: What the model is conditioned on.

    Returns:
        One value per state, in nats, with shape (B,).

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes do not fit, or a time lies at an end of the path.

    References:
        | Aligning Latent Spaces with Flow Priors (Li et al., 2025), arXiv:2506.05240
        | Information-Theoretic Diffusion (Kong et al., 2023), arXiv:2302.03792
    """

    check_is_model("model", model)
    checks.states("x_0", x_0)
    checks.tensor("noise", noise, tuple(x_0.shape))
    times = as_times(t, batch=len(x_0))
    if not bool(((times > 0) & (times < 1)).all()):
        raise ValueError(
            f"t must lie in (0, 1), where the path has both ends, got {times.tolist()}"
        )
    scales = model.schedule.at(times, like=x_0)
    x_t = model.schedule.perturb(x_0, times, noise)
    predicted = model(x_t, times, condition).noise
    slope = 2 * (scales.alpha_rate / scales.alpha - scales.sigma_rate / scales.sigma)
    signal = scales.alpha**2 / (scales.alpha**2 + scales.sigma**2)
    excess = (predicted - noise).square() - signal * noise.square()
    entropy = 0.5 * math.prod(x_0.shape[1:]) * math.log(2 * math.pi * math.e)
    return 0.5 * (slope.abs() * excess).flatten(1).sum(1) + entropy
