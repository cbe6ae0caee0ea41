"""Guided pipelines sample the law they should: exact moments of the chain, exact tilted laws.

A Gaussian law behind the network of a real pipeline, a tilt that keeps it Gaussian and the exact
shift make every step affine. So mean and covariance of the result are known for any number of
steps, and samples are compared with these, not with the limit of infinitely many steps.
"""

import itertools

import pytest
import torch
from torch import nn

import backbones
from backbones import guide
from common import assert_within, randn
from law_pipelines import Exact, exactly, straight_network, table_network, tiny, with_scheduler
from problems import symmetric
from rwguidance import DDIM, Bank, GuidedModel, ImportanceSampling, PlugIn, Tilt, sample
from rwguidance.toy import Gaussian, GaussianMixture, Linear, Quadratic

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:most importance-sampling estimates"),
]

N = 2000
STEPS = 5


def gaussian(d, seed=0):
    return Gaussian(randn(seed, d), symmetric(seed + 1, 1, d, 0.2, 1.0)[0])


def reward_of(kind, d):
    slope = randn(7, d) * d**-0.5
    if kind == "linear":
        return Tilt(Flat(Linear(slope)), 0.5)
    return Tilt(Flat(Quadratic(randn(8, d), symmetric(9, 1, d, 0.2, 0.8)[0], b=slope)), 0.5)


class Flat(nn.Module):
    """A reward of flat vectors, for latents."""

    def __init__(self, reward):
        super().__init__()
        self.reward = reward

    def forward(self, x, condition=None):
        return self.reward(x.flatten(1).double(), condition)


def flat(tilt):
    """The tilt as the laws know it."""

    return Tilt(tilt.rewards[0].reward, float(tilt.betas[0]))


# The chain in closed form. A state is x = a x_0 + s noise; with E[x_0 | x] = G x + c every step
# x -> k_mean E[x_0 | x] + k_noise E[noise | x] + std z is affine.


def posterior_mean(law, a, s):
    """G and c of a Gaussian law."""

    identity = torch.eye(len(law.mean), dtype=torch.float64)
    gain = a * law.covariance @ torch.linalg.inv(a**2 * law.covariance + s**2 * identity)
    return gain, law.mean - a * gain @ law.mean


def chain(law, levels, start, ancestral=False):
    """Mean and covariance after steps between `levels`, pairs (a, s), from N(0, start^2 I)."""

    identity = torch.eye(len(law.mean), dtype=torch.float64)
    mean, covariance = torch.zeros_like(law.mean), start**2 * identity
    for (a, s), (b, r) in itertools.pairwise(levels):
        gain, offset = posterior_mean(law, a, s)
        std = 0.0
        if ancestral:
            std = r * (1 - (a * r / (b * s)) ** 2) ** 0.5
        kept = (r**2 - std**2) ** 0.5
        matrix = (b - kept * a / s) * gain + kept / s * identity
        mean = matrix @ mean + (b - kept * a / s) * offset
        covariance = matrix @ covariance @ matrix.T + std**2 * identity
    return mean, covariance


def assert_moments(x, mean, covariance):
    x = x.flatten(1).double()
    n = len(x)
    variance = covariance.diagonal()
    assert_within(x.mean(0), mean, (variance / n).sqrt())
    error = ((variance[:, None] * variance + covariance**2) / n).sqrt()
    assert_within(x.T.cov(), covariance, error)


def levels_of(pipe, steps):
    """Where the scheduler stands, from its own table, as pairs (a, s) of unit variance."""

    scheduler = pipe.scheduler
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double().tolist()
    if "Flow" in type(scheduler).__name__:
        return [(1 - s, s) for s in sigmas]
    return [((1 + s**2) ** -0.5, s * (1 + s**2) ** -0.5) for s in sigmas]


CASES = {
    "euler": ("sdxl", "EulerDiscreteScheduler", "epsilon"),
    "euler-v": ("sdxl", "EulerDiscreteScheduler", "v_prediction"),
    "ancestral": ("sdxl", "EulerAncestralDiscreteScheduler", "epsilon"),
    "flow": ("sd3", "FlowMatchEulerDiscreteScheduler", None),
}


def build(key):
    name, scheduler, output = CASES[key]
    pipe = tiny(name)
    if output is None:
        return with_scheduler(pipe, scheduler), pipe.transformer, straight_network
    config = {"prediction_type": output, "timestep_spacing": "trailing"}
    return with_scheduler(pipe, scheduler, **config), pipe.unet, table_network


def sample_both(key, law, estimator, n=N, steps=STEPS, scale=0.0, denoise=None):
    """The guided result of the library's own loop and of the guided pipeline."""

    pipe, part, network = build(key)
    flow = key == "flow"
    d = len(law.means[0])
    shape = (16, d // 16, 1) if flow else (4, d // 4, 1)
    tokens = {"max_sequence_length": 16} if flow else {}
    denoise = exactly(law) if denoise is None else denoise
    part.forward = network(pipe, denoise)
    try:
        backbone = backbones.from_pipeline(pipe, scale, **tokens)
        backbone.requires_grad_(False)
        generator = torch.Generator().manual_seed(3)
        x_1 = backbone.noise_scale * randn(4, n, *shape, dtype=torch.float32)
        condition = backbone.condition(["a"])[[0] * n]
        eta = float(key == "ancestral")
        with torch.no_grad():
            own = sample(
                GuidedModel(backbone, estimator),
                DDIM(eta),
                x_1,
                backbone.times(steps),
                condition,
                generator,
            )
        lent = guide(pipe, estimator)(
            "a",
            num_images_per_prompt=n,
            num_inference_steps=steps,
            latents=randn(5, n, *shape, dtype=torch.float32),
            guidance_scale=scale,
            generator=generator,
            output_type="latent",
            **({"height": 8, "width": 8} if flow else {}),
            **tokens,
        ).images
    finally:
        del part.forward
    return pipe, backbone, {"own loop": own, "pipeline": lent}


@pytest.mark.parametrize("tilted_by", ["linear", "quadratic"])
@pytest.mark.parametrize("key", CASES)
def test_the_exact_shift_gives_the_moments_of_the_exact_chain(key, tilted_by):
    d = 16
    law, tilt = gaussian(d), reward_of(tilted_by, d)
    pipe, backbone, results = sample_both(key, law, Exact(law, flat(tilt)))
    target = law.tilted(flat(tilt))
    levels = levels_of(pipe, STEPS)
    mean, covariance = chain(target, levels, backbone.noise_scale, key == "ancestral")
    plain, _ = chain(law, levels, backbone.noise_scale, key == "ancestral")
    for x in results.values():
        assert_moments(x, mean, covariance)
        deviation = (x.flatten(1).double().mean(0) - plain) / (covariance.diagonal() / N).sqrt()
        assert float(deviation.abs().max()) > 10, "the tilt is too weak to see"


@pytest.mark.parametrize("key", ["euler", "euler-v", "ancestral"])
def test_differentiating_through_the_network_is_exact_for_linear_rewards(key):
    # The plug-in shift with the Jacobian is P b / beta, the exact one of a Gaussian law.
    d = 16
    law, tilt = gaussian(d), reward_of("linear", d)
    pipe, backbone, results = sample_both(key, law, PlugIn(tilt))
    levels = levels_of(pipe, STEPS)
    moments = chain(law.tilted(flat(tilt)), levels, backbone.noise_scale, key == "ancestral")
    for x in results.values():
        assert_moments(x, *moments)


@pytest.mark.parametrize("key", ["euler", pytest.param("ancestral", marks=pytest.mark.slow)])
def test_with_classifier_free_guidance_the_composed_law_is_tilted(key):
    d, scale = 16, 3.0
    negative, positive = gaussian(d), gaussian(d)
    positive = Gaussian(randn(11, d), negative.covariance)
    composed = Gaussian(
        negative.mean + scale * (positive.mean - negative.mean), negative.covariance
    )

    def denoise(x_t, t, schedule, text):
        halves = zip((negative, positive), x_t.flatten(1).chunk(2), strict=True)
        means = [law.denoise(x, t, schedule) for law, x in halves]
        return torch.cat(means).reshape(x_t.shape)

    tilt = reward_of("linear", d)
    pipe, backbone, results = sample_both(key, composed, PlugIn(tilt), scale=scale, denoise=denoise)
    levels = levels_of(pipe, STEPS)
    target = composed.tilted(flat(tilt))
    moments = chain(target, levels, backbone.noise_scale, key == "ancestral")
    for x in results.values():
        assert_moments(x, *moments)


@pytest.mark.parametrize("key", ["ancestral", pytest.param("euler", marks=pytest.mark.slow)])
def test_a_large_bank_gives_the_tilted_mixture_at_many_steps(key):
    # Two modes, and a reward that changes their weights from 1/2 and moves them.
    d = 4
    means = torch.tensor([[1.2, 0.6, 0.0, 0.0], [-1.2, 0.0, 0.6, 0.0]]).double()
    law = GaussianMixture(torch.zeros(2), means, 0.09 * torch.eye(d, dtype=torch.float64)[None])
    tilt = Tilt(Flat(Linear(torch.tensor([0.35, 0.0, 0.5, 0.0]).double())), 1.0)
    draws = law.sample(4000, torch.Generator().manual_seed(6)).float().reshape(-1, 4, 1, 1)
    estimator = ImportanceSampling(Bank(draws), tilt)
    _, _, results = sample_both(key, law, estimator, n=400, steps=20)
    target = law.tilted(flat(tilt))
    truth = target.sample(100_000, torch.Generator().manual_seed(7))
    share, base = float(target.log_weights.exp()[0]), 0.5
    assert abs(share - base) > 0.1
    for x in results.values():
        x = x.flatten(1).double()
        n = len(x)
        in_first = (x[:, 0] > 0).double()
        assert_within(in_first.mean(), share, (share * (1 - share) / n) ** 0.5)
        # The bank and the steps leave a bias, stated here: 0.03 data units of the means of modes.
        for sign in (1, -1):
            mine, exact = (y[sign * y[:, 0] > 0].mean(0) for y in (x, truth))
            assert_within(mine, exact, 0.3 / (n / 4) ** 0.5 + torch.full((d,), 0.03 / 5))
