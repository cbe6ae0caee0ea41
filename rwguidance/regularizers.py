r"""Terms that choose among imperfect guidance networks. Each returns one value per sample.

A scalar network can fit :math:`\log h_t` well on average and still have a wild input gradient,
which is what guidance uses. The terms here look at that gradient, or tie the network to other
knowledge.
"""

import torch
from torch import Tensor

from .prediction import Prediction
from .support import checks

__all__ = ["consistency", "cycle", "gradient_penalty"]


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
