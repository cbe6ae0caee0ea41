"""The two rewards of the test bed, in the formats of PickScore and HPSv2.

They were trained on emoji of 64 x 64 pixels, first to tell captions apart and then on preferences,
and come with this distribution. :mod:`rwguidance_testbed.towers` trains them.
"""

import json
from pathlib import Path

from .base import SHIPPED, RewardFile, RewardSpec
from .clip import clip_files
from .hpsv2 import HPSv2
from .loading import PathLike, find_file, reading
from .pickscore import PickScore
from .registry import register

__all__ = ["EmojiHPS", "EmojiPick"]


@register("emoji-pick")
class EmojiPick(PickScore):
    r"""A small CLIP in PickScore's format, :math:`e^s \cos(e_x, e_y)`.

    Who drew what it learned from is credited in ``rwguidance_testbed/NOTICE``.

    Arguments and errors are those of :class:`rewards.clip.ClipReward`; without a path, it is what
    comes with this distribution.

    Raises:
        ValueError: If what comes with this distribution is not as it was shipped.
    """

    spec = RewardSpec(
        name="emoji-pick",
        title="Emoji Pick, of the test bed",
        differentiable=True,
        needs_prompt=True,
        code_license="MIT",
        weights_license="MIT",
        commercial_use=True,
        formula="exp(logit_scale) * cos(image, prompt)",
        preprocessing="8-bit bicubic to 64 on the shorter side, central 64 x 64",
        context_length=16,
        typical_range=(-3.0, 6.5),
        files=clip_files(SHIPPED),
        parity="as pickscore, whose code it runs",
        citation="rwguidance; drawings credited in rwguidance_testbed/NOTICE",
    )


@register("emoji-hps")
class EmojiHPS(HPSv2):
    """A small CLIP in HPSv2's format, the cosine of the embeddings of image and prompt.

    Who drew what it learned from is credited in ``rwguidance_testbed/NOTICE``.

    Arguments:
        path: The file ``HPS_v2_compressed.pt`` with ``architecture.json`` beside it, or a directory
            that holds both; None is what comes with this distribution.
        gradient_checkpointing: Whether the image tower saves memory in the backward pass.
        cache_size: Number of prompts whose embeddings are kept.

    Raises:
        FileNotFoundError: If a file is missing; says where to get it.
        ValueError: If a file does not hold what it should, or is not as it was shipped.
    """

    spec = RewardSpec(
        name="emoji-hps",
        title="Emoji HPS, of the test bed",
        differentiable=True,
        needs_prompt=True,
        code_license="MIT",
        weights_license="MIT",
        commercial_use=True,
        formula="cos(image, prompt), without the logit scale",
        preprocessing="bicubic in floats to 64 on the longer side, black bars to 64 x 64",
        context_length=24,
        typical_range=(-0.25, 0.45),
        files=(
            RewardFile(name="HPS_v2_compressed.pt", source=SHIPPED),
            RewardFile(name="architecture.json", source=SHIPPED),
        ),
        parity="as hpsv2, whose code it runs",
        citation="rwguidance; drawings credited in rwguidance_testbed/NOTICE",
    )

    def __init__(
        self,
        path: PathLike | None = None,
        gradient_checkpointing: bool = False,
        cache_size: int = 4096,
    ) -> None:
        file = Path(path) if path is not None and Path(path).is_file() else None
        folder = path if file is None else file.parent
        config = find_file(self.spec, self.spec.file("architecture.json"), folder)
        with reading(config):
            architecture = json.loads(config.read_text(encoding="utf-8"))
        super().__init__(path, architecture, gradient_checkpointing, cache_size)
