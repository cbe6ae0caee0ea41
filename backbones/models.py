"""The published models that can be loaded by name: where they are, and how they are run.

Steps, scales and licenses are those of the model cards, as remembered.
"""

from .any_pipeline import AnyPipeline
from .flux import Flux
from .published import Published
from .registry import register
from .sd3 import SD3
from .sdxl import SDXL

__all__ = ["MODELS"]

_SD35 = "hf://stabilityai/stable-diffusion-3.5"
_FLUX = "hf://black-forest-labs/FLUX"
_SANA = "hf://Efficient-Large-Model/Sana"
_APACHE = "Apache-2.0"
_STABILITY = "Stability AI Community License"
_RAIL = "CreativeML Open RAIL++-M"
_NVIDIA = "NVIDIA Source Code License, non-commercial"

MODELS = (
    Published(
        "sd1.5",
        AnyPipeline,
        "hf://stable-diffusion-v1-5/stable-diffusion-v1-5",
        {"steps": 50, "guidance_scale": 7.5},
        license="CreativeML Open RAIL-M",
        pipeline="StableDiffusionPipeline",
    ),
    Published(
        "sd-turbo",
        AnyPipeline,
        "hf://stabilityai/sd-turbo",
        {"steps": 4},
        distilled=True,
        license=_STABILITY,
        pipeline="StableDiffusionPipeline",
    ),
    Published(
        "sdxl",
        SDXL,
        "hf://stabilityai/stable-diffusion-xl-base-1.0",
        {"steps": 50, "guidance_scale": 5.0},
        license=_RAIL,
    ),
    Published(
        "sdxl-turbo",
        SDXL,
        "hf://stabilityai/sdxl-turbo",
        {"steps": 4},
        distilled=True,
        license=_STABILITY,
    ),
    Published(
        "sd3.5-medium",
        SD3,
        f"{_SD35}-medium",
        {"steps": 40, "guidance_scale": 4.5},
        license=_STABILITY,
    ),
    Published(
        "sd3.5-large",
        SD3,
        f"{_SD35}-large",
        {"steps": 28, "guidance_scale": 3.5},
        license=_STABILITY,
    ),
    Published(
        "sd3.5-large-turbo",
        SD3,
        f"{_SD35}-large-turbo",
        {"steps": 4},
        distilled=True,
        license=_STABILITY,
    ),
    Published(
        "flux-schnell",
        Flux,
        f"{_FLUX}.1-schnell",
        {"steps": 4, "max_sequence_length": 256},
        distilled=True,
        license=_APACHE,
    ),
    Published(
        "flux-dev",
        Flux,
        f"{_FLUX}.1-dev",
        {"steps": 50, "guidance_scale": 3.5},
        license="FLUX.1 [dev] Non-Commercial License",
    ),
    Published(
        "flux2-klein",
        AnyPipeline,
        f"{_FLUX}.2-klein-4B",
        {"steps": 4},
        distilled=True,
        license=_APACHE,
        pipeline="Flux2KleinPipeline",
    ),
    Published(
        "qwen-image",
        AnyPipeline,
        "hf://Qwen/Qwen-Image",
        {"steps": 50, "guidance_scale": 4.0},
        license=_APACHE,
        pipeline="QwenImagePipeline",
    ),
    Published(
        "z-image",
        AnyPipeline,
        "hf://Tongyi-MAI/Z-Image",
        {"steps": 50, "guidance_scale": 4.0},
        license=_APACHE,
        pipeline="ZImagePipeline",
    ),
    Published(
        "z-image-turbo",
        AnyPipeline,
        "hf://Tongyi-MAI/Z-Image-Turbo",
        {"steps": 9},
        distilled=True,
        license=_APACHE,
        pipeline="ZImagePipeline",
    ),
    Published(
        "sana",
        AnyPipeline,
        f"{_SANA}_1600M_1024px_diffusers",
        {"steps": 20, "guidance_scale": 4.5},
        license=_NVIDIA,
        pipeline="SanaPipeline",
    ),
    Published(
        "sana-sprint",
        AnyPipeline,
        f"{_SANA}_Sprint_1.6B_1024px_diffusers",
        {"steps": 2, "guidance_scale": 4.5},
        license=_NVIDIA,
        pipeline="SanaSprintPipeline",
    ),
    Published(
        "pixart-sigma",
        AnyPipeline,
        "hf://PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        {"steps": 20, "guidance_scale": 4.5},
        license=_RAIL,
        pipeline="PixArtSigmaPipeline",
    ),
)
"""The models, each with the name by which :func:`backbones.load` knows it."""

for _published in MODELS:
    register(_published.name)(_published)
