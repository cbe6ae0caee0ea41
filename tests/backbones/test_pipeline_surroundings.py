"""Pipelines around text-to-image: every row of their table says what is found on a tiny one."""

import diffusers
import pytest
import torch

import backbones
from backbones import draw, guide
from guided_pipelines import replaced
from law_pipelines import Exact, exactly, table_network
from pipeline_cases import QUIET, distance
from pipeline_surroundings import (
    COLUMNS,
    PICTURE,
    ROWS,
    SIZE,
    brightness,
    case,
    documented,
    found,
    line_of,
    run,
)
from problems import mixture, tilt_of
from rwguidance import ImportanceSampling, TargetESS, Tilt
from rwguidance.store import Store

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore::rwguidance.UnreliableEstimate")]

FAST = ("ZImageInpaintPipeline", "StableDiffusionControlNetPipeline", "StableDiffusionPipeline")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in ROWS]
)
def test_a_row_says_what_is_found(name, tmp_path):
    if not hasattr(diffusers, name):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    with torch.random.fork_rng(devices=[]):  # by which SD3's own call encodes its control
        row = found(name, tmp_path)
    assert line_of(row) == documented()[name], (
        "write it anew: python tests/pipeline_surroundings.py"
    )
    values = [row[column] for column in COLUMNS[2:]]
    assert values == ["bitwise", "yes", "yes, differentiable", "yes", "yes", "refused"]


@pytest.mark.filterwarnings("ignore")
def test_a_bank_belongs_to_its_lora(tmp_path):
    peft = pytest.importorskip("peft")
    pipe, call = backbones.tiny("z-image"), {**SIZE, "num_inference_steps": 2}
    plain = run(pipe, call)
    config = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v"])
    bank = draw(pipe, "a cat", 3, store=Store(tmp_path), **call)
    with torch.random.fork_rng(devices=[]):
        pipe.transformer.add_adapter(config)
    changed = run(pipe, call)
    assert float((changed - plain).abs().max()) > 1e-4
    tilt = Tilt.for_kl(brightness, bank, nats=0.3)
    with pytest.raises(ValueError, match=r"pipe must have the weights by which .* adapters"):
        guide(pipe, ImportanceSampling(bank, tilt))
    own = draw(pipe, "a cat", 3, store=Store(tmp_path), **call)
    guided = guide(pipe, ImportanceSampling(own, tilt, TargetESS(0.7)))
    assert float((run(guided, call) - changed).abs().max()) > 1e-4


SMALL = PICTURE[..., :8, :8]
INPUTS = {
    "StableDiffusionImg2ImgPipeline": {"image": SMALL},
    "StableDiffusionInpaintPipeline": {"image": SMALL, "mask_image": SMALL[:, :1].round()},
    "StableDiffusionControlNetPipeline": {"image": SMALL},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", INPUTS)
def test_the_exact_shift_gives_the_run_of_the_tilted_law_given_the_input(name):
    pipe, call, _ = case(name)
    law, tilt = mixture(3, 64), tilt_of("quadratic", 5, 64)
    size = {} if "Img2Img" in name else {"height": 8, "width": 8}
    call = {**call, **INPUTS[name], **size, "guidance_scale": 1.0}
    runs = []
    for model, of in (
        (guide(pipe, Exact(law, tilt)), law),
        (pipe, law.tilted(tilt)),
        (pipe, law),
    ):
        with replaced(pipe.unet, table_network(pipe, exactly(of))):
            runs.append(run(model, call, output_type="latent"))
    assert distance(runs[0], runs[1]) <= 1e-4
    assert distance(runs[0], runs[2]) > 1e-2


@pytest.mark.filterwarnings("ignore")
def test_a_bank_belongs_to_its_strength(tmp_path):
    pipe, call, _ = case("ZImageImg2ImgPipeline")
    bank = draw(pipe, "a cat", 2, store=Store(tmp_path), **call)
    estimator = ImportanceSampling(bank, Tilt.for_kl(brightness, bank, nats=0.3), TargetESS(0.7))
    with pytest.raises(ValueError, match=r"strength must be .* 0\.7, got 0\.9"):
        run(guide(pipe, estimator), call, strength=0.9)


@pytest.mark.filterwarnings("ignore")
def test_a_pipeline_with_a_control_is_a_model():
    pipe, call, _ = case("StableDiffusionControlNetPipeline")
    backbone = backbones.from_pipeline(pipe, call={"image": call["image"]}, steps=2)
    with torch.no_grad():
        x_t = backbone.draw_noise(1, torch.Generator().manual_seed(0))
        condition = backbone.condition(["a cat"])
        here = backbone(x_t, 0.5, condition).mean
        call = {"image": 1 - call["image"]}
        other = backbones.from_pipeline(pipe, call=call, steps=2)
        assert distance(other(x_t, 0.5, condition).mean, here) > 1e-3
    with pytest.raises(TypeError, match="begins from a picture; guide it with"):
        backbones.from_pipeline(case("ZImageImg2ImgPipeline")[0])
