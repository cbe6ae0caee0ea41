"""Tiny pipelines: the real classes, from nothing, reproducible, and as good as loaded ones."""

import diffusers
import pytest
import torch

import backbones
from pipeline_cases import QUIET
from pipeline_table import SINCE, version

pytestmark = QUIET

CLASSES = {
    "sdxl": ("StableDiffusionXLPipeline", "EulerDiscreteScheduler"),
    "sdxl-turbo": ("StableDiffusionXLPipeline", "EulerAncestralDiscreteScheduler"),
    "sd3": ("StableDiffusion3Pipeline", "FlowMatchEulerDiscreteScheduler"),
    "sd3.5-turbo": ("StableDiffusion3Pipeline", "FlowMatchEulerDiscreteScheduler"),
    "flux": ("FluxPipeline", "FlowMatchEulerDiscreteScheduler"),
    "flux-schnell": ("FluxPipeline", "FlowMatchEulerDiscreteScheduler"),
}


def networks(pipe):
    return {k: m for k, m in pipe.components.items() if isinstance(m, torch.nn.Module)}


def generate(pipe, name):
    options = {"guidance_scale": 3.0} | ({} if "sdxl" in name else {"max_sequence_length": 64})
    generator = torch.Generator().manual_seed(0)
    prompts = ["a cat", "two dogs on a boat"]
    size = {"height": 16, "width": 16}
    out = pipe(
        prompts, num_inference_steps=2, generator=generator, output_type="pt", **size, **options
    )
    return out.images


@pytest.mark.parametrize("name", CLASSES)
def test_they_are_the_real_classes_with_every_part(name):
    pipe = backbones.tiny(name)
    assert (type(pipe).__name__, type(pipe.scheduler).__name__) == CLASSES[name]
    optional = {"image_encoder", "feature_extractor"}
    assert {key for key, part in pipe.components.items() if part is None} <= optional
    size = sum(
        p.numel() * p.element_size() for m in networks(pipe).values() for p in m.parameters()
    )
    assert size < 8e6
    images = generate(pipe, name)
    assert images.shape == (2, 3, 16, 16)
    assert bool(images.isfinite().all())
    assert float(images.std()) > 0.01


@pytest.mark.parametrize("name", CLASSES)
def test_the_seed_decides_the_weights_and_nothing_else_does(name):
    parts = [networks(backbones.tiny(name, seed)) for seed in (0, 0, 1)]
    differs = []
    for key in parts[0]:
        states = [part[key].state_dict() for part in parts]
        assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
        differs.append(any(not torch.equal(states[0][k], states[2][k]) for k in states[0]))
    assert all(differs)


@pytest.mark.parametrize("name", ["sdxl-turbo", "sd3", "flux"])
def test_saved_and_loaded_they_make_the_same_images(name, tmp_path):
    pipe = backbones.tiny(name)
    pipe.save_pretrained(tmp_path)
    loaded = (
        type(pipe).from_pretrained(tmp_path, local_files_only=True, add_watermarker=False)
        if ("sdxl" in name)
        else type(pipe).from_pretrained(tmp_path, local_files_only=True)
    )
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(generate(loaded, name), generate(pipe, name), rtol=0, atol=1e-5)


STABLE, XL, FLUX = (0.18215, None, True, 4), (0.13025, None, True, 4), (0.3611, 0.1159, False, 16)
AUTOENCODERS = {
    "sd1.5": ("StableDiffusionPipeline", STABLE),
    "sd-turbo": ("StableDiffusionPipeline", STABLE),
    "lcm": ("LatentConsistencyModelPipeline", STABLE),
    "pixart-alpha": ("PixArtAlphaPipeline", STABLE),
    "pixart-sigma": ("PixArtSigmaPipeline", XL),
    "sdxl": ("StableDiffusionXLPipeline", XL),
    "aura-flow": ("AuraFlowPipeline", XL),
    "hunyuan-dit": ("HunyuanDiTPipeline", XL),
    "lumina": ("LuminaPipeline", XL),
    "lumina2": ("Lumina2Pipeline", FLUX),
    "flux": ("FluxPipeline", FLUX),
    "z-image": ("ZImagePipeline", FLUX),
    "sd3": ("StableDiffusion3Pipeline", (1.5305, 0.0609, False, 16)),
    "cogview4": ("CogView4Pipeline", (1.0, 0.0, False, 16)),
}


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoders_have_the_units_and_layers_of_the_published_ones(name):
    pipe = backbones.tiny(name)
    found = pipe.vae.config
    units = (found.scaling_factor, found.shift_factor, found.use_quant_conv, found.latent_channels)
    assert (type(pipe).__name__, units) == AUTOENCODERS[name]
    assert found.use_post_quant_conv == found.use_quant_conv


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("flux2-klein", "Qwen3ForCausalLM"),
        ("z-image", "Qwen3Model"),
        ("ovis-image", "Qwen3Model"),
        ("sana", "Gemma2Model"),
        ("cogview4", "GlmModel"),
        ("aura-flow", "UMT5EncoderModel"),
    ],
)
def test_encoders_of_texts_are_of_the_published_class(name, kind):
    if version(diffusers.__version__) < version(SINCE.get(name, "0.36")):
        pytest.skip(f"{name} takes diffusers {SINCE[name]}")
    assert type(backbones.tiny(name).text_encoder).__name__ == kind


@pytest.mark.parametrize("name", ["sdxl", "sd3", "wan", "z-image", "qwen-image", "sana"])
def test_tokenizers_and_text_encoders_have_the_same_special_tokens(name):
    parts = backbones.tiny(name).components
    tokenizers = [key for key in parts if key.startswith("tokenizer")]
    for key in tokenizers:
        config = parts[key.replace("tokenizer", "text_encoder")].config
        config = getattr(config, "text_config", config)
        assert config.vocab_size == len(parts[key])
        for token in ("pad_token_id", "eos_token_id", "bos_token_id"):
            assert getattr(config, token, None) == getattr(parts[key], token)
    assert tokenizers


def test_an_unknown_name_lists_what_exists():
    with pytest.raises(LookupError, match=r"no tiny pipeline 'sd2', there are 'sdxl', 'sdxl-turbo"):
        backbones.tiny("sd2")
