"""Size of the image as a JPEG file: a reward without weights, and a black box."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rwguidance.support.checks import flag, integer

from .base import Reward, RewardSpec
from .images import to_pil
from .loading import require
from .registry import register

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["JPEG"]


@register("jpeg")
class JPEG(Reward):
    """Compressibility, minus the size of the JPEG file in kilobytes; or incompressibility, plus.

    Has no gradient. The size grows with the number of pixels: compare images of one size.

    Arguments:
        incompressible: Whether larger files are better.
        quality: JPEG quality, from 1 to 95; the references take 95.

    Raises:
        TypeError: If the quality is not an integer, or `incompressible` not True or False.
        ValueError: If the quality is out of range.

    References:
        | Training Diffusion Models with Reinforcement Learning (Black et al., 2023),
          arXiv:2305.13301
    """

    depends_on = ("sign", "quality")

    spec = RewardSpec(
        name="jpeg",
        title="JPEG compressibility",
        differentiable=False,
        needs_prompt=False,
        code_license="MIT",
        weights_license="none",
        commercial_use=True,
        formula="-kB of the JPEG file (1 kB is 1000 bytes); +kB if incompressible",
        preprocessing="rounded to 8 bits",
        typical_range=(-200.0, 0.0),
        published_scale="kB; some training codes divide by 500",
        parity="exact: it is the file's size",
        citation="Black et al., 2023, arXiv:2305.13301",
    )

    def __init__(self, incompressible: bool = False, quality: int = 95) -> None:
        super().__init__()
        self.sign = 1.0 if flag("incompressible", incompressible) else -1.0
        self.quality = integer("quality", quality, 1, 95)
        require("PIL", self.spec.name)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        sizes = [self._bytes(image) for image in to_pil(images)]
        return self.sign * torch.tensor(sizes, device=images.device) / 1000

    def extra_repr(self) -> str:
        return f"incompressible={self.sign > 0}, quality={self.quality}"

    def _bytes(self, image: "Image") -> int:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=self.quality)
        return file.tell()
