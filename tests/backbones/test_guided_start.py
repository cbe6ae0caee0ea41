"""Which runs of a guided pipeline begin from noise alone, and what that makes of its first step."""

import diffusers
import pytest
import torch

from backbones import guide
from common import randn
from guided_pipelines import run
from law_pipelines import VP, tiny, with_scheduler
from pipeline_cases import QUIET, SIZE, TOKENS
from rwguidance import Bank, ConditionalExpectation, Estimate, ImportanceSampling, Tilt

pytestmark = QUIET


class Starts(ConditionalExpectation):
    """No shift; keeps the times, and the start of the model."""

    def __init__(self):
        super().__init__()
        self.told = []

    def forward(self, model, x_t, t, condition=None):
        self.told.append((float(t), model.start))
        shift = torch.zeros_like(x_t)
        return Estimate(model(x_t, t, condition), shift.flatten(1).sum(1), shift)

    @property
    def starts(self):
        return {start for _, start in self.told}


@pytest.mark.parametrize("scheduler", ["Euler", "Heun", "DPMSolverMultistep", "PNDM", "KDPM2"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_a_run_from_noise_starts_at_its_first_time(scheduler, spacing):
    name = f"{scheduler}{'Discrete' if scheduler in ('Euler', 'Heun', 'KDPM2') else ''}Scheduler"
    config = {"timestep_spacing": spacing, **VP.get(name, {})}
    pipe, seen = with_scheduler(tiny("sdxl"), name, **config), Starts()
    guided = guide(pipe, seen)
    for _ in range(2):
        seen.told.clear()
        run(guided, 3, "a cat", **SIZE, guidance_scale=0.0)
        first = seen.told[0][0]
        assert first == max(t for t, _ in seen.told)
        assert (first < 0.8) == (spacing == "leading")
        assert seen.starts == {first}


def test_latents_are_noise_unless_times_come_with_them():
    pipe, seen = tiny("sd3"), Starts()
    guided = guide(pipe, seen)
    size = {"height": 8, "width": 8, **TOKENS}
    latents = randn(0, 1, 16, 2, 2, dtype=torch.float32)
    run(guided, 2, "a cat", latents=latents, guidance_scale=0.0, **size)
    assert seen.starts == {1.0}
    seen.told.clear()
    run(guided, 2, "a cat", latents=latents, guidance_scale=0.0, sigmas=[0.6, 0.3], **size)
    assert seen.starts == {None}


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_run_from_a_picture_has_no_start(strength):
    seen = Starts()
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline.from_pipe(tiny("sdxl"))
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    run(guide(pipe, seen), 4, "a cat", image=picture, strength=strength, guidance_scale=0.0)
    assert seen.starts == {None}
    # A plain pipeline that was lent the scheduler of a guided one, and skips its first times.
    seen.told.clear()
    lent = guide(tiny("sdxl"), seen)
    pipe.scheduler = lent.scheduler
    run(pipe, 4, "a cat", image=picture, strength=0.5, guidance_scale=0.0)
    assert seen.starts == {None}


def test_a_lent_scheduler_starts_with_its_first_time():
    seen = Starts()
    pipe = tiny("sdxl")
    pipe.scheduler = guide(tiny("sdxl"), seen).scheduler
    for steps in (4, 2):
        seen.told.clear()
        run(pipe, steps, "a cat", **SIZE, guidance_scale=0.0)
        assert seen.starts == {seen.told[0][0]}


def test_one_step_moves_every_picture_by_the_shift_of_the_prior():
    pipe = with_scheduler(tiny("sdxl"), "EulerDiscreteScheduler", timestep_spacing="trailing")
    draws = 3 * randn(1, 40, 4, 8, 12, dtype=torch.float32)
    tilt = Tilt(lambda x, condition: x.flatten(1).mean(1), 0.3)
    guided = guide(pipe, ImportanceSampling(Bank(draws), tilt))
    keywords = {"prompts": ["a cat", "a dog"], **SIZE, "guidance_scale": 0.0}
    moved = run(guided, 1, **keywords) - run(pipe, 1, **keywords)
    weights = (draws.flatten(1).mean(1) / 0.3).softmax(0)
    exact = (weights @ draws.flatten(1)).reshape(4, 8, 12) - draws.mean(0)
    torch.testing.assert_close(moved, exact.expand(2, 4, 8, 12), rtol=1e-3, atol=1e-3)
