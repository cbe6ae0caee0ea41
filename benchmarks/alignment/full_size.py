"""Operations and memory of the recipes at full size, counted on tensors that hold nothing.

Of SDXL-Turbo at 512 px, one step, and SD3.5 Large Turbo at 1024 px, four steps, in bfloat16, a
picture at a time. The configurations are those of the published checkpoints, as written out in
`benchmarks/backbones.py`; SD3.5 Large Turbo has that of SD3.5 Large. Gradients of LoRA go through
the last step alone (DRaFT-1); networks of outputs need none of the denoiser. Texts are encoded once
for a prompt, and not counted.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from rwguidance import CosineSchedule
from rwguidance.networks import GuidanceNetwork
from rwguidance.networks.common import waves
from rwguidance.networks.convolutions import Given as GivenToNetwork
from rwguidance.support.outside import require

from ..backbones import ARCHITECTURES, Architecture
from .counting import spent
from .finetune import RANK
from .learned import FEW
from .methods import write_json

__all__ = ["MODELS", "RESULT", "counted", "main", "priced", "transferred", "works"]

MODELS = {"SDXL-Turbo": ("sdxl-turbo", 512, 1), "SD3.5 Large Turbo": ("sd3.5-large", 1024, 4)}
"""Architecture, pixels of a side and steps by name."""

VIT_H, NARROW, SIDE = "ViT-H-14", torch.bfloat16, 224
RESULT = Path(__file__).resolve().parent.parent / "results" / "alignment_full_size.json"


@dataclass
class Given:
    """Frozen networks of a model at full size, and what they are called with.

    Arguments:
        architecture: Sizes of the denoiser and of its texts.
        pixels: Side of a picture.
        tiny: Whether the decoder is that of TAESD.
    """

    architecture: Architecture
    pixels: int
    tiny: bool = False

    @cached_property
    def denoiser(self) -> Any:
        kind = "UNet2DConditionModel" if self.architecture.is_unet else "SD3Transformer2DModel"
        return _frozen(getattr(diffusers, kind)(**self.architecture.denoiser))

    @cached_property
    def vae(self) -> Any:
        if self.tiny:
            return _frozen(diffusers.AutoencoderTiny(latent_channels=self.channels))
        return _frozen(diffusers.AutoencoderKL(**self.architecture.vae))

    @cached_property
    def reward(self) -> Any:
        open_clip: Any = require("open_clip", "a ViT-H needs", "rewards")
        return _frozen(open_clip.CLIP(**open_clip.get_model_config(VIT_H)).visual)

    @cached_property
    def guide(self) -> GuidanceNetwork:
        sizes = {"text": self.architecture.pooled, "tokens": self.architecture.text}
        path = CosineSchedule()
        return GuidanceNetwork.preset("paper", self.channels, path, output="change", **sizes)

    @property
    def channels(self) -> int:
        return int(self.architecture.vae["latent_channels"])

    @property
    def x(self) -> Tensor:
        return torch.empty(1, self.channels, self.pixels // 8, self.pixels // 8)

    @property
    def text(self) -> Tensor:
        return torch.empty(1, self.architecture.tokens, self.architecture.text)

    @property
    def pooled(self) -> Tensor:
        return torch.empty(1, self.architecture.pooled)

    def denoised(self) -> Tensor:
        """Returns the output of one call of the denoiser."""

        t = torch.full((1,), 999.0)
        if self.architecture.is_unet:
            added = {"text_embeds": self.pooled, "time_ids": torch.empty(1, 6)}
            keywords: dict[str, Any] = {"added_cond_kwargs": added}
        else:
            keywords = {"pooled_projections": self.pooled}
        call = partial(self.denoiser, self.x, encoder_hidden_states=self.text, timestep=t)
        return call(**keywords, return_dict=False)[0]

    def judged(self, x_0: Tensor) -> Tensor:
        """Returns the reward of clean latents, decoded."""

        images = self.vae.decode(x_0, return_dict=False)[0]
        size = (SIDE, SIDE)
        return self.reward(nn.functional.interpolate(images, size, mode="bilinear")).sum()

    def changed(self, x_0: Tensor) -> Tensor:
        """Returns clean latents, changed by the guidance network.

        Its parts are called, since the whole looks at the values of times, of which there are none.
        """

        level = waves(torch.zeros(1))
        seen = GivenToNetwork(level, self.pooled, self.text, None, None)
        stages, embedding = self.guide.encoder(x_0, seen)
        hidden = self.guide.norm(self.guide.decoder(stages, embedding))
        return x_0 + self.guide.last(nn.functional.silu(hidden))


def _frozen(module: Any) -> Any:
    return module.eval().requires_grad_(False)


class Adapted(nn.Module):
    """A frozen layer with a low-rank change of its weight.

    Arguments:
        layer: The layer, linear or a convolution.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        if isinstance(layer, nn.Linear):
            self.down: nn.Module = nn.Linear(layer.in_features, RANK, bias=False)
            self.up: nn.Module = nn.Linear(RANK, layer.out_features, bias=False)
        else:
            size: tuple[Any, Any, Any] = (layer.kernel_size, layer.stride, layer.padding)
            self.down = nn.Conv2d(layer.in_channels, RANK, *size, bias=False)
            self.up = nn.Conv2d(RANK, layer.out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


def _adapt(given: Given, recomputed: bool) -> None:
    """Adds low-rank changes to the denoiser, and has its blocks computed again on the way back.

    Not by peft, which converts its weights, as tensors that hold nothing cannot be.
    """

    for module in list(given.denoiser.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear | nn.Conv2d):
                setattr(module, name, Adapted(child))
    if recomputed:
        again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        given.denoiser.train()
        given.denoiser.enable_gradient_checkpointing(gradient_checkpointing_func=again)


def works() -> dict[str, tuple[Callable[[Given], object], tuple[str, ...], dict[str, Any]]]:
    """Returns what is counted by name, the networks that it has, and how they are made."""

    still, judged = torch.no_grad(), ("vae", "reward")
    picture = lambda g: g.judged(g.x.requires_grad_()).backward()
    denoised = lambda g: g.denoised().sum().backward()
    shown = lambda g: g.reward(torch.empty(1, 3, SIDE, SIDE))
    return {
        "denoiser": (still(Given.denoised), ("denoiser",), {}),
        "LoRA, back": (denoised, ("denoiser",), {"recomputed": False}),
        "LoRA recomputed, back": (denoised, ("denoiser",), {"recomputed": True}),
        "full decoder": (still(lambda g: g.vae.decode(g.x)), ("vae",), {}),
        "tiny decoder": (still(lambda g: g.vae.decode(g.x)), ("vae",), {"tiny": True}),
        "full decoder and reward, back": (picture, judged, {}),
        "tiny decoder and reward, back": (picture, judged, {"tiny": True}),
        "reward": (still(shown), ("reward",), {}),
        "network": (still(lambda g: g.changed(g.x)), ("guide",), {}),
        "network, back": (lambda g: g.changed(g.x).sum().backward(), ("guide",), {}),
    }


def counted(name: str, what: str) -> dict[str, float]:
    """Returns operations, and the peak of memory beside the weights, in bytes.

    Arguments:
        name: Name of the model.
        what: What is done.
    """

    (key, pixels, _), (work, networks, options) = MODELS[name], works()[what]
    with _narrow(), FakeTensorMode(allow_non_fake_inputs=True):
        given = Given(ARCHITECTURES[key], pixels, options.get("tiny", False))
        if "recomputed" in options:
            _adapt(given, options["recomputed"])
        for network in networks:  # there before memory is counted
            getattr(given, network)
        cost = spent(lambda: work(given))
    return {"operations": cost.operations, "memory": cost.memory}


@contextmanager
def _narrow() -> Iterator[None]:
    """Makes tensors in bfloat16; those that hold nothing cannot be converted later."""

    before = torch.get_default_dtype()
    torch.set_default_dtype(NARROW)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def priced(name: str, parts: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Returns operations and memory of a training picture by recipe, and of pictures.

    Memory is beside the weights, and at most the sum of what parts hold that are there together.

    Arguments:
        name: Name of the model.
        parts: What :func:`counted` returns, by what is done.
    """

    run = MODELS[name][2] * parts["denoiser"]["operations"]
    first = run - parts["denoiser"]["operations"]  # the steps before the last
    recipes = {
        "LoRA": (first, "LoRA, back"),
        "LoRA, recomputed": (first, "LoRA recomputed, back"),
        "LoRA proximal": (run + first, "LoRA, back"),
        "output network": (run, "network, back"),
        "output network, stored pictures": (0.0, "network, back"),
    }
    found = {}
    for decoder in ("full", "tiny"):
        both = parts[f"{decoder} decoder and reward, back"]
        for label, (before, what) in recipes.items():
            whole = {key: both[key] + parts[what][key] for key in ("operations", "memory")}
            whole["operations"] += before
            found[f"{label}, {decoder} decoder"] = whole
        image = run + parts[f"{decoder} decoder"]["operations"]
        drawn = image + parts["reward"]["operations"]
        found[f"image, {decoder} decoder"] = {"operations": image}
        found[f"draw with its reward, {decoder} decoder"] = {"operations": drawn}
    return found | {"network beside an image": {"operations": parts["network"]["operations"]}}


def transferred(
    own: Mapping[str, Any] | None,
    other: Mapping[str, Any] | None,
    full: Mapping[str, Any],
    pictures: int,
) -> dict[str, Any]:
    """Returns what measured numbers of pictures would cost at full size, by model and decoder.

    It assumes that a large model needs as many training pictures as the small one did.

    Arguments:
        own: The chosen output network, with its `budget`; None for none.
        other: The chosen LoRA with a proximal term; None for none.
        full: What this module counted.
        pictures: Number of pictures that are made after the training.
    """

    both = ("output network", "LoRA proximal")
    if not own or not other or (own["method"], other["method"]) != both:
        return {}
    found: dict[str, Any] = {}
    for name, model in full.items():
        for decoder in ("full", "tiny") if "recipes" in model else ():
            of = lambda what, m=model, d=decoder: m["recipes"][f"{what}, {d} decoder"]["operations"]
            beside = model["recipes"]["network beside an image"]["operations"]
            one = own["budget"] * of("output network") + FEW * of("draw with its reward")
            two = other["budget"] * of("LoRA proximal")
            images = pictures * of("image")
            found[f"{name}, {decoder} decoder"] = {
                "training of the network": one,
                "training of LoRA": two,
                "pictures": images,
                "ratio of trainings": one / two,
                "ratio": (one + images + pictures * beside) / (two + images),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alignment.full_size")
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS])
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(given.out.read_text("utf-8")) if given.out.is_file() else {}
    for name in given.models:
        parts = known.setdefault(name, {"parts": {}})["parts"]
        for what in works():
            if what not in parts:
                parts[what] = counted(name, what)
                write_json(given.out, known)
                print(name, what, parts[what], flush=True)
        known[name]["recipes"] = priced(name, parts)
        write_json(given.out, known)


if __name__ == "__main__":
    main()
