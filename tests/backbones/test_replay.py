"""Pipelines without an adapter are asked again by their own call, as an adapter asks them."""

import pytest
import torch

from backbones import guide, guided_steps
from backbones.replay import Replay
from guided_pipelines import Elsewhere, importance, reward, run_case
from law_pipelines import tiny
from pipeline_cases import QUIET, distance
from rwguidance import ConditionalExpectation, Estimate, PlugIn, Tilt

pytestmark = QUIET

WINDOW = (0.0, 0.99)  # gradients vanish at the noise end of a straight path


@pytest.fixture
def no_adapters(monkeypatch):
    monkeypatch.setattr(guided_steps, "has_family", lambda pipe: False)


@pytest.mark.parametrize("inference_mode", [False, True])
@pytest.mark.parametrize("key", ["sdxl-cfg", "sd3", "flux"])
def test_the_jacobian_is_that_of_the_adapter(key, inference_mode, monkeypatch):
    # With classifier-free guidance, a scaled state, and latents in tokens.
    pipe = tiny(key.removesuffix("-cfg"))
    estimator = PlugIn(Tilt(reward, 0.5))
    adapted = run_case(key, guide(pipe, estimator, window=WINDOW), 3)
    monkeypatch.setattr(guided_steps, "has_family", lambda pipe: False)
    with torch.inference_mode(inference_mode):
        replayed = run_case(key, guide(pipe, estimator, window=WINDOW), 3)
    assert distance(adapted, run_case(key, guide(pipe, None), 3)) > 1e-2
    assert distance(replayed, adapted) <= 2e-5


@pytest.mark.parametrize("name", ["ip_adapter_image", "ip_adapter_image_embeds"])
def test_a_call_with_a_picture_is_replayed_since_no_adapter_knows_it(name):
    guidance = guide(tiny("sdxl"), PlugIn(Tilt(reward, 0.5))).scheduler._guidance
    t, place = torch.tensor(0.5, dtype=torch.float64), (None, None, None)
    for picture in (None, torch.ones(1)):
        guidance.call.arguments = {"prompt": "a cat", "guidance_scale": 3.0, name: picture}
        replayed = isinstance(guidance._evaluation(None, None, t, place), Replay)
        assert replayed == (picture is not None)


class Looks(ConditionalExpectation):
    """Asks the network again, with a gradient, and shifts nothing."""

    def forward(self, model, x_t, t, condition=None):
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            prediction = model(x_t, t, condition)
            (gradient,) = torch.autograd.grad(prediction.mean.sum(), x_t)
        assert float(gradient.norm()) > 0
        zero = torch.zeros_like(gradient)
        return Estimate(model(x_t.detach(), t, condition), zero.flatten(1).sum(1), zero)


@pytest.mark.usefixtures("no_adapters")
def test_the_random_numbers_of_the_call_are_left_alone():
    pipe = tiny("sdxl-turbo")
    plain = run_case("sdxl-turbo", pipe, 3)
    assert distance(run_case("sdxl-turbo", guide(pipe, Looks()), 3), plain) <= 1e-5


@pytest.mark.usefixtures("no_adapters")
@pytest.mark.parametrize("differ", ["time", "prompts"])
def test_another_time_or_prompt_takes_an_adapter(differ):
    guided = guide(tiny("sd3"), Elsewhere(differ), window=WINDOW)
    with pytest.raises(ValueError, match="at another time or for another condition"):
        run_case("sd3", guided, 3)


@pytest.mark.usefixtures("no_adapters")
def test_another_state_does_not():
    run_case("sd3", guide(tiny("sd3"), Elsewhere("state"), window=WINDOW), 3)


@pytest.mark.usefixtures("no_adapters")
def test_a_network_that_is_asked_again_shows_no_bar_of_progress(monkeypatch, capsys):
    pipe = tiny("sd3")
    monkeypatch.setattr(pipe, "_progress_bar_config", {"desc": "steps"}, raising=False)
    run_case("sd3", guide(pipe, Looks(), window=WINDOW), 2)
    told = capsys.readouterr().err
    assert "100%" in told  # of the call itself
    assert told.count("0/2") == told.count("steps:   0%") == 1


@pytest.mark.usefixtures("no_adapters")
def test_what_asks_for_nothing_is_not_replayed(monkeypatch):
    pipe, calls = tiny("sd3"), []
    hook = pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    run_case("sd3", guide(pipe, importance((16, 8, 12))), 3)
    hook.remove()
    assert len(calls) == 3
