"""UnifiedReward: a vision-language model that writes a review, which ends in a grade."""

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from rwguidance.schedules import working_dtype

from .base import Reward, RewardFile, RewardSpec
from .loading import PathLike
from .registry import register
from .vlm import VisionLanguageModel, choose_vlm

__all__ = ["UnifiedReward", "parse_score"]

_LOW, _HIGH = 1.0, 5.0

# The words that the model was trained with, from inference_qwen/image_generation of the published
# code (MIT license). Without exactly these it does not know what to write.
_INSTRUCTION = (
    "You are given a text caption and a generated image based on that caption. Your task is to "
    "evaluate this image based on two key criteria:\n"
    "1. Alignment with the Caption: Assess how well this image aligns with the provided caption. "
    "Consider the accuracy of depicted objects, their relationships, and attributes as described "
    "in the caption.\n"
    "2. Overall Image Quality: Examine the visual quality of this image, including clarity, detail "
    "preservation, color accuracy, and overall aesthetic appeal.\n"
    "Extract key elements from the provided text caption, evaluate their presence in the generated "
    "image using the format: 'element (type): value' (where value=0 means not generated, and "
    "value=1 means generated), and assign a score from 1 to 5 after 'Final Score:'.\n"
    "Your task is provided as follows:\n"
    "Text Caption: [{prompt}]"
)

_GRADE = re.compile(
    # "**Final Score:** ", "Final Score (1-5): "
    r"final\s+score[^\w+.\-]*(?:\(\s*1\s*[-\u2013]\s*5\s*\)[^\w+.\-]*)?"
    r"(?P<value>\d+(?:\.\d+)?)(?:\s*(?:/|out\s+of)\s*5(?:\.0+)?)?"  # "4", "3.5", "4/5"
    r"(?![\w%]|[.,]\d|\s*(?:[-\u2013/]|to\b|out\s+of\b)\s*\d)",  # not "45%", "4,5", "3-4", "4/10"
    re.IGNORECASE,
)


def parse_score(text: str) -> float:
    """The number after the last "Final Score:" of a review; NaN if there is none from 1 to 5.

    A missing, unreadable or impossible grade is not the worst grade, so it is NaN and never 0.
    """

    mentions = [match.start() for match in re.finditer(r"final\s+score", text, re.IGNORECASE)]
    match = _GRADE.match(text, mentions[-1]) if mentions else None
    value = math.nan if match is None else float(match["value"])
    return value if _LOW <= value <= _HIGH else math.nan


@register("unified-reward")
class UnifiedReward(Reward):
    r"""UnifiedReward, point score: the grade from 1 to 5 at the end of a generated review.

    The review is the most likely text token by token, so that equal calls give equal grades; one of
    the published scripts samples instead. A review without a grade gives NaN, so that the caller
    reports image and prompt; some training codes make it 0, the worst reward there is. Grades are
    coarse, and there is no gradient.

    Arguments:
        path: Directory with the model, or ``hf://owner/name``; None is the published model. Read at
            the first score, in bfloat16 unless cast.
        model: A vision-language model, instead, such as ``load_vlm(path, max_new_tokens=1024)`` for
            longer reviews.

    Raises:
        TypeError: If `path` and `model` are both given.
        FileNotFoundError: If there is no model at `path`.
        ValueError: When called: if `model` does not return one text per image.

    References:
        | Unified Reward Model for Multimodal Understanding and Generation (Wang et al., 2025),
          arXiv:2503.05236
    """

    depends_on = ()

    spec = RewardSpec(
        name="unified-reward",
        title="UnifiedReward, point score",
        differentiable=False,
        needs_prompt=True,
        code_license="MIT",
        weights_license="unknown",
        commercial_use=None,
        formula="the number after 'Final Score:' in a generated review",
        preprocessing="the model's own, on 8 bits",
        typical_range=(_LOW, _HIGH),
        published_scale="1 to 5; some training codes divide by 5",
        files=(RewardFile(name="config.json", source="hf://CodeGoat24/UnifiedReward-qwen-7b"),),
        citation="Wang et al., 2025, arXiv:2503.05236",
        parity="not run here: the published model has 7e9 parameters",
    )

    def __init__(
        self,
        path: PathLike | None = None,
        model: VisionLanguageModel | None = None,
    ) -> None:
        super().__init__()
        if path is None and model is None:
            (file,) = self.spec.files
            path = file.source
        self.model = choose_vlm(model, path)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        instructions = [_INSTRUCTION.replace("{prompt}", prompt) for prompt in prompts]
        reviews = self.model.generate(images, instructions)
        if len(reviews) != len(images):
            raise ValueError(
                f"model.generate must return one text per image, {len(images)}, got {len(reviews)}"
            )
        grades = [parse_score(review) for review in reviews]
        return torch.tensor(grades, dtype=working_dtype(images.dtype), device=images.device)
