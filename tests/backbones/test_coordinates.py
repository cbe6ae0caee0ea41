"""Schedulers whose coordinates are not understood are refused, and so are times of their own."""

from dataclasses import replace

import diffusers
import pytest
import torch
from torch.testing import assert_close

from backbones import guide
from backbones.coordinates import Coordinates
from common import randn
from guided_pipelines import Probe, run_case
from law_pipelines import FLOW_SIGMAS, knows, tiny, with_scheduler
from pipeline_cases import QUIET
from rwguidance.estimators.base import shift_norm

pytestmark = QUIET


REFUSED = [
    ("EDMEulerScheduler", {}, r"understands the schedulers EulerDiscreteScheduler, .*got EDME"),
    ("IPNDMScheduler", {}, "got IPNDMScheduler"),
    ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type='continuous'"),
    ("EulerAncestralDiscreteScheduler", {"prediction_type": "sample"}, "got 'sample'"),
    ("DDIMScheduler", {"prediction_type": "flow_prediction"}, "got 'flow_prediction'"),
    ("DDPMScheduler", {"variance_type": "learned_range"}, "variance_type='learned_range'"),
    ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas=True"),
    (
        "UniPCMultistepScheduler",
        {**FLOW_SIGMAS, "use_karras_sigmas": True},
        "use_flow_sigmas=True, use_karras_sigmas=True",
    ),
    (
        "DPMSolverMultistepScheduler",
        {**FLOW_SIGMAS, "prediction_type": "v_prediction"},
        "with flow sigmas must have .*got 'v_prediction'",
    ),
]


@pytest.mark.parametrize(
    ("name", "config", "message"), [case for case in REFUSED if knows(case[0], case[1])]
)
def test_schedulers_that_are_not_understood_are_refused(name, config, message):
    pipe = tiny("sdxl")
    pipe.scheduler = getattr(diffusers, name)(**config)
    with pytest.raises(TypeError, match=message):
        guide(pipe, Probe())
    assert type(guide(pipe, None).scheduler) is type(pipe.scheduler)


def test_a_scheduler_with_steps_of_its_own_is_another_one():
    class Own(diffusers.EulerDiscreteScheduler):
        def step(self, *arguments, **keywords):
            return super().step(*arguments, **keywords)

    class Same(diffusers.EulerDiscreteScheduler):
        pass

    pipe = tiny("sdxl")
    pipe.scheduler = Own.from_config(pipe.scheduler.config)
    with pytest.raises(TypeError, match="got Own"):
        guide(pipe, Probe())
    pipe.scheduler = Same.from_config(pipe.scheduler.config)
    assert type(guide(pipe, Probe()).scheduler).__name__ == "Same"


def test_noise_beyond_the_networks_path_is_refused():
    pipe = tiny("sdxl")
    with_scheduler(pipe, "EulerDiscreteScheduler", use_karras_sigmas=True, sigma_max=80.0)
    with pytest.raises(ValueError, match="noise level 80, beyond"):
        run_case("sdxl", guide(pipe, Probe()), 2)


def test_one_time_for_each_token_is_refused():
    pipe = tiny("sd3")
    guided = guide(pipe, Probe())
    guided.scheduler.set_timesteps(2)
    x = torch.zeros(1, 16, 2, 2)
    times = torch.zeros(1, 4)
    with pytest.raises(TypeError, match="got per_token_timesteps"):
        guided.scheduler.step(x, guided.scheduler.timesteps[0], x, per_token_timesteps=times)
    assert shift_norm(x).shape == (1,)


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "DDIMScheduler"])
def test_times_fall_to_0_in_double_precision(name):
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(4)
    coordinates = Coordinates.from_scheduler(scheduler)
    times = coordinates.times(scheduler)
    assert (times.dtype, times.shape, float(times[-1])) == (torch.float64, (5,), 0.0)
    assert bool((times.diff() < 0).all())
    asked = torch.stack([coordinates.timestep(scheduler, t) for t in times[:-1]])
    assert_close(asked, scheduler.timesteps)  # dtypes, too
    if name == "DDIMScheduler":
        assert times[:-1].tolist() == [(int(k) + 1) / 1000 for k in scheduler.timesteps]


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "DDIMScheduler"])
@pytest.mark.parametrize(
    "dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)]
)
def test_states_and_outputs_are_read_in_single_precision(name, dtypes):
    coordinates = replace(Coordinates.from_scheduler(getattr(diffusers, name)()), size=0.3)
    output, sample = (randn(i, 1, 4, 2, 2).to(dtype) for i, dtype in enumerate(dtypes))
    t = torch.tensor(0.3, dtype=torch.float64)
    x_t, prediction = coordinates.read(output, sample, t)
    assert {x_t.dtype, prediction.mean.dtype, prediction.noise.dtype} == {torch.float32}
    _, wide = coordinates.read(output.float(), sample.float(), t)
    assert torch.equal(prediction.mean, wide.mean)
    assert torch.equal(prediction.noise, wide.noise)
