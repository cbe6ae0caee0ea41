"""Guided pipelines: estimators that can be watched, and calls with all random numbers fixed."""

import contextlib

import torch

from common import randn
from law_pipelines import VE, VP, tiny, with_scheduler
from pipeline_cases import PROMPTS, SIZE, TOKENS
from rwguidance import Bank, ConditionalExpectation, Estimate, ImportanceSampling, TargetESS, Tilt


@contextlib.contextmanager
def replaced(module, forward):
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def run(pipe, steps, prompts=PROMPTS, **keywords):
    """Latents of a pipeline, with all random numbers fixed."""

    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):  # which SD3 leaves to its stochastic schedulers
        torch.default_generator.manual_seed(2)
        return pipe(
            prompts,
            num_inference_steps=steps,
            generator=generator,
            output_type="latent",
            **keywords,
        ).images


def reward(x, condition=None):
    """Smooth, differentiable, and of order one nat."""

    x = x.flatten(1)
    return 4 * torch.tanh(x.mean(1)) + x[:, 0] - 0.1 * x[:, 1] ** 2


RELIABLE = TargetESS(0.7)


def importance(shape, prompts=None, kernel=RELIABLE):
    """A bank of draws; for several prompts, different ones for each. Reliable unless exact."""

    n = 60
    draws = randn(5, n, *shape, dtype=torch.float32)
    tilt = Tilt(reward, 2.0)
    if prompts is None:
        return ImportanceSampling(Bank(draws), tilt, kernel)
    keys = [prompts[i % len(prompts)] for i in range(n)]
    offset = torch.tensor([float(prompts.index(key)) for key in keys])
    return ImportanceSampling(Bank(draws + offset[:, None, None, None], keys), tilt, kernel)


def sdxl_with(name, output, config):
    config = {"timestep_spacing": "trailing", **{**VE, **VP}[name], **config}
    return with_scheduler(tiny("sdxl"), name, prediction_type=output, **config)


class Probe(ConditionalExpectation):
    """Remembers what it is told; its shift is a constant."""

    def __init__(self, shift=0.0, noise=0.0):
        super().__init__()
        self.shift, self.noise, self.told = shift, noise, []

    def forward(self, model, x_t, t, condition=None):
        prediction = model(x_t, t, condition)
        self.told.append((x_t, float(t.unique()), condition, prediction))
        noise = torch.randn(x_t.shape)
        shift = self.shift + self.noise * noise + torch.zeros_like(x_t)
        log_h = shift.flatten(1).sum(1)
        return Estimate(prediction, log_h, shift, {"noise": noise.flatten(1)[:, 0]})


CASES = {
    "sdxl": ("sdxl", None, 0.0),
    "sdxl-cfg": ("sdxl", 5.0, 0.0),
    "sdxl-turbo": ("sdxl-turbo", None, 1.0),
    "sd3": ("sd3", 4.5, 0.0),
    "flux": ("flux", 3.5, 0.0),
    "flux-schnell": ("flux-schnell", None, 0.0),
}


class Network(torch.nn.Module):
    """Looks at the state, the time and the embeddings, which must be those of the backbone."""

    def __init__(self, scalar):
        super().__init__()
        self.scalar = scalar

    def forward(self, x_t, t, condition):
        text = condition.embeddings["text"].mean((1, 2)) + condition.embeddings["pooled"].mean(1)
        column = (text + t.float())[:, None, None, None]
        value = torch.sin(2 * x_t + column)
        return value.flatten(1).sum(1) if self.scalar else value


class Elsewhere(ConditionalExpectation):
    """Asks the model at the state, and again where some of state, time and prompts differ."""

    def __init__(self, *differ):
        super().__init__()
        self.differ = differ or ("state", "time", "prompts")

    def forward(self, model, x_t, t, condition=None):
        prediction = model(x_t, t, condition)
        order = [1, 2, 0]
        other = model(
            0.9 * x_t[order] if "state" in self.differ else x_t,
            torch.tensor([1.0, 0.5, 0.5]) * t if "time" in self.differ else t,
            condition[order] if "prompts" in self.differ else condition,
        )
        shift = 0.3 * other.mean
        return Estimate(prediction, shift.flatten(1).sum(1), shift)


def call_keywords(key):
    name, scale, _ = CASES[key]
    return {"guidance_scale": scale or 0.0, **SIZE, **({} if "sdxl" in name else TOKENS)}


def run_case(key, pipe, steps, prompts=PROMPTS, **keywords):
    latents = run(pipe, steps, prompts, **(call_keywords(key) | keywords))
    if "flux" in key:
        latents = pipe._unpack_latents(latents, *SIZE.values(), pipe.vae_scale_factor)
    return latents
