"""What stands around text-to-image: pipelines that take a picture, a mask, a control or an adapter.

`python tests/pipeline_surroundings.py` writes their table in docs/backbones.md anew.
"""

import re
import tempfile
import warnings

import diffusers
import torch

import backbones
from backbones import draw, guide
from common import randn
from pipeline_table import DOCS, has_gradients
from rwguidance import ImportanceSampling, PlugIn, TargetESS, Tilt
from rwguidance.store import Store
from rwguidance.support.randomness import generator_for

COLUMNS = (
    "pipeline around a prompt",
    "takes",
    "`guide(pipe, None)`",
    "`draw`",
    "decoder",
    "guided",
    "`PlugIn`",
    "another input",
)
# name: the tiny pipeline, and what the pipeline takes
ROWS = {
    "StableDiffusionImg2ImgPipeline": ("sd1.5", "picture"),
    "StableDiffusionXLImg2ImgPipeline": ("sdxl", "picture"),
    "StableDiffusion3Img2ImgPipeline": ("sd3", "picture"),
    "FluxImg2ImgPipeline": ("flux", "picture"),
    "QwenImageImg2ImgPipeline": ("qwen-image", "picture"),
    "ZImageImg2ImgPipeline": ("z-image", "picture"),
    "StableDiffusionInpaintPipeline": ("sd1.5", "mask"),
    "StableDiffusionXLInpaintPipeline": ("sdxl", "mask"),
    "StableDiffusion3InpaintPipeline": ("sd3", "mask"),
    "FluxInpaintPipeline": ("flux", "mask"),
    "QwenImageInpaintPipeline": ("qwen-image", "mask"),
    "ZImageInpaintPipeline": ("z-image", "mask"),
    "StableDiffusionControlNetPipeline": ("sd1.5", "control"),
    "StableDiffusionXLControlNetPipeline": ("sdxl", "control"),
    "StableDiffusion3ControlNetPipeline": ("sd3", "control"),
    "FluxControlNetPipeline": ("flux", "control"),
    "StableDiffusionPipeline": ("sd1.5", "IP-Adapter"),
    "StableDiffusionXLPipeline": ("sdxl", "IP-Adapter"),
}
TOLD = {
    "picture": "a picture",
    "mask": "a picture and a mask",
    "control": "a control, by ControlNet",
    "IP-Adapter": "a picture, by IP-Adapter",
}
PICTURE = torch.sigmoid(randn(0, 1, 3, 32, 32, dtype=torch.float32))
SIZE = {"height": 32, "width": 32}


def brightness(images, prompts):
    return images.flatten(1).mean(1)


def case(name):
    """A pipeline, the arguments of its call, and those of another input."""

    tiny, takes = ROWS[name]
    pipe = backbones.tiny(tiny)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        build = {"control": with_control, "IP-Adapter": with_picture_adapter}
        pipe, call, other = build.get(takes, with_picture)(name, pipe, takes)
    pipe.set_progress_bar_config(disable=True)
    small = tiny in ("flux", "qwen-image", "z-image", "sd3") or takes == "IP-Adapter"
    size = SIZE if small else {}
    return pipe, {"num_inference_steps": 4, **size, **call}, other


def with_picture(name, pipe, takes):
    pipe = getattr(diffusers, name).from_pipe(pipe)
    call, other = {"image": PICTURE, "strength": 0.7}, {"image": 1 - PICTURE}
    if takes == "mask":
        without_noise(pipe.vae)
        call["mask_image"] = torch.ones(1, 1, 32, 32)
        call["mask_image"][..., :16] = 0
        other = {"mask_image": 1 - call["mask_image"]}
    return pipe, call, other


def without_noise(vae):
    """Makes an autoencoder of small variance, as trained ones are: pictures are encoded anew."""

    last = getattr(vae, "quant_conv", None) or vae.encoder.conv_out
    half = len(last.bias) // 2
    with torch.no_grad():
        last.weight[half:] = 0
        last.bias[half:] = -30


def with_control(name, pipe, takes):
    if hasattr(pipe, "unet"):
        control = diffusers.ControlNetModel.from_unet(
            pipe.unet, conditioning_embedding_out_channels=(8, 8)
        )
        image = PICTURE[..., :16, :16]  # the embedding of controls makes it smaller by two
    else:
        kind = "FluxControlNetModel" if "Flux" in name else "SD3ControlNetModel"
        options = {"num_layers": 1, "num_extra_conditioning_channels": 0}
        options = (
            options
            if "SD3" in kind
            else {
                "num_layers": 1,
                "num_single_layers": 1,
                "attention_head_dim": 16,
                "num_attention_heads": 2,
            }
        )
        control = getattr(diffusers, kind).from_transformer(pipe.transformer, **options)
        image = PICTURE
        without_noise(pipe.vae)  # by which controls are encoded
    for parameter in control.parameters():  # whose last layers begin at zero
        torch.nn.init.normal_(parameter, std=0.2)
    parts = {**pipe.components, "controlnet": control.eval()}
    if "StableDiffusionControlNet" in name:
        parts["safety_checker"] = None
    pipe = getattr(diffusers, name)(**parts)
    argument = "image" if hasattr(pipe, "unet") else "control_image"
    return pipe, {argument: image}, {argument: 1 - image}


def with_picture_adapter(name, pipe, takes):
    width, embedding = pipe.unet.config.cross_attention_dim, 16
    projection = {
        "proj.weight": torch.randn(4 * width, embedding),
        "proj.bias": torch.randn(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    places = [p for p in pipe.unet.attn_processors if not p.endswith("attn1.processor")]
    layers = {}
    for i, place in enumerate(places):
        module = pipe.unet.get_submodule(place.removesuffix(".processor"))
        for part in ("to_k_ip", "to_v_ip"):
            layers[f"{2 * i + 1}.{part}.weight"] = torch.randn(module.inner_dim, width)
    state = {"image_proj": projection, "ip_adapter": layers}
    pipe.load_ip_adapter(state, subfolder=None, weight_name=None, image_encoder_folder=None)
    picture = torch.randn(2, 1, embedding)  # that of no picture comes first
    call = {"ip_adapter_image_embeds": [picture], "guidance_scale": 3.0}
    return pipe, call, {"ip_adapter_image_embeds": [-picture]}


def run(pipe, call, seed=3, **keywords):
    given = {"generator": torch.Generator().manual_seed(seed), "output_type": "pt", **call}
    with torch.random.fork_rng(devices=[]):  # by which SD3 encodes its controls
        torch.default_generator.manual_seed(2)
        return pipe(prompt="a cat", **{**given, **keywords}).images


def found(name, folder):
    """What is found of a row: the texts of all columns."""

    pipe, call, other = case(name)
    said = {True: "yes", False: "no"}
    bank = draw(pipe, "a cat", 3, batch_size=3, store=Store(folder), **call)
    truth = run(pipe, call, generator=[generator_for(0, "a cat", 1)])
    tilt = Tilt.for_kl(brightness, bank, nats=0.3)
    estimator = ImportanceSampling(bank, tilt, TargetESS(0.7))
    plain, guided = run(pipe, call), guide(pipe, estimator)
    try:
        run(guided, {**call, **other})
        refused = "is let pass"
    except ValueError as error:
        refused = "refused" if f"{next(iter(other))} must be" in str(error) else str(error)
    plug_in = PlugIn(Tilt(brightness, 1.0, bank.decode))  # by the call, made again
    run(guide(pipe, plug_in, window=(0.0, 0.99)), call)
    close = float((bank.decode(bank.x_0)[1:2] - truth).abs().max()) < 1e-3
    decoder = "yes, differentiable" if has_gradients(bank) else "yes"
    texts = (
        name,
        TOLD[ROWS[name][1]],
        "bitwise" if torch.equal(run(guide(pipe, None), call), plain) else "no",
        said[close],
        decoder,
        said[float((run(guided, call) - plain).abs().max()) > 1e-3],
        "yes",
        refused,
    )
    return dict(zip(COLUMNS, texts, strict=True))


def line_of(row):
    return "| " + " | ".join(row.values()) + " |"


def heading():
    return ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]


def documented():
    """The lines of the table in the documentation, by name."""

    lines = DOCS.read_text(encoding="utf-8").splitlines()
    first = lines.index(heading()[0]) + 2
    return dict(zip(ROWS, lines[first : first + len(ROWS)], strict=True))


if __name__ == "__main__":
    import sys

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = heading()
        for name in sys.argv[1:] or ROWS:
            try:
                table.append(line_of(found(name, folder)))
            except Exception as error:
                if not sys.argv[1:]:
                    raise
                import traceback

                traceback.print_exc(limit=-3)
                table.append(f"{name}: {type(error).__name__}: {error}"[:300])
            print(table[-1], flush=True)
    if not sys.argv[1:]:
        old = re.compile(re.escape(heading()[0]) + r"\n(\|.*\n)*")
        text = DOCS.read_text(encoding="utf-8")
        assert old.search(text), f"{DOCS} has no such table"
        DOCS.write_text(old.sub(lambda _: "\n".join(table) + "\n", text), encoding="utf-8")
