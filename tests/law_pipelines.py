"""Tiny pipelines whose network is the exact one of a law, without the library's conversions."""

import copy
import inspect
import math

import diffusers
import torch

import backbones
from rwguidance import (
    ConditionalExpectation,
    CosineSchedule,
    DiscreteSchedule,
    Estimate,
    RectifiedSchedule,
)

VE = {
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
    "KDPM2DiscreteScheduler": {},
    "KDPM2AncestralDiscreteScheduler": {},
    "LMSDiscreteScheduler": {},
}
VP = {
    "DDIMScheduler": {"clip_sample": False},
    "DDPMScheduler": {"clip_sample": False},
    "PNDMScheduler": {"skip_prk_steps": True},
    "LCMScheduler": {},
    "TCDScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverSinglestepScheduler": {"lower_order_final": True},
    "DEISMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
}
FLOW = {
    name: config
    for name, config in {
        "FlowMatchEulerDiscreteScheduler": {},
        "FlowMatchHeunDiscreteScheduler": {},
        "FlowMatchLCMScheduler": {},
    }.items()
    if hasattr(diffusers, name)  # older versions lack some
}
FLOW_SIGMAS = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SOLVERS = (
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
)

PIPES = {}


def knows(name, config):
    """Whether the scheduler of this version of diffusers has all of these settings."""

    return set(config) <= set(inspect.signature(getattr(diffusers, name).__init__).parameters)


def tiny(name):
    """A shallow copy of a tiny pipeline: its scheduler can be changed, its weights are shared."""

    if name not in PIPES:
        PIPES[name] = backbones.tiny(name)
    return copy.copy(PIPES[name])


def with_scheduler(pipe, name, **config):
    scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **config)
    pipe.scheduler = scheduler
    return pipe


class Exact(ConditionalExpectation):
    """The closed-form shift of a law on flat vectors, for states of any shape."""

    def __init__(self, law, tilt):
        super().__init__()
        self.law = law
        self.tilt = tilt

    def forward(self, model, x_t, t, condition=None):
        prediction = model(x_t, t, condition)
        moments = self.law.tilted_moments(self.tilt, x_t.flatten(1), t, model.schedule)
        return Estimate(prediction, moments[0], moments[1].reshape(x_t.shape))


def output_of(kind, mean, x_t, alpha, sigma):
    noise = (x_t - alpha * mean) / sigma
    return {
        "epsilon": noise,
        "v_prediction": alpha * noise - sigma * mean,
        "sample": mean,
        "flow_prediction": noise - mean,
    }[kind]


def diffusion_network(pipe, denoise):
    """A forward of the U-Net of SDXL: `denoise`(x_t, t, schedule, text), in its convention."""

    scheduler = pipe.scheduler
    kind = scheduler.config.get("prediction_type")
    table = scheduler.alphas_cumprod.double()
    schedule = DiscreteSchedule(table)

    def forward(x, timestep, encoder_hidden_states, **_):
        # Schedulers that divide the state before the network tell their noise level by that.
        one = torch.ones(1, dtype=torch.float64)
        alpha = float(scheduler.scale_model_input(one, timestep))
        if alpha == 1 and scheduler.config.get("use_karras_sigmas", False):
            ratio = scheduler.sigmas[scheduler.step_index or 0].double()
            alpha = float((1 + ratio**2) ** -0.5)
        if alpha == 1:
            t = (int(timestep) + 1) / len(table)
            alpha = float(table[int(timestep)].sqrt())
            sigma = (1 - alpha**2) ** 0.5
        else:
            sigma = (1 - alpha**2) ** 0.5
            log_snr = 2 * torch.log(torch.tensor(alpha / sigma, dtype=torch.float64))
            t = schedule.time(log_snr).clamp(max=1)
        mean = denoise(x.double(), t, schedule, encoder_hidden_states)
        return (output_of(kind, mean, x.double(), alpha, sigma).to(x.dtype),)

    return forward


def flow_network(pipe, denoise, unpack=lambda x: x, pack=lambda x: x):
    """A forward of the transformer of SD3 or FLUX: `denoise`(x_t, t, schedule, text)."""

    def forward(hidden_states, timestep, encoder_hidden_states, **_):
        scheduler = pipe.scheduler
        # Solvers of diffusion models round the timesteps that they tell.
        t = scheduler.sigmas[scheduler.step_index or 0].double()
        x_t = unpack(hidden_states.double())
        mean = denoise(x_t, t, RectifiedSchedule(), encoder_hidden_states)
        velocity = output_of("flow_prediction", mean, x_t, 1 - t, t)
        return (pack(velocity).to(hidden_states.dtype),)

    return forward


def exactly(law):
    """The `denoise` of a law on flat vectors."""

    return lambda x_t, t, schedule, text: law.denoise(x_t.flatten(1), t, schedule).reshape(
        x_t.shape
    )


def table_network(pipe, denoise):
    """A forward of the U-Net of SDXL that knows its noise level from the timestep alone."""

    table = pipe.scheduler.alphas_cumprod.double()
    schedule = DiscreteSchedule(table)

    def forward(x, timestep, encoder_hidden_states, **_):
        index = round(float(timestep.flatten()[0]))
        alpha = table[index].sqrt()
        mean = denoise(x.double(), (index + 1) / len(table), schedule, encoder_hidden_states)
        kind = pipe.scheduler.config.prediction_type
        return (output_of(kind, mean, x.double(), alpha, (1 - alpha**2).sqrt()).to(x.dtype),)

    return forward


def straight_network(pipe, denoise):
    """A forward of the transformer of SD3 that knows its time from the timestep alone."""

    def forward(hidden_states, timestep, encoder_hidden_states, **_):
        t = timestep.flatten()[0].double() / 1000
        x_t = hidden_states.double()
        mean = denoise(x_t, t, RectifiedSchedule(), encoder_hidden_states)
        return (((x_t - mean) / t).to(hidden_states.dtype),)

    return forward


def sprint_network(pipe, denoise):
    """A forward of the transformer of SANA-Sprint, which sees a straight path of its own."""

    def forward(x, encoder_hidden_states, timestep, **_):
        t = float(timestep.flatten()[0])  # of sin and cos of an angle, over their sum
        length = (t**2 + (1 - t) ** 2) ** 0.5
        alpha, sigma = (1 - t) / length, t / length
        x_t = x.double() / length
        time = min(1.0, 2 / math.pi * math.atan2(sigma, alpha))
        mean = denoise(x_t, time, CosineSchedule(), encoder_hidden_states)
        v = output_of("v_prediction", mean, x_t, alpha, sigma)
        return (((v * length - (1 - 2 * t) * x.double()) / (1 - 2 * t + 2 * t**2)).to(x.dtype),)

    return forward
