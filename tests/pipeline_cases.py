"""Tiny pipelines and their backbones, run alike, and what can be set on a pipeline."""

import inspect

import diffusers
import pytest
import torch

import backbones
from law_pipelines import with_scheduler
from rwguidance import DDIM, sample

# Schedulers of diffusers hand tensors to numpy in a way that newer versions of it dislike.
QUIET = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]


PROMPTS = ["a cat", "a watercolour of two dogs in a boat", "x"]
SIZE = {"height": 16, "width": 24}
TOKENS = {"max_sequence_length": 48}
EULER, ANCESTRAL = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"
FLOW = "FlowMatchEulerDiscreteScheduler"

# name of the tiny pipeline, changes of its scheduler, guidance scale, options of the prompts, eta
CASES = {
    "sdxl": ("sdxl", None, None, {}, 0.0),
    "sdxl-cfg": ("sdxl", None, 5.0, {}, 0.0),
    "sdxl-negative": ("sdxl", None, 5.0, {"negative_prompt": ["fog", "", "a long rain"]}, 0.0),
    "sdxl-trailing": ("sdxl", (EULER, {"timestep_spacing": "trailing"}), 3.0, {}, 0.0),
    "sdxl-v": ("sdxl", (EULER, {"prediction_type": "v_prediction"}), 3.0, {}, 0.0),
    "sdxl-turbo": ("sdxl-turbo", None, None, {}, 1.0),
    "sdxl-turbo-euler": ("sdxl-turbo", (EULER, {}), None, {}, 0.0),
    "sdxl-ancestral-v": ("sdxl", (ANCESTRAL, {"prediction_type": "v_prediction"}), 3.0, {}, 1.0),
    "sd3": ("sd3", None, None, TOKENS, 0.0),
    "sd3-cfg": ("sd3", None, 4.5, TOKENS, 0.0),
    "sd3-negative": ("sd3", None, 4.5, TOKENS | {"negative_prompt": ["fog", "", "rain"]}, 0.0),
    "sd3-dynamic": ("sd3", (FLOW, {"use_dynamic_shifting": True}), None, TOKENS, 0.0),
    "flux": ("flux", None, 3.5, TOKENS, 0.0),
    "flux-scale": ("flux", None, 1.5, TOKENS, 0.0),
    "flux-schnell": ("flux-schnell", None, None, TOKENS, 0.0),
}
if "mu" not in inspect.signature(diffusers.StableDiffusion3Pipeline.__call__).parameters:
    del CASES["sd3-dynamic"]  # which older pipelines cannot run


def build(key):
    name, scheduler, scale, options, eta = CASES[key]
    pipe = backbones.tiny(name)
    if scheduler is not None:
        pipe = with_scheduler(pipe, scheduler[0], **scheduler[1])
    backbone = backbones.from_pipeline(pipe, scale, **SIZE, **({} if "sdxl" in name else TOKENS))
    return pipe, backbone, options | SIZE | {"guidance_scale": scale or 0.0}, eta


def run_pipeline(pipe, keywords, n, steps, seed=0, output_type="latent"):
    keywords = dict(keywords)
    if "negative_prompt" in keywords:
        keywords["negative_prompt"] = keywords["negative_prompt"][:n]
    generator = torch.Generator().manual_seed(seed)
    images = pipe(
        PROMPTS[:n],
        num_inference_steps=steps,
        generator=generator,
        output_type=output_type,
        **keywords,
    ).images
    if output_type == "latent" and isinstance(pipe, diffusers.FluxPipeline):
        height, width = keywords["height"], keywords["width"]
        images = pipe._unpack_latents(images, height, width, pipe.vae_scale_factor)
    return images


def run_backbone(backbone, keywords, n, steps, eta, seed=0):
    negative = keywords.get("negative_prompt")
    arguments = () if negative is None else (negative[:n],)
    generator = torch.Generator().manual_seed(seed)
    x_1 = backbone.draw_noise(n, generator)
    condition = backbone.condition(PROMPTS[:n], *arguments)
    return sample(backbone, DDIM(eta), x_1, backbone.times(steps), condition, generator)


def distance(x, truth):
    return float((x - truth).abs().max() / truth.abs().max())


def offload_one_by_one(pipe):
    from accelerate import cpu_offload

    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module) and name not in pipe._exclude_from_cpu_offload:
            cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)
    assert next(pipe.vae.parameters()).is_meta


def offload_whole_models(pipe):
    from accelerate import cpu_offload_with_hook

    hook = None
    for name in pipe.model_cpu_offload_seq.split("->"):
        part = pipe.components.get(name)
        if isinstance(part, torch.nn.Module):
            _, hook = cpu_offload_with_hook(part, torch.device("cpu"), prev_module_hook=hook)
