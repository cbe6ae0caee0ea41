"""Aesthetic predictors: a linear function of the embedding of the image alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .base import Reward, RewardFile, RewardSpec
from .clip import ImageTower, clip_files, load_clip
from .loading import (
    PathLike,
    assign_weights,
    empty_weights,
    find_file,
    find_weights,
    read_config,
    read_weights,
    reading,
    require,
)
from .preprocessing import CLIP_MEAN, CLIP_STD, Mode, center_crop, check_mode, normalize, squash
from .registry import register
from .towers import AffineHead, checkpoint_layers, unit

__all__ = ["Aesthetic", "AestheticV25"]


@register("aesthetic")
class Aesthetic(Reward):
    r"""LAION's aesthetic score, version 2: a head on the unit embedding of CLIP ViT-L/14.

    The published head is five linear layers with nothing between them, that is, one affine map:
    :math:`5.2366 + 17.9956 \cos(w, e_x)`.

    Arguments:
        path: The file of the head, or a directory that holds it; None is the published one.
        clip: Directory of the CLIP, as `CLIPModel.save_pretrained` writes it, or ``hf://...``. None
            is the directory of the head if `path` is given, and the published CLIP otherwise.
        preprocessing: ``"reference"`` or ``"fast"``, see :func:`rewards.preprocessing.resize`.
        gradient_checkpointing: Whether the image tower saves memory in the backward pass.
        verify: Whether to compare the digest of the head.

    Raises:
        FileNotFoundError: If a file is missing; says where to get it.
        ValueError: If a file does not hold what it should, or `preprocessing` is unknown.

    References:
        | LAION-5B: An Open Large-Scale Dataset for Training Next Generation Image-Text Models
          (Schuhmann et al., 2022), arXiv:2210.08402
    """

    depends_on = ("mode",)

    takes_levels = True

    spec = RewardSpec(
        name="aesthetic",
        title="LAION aesthetic v2",
        differentiable=True,
        needs_prompt=False,
        code_license="Apache-2.0",
        weights_license="Apache-2.0",
        commercial_use=None,  # CLIP's model card rules deployment out, its license does not
        formula="linear layers on the unit embedding: 5.2366 + 17.9956 cos(w, image)",
        preprocessing="8-bit bicubic to 224 on the shorter side, central 224 x 224",
        typical_range=(4.5, 7.0),
        published_scale="1 to 10",
        files=(
            RewardFile(
                name="sac+logos+ava1-l14-linearMSE.pth",
                source="https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
                "sac+logos+ava1-l14-linearMSE.pth",
                digest="sha256:21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
            ),
            *clip_files("hf://openai/clip-vit-large-patch14"),
        ),
        parity="5e-7, with the published head; openai-clip 1.0.1",
        citation="Schuhmann et al., 2022, arXiv:2210.08402",
    )

    def __init__(
        self,
        path: PathLike | None = None,
        clip: PathLike | None = None,
        preprocessing: Mode = "reference",
        gradient_checkpointing: bool = False,
        verify: bool = True,
    ) -> None:
        super().__init__()
        check_mode(preprocessing)
        file = find_file(self.spec, self.spec.files[0], path, verify)
        self.head = AffineHead(read_weights(file), file)
        folder = file.parent if clip is None and path is not None else clip
        model = load_clip(self.spec, folder, gradient_checkpointing)
        self.image = ImageTower(model.vision_model, model.visual_projection)
        self.head.check_width(model.config.projection_dim, file)
        self.mode: Mode = preprocessing
        self.straight_through = preprocessing == "reference"

    def preprocess(self, images: Tensor) -> Tensor:
        images = center_crop(images, self.image.size, self.mode, half_up=True)
        return normalize(images, CLIP_MEAN, CLIP_STD)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        values: Tensor = self.head(unit(self.image(images)))
        return values


@register("aesthetic-v2.5")
class AestheticV25(Reward):
    """Aesthetic predictor v2.5: a head that the user supplies, on the unit embedding of SigLIP.

    The code of the predictor is under the AGPL, and none of it is here; whether the head's weights
    are is for the user to find out. The head is linear layers with nothing between them.

    Arguments:
        path: The file of the head, ``aesthetic_predictor_v2_5.pth``, or a directory that holds it.
        siglip: Directory of ``google/siglip-so400m-patch14-384``, as `save_pretrained` writes it;
            None is the directory of the head.
        preprocessing: ``"reference"`` or ``"fast"``, see :func:`rewards.preprocessing.resize`.
        gradient_checkpointing: Whether the image tower saves memory in the backward pass.

    Raises:
        FileNotFoundError: If a file is missing; says where to get it.
        ValueError: If a file does not hold what it should, or `preprocessing` is unknown.
    """

    depends_on = ("mode",)

    takes_levels = True

    spec = RewardSpec(
        name="aesthetic-v2.5",
        title="Aesthetic predictor v2.5",
        differentiable=True,
        needs_prompt=False,
        code_license="AGPL-3.0-only",
        weights_license="unknown",
        commercial_use=None,
        formula="linear layers on the unit embedding of SigLIP so400m",
        preprocessing="8-bit bicubic to 384 x 384, whatever the proportions",
        typical_range=(1.0, 10.0),
        published_scale="1 to 10; above 5.5 is great",
        files=(
            RewardFile(
                name="aesthetic_predictor_v2_5.pth",
                source="https://github.com/discus0434/aesthetic-predictor-v2-5/raw/main/models/"
                "aesthetic_predictor_v2_5.pth",
            ),
            RewardFile(name="config.json", source="hf://google/siglip-so400m-patch14-384"),
            RewardFile(name="model.safetensors", source="hf://google/siglip-so400m-patch14-384"),
        ),
        parity="not compared: the reference is under the AGPL",
        citation="discus0434, 2024, https://github.com/discus0434/aesthetic-predictor-v2-5",
    )

    def __init__(
        self,
        path: PathLike,
        siglip: PathLike | None = None,
        preprocessing: Mode = "reference",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_mode(preprocessing)
        transformers = require("transformers", self.spec.name)
        head, config, weights = self.spec.files
        file = find_file(self.spec, head, path)
        self.head = AffineHead(read_weights(file), file)
        folder = siglip or file.parent
        config_file = find_file(self.spec, config, folder)
        self.image = _load_siglip(
            transformers, config_file, find_weights(self.spec, weights, folder)
        )
        self.head.check_width(self.image.config.hidden_size, file)
        self.mode: Mode = preprocessing
        self.straight_through = preprocessing == "reference"
        if gradient_checkpointing:
            layers = dict(self.image.named_modules())
            checkpoint_layers(next(v for k, v in layers.items() if k.endswith("encoder.layers")))

    def preprocess(self, images: Tensor) -> Tensor:
        images = squash(images, self.image.config.image_size, self.mode)
        return normalize(images, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        pooled = self.image(pixel_values=images).pooler_output
        values: Tensor = self.head(unit(pooled))
        return values


def _load_siglip(transformers: Any, config: Path, file: Path) -> Any:
    """The image tower alone, of a file that holds the text tower as well."""

    read_config(config)
    with empty_weights(), reading(config):
        full = transformers.SiglipConfig.from_pretrained(config.parent)
        model = transformers.SiglipVisionModel(full.vision_config)
    prefix = "vision_model."
    weights = {k: v for k, v in read_weights(file).items() if k.startswith(prefix)}
    if not any(name.startswith(prefix) for name in model.state_dict()):  # since transformers 5
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    assign_weights(model, weights, file)
    return model
