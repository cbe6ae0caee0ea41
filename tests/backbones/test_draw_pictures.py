"""Image-to-image pipelines: drawn from, decoded and guided, with a bank for one input picture."""

import diffusers
import pytest
import torch

import backbones
from backbones import draw, guide
from common import randn
from pipeline_cases import QUIET
from rwguidance import ImportanceSampling, PlugIn, TargetESS, Tilt
from rwguidance.store import Store
from rwguidance.support.randomness import generator_for

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore::rwguidance.UnreliableEstimate")]

SIZE = {"height": 32, "width": 32}
CASES = {
    "StableDiffusionImg2ImgPipeline": ("sd1.5", {}),
    "StableDiffusionXLImg2ImgPipeline": ("sdxl", {}),
    "StableDiffusion3Img2ImgPipeline": ("sd3", {}),
    "FluxImg2ImgPipeline": ("flux", SIZE),
    "QwenImageImg2ImgPipeline": ("qwen-image", SIZE),
    "ZImageImg2ImgPipeline": ("z-image", SIZE),
}


def brightness(images, prompts):
    return images.flatten(1).mean(1)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if "ZImage" in n else pytest.mark.slow) for n in CASES]
)
def test_a_bank_belongs_to_its_input_picture(name, tmp_path):
    if not hasattr(diffusers, name):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    tiny, size = CASES[name]
    pipe = getattr(diffusers, name).from_pipe(backbones.tiny(tiny))
    pipe.set_progress_bar_config(disable=True)
    picture = torch.sigmoid(randn(0, 1, 3, 32, 32, dtype=torch.float32))
    call = {"image": picture, "strength": 0.7, "num_inference_steps": 4, **size}
    run = lambda guided, seed=3, **keywords: (
        guided(
            prompt="a cat",
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
            **{**call, **keywords},
        ).images
    )

    bank = draw(pipe, "a cat", 3, batch_size=3, store=Store(tmp_path), **call)
    generator = [generator_for(0, "a cat", 1)]
    truth = pipe(prompt="a cat", generator=generator, output_type="pt", **call).images
    assert float((bank.decode(bank.x_0)[1:2] - truth).abs().max()) < 1e-3

    tilt = Tilt.for_kl(brightness, bank, nats=0.3)
    guided = guide(pipe, ImportanceSampling(bank, tilt, TargetESS(0.7)))
    assert float((run(guided) - run(pipe)).abs().max()) > 1e-3
    with pytest.raises(ValueError, match="image must be that of the estimator's bank"):
        run(guided, image=1 - picture)
    with pytest.raises(ValueError, match=r"strength must be .* 0\.7, got 0\.9"):
        run(guided, strength=0.9)
    run(guide(pipe, PlugIn(Tilt(brightness, 1.0, bank.decode))))  # by the call, made again
