r"""Weighted particles through the steps of a sampler: twisted sequential Monte Carlo.

The steps of a stochastic sampler are a Markov chain from noise to data with kernels
:math:`K(x_s | x_t)`. The chain whose last state is tilted,

.. math:: \tilde P(x_{t_0}, \dots, x_{t_K}) = \frac1Z \, p(x_{t_0})
    \prod_k K(x_{t_{k+1}} | x_{t_k}) \, w(x_{t_K}),

is sampled by particles that move by other kernels M, those of the guided prediction, and gather

.. math:: \log G = \log \psi_s(x_s) - \log \psi_t(x_t) + \log K(x_s | x_t) - \log M(x_s | x_t),
    \qquad \psi_{t_K} = w.

The twist :math:`\psi_t` is any estimate of :math:`h_t(x_t) = E[w(x_{t_K}) | x_t]`. Where the
weights have become too uneven, particles of small weight give way to copies of others. Weights of
steps without resampling are kept, so the estimate of Z has no bias, with few particles and a poor
twist, too; these cost variance. Z and the law are those of *this chain*, whose last state has the
model's law only up to the errors of the network and of its steps.

References:
    | Practical and Asymptotically Exact Conditional Sampling in Diffusion Models (Wu et al., 2023),
      arXiv:2306.17775
    | A General Framework for Inference-time Scaling and Steering of Diffusion Models (Singhal et
      al., 2025), arXiv:2501.06848, the potentials
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from .estimators.base import ConditionalExpectation
from .guidance import check_strength
from .models import Model, check_is_model
from .prediction import Prediction
from .samplers import AncestralSampler, Sampler, check_times, draws_noise
from .schedules import Schedule, working_dtype
from .support import checks
from .support.conditions import take
from .support.randomness import Generators, normal
from .tilt import Tilt
from .weights import ess, log_mean_exp, systematic

__all__ = ["Particles", "TwistedSMC"]

Resampling = Callable[[Tensor, int, torch.Generator | None], Tensor]
"""A function (log_w, n, generator) -> n indices, as :func:`rwguidance.weights.systematic`."""


@dataclass(frozen=True)
class Particles:
    r"""Weighted states at the end of a run, N particles for each of P prompts.

    Arguments:
        x_0: States, prompt after prompt, with shape (P N, \*event). Those of weight zero may have
            stopped on the way.
        log_w: Log-weights, in nats, float64, with shape (P, N). Their scale counts: the mean weight
            of a prompt is the estimate of its Z.
        ess: Effective sample sizes before each step, and at the end, with shape (K + 1, P); 0
            where no particle of a prompt has weight.
        ancestors: Numbers of the first states, in [0, N), from which those at the end descend, with
            shape (P, N).
    """

    x_0: Tensor
    log_w: Tensor
    ess: Tensor
    ancestors: Tensor

    @property
    def log_z(self) -> Tensor:
        r"""Estimates of :math:`\log Z`, in nats, with shape (P,); :math:`\hat Z` has no bias."""

        return log_mean_exp(self.log_w)

    @property
    def distinct(self) -> Tensor:
        """Numbers of distinct ancestors that particles with weight have, with shape (P,)."""

        rows = zip(self.ancestors, self.log_w > -math.inf, strict=True)
        return torch.tensor([len(row[alive].unique()) for row, alive in rows])

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Returns rows of `x_0`, `n` for each prompt, by systematic resampling, with shape (P, n).

        Arguments:
            n: Number of rows for each prompt.
            generator: Source of randomness.

        Raises:
            ValueError: If no particle of a prompt has weight.
        """

        count = self.log_w.shape[1]
        rows = [systematic(row, n, generator) for row in self.log_w]
        return torch.stack([row + i * count for i, row in enumerate(rows)])


@dataclass(frozen=True)
class TwistedSMC:
    r"""Twisted sequential Monte Carlo: the settings, and :meth:`sample`, which runs it.

    With as many resamplings as there are steps, few particles descend from different first states:
    :attr:`Particles.distinct` counts them.

    Arguments:
        tilt: The tilt of the last state.
        twist: The estimator whose :math:`\log h_t` is the twist, and whose shift moves the
            particles.
        scale: Factor of the shift; 0 moves the particles as the model has it. Any leaves Z without
            bias.
        window: Closed interval of times (low, high) in which the estimator is asked. Outside,
            particles move as the model has it, and their weights stay.
        threshold: Share of effective particles in [0, 1] below which those of a prompt are
            resampled; 0 is never.
        resample: The resampling, such as :func:`rwguidance.weights.systematic` or
            :func:`rwguidance.weights.residual`.
        potential: Function of the last twist and of the present :math:`\log h_t`, (N,) and in nats,
            that gives the present twist; None is :math:`\log h_t` itself (the "difference"
            of FK steering); ``torch.maximum`` and ``torch.add`` are its "max" and "sum".
        stop: Distance from the largest log-weight of a prompt, in nats, beyond which a particle is
            given up: it costs no further call, unless another takes its place when its prompt is
            resampled. None gives up those of weight zero alone. **It has a bias**: what was given
            up is missing in Z, at every step at most N exp(-stop) of it if the twist is exact, and
            more where the twist is wrong about a particle.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of its range.
    """

    tilt: Tilt
    twist: ConditionalExpectation
    scale: float = 1.0
    window: tuple[float, float] = (0.0, 1.0)
    threshold: float = 0.5
    resample: Resampling = systematic
    potential: Callable[[Tensor, Tensor], Tensor] | None = None
    stop: float | None = None

    def __post_init__(self) -> None:
        checks.instance("tilt", self.tilt, Tilt, "a Tilt")
        checks.instance(
            "twist", self.twist, ConditionalExpectation, "an estimator such as LookAhead(tilt)"
        )
        scale = checks.number("scale", self.scale)
        check_strength(scale, self.window)
        checks.function("resample", self.resample)
        checks.optional(checks.function, "potential", self.potential)
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "threshold", checks.number("threshold", self.threshold, 0, 1))
        checks.optional(checks.number, "stop", self.stop, above=0)

    @torch.no_grad()
    def sample(
        self,
        model: Model,
        sampler: Sampler,
        x_1: Tensor,
        times: Tensor | Sequence[float],
        condition: Any = None,
        generator: Generators = None,
        particles: int | None = None,
        batch_size: int | None = None,
    ) -> Particles:
        r"""Carries particles from the first of `times` to the last, one network call per step.

        Arguments:
            model: The model, unguided.
            sampler: A sampler that draws noise at its steps, such as ``DDIM(eta=1.0)``.
            x_1: States at `times[0]`, drawn from the model's law there, with shape (B, \*event):
                those of the first prompt, then those of the second.
            times: Times of the run, strictly decreasing in [0, 1].
            condition: What the model and the reward are conditioned on, one item per state, which
                is the same for all states of a prompt.
            generator: Source of randomness: one, or one per state, with which the particles of a
                prompt do not depend on other prompts.
            particles: Number N of particles of a prompt, which divides B; None is B, one prompt.
            batch_size: Number of states that the network, the estimator and the reward see at
                once; None is all that are not given up.

        Raises:
            TypeError: If the sampler has no transitions, or an argument is of the wrong kind.
            ValueError: If the sampler is deterministic, B is no multiple of N, the estimator gives
                NaN or +inf for log h (or a reward is so), or an argument is out of its range.
            FloatingPointError: If states become NaN or inf; names the step.
        """

        check_is_model("model", model)
        grid = check_times(times)
        checks.states("x_1", x_1, finite=True)
        checks.generator("generator", generator)
        n = checks.integer("particles", max(len(x_1), 1) if particles is None else particles, 1)
        if len(x_1) == 0 or len(x_1) % n:
            raise ValueError(
                f"x_1 must hold particles, {n} of them for each prompt, got {len(x_1)} states"
            )
        sized = isinstance(condition, Sized) and not isinstance(condition, Mapping)
        if sized and len(condition) != len(x_1):
            raise ValueError(
                f"condition must hold one item per state, {len(x_1)}, got {len(condition)}"
            )
        rows = checks.integer("batch_size", len(x_1) if batch_size is None else batch_size, 1)
        _check_draws_noise(sampler, model.schedule, grid)
        assert isinstance(sampler, AncestralSampler)

        chain = _Chain(model, sampler, condition, rows)
        cloud, history = _Cloud.of(x_1, n), []
        for number, (t, s) in enumerate(itertools.pairwise(grid), start=1):
            cloud = self._looked(chain, cloud, t, s)
            history.append(cloud.effective)
            cloud = self._resampled(cloud, generator).moved(generator)
            if not bool(cloud.x.isfinite().all()):
                raise FloatingPointError(
                    f"step {number} of {len(grid) - 1}: states must be finite, got NaN or inf in "
                    f"{checks.bad_items(cloud.x)} after t = {float(t)}"
                )
        log_w = lambda x, rows, condition: {"log_psi": self.tilt(x, condition)}
        cloud = self._weighed(cloud, chain.asked(cloud, log_w))
        history.append(cloud.effective)
        origin = cloud.by_prompt(cloud.origin) % n
        return Particles(cloud.x, cloud.by_prompt(cloud.log_w), torch.stack(history), origin)

    def _looked(self, chain: "_Chain", cloud: "_Cloud", t: Tensor, s: Tensor) -> "_Cloud":
        """Weighs particles by the twist at time t, and finds out how they move to time s."""

        def look(x_t: Tensor, rows: Tensor, condition: Any) -> dict[str, Tensor]:
            if not self.window[0] <= t <= self.window[1]:
                return chain.moves(chain.model(x_t, t, condition), None, s)
            estimate = self.twist(chain.model, x_t, t, condition)
            log_psi = _checked(estimate.log_h, self.twist, t).to(cloud.log_psi)
            if self.potential is not None:
                later = self.potential(cloud.log_psi[rows], log_psi)
                log_psi = torch.where(cloud.twisted[rows], later, log_psi)
            shift = None if self.scale == 0 else self.scale * estimate.shift
            moves = chain.moves(estimate.prediction, shift, s)
            return {**moves, "log_psi": log_psi, "twisted": torch.ones_like(rows, dtype=torch.bool)}

        return self._weighed(cloud, chain.asked(cloud, look))

    def _weighed(self, old: "_Cloud", new: "_Cloud") -> "_Cloud":
        """Replaces the old twist in the weights by the new one, and gives up what is hopeless."""

        gone = old.log_w == -math.inf  # where the twists may be -inf, too
        log_w = torch.where(gone, old.log_w, old.log_w + new.log_psi - old.log_psi)
        if self.stop is not None:
            rows = new.by_prompt(log_w)
            hopeless = rows < rows.amax(1, keepdim=True) - self.stop
            log_w = rows.masked_fill(hopeless, -math.inf).flatten()
        return replace(new, log_w=log_w)

    def _resampled(self, cloud: "_Cloud", generator: Generators) -> "_Cloud":
        """Resamples the prompts that have too few effective particles; Z stays what it was."""

        index = torch.arange(len(cloud.x), device=cloud.x.device).reshape(-1, cloud.n)
        log_w = cloud.by_prompt(cloud.log_w).clone()
        for prompt, effective in enumerate(cloud.effective.tolist()):
            if 0 < effective < self.threshold * cloud.n:
                first = prompt * cloud.n
                one = generator[first] if isinstance(generator, Sequence) else generator
                index[prompt] = first + self.resample(log_w[prompt], cloud.n, one)
                log_w[prompt] = log_mean_exp(log_w[prompt])
        return replace(cloud.at(index.flatten()), log_w=log_w.flatten())


@dataclass(frozen=True)
class _Cloud:
    """Particles of all prompts on the way; every tensor has one row for each of them.

    So one index reorders them with their weights, twists, moves and conditions, which are those of
    their first states.
    """

    n: int
    x: Tensor
    log_w: Tensor
    log_psi: Tensor
    twisted: Tensor
    origin: Tensor
    mean: Tensor
    drift: Tensor
    std: Tensor

    @classmethod
    def of(cls, x: Tensor, n: int) -> "_Cloud":
        zeros = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        origin = torch.arange(len(x), device=x.device)
        move = torch.zeros_like(x, dtype=working_dtype(x.dtype))
        return cls(n, x, zeros, zeros, zeros > 0, origin, move, move, move)

    @property
    def effective(self) -> Tensor:
        """Effective sample sizes, with shape (P,); 0 where no particle has weight."""

        return ess(self.by_prompt(self.log_w)).nan_to_num(0.0)

    def by_prompt(self, values: Tensor) -> Tensor:
        return values.reshape(-1, self.n)

    def at(self, index: Tensor) -> "_Cloud":
        """The particles of an index, with everything that belongs to them."""

        return self.with_rows(lambda name, values: values[index])

    def with_rows(self, change: Callable[[str, Tensor], Tensor]) -> "_Cloud":
        names = [f.name for f in fields(self) if f.name != "n"]
        changed: dict[str, Any] = {name: change(name, getattr(self, name)) for name in names}
        return replace(self, **changed)

    def moved(self, generator: Generators) -> "_Cloud":
        """Draws the next states, and weighs them by the kernel over the proposal."""

        x_s, log_w = self.mean, self.log_w
        if bool((self.std > 0).any()):
            noise = normal(x_s.shape, generator, x_s.device, x_s.dtype)
            x_s = x_s + self.std * (self.drift + noise)
            # log N(x_s; mean, std) - log N(x_s; mean + std drift, std)
            log_ratio = -(self.drift.double() * (noise + self.drift / 2)).flatten(1).sum(1)
            log_w = log_w + log_ratio
        alive = (self.log_w > -math.inf).reshape(-1, *(1,) * (x_s.ndim - 1))
        return replace(self, x=torch.where(alive, x_s.to(self.x.dtype), self.x), log_w=log_w)


@dataclass(frozen=True)
class _Chain:
    """A model, the transitions of a sampler and the conditions of the first states."""

    model: Model
    sampler: AncestralSampler
    condition: Any
    batch_size: int

    def asked(
        self, cloud: _Cloud, ask: Callable[[Tensor, Tensor, Any], dict[str, Tensor]]
    ) -> _Cloud:
        """Sets what `ask` says of states, rows and conditions, for the particles with weight."""

        living = (cloud.log_w > -math.inf).nonzero().flatten()
        if len(living) == 0:
            return cloud
        parts = []
        for rows in living.split(self.batch_size):
            condition = take(self.condition, cloud.origin[rows].tolist())
            parts.append(ask(cloud.x[rows], rows, condition))
        found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        put = lambda name, old: (
            old.index_copy(0, living, found[name].to(old)) if name in found else old
        )
        return cloud.with_rows(put)

    def moves(self, prediction: Prediction, shift: Tensor | None, s: Tensor) -> dict[str, Tensor]:
        """The transition of the model to time s, and how far a shift moves it, over its std."""

        scales = self.model.schedule.at(s, like=prediction.mean)
        law = self.sampler.transition(prediction, scales)
        std, drift = law.std.expand_as(law.mean), torch.zeros_like(law.mean)
        if shift is not None:
            guided = self.sampler.transition(prediction.shifted(shift), scales).mean
            # A step without noise is that of the model: laws of two points have no ratio.
            drift = torch.where(std > 0, (guided - law.mean) / std, drift)
        return {"mean": law.mean, "drift": drift, "std": std}


def _checked(log_h: Tensor, twist: ConditionalExpectation, t: Tensor) -> Tensor:
    bad = log_h.isnan() | (log_h == math.inf)
    if bool(bad.any()):
        raise ValueError(
            f"twist must give a log h that is finite or -inf, but {type(twist).__name__} gives "
            f"NaN or +inf in {int(bad.sum())} of {len(bad)} particles at t = {float(t)}"
        )
    return log_h


def _check_draws_noise(sampler: Any, schedule: Schedule, grid: Tensor) -> None:
    """Raises unless a sampler has transitions, and draws noise at all steps but that to data."""

    advice = "copies of a particle would stay copies; use a stochastic one such as DDIM(eta=1.0)"
    if not isinstance(sampler, AncestralSampler):
        checks.instance("sampler", sampler, Sampler, "a Sampler such as DDIM(eta=1.0)")
        raise TypeError(
            f"sampler must have transitions, but {sampler!r} is deterministic: {advice}"
        )
    drew = False
    for t, s in itertools.pairwise(grid):
        some = draws_noise(sampler, schedule, t, s)
        if not some and float(schedule.sigma(s)) > 0:
            break
        drew = drew or some
    else:
        if drew:
            return
    raise ValueError(
        f"sampler must draw noise, but {sampler!r} is deterministic from t = {float(t):.3g} to "
        f"{float(s):.3g}: {advice}, and two steps at least"
    )
