"""CLIPScore: how well CLIP thinks that a caption describes an image."""

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor

from .base import RewardSpec
from .clip import ClipReward, clean, clip_files
from .loading import PathLike
from .preprocessing import Mode
from .registry import register

__all__ = ["CLIPScore", "Scaling"]

Scaling = Literal["hessel", "percent", "logit"]
"""Which of the numbers that go by this name:

- ``"hessel"``: the paper's, 2.5 max(cos, 0), of the prompt after "A photo depicts ", cleaned as
  OpenAI's tokenizer does;
- ``"percent"``: 100 cos, of the bare prompt. TorchMetrics reports this, clamped at 0 in the mean;
- ``"logit"``: exp(logit_scale) cos, of the bare prompt, as CLIP was trained.
"""


@register("clipscore")
class CLIPScore(ClipReward):
    r"""CLIPScore in one of its three published scalings.

    The published tower is OpenAI's ViT-B/32, as in the paper; TorchMetrics uses
    ``hf://openai/clip-vit-large-patch14``.

    Arguments:
        scaling: Scale of the cosine, one of :data:`Scaling`.

    The other arguments and the errors are those of :class:`rewards.clip.ClipReward`.

    References:
        | CLIPScore: A Reference-free Evaluation Metric for Image Captioning (Hessel et al., 2021),
          arXiv:2104.08718
    """

    depends_on = ("mode", "scaling")

    spec = RewardSpec(
        name="clipscore",
        title="CLIPScore",
        differentiable=True,
        needs_prompt=True,
        code_license="MIT",
        weights_license="MIT",
        commercial_use=None,  # CLIP's model card rules deployment out, its license does not
        formula="2.5 * max(cos(image, 'A photo depicts ' + prompt), 0)",
        preprocessing="8-bit bicubic to 224 on the shorter side, central 224 x 224",
        context_length=77,
        typical_range=(0.5, 0.9),
        published_scale="hessel: 2.5 max(cos, 0); percent: 100 cos; logit: exp(logit_scale) cos",
        files=clip_files("hf://openai/clip-vit-base-patch32"),
        parity="3e-7; openai-clip 1.0.1",
        citation="Hessel et al., 2021, arXiv:2104.08718",
    )

    half_up = True

    def __init__(
        self,
        path: PathLike | None = None,
        scaling: Scaling = "hessel",
        tokenizer: PathLike | None = None,
        preprocessing: Mode = "reference",
        gradient_checkpointing: bool = False,
        cache_size: int = 4096,
        verify: bool = True,
    ) -> None:
        if scaling not in get_args(Scaling):
            raise ValueError(f"scaling must be one of {get_args(Scaling)}, got {scaling!r}")
        super().__init__(path, tokenizer, preprocessing, gradient_checkpointing, cache_size, verify)
        self.scaling = scaling

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        if self.scaling == "hessel":  # the paper's code used OpenAI's tokenizer, the others did not
            prompts = [clean("A photo depicts " + prompt) for prompt in prompts]
        return super().embed_prompts(prompts)

    def value(self, cosine: Tensor) -> Tensor:
        if self.scaling == "hessel":
            return 2.5 * cosine.clamp(min=0)
        return 100 * cosine if self.scaling == "percent" else self.logit_scale(cosine)
