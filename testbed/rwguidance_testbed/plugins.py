"""The names that the test bed adds to the library, by the entry points in its pyproject.toml.

Nothing here is known to the library: a package of anybody's adds its models in the same way.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from rwguidance.rewards.loading import find_file, reading
from torch import Tensor, nn

from rwguidance.backbones import SD3, SDXL, Published
from rwguidance.evaluation import PromptSet
from rwguidance.networks import PublishedNetwork
from rwguidance.rewards import HPSv2, PickScore, Reward, RewardFile, RewardSpec

from .gold import Gold
from .shipped import SOURCE, judge

__all__ = [
    "CHANGE",
    "DEMO",
    "FLOW",
    "GUIDE",
    "NOISE",
    "TEACHER",
    "TURBO",
    "WIDE",
    "EmojiGold",
    "EmojiHPS",
    "EmojiMatch",
    "EmojiPick",
    "JudgeEmbedding",
]

_ZEROS = 1  # tokens in place of what a third text encoder would see, which these models have not
_SIZE = 64


def _published(name: str, family: Any, defaults: dict[str, Any], distilled: bool) -> Published:
    return Published(
        name,
        family,
        f"{SOURCE}/{name}",
        defaults,
        distilled,
        vae=f"{SOURCE}/emoji-vae",
        card=f"{SOURCE}/{name}/README.md",
    )


FLOW = _published("emoji-flow", SD3, {"steps": 4, "max_sequence_length": _ZEROS}, True)
"""A flow of four steps, in the class of SD3.5 Large Turbo."""

TEACHER = _published(
    "emoji-flow-teacher",
    SD3,
    {"steps": 20, "guidance_scale": 3.0, "max_sequence_length": _ZEROS},
    False,
)
"""The flow that the one of four steps was distilled from."""

TURBO = _published("emoji-turbo", SDXL, {"steps": 1}, True)
"""A model of one step, in the class of SDXL-Turbo."""

WIDE = replace(
    TURBO,
    name="emoji-turbo-wide",
    card=f"{SOURCE}/emoji-turbo-wide/README.md",
    lora=f"{SOURCE}/emoji-turbo-wide",
)
"""The model of one step with a LoRA, whose pictures of a prompt vary as those of a flow do."""


def _for_one_step(name: str) -> PublishedNetwork:
    return PublishedNetwork(
        name=name,
        backbone="emoji-turbo",
        reward="emoji-pick",
        beta=0.383,
        source=f"{SOURCE}/{name}",
        file=None,
        card=f"{SOURCE}/{name}/README.md",
    )


CHANGE = _for_one_step("emoji-turbo-change")
"""A network for noise and outputs of the model of one step, at one nat, by the gradient."""

NOISE = _for_one_step("emoji-turbo-noise")
"""A network for the noise of the model of one step, at one nat, by scores alone."""

GUIDE = PublishedNetwork(
    name="emoji-turbo-guide",
    backbone="emoji-turbo",
    reward="emoji-pick",
    beta=0.48844,
    source=f"{SOURCE}/emoji-turbo-guide",
    card=f"{SOURCE}/emoji-turbo-guide/README.md",
)
"""A network that guides the model of one step, at one nat."""


def _spec(name: str, model: str, files: Sequence[str], **facts: Any) -> RewardSpec:
    folder = f"{SOURCE}/{model}"
    return RewardSpec(
        name=name,
        needs_prompt=True,
        code_license="MIT",
        weights_license="MIT",
        commercial_use=True,
        files=tuple(RewardFile(name=file, source=folder) for file in files),
        citation="rwguidance; drawings credited in rwguidance_testbed/NOTICE",
        card=f"{folder}/README.md",
        **facts,
    )


class EmojiPick(PickScore):
    r"""A small CLIP in PickScore's format, :math:`e^s \cos(e_x, e_y)`.

    It learned from preferences that :class:`~rwguidance_testbed.gold.Gold` drew. Arguments and
    errors are those of :class:`rwguidance.rewards.clip.ClipReward`.
    """

    depends_on = ("mode",)

    spec = _spec(
        "emoji-pick",
        "emoji-pick",
        ("config.json", "model.safetensors", "vocab.json", "merges.txt"),
        title="Emoji Pick, of the test bed",
        differentiable=True,
        formula="exp(logit_scale) * cos(image, prompt)",
        preprocessing="8-bit bicubic to 64 on the shorter side, central 64 x 64",
        context_length=16,
        typical_range=(-3.0, 6.5),
        parity="as pickscore, whose code it runs",
    )


class EmojiHPS(HPSv2):
    """A small CLIP in HPSv2's format, the cosine of the embeddings of image and prompt.

    Arguments:
        path: The file ``HPS_v2_compressed.pt`` with ``architecture.json`` beside it, or a directory
            that holds both; None is what comes with the test bed.
        gradient_checkpointing: Whether the image tower saves memory in the backward pass.
        cache_size: Number of prompts whose embeddings are kept.

    Raises:
        FileNotFoundError: If a file is missing; says where to get it.
        ValueError: If a file does not hold what it should, or is not as it was shipped.
    """

    depends_on = ("tokenizer", "size")

    spec = _spec(
        "emoji-hps",
        "emoji-hps",
        ("HPS_v2_compressed.pt", "architecture.json"),
        title="Emoji HPS, of the test bed",
        differentiable=True,
        formula="cos(image, prompt), without the logit scale",
        preprocessing="bicubic in floats to 64 on the longer side, black bars to 64 x 64",
        context_length=24,
        typical_range=(-0.25, 0.45),
        parity="as hpsv2, whose code it runs",
    )

    def __init__(
        self,
        path: str | Path | None = None,
        gradient_checkpointing: bool = False,
        cache_size: int = 4096,
    ) -> None:
        file = Path(path) if path is not None and Path(path).is_file() else None
        folder = path if file is None else file.parent
        config = find_file(self.spec, self.spec.file("architecture.json"), folder)
        with reading(config):
            architecture = json.loads(config.read_text(encoding="utf-8"))
        super().__init__(path, architecture, gradient_checkpointing, cache_size)


_JUDGE = ("judge.json", "judge.safetensors", "vocab.json", "merges.txt")
_RESIZED = "bilinear with antialiasing to 64 x 64 where it has another size"


def _resized(images: Tensor) -> Tensor:
    *_, height, width = images.shape
    if height == width == _SIZE:
        return images
    return F.interpolate(images, (_SIZE, _SIZE), mode="bilinear", antialias=True).clamp(0, 1)


class EmojiGold(Reward):
    """The gold utility by which preferences of the test bed were drawn.

    Arguments:
        path: The folder of the judge; None is what comes with the test bed.
    """

    depends_on = ()

    spec = _spec(
        "emoji-gold",
        "emoji-judge",
        _JUDGE,
        title="Gold utility of the test bed",
        differentiable=False,
        formula="5 match + 12 sharpness + 8 contrast + 4 colorfulness",
        preprocessing=_RESIZED,
        context_length=16,
        typical_range=(5.0, 14.0),
        parity="its own reference",
    )

    def __init__(self, path: str | Path | None = None) -> None:
        super().__init__()
        self.gold = Gold(judge(path))

    def preprocess(self, images: Tensor) -> Tensor:
        return _resized(super().preprocess(images))

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        values: Tensor = self.gold(images, prompts)
        return values


class EmojiMatch(Reward):
    """The prompt's term of the gold utility alone: the judge's cosine of picture and prompt.

    Arguments:
        path: The folder of the judge; None is what comes with the test bed.
    """

    depends_on = ()

    spec = _spec(
        "emoji-match",
        "emoji-judge",
        _JUDGE,
        title="Prompt's term of the gold utility",
        differentiable=True,
        formula="cos(image, prompt) of the judge's embeddings",
        preprocessing=_RESIZED,
        context_length=16,
        typical_range=(-0.2, 0.9),
        parity="its own reference",
    )

    def __init__(self, path: str | Path | None = None) -> None:
        super().__init__()
        self.judge = judge(path)

    def preprocess(self, images: Tensor) -> Tensor:
        return _resized(super().preprocess(images))

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        pictures = self.judge.embed_pictures(images.to(self.judge.log_scale.dtype))
        return F.cosine_similarity(pictures, self.judge.embed_captions(prompts))


class JudgeEmbedding(nn.Module):
    """The judge's embeddings of pictures, (B, 3, H, W) in [0, 1] to (B, 128).

    Arguments:
        path: The folder of the judge; None is what comes with the test bed.
    """

    depends_on = ()

    def __init__(self, path: str | Path | None = None) -> None:
        super().__init__()
        self.judge = judge(path)

    def forward(self, images: Tensor) -> Tensor:
        return self.judge.embed_pictures(_resized(images.to(self.judge.log_scale.dtype)))


DEMO = PromptSet(
    name="emoji-demo",
    title="A dozen prompts with much to choose from",
    license="MIT",
    source="rwguidance_testbed",
    prompts=(
        "strawberry, firefox style",
        "gem stone",
        "sun with face",
        "red heart, noto style",
        "pushpin, fluent style",
        "pig face, noto style",
        "horse, noto style",
        "beer mug",
        "crown",
        "automobile on a purple background",
        "watermelon",
        "snowman",
    ),
)
"""The prompts of `rwguidance demo`, by a rule that looks at no aligned picture.

Of the 36 of ``prompts_of(36, 2, ...)`` without what is reported, the twelve whose 32 draws by
`emoji-flow` from seed 0 differ most in `emoji-pick`, by their standard deviation.
"""
