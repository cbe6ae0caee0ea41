"""A network that is asked again says the same, or the call is refused."""

import contextlib
import inspect

import pytest
import torch

import backbones
from backbones import guide
from guided_pipelines import CASES, Elsewhere, importance, replaced, reward, run_case
from law_pipelines import tiny
from pipeline_cases import PROMPTS, QUIET
from rwguidance import PlugIn, Tilt

pytestmark = QUIET


@pytest.mark.parametrize(
    ("key", "keywords"),
    [
        ("sdxl-cfg", {"guidance_rescale": 0.7}),
        ("sdxl-cfg", {"original_size": (1024, 1024)}),
        ("sd3", {"skip_guidance_layers": [0], "skip_layer_guidance_stop": 1.0}),
        ("flux", {"negative_prompt": ["y"] * 3, "true_cfg_scale": 3.0}),
    ],
    ids=["rescale", "size", "skip-layer", "true-cfg"],
)
def test_a_call_that_the_adapter_would_not_repeat_is_refused(key, keywords):
    pipe = tiny(CASES[key][0])
    known = inspect.signature(type(pipe).__call__).parameters
    if not set(keywords) <= set(known):
        pytest.skip("this version of diffusers has no such option")
    shape = (4 if "sdxl" in key else 16, 8, 12)
    run_case(key, guide(pipe, importance(shape, PROMPTS)), 2, **keywords)
    for estimator in (PlugIn(Tilt(reward, 0.5)), Elsewhere()):
        with pytest.raises(ValueError, match=r"differs by .* composes its predictions"):
            run_case(key, guide(pipe, estimator, window=(0.0, 0.99)), 2, **keywords)


@pytest.mark.parametrize(
    ("dtype", "error", "refused"),
    [
        (torch.float32, 0.9e-3, False),
        (torch.float32, 1.1e-3, True),
        (torch.bfloat16, 0.022, False),
        (torch.bfloat16, 0.042, True),
    ],
)
def test_no_image_may_differ_by_more_than_rounding_when_asked_again(dtype, error, refused):
    pipe = backbones.tiny("sdxl").to(dtype)
    other = torch.tensor([0, 1, 0])  # the size of the others must not hide one image
    size = torch.tensor([1000.0, 1.0, 1000.0])

    def forward(x, timestep, encoder_hidden_states, **_):
        factor = size * (1 + error * other * torch.is_grad_enabled())
        return ((torch.tanh(x) * factor[:, None, None, None]).to(x.dtype),)

    expected = (
        pytest.raises(ValueError, match="differs by") if refused else contextlib.nullcontext()
    )
    with replaced(pipe.unet, forward), expected:
        run_case("sdxl", guide(pipe, PlugIn(Tilt(reward, 0.5))), 1)


def test_a_second_evaluation_builds_no_graph():
    def forward(x, timestep, encoder_hidden_states, **_):
        return (torch.tanh(x) * (1 + torch.is_grad_enabled()),)

    pipe = backbones.tiny("sdxl")
    with replaced(pipe.unet, forward):
        run_case("sdxl", guide(pipe, Elsewhere()), 1)


def test_a_network_that_says_zero_says_the_same_again():
    pipe = tiny("sdxl")
    with replaced(pipe.unet, lambda x, *_, **__: (0 * x,)):
        run_case("sdxl", guide(pipe, PlugIn(Tilt(reward, 0.5))), 1)
