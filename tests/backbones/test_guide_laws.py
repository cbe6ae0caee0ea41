"""Pipelines guided by the exact shift of a law: the runs are those of the tilted law.

One exact law is in place of the network, whatever the scheduler does with the output.
"""

import re

import diffusers
import pytest
import torch

from backbones import guide
from common import randn
from guided_pipelines import replaced, run, sdxl_with
from law_pipelines import (
    FLOW,
    FLOW_SIGMAS,
    SOLVERS,
    VE,
    VP,
    Exact,
    diffusion_network,
    exactly,
    flow_network,
    knows,
    sprint_network,
    tiny,
    with_scheduler,
)
from pipeline_cases import QUIET, TOKENS, distance
from problems import mixture, tilt_of

pytestmark = QUIET


LAW = mixture(3, 16)
TILT = tilt_of("quadratic", 5, 16)
FLOW_LAW = mixture(3, 64)
FLOW_TILT = tilt_of("quadratic", 5, 64)

DIFFUSION = [
    pytest.param(name, output, {}, steps, marks=() if fast else pytest.mark.slow)
    for name in (*VE, *VP)
    for output, steps in (("epsilon", 1), ("epsilon", 4), ("v_prediction", 3), ("sample", 2))
    if output != "sample" or not re.search("KDPM2|PNDM|Ancestral", name)
    # The other types of output and single steps on one scheduler of each way of stepping.
    for fast in [steps == 4 or re.match("Euler|DDIM|LCM|DPMSolverMultistep", name)]
]
SPACINGS = [
    ("EulerDiscreteScheduler", "epsilon", {"timestep_spacing": "linspace"}),
    ("EulerDiscreteScheduler", "epsilon", {"use_karras_sigmas": True}),
    ("EulerAncestralDiscreteScheduler", "epsilon", {"timestep_spacing": "leading"}),
    ("KDPM2AncestralDiscreteScheduler", "epsilon", {"timestep_spacing": "linspace"}),
    ("HeunDiscreteScheduler", "v_prediction", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", "epsilon", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", "epsilon", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", "v_prediction", {"solver_order": 3}),
    ("UniPCMultistepScheduler", "epsilon", {"use_karras_sigmas": True, "solver_order": 3}),
    ("UniPCMultistepScheduler", "sample", {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
    ("DDIMScheduler", "v_prediction", {"rescale_betas_zero_snr": True}),
    ("PNDMScheduler", "epsilon", {"skip_prk_steps": False, "timestep_spacing": "leading"}),
]


def tilted_and_guided(pipe, part, network, law, tilt, steps, **keywords):
    truth, base, guided = law.tilted(tilt), exactly(law), guide(pipe, Exact(law, tilt))
    with replaced(part, network(pipe, exactly(truth))):
        expected = run(pipe, steps, **keywords)
    with replaced(part, network(pipe, base)):
        plain = run(pipe, steps, **keywords)
    with replaced(part, network(guided, base)):
        result = run(guided, steps, **keywords)
    assert distance(plain, expected) > 0.05, "the tilt is too weak to see"
    return distance(result, expected)


@pytest.mark.parametrize(
    ("name", "output", "config", "steps"),
    DIFFUSION + [(*spacing, 4) for spacing in SPACINGS],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_the_exact_shift_gives_the_run_of_the_tilted_law(name, output, config, steps):
    pipe = sdxl_with(name, output, config)
    keywords = {
        "prompts": None,
        "latents": randn(0, 3, 4, 2, 2, dtype=torch.float32),
        "guidance_scale": 0.0,
        # The law looks at no text, whose encoding takes as long as all the rest.
        "prompt_embeds": torch.zeros(3, 1, 64),
        "pooled_prompt_embeds": torch.zeros(3, 32),
    }
    error = tilted_and_guided(pipe, pipe.unet, diffusion_network, LAW, TILT, steps, **keywords)
    assert error <= 2e-5


FLOWS = [*FLOW.items(), *((name, FLOW_SIGMAS) for name in SOLVERS if knows(name, FLOW_SIGMAS))]


@pytest.mark.parametrize(
    ("name", "config", "steps"),
    [(name, config, 5) for name, config in FLOWS] + [("FlowMatchEulerDiscreteScheduler", {}, 1)],
)
def test_the_exact_shift_gives_the_run_of_the_tilted_law_on_straight_paths(name, config, steps):
    pipe = with_scheduler(tiny("sd3"), name, **config)
    latents = randn(0, 3, 16, 2, 2, dtype=torch.float32)
    error = tilted_and_guided(
        pipe,
        pipe.transformer,
        flow_network,
        FLOW_LAW,
        FLOW_TILT,
        steps,
        latents=latents,
        guidance_scale=0.0,
        height=8,
        width=8,
        **TOKENS,
    )
    assert error <= 2e-5


@pytest.mark.skipif(not hasattr(diffusers, "SanaSprintPipeline"), reason="an older diffusers")
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_exact_shift_gives_the_run_of_the_tilted_law_on_a_circle(steps):
    pipe = tiny("sana-sprint")
    latents = randn(0, 3, 4, 2, 2, dtype=torch.float32)
    error = tilted_and_guided(
        pipe,
        pipe.transformer,
        sprint_network,
        LAW,
        TILT,
        steps,
        latents=latents,
        height=32,
        width=32,
        use_resolution_binning=False,
        complex_human_instruction=None,
        **({} if steps == 2 else {"intermediate_timesteps": None}),
    )
    assert error <= 2e-5


def test_packed_latents_are_unpacked_for_the_estimator():
    pipe = tiny("flux")
    size = {"height": 8, "width": 8}
    law, tilt = mixture(3, 256), tilt_of("quadratic", 5, 256)
    pack = lambda x: pipe._pack_latents(x, *x.shape)
    unpack = lambda x: pipe._unpack_latents(x, *size.values(), pipe.vae_scale_factor)
    network = lambda pipe, denoise: flow_network(pipe, denoise, unpack, pack)
    latents = pack(randn(0, 3, 16, 4, 4, dtype=torch.float32))
    error = tilted_and_guided(
        pipe, pipe.transformer, network, law, tilt, 3, latents=latents, **size, **TOKENS
    )
    assert error <= 2e-5


def test_with_classifier_free_guidance_the_composed_law_is_tilted():
    # Two Gaussians of one covariance: their composition is the Gaussian of the composed mean.
    from rwguidance.toy import Gaussian

    pipe, scale = sdxl_with("EulerDiscreteScheduler", "epsilon", {}), 3.0
    covariance = LAW.covariances[0]
    negative, positive = (Gaussian(randn(seed, 16), covariance) for seed in (1, 2))
    composed = Gaussian(negative.mean + scale * (positive.mean - negative.mean), covariance)

    def denoise(x_t, t, schedule, text):
        x_t = x_t.flatten(1)
        n = len(x_t) // 2
        halves = [
            law.denoise(x, t, schedule) for law, x in ((negative, x_t[:n]), (positive, x_t[n:]))
        ]
        return torch.cat(halves).reshape(-1, 4, 2, 2)

    latents = randn(0, 3, 4, 2, 2, dtype=torch.float32)
    with replaced(pipe.unet, diffusion_network(pipe, exactly(composed.tilted(TILT)))):
        expected = run(pipe, 4, latents=latents, guidance_scale=0.0)
    guided = guide(pipe, Exact(composed, TILT))
    with replaced(pipe.unet, diffusion_network(guided, denoise)):
        result = run(guided, 4, latents=latents, guidance_scale=scale)
    assert distance(result, expected) <= 2e-5
