"""PickScore: a CLIP trained on which of two images people pick."""

from torch import Tensor

from .base import RewardSpec
from .clip import ClipReward, clip_files
from .registry import register

__all__ = ["PickScore"]


@register("pickscore")
class PickScore(ClipReward):
    r"""PickScore v1, :math:`e^s \cos(e_x, e_y)` with the learned logit scale s.

    The softmax over images of one prompt is the probability to be picked, see :meth:`prefer`.

    Arguments and errors are those of :class:`rewards.clip.ClipReward`.

    References:
        | Pick-a-Pic: An Open Dataset of User Preferences for Text-to-Image Generation
          (Kirstain et al., 2023), arXiv:2305.01569
    """

    depends_on = ("mode",)

    spec = RewardSpec(
        name="pickscore",
        title="PickScore v1",
        differentiable=True,
        needs_prompt=True,
        code_license="MIT",
        weights_license="unknown",
        commercial_use=None,
        formula="exp(logit_scale) * cos(image, prompt)",
        preprocessing="8-bit bicubic to 224 on the shorter side, central 224 x 224",
        context_length=77,
        typical_range=(17.0, 24.0),
        published_scale="raw; some training codes divide by 26",
        files=clip_files(
            "hf://yuvalkirstain/PickScore_v1", "hf://laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
        ),
        parity="3e-5 on scores up to 33 (3e-7 in the cosine); transformers 4.46.3",
        citation="Kirstain et al., 2023, arXiv:2305.01569",
    )

    half_up = False

    def value(self, cosine: Tensor) -> Tensor:
        return self.logit_scale(cosine)
