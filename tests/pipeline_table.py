"""The table of pipelines in docs/backbones.md: what each row claims, as found on a tiny pipeline.

`python tests/pipeline_table.py` writes it anew.
"""

import re
import tempfile
import warnings
from pathlib import Path

import torch

import backbones
from backbones import draw, guide
from rwguidance import ConditionalExpectation, Estimate, ImportanceSampling, PlugIn, TargetESS, Tilt
from rwguidance.store import Store
from rwguidance.support.randomness import generator_for

DOCS = Path(__file__).parent.parent / "docs" / "backbones.md"
COLUMNS = (
    "pipeline of diffusers",
    "scheduler",
    "states",
    "by prompt",
    "`guide(pipe, None)`",
    "`draw`",
    "decoder",
    "`PlugIn`",
    "adapter",
    "diffusers",
    "note",
)
PROMPTS = ["a cat", "a boat in the rain"]
CALL = {"num_inference_steps": 3, "height": 16, "width": 16}
NO_BINS = {"use_resolution_binning": False}
SANA = {**NO_BINS, "height": 32, "width": 32, "complex_human_instruction": None}
SPRINT = "two steps have an intermediate time of their own"

# name of the tiny pipeline: arguments of its call, and a note
ROWS = {
    "sd1.5": ({}, ""),
    "sd-turbo": ({"guidance_scale": 0.0}, "SD-Turbo"),
    "lcm": ({}, ""),
    "sdxl": ({}, ""),
    "sdxl-turbo": ({"guidance_scale": 0.0}, "SDXL-Turbo"),
    "sd3": ({}, ""),
    "flux": ({}, "latents of 16 channels to estimators, as in the adapter"),
    "flux2-klein": ({}, ""),
    "qwen-image": ({}, ""),
    "z-image": ({}, ""),
    "sana": (SANA, ""),
    "sana-sprint": ({**SANA, "num_inference_steps": 2}, SPRINT),
    "pixart-alpha": (NO_BINS, ""),
    "pixart-sigma": (NO_BINS, ""),
    "lumina": ({}, ""),
    "lumina2": ({}, ""),
    "chroma": ({}, ""),
    "cogview4": ({}, ""),
    "aura-flow": ({}, ""),
    "hunyuan-dit": ({**NO_BINS, "height": 64, "width": 64}, ""),
    "ernie-image": ({}, "without its rewriter of prompts"),
    "hidream": ({"max_sequence_length": 64}, ""),
    "ovis-image": ({}, ""),
    "longcat-image": ({"enable_prompt_rewrite": False}, "without its rewriter of prompts"),
    "wan": ({"num_frames": 5}, "text to video; images (B, T, 3, H, W) to rewards"),
}
# Version of diffusers that a row takes, where it is not the oldest one that is supported.
SINCE = {"flux2-klein": "0.37", "longcat-image": "0.37", "ernie-image": "0.38"}
LAYOUTS = {3: "(B, N, D)", 4: "(B, C, H, W)", 5: "(B, C, T, H, W)"}


def version(text):
    return tuple(int(part) for part in text.split(".")[:2])


def reward(images, prompts):
    """Smooth, and different for each prompt."""

    images = images.flatten(1)
    sign = torch.tensor([1.0 if prompt == PROMPTS[0] else -1.0 for prompt in prompts])
    return images.mean(1) + sign * images.var(1)


def call_of(name):
    return {**CALL, **ROWS[name][0]}


def pictures(pipe, call, prompts=PROMPTS, **keywords):
    generator = torch.Generator().manual_seed(0)
    made = pipe(**{"prompt": list(prompts), "generator": generator, **call, **keywords})
    return made.frames if hasattr(made, "frames") else made.images


def is_guided_by_prompt(pipe, call, bank):
    """Whether the prompts of a call are known: the run is that with the prompts as condition."""

    estimator = ImportanceSampling(bank, Tilt.for_kl(reward, bank, nats=0.4), TargetESS(0.7))
    told, known = (
        pictures(guide(pipe, estimator, condition=condition), call, output_type="pt")
        for condition in (PROMPTS, None)
    )
    plain = pictures(pipe, call, output_type="pt")
    return torch.equal(told, known) and not torch.equal(known, plain)


def is_itself_without_an_estimator(pipe, call):
    plain, same = (pictures(each, call, output_type="latent") for each in (pipe, guide(pipe, None)))
    return torch.equal(plain, same)


def draws_are_the_pipelines(pipe, call, bank):
    """Whether draws, decoded, are the pictures of the pipeline, by number."""

    names = [(0, prompt, number) for prompt in PROMPTS for number in range(2)]
    truth = [
        pictures(pipe, call, [name[1]], generator=[generator_for(*name)], output_type="pt")
        for name in names
    ]
    return bool((bank.decode(bank.x_0) - torch.cat(truth)).abs().max() < 1e-3)


def has_gradients(bank):
    x = bank.x_0[:1].clone().requires_grad_()
    images = bank.decode(x)
    if not images.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(images.square().sum(), x)
    return bool(gradient.isfinite().all() and gradient.norm() > 0)


def plug_in(pipe, call, bank):
    """What of the plug-in estimator works: with the Jacobian of the network, or without."""

    tilt = Tilt(reward, 100.0, bank.decode)
    window = (0.0, 0.99)
    for jacobian, text in ((True, "yes"), (False, "no Jacobian")):
        try:
            pictures(guide(pipe, PlugIn(tilt, jacobian), window=window), call, output_type="latent")
        except (TypeError, ValueError):
            continue
        return text
    return "no"


class Watch(ConditionalExpectation):
    """Remembers states, times and predictions, and shifts nothing."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, model, x_t, t, condition=None):
        prediction = model(x_t, t, condition)
        self.seen.append((x_t, t, prediction))
        zero = torch.zeros_like(x_t)
        return Estimate(prediction, zero.flatten(1).sum(1), zero)


def prediction_error(pipe, call):
    """Largest difference of predictions of the adapter from those of a run of the pipeline."""

    scale, own = call.get("guidance_scale"), ("guidance_scale", "num_inference_steps")
    rest = {name: value for name, value in call.items() if name not in own}
    backbone = backbones.AnyPipeline(pipe, scale, call=rest, steps=call["num_inference_steps"])
    watch = Watch()
    pictures(guide(pipe, watch), {**call, **backbone.call}, output_type="latent")
    condition = backbone.condition(PROMPTS)
    with torch.no_grad():
        errors = [
            (backbone(x_t, t, condition).mean - prediction.mean).abs().max()
            / prediction.mean.abs().max()
            for x_t, t, prediction in watch.seen
        ]
    return float(max(errors))


def adapter_of(pipe, call):
    """The class of the adapter, whose predictions are those of the pipeline."""

    try:
        name = type(backbones.from_pipeline(pipe)).__name__
        right = name != "AnyPipeline" or prediction_error(pipe, call) < 1e-3
    except TypeError:
        return "no"
    return name if right else "wrong"


def row_of(name, folder):
    """The row of a pipeline, as found: the texts of all columns."""

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe, call = backbones.tiny(name), call_of(name)
        bank = draw(pipe, PROMPTS, 2, batch_size=2, store=Store(folder), **call)
        said = {True: "yes", False: "no"}
        layout = "(B, 16, H, W) of tokens" if name == "flux" else LAYOUTS[bank.x_0.ndim]
        decoder = "yes, differentiable" if has_gradients(bank) else "yes"
        texts = (
            type(pipe).__name__,
            type(pipe.scheduler).__name__.removesuffix("Scheduler"),
            layout,
            said[is_guided_by_prompt(pipe, call, bank)],
            "bitwise" if is_itself_without_an_estimator(pipe, call) else "no",
            said[draws_are_the_pipelines(pipe, call, bank)],
            decoder,
            plug_in(pipe, call, bank),
            adapter_of(pipe, call),
            SINCE.get(name, "0.36"),
            ROWS[name][1],
        )
        return dict(zip(COLUMNS, texts, strict=True))


def as_line(row):
    return "| " + " | ".join(row[column] for column in COLUMNS) + " |"


def heading():
    return [
        "| " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" * len(COLUMNS),
    ]


def documented():
    """The lines of the table in the documentation, in the order of the rows."""

    lines = DOCS.read_text(encoding="utf-8").splitlines()
    first = lines.index(heading()[0]) + 2
    found = lines[first : first + len(ROWS)]
    return dict(zip(ROWS, found, strict=True))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        table = heading()
        for name in ROWS:
            table.append(as_line(row_of(name, folder)))
            print(table[-1], flush=True)
    old = re.compile(re.escape(heading()[0]) + r"\n(\|.*\n)*")
    text = DOCS.read_text(encoding="utf-8")
    assert old.search(text), f"{DOCS} has no such table"
    DOCS.write_text(old.sub(lambda _: "\n".join(table) + "\n", text), encoding="utf-8")
    print(f"wrote the table of {DOCS}")
