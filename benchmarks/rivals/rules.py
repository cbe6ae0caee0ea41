r"""Rules of published methods that the library has no use for, written from their papers.

All maximize or tilt by a :class:`rwguidance.Tilt`, take states at the first of the times, (B,
\*event), and return clean states. A rule works on pictures as on toys: the tilt decodes.
"""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

import rwguidance as rw
from rwguidance.noise_space import Generate
from rwguidance.support.conditions import take
from rwguidance.weights import ess, gumbel

__all__ = ["dps", "fk_steering", "fmps", "map_ascent", "reno", "svdd", "universal_guidance"]

Source = torch.Generator | None


def slope(
    model: rw.Model, tilt: rw.Tilt, x_t: Tensor, t: Tensor, condition: object
) -> tuple[rw.Prediction, Tensor]:
    """The prediction, and the gradient of the log-weight at its mean in the states."""

    with torch.enable_grad():
        x = x_t.detach().clone().requires_grad_()
        prediction = model(x, t, condition)
        log_w = tilt(prediction.mean, condition)
        if not log_w.requires_grad:
            raise ValueError("the reward has no gradient")
        (gradient,) = torch.autograd.grad(log_w.sum(), x)
    return prediction.detach(), gradient


def stepped(
    model: rw.Model, prediction: rw.Prediction, like: Tensor, s: Tensor, eta: float, source: Source
) -> Tensor:
    """The next states of DDIM from a prediction."""

    law = rw.DDIM(eta).transition(prediction, model.schedule.at(s, like=like))
    if not bool((law.std > 0).any()):
        return law.mean.to(like.dtype)
    return (law.mean + law.std * _noise(like, source)).to(like.dtype)


def dps(
    model: rw.Model,
    tilt: rw.Tilt,
    x_1: Tensor,
    times: Tensor,
    rate: float,
    condition: object = None,
    generator: Source = None,
) -> Tensor:
    """Moves every next state by a fixed multiple of the gradient in the present one.

    Diffusion Posterior Sampling (Chung et al., 2023), arXiv:2209.14687, with the log-weight for the
    norm of a measurement's residual.
    """

    x = x_1
    for t, s in itertools.pairwise(times):
        prediction, gradient = slope(model, tilt, x, t, condition)
        x = stepped(model, prediction, x, s, 1.0, generator) + rate * gradient
    return x


def universal_guidance(
    model: rw.Model,
    tilt: rw.Tilt,
    x_1: Tensor,
    times: Tensor,
    weight: float,
    recurrences: int = 1,
    condition: object = None,
    generator: Source = None,
) -> Tensor:
    """Subtracts the gradient from the predicted noise, and repeats a step from its end noised.

    Universal Guidance for Diffusion Models (Bansal et al., 2023), arXiv:2302.07121, forward
    guidance with self-recurrence.
    """

    x = x_1
    for t, s in itertools.pairwise(times):
        now, then = (model.schedule.at(time, like=x) for time in (t, s))
        keep = now.alpha / then.alpha
        spread = (now.sigma**2 - (keep * then.sigma) ** 2).clamp_min(0).sqrt()
        for left in reversed(range(recurrences)):
            prediction, gradient = slope(model, tilt, x, t, condition)
            if bool((now.alpha > 0).all()):  # the noise less weight sigma times the gradient
                prediction = prediction.shifted(weight * now.sigma**2 / now.alpha * gradient)
            x_s = stepped(model, prediction, x, s, 0.0, generator)
            x = keep * x_s + spread * _noise(x, generator) if left else x_s
    return x


def fmps(
    model: rw.Model,
    tilt: rw.Tilt,
    x_1: Tensor,
    times: Tensor,
    rate: float,
    condition: object = None,
    generator: Source = None,
) -> Tensor:
    r"""Corrects the velocity by the gradient where the flow would end, were it straight.

    :math:`v - r \, \beta_t \, |v| \, g / |g|` with g the gradient of the log-weight at
    :math:`(x_t - \sigma_t x_1) / \alpha_t`, where x_1 is the first state and beta the factor of the
    score in a velocity; nothing at the first step. Flow Matching Posterior Sampling (Song et al.,
    2024), arXiv:2411.07625, its form without passes back through the model.
    """

    x = x_1
    for number, (t, s) in enumerate(itertools.pairwise(times)):
        with torch.no_grad():
            prediction = model(x, t, condition)
        if number:
            now = prediction.scales
            with torch.enable_grad():
                mean = ((x - now.sigma * x_1) / now.alpha).detach().requires_grad_()
                log_w = tilt(mean, condition)
                if not log_w.requires_grad:
                    raise ValueError("the reward has no gradient")
                (gradient,) = torch.autograd.grad(log_w.sum(), mean)
            beta = now.sigma * (now.sigma_rate - now.sigma * now.alpha_rate / now.alpha)
            velocity = prediction.velocity
            unit = gradient / _norm(gradient).clamp_min(1e-12)
            velocity = velocity - rate * beta * _norm(velocity) * unit
            prediction = rw.Prediction.from_velocity(velocity, x, now)
        x = stepped(model, prediction, x, s, 0.0, generator)
    return x


def map_ascent(
    model: rw.Model,
    tilt: rw.Tilt,
    x_1: Tensor,
    times: Tensor,
    rate: float,
    width: float,
    iterations: int = 1,
    condition: object = None,
    generator: Source = None,
) -> Tensor:
    r"""Ascends the log-weight in the state at every step, held by a Gaussian around where it was.

    :math:`x \leftarrow x + \eta \, g / |g|` with g the gradient of
    :math:`\log w(D(x)) - |x - x_t|^2 / 2 (\gamma t)^2`, from where a plain step is taken. PG-MAP
    (Sun & Polak, 2026), arXiv:2606.22958, its form for flows with the state alone, without the term
    that holds the next state.
    """

    x = x_1
    for t, s in itertools.pairwise(times):
        anchor = x
        for _ in range(iterations):
            _, gradient = slope(model, tilt, x, t, condition)
            gradient = gradient - (x - anchor) / (width * float(t)) ** 2
            x = x + rate * gradient / _norm(gradient).clamp_min(1e-12)
        with torch.no_grad():
            x = stepped(model, model(x, t, condition), x, s, 0.0, generator)
    return x


@torch.no_grad()
def svdd(
    model: rw.Model,
    tilt: rw.Tilt,
    x_1: Tensor,
    times: Tensor,
    n: int,
    sharpness: float = math.inf,
    condition: object = None,
    generator: Source = None,
) -> Tensor:
    r"""Draws some next states, and goes on with one, by the weight of what it is predicted to be.

    Soft value-based decoding (Li et al., 2024), arXiv:2408.08252, with the posterior mean for the
    value. The pick is by :math:`w^{\mathrm{sharpness}}`; infinite, as in the public code, is the
    best.
    """

    x, prediction = x_1, model(x_1, times[0], condition)
    for s in times[1:-1]:
        rows = [i for i in range(len(x)) for _ in range(n)]
        law = rw.DDIM(1.0).transition(prediction, model.schedule.at(s, like=x))
        candidates = law.mean[rows] + law.std * _noise(law.mean[rows], generator)
        ahead = model(candidates.to(x.dtype), s, take(condition, rows))
        log_w = tilt(ahead.mean, take(condition, rows)).reshape(-1, n)
        score = log_w
        if not math.isinf(sharpness):
            score = sharpness * log_w + gumbel(log_w.shape, generator).to(log_w)
        picks = score.argmax(1) + n * torch.arange(len(x))
        x = candidates[picks].to(x.dtype)
        prediction = rw.Prediction(ahead.mean[picks], ahead.noise[picks], ahead.scales)
    return stepped(model, prediction, x, times[-1], 0.0, generator)


@torch.no_grad()
def fk_steering(
    model: rw.Model,
    tilt: rw.Tilt,
    x_1: Tensor,
    times: Tensor,
    particles: int,
    keep: int,
    every: int = 1,
    potential: Callable[[Tensor, Tensor], Tensor] | None = None,
    condition: object = None,
    generator: Source = None,
) -> Tensor:
    r"""Resamples groups of particles by potentials of predicted weights, at fixed steps.

    FK steering (Singhal et al., 2025), arXiv:2501.06848, as in the public code: multinomial, at
    every step that is asked for, whatever the effective number, and without weights between.

    Arguments:
        model: The model.
        tilt: The tilt.
        x_1: First states, group after group.
        times: Times of the run.
        particles: Number of particles of a group.
        keep: Number of states that a group gives, picked by the last weights.
        every: Number of steps between resamplings.
        potential: ``torch.maximum`` or ``torch.add`` of the log-weights so far and those now; None
            is their difference.
        condition: Conditions of the states, which are alike in a group.
        generator: Source of randomness.
    """

    x, total = x_1, torch.zeros(len(x_1), dtype=torch.float64)
    last = torch.full_like(total, -math.inf if potential is torch.maximum else 0.0)
    steps = len(times) - 1
    for number, (t, s) in enumerate(itertools.pairwise(times), start=1):
        prediction = model(x, t, condition)
        x = stepped(model, prediction, x, s, 1.0, generator)
        if number % every and number < steps:
            continue
        log_w = tilt(prediction.mean, condition).double().cpu()
        value = log_w if potential is None else potential(last, log_w)
        log_g = value - last if potential is None else value
        if potential is not None and number == steps:
            log_g = log_g - total
        count = particles if number < steps else keep
        rows = _multinomial(log_g, particles, count, generator)
        x, last, total = x[rows], value[rows], (total + log_g)[rows]
    return x


def reno(
    generate: Generate,
    tilt: rw.Tilt,
    noise: Tensor,
    iterations: int,
    rate: float,
    weight: float,
    clip: float = 0.1,
    condition: object = None,
) -> Tensor:
    r"""Ascends the log-weight in the noise, and returns the best of the states on the way.

    Reward-based Noise Optimization (Eyring et al., 2024), arXiv:2406.04312: Nesterov's momentum of
    0.9, gradients clipped to a norm, and a pull to where the norm of Gaussian noise is likely.
    """

    z, momentum, d = noise.clone(), torch.zeros_like(noise), noise[0].numel()
    best = torch.full((len(z),), -math.inf, dtype=torch.float64)
    found = torch.zeros_like(noise)
    for left in reversed(range(iterations)):
        with torch.set_grad_enabled(left > 0):
            x = z.detach().clone().requires_grad_(left > 0)
            x_0 = generate(x, condition)
            log_w = tilt(x_0, condition)
            better = log_w.detach().double().cpu() > best
            best = torch.where(better, log_w.detach().double().cpu(), best)
            wide = better.to(x_0.device).reshape(-1, *(1,) * (x_0.ndim - 1))
            found = torch.where(wide, x_0.detach(), found)
            if not left:
                break
            if not log_w.requires_grad:
                raise ValueError("the reward has no gradient")
            norm = x.flatten(1).norm(dim=1)
            loss = weight * (0.5 * norm**2 - (d - 1) * norm.log()) - log_w
            (gradient,) = torch.autograd.grad(loss.sum(), x)
        gradient = gradient * (clip / _norm(gradient).clamp_min(1e-12)).clamp(max=1)
        momentum = 0.9 * momentum + gradient
        z = z - rate * (gradient + 0.9 * momentum)
    return found


def _noise(like: Tensor, source: Source) -> Tensor:
    return torch.randn(like.shape, generator=source, dtype=like.dtype, device=like.device)


def _norm(values: Tensor) -> Tensor:
    return values.flatten(1).norm(dim=1).reshape(-1, *(1,) * (values.ndim - 1))


def _multinomial(log_w: Tensor, size: int, count: int, source: Source) -> Tensor:
    """Rows drawn by weight, `count` of each group of `size`."""

    assert bool((ess(log_w.reshape(-1, size)) > 0).all())
    shares = log_w.reshape(-1, size).softmax(1)
    picks = torch.multinomial(shares, count, replacement=True, generator=source)
    return (picks + size * torch.arange(len(picks))[:, None]).flatten()
