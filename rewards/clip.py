"""Rewards on a CLIP as transformers saves it: a folder of configuration, weights, tokenizer."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from .base import RewardFile, RewardSpec
from .loading import (
    PathLike,
    assign_weights,
    build_tokenizer,
    empty_weights,
    find_file,
    find_weights,
    local,
    read_config,
    read_weights,
    reading,
    require,
)
from .preprocessing import CLIP_MEAN, CLIP_STD, Mode, center_crop, check_mode, normalize
from .towers import EmbeddingReward, checkpoint_layers
from .vocabulary import check_published, check_vocabulary

__all__ = [
    "ClipReward",
    "ImageTower",
    "TextTower",
    "clean",
    "clip_files",
    "load_clip",
    "load_tokenizer",
]


class ImageTower(nn.Module):
    """Pooled and projected embeddings of preprocessed images, (B, 3, S, S) -> (B, D)."""

    depends_on = ("size",)

    def __init__(self, model: Any, projection: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.projection = projection
        self.size: int = model.config.image_size
        # The rest of the last layer's output is not used, and is left wrong.
        *_, last = model.encoder.layers
        for part in (last.self_attn.out_proj, last.mlp):
            part.register_forward_pre_hook(_first_token)

    def forward(self, images: Tensor) -> Tensor:
        embedded: Tensor = self.projection(self.model(pixel_values=images).pooler_output)
        return embedded


class TextTower(nn.Module):
    """Pooled and projected embeddings of prompts, padded to the longest and cut at the limit."""

    depends_on = ("tokenizer", "limit")

    def __init__(self, model: Any, projection: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.model: Any = model
        self.projection = projection
        self.tokenizer = tokenizer
        self.limit: int = model.config.max_position_embeddings

    def forward(self, prompts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self.limit, return_tensors="pt"
        )
        tokens = tokens.to(next(self.parameters()).device)
        embedded: Tensor = self.projection(self.model(**tokens).pooler_output)
        return embedded


class ClipReward(EmbeddingReward):
    """A reward that depends on the cosine of CLIP's embeddings of image and prompt.

    Arguments:
        path: Directory that `CLIPModel.save_pretrained` and its processor wrote, or the weights
            within one, or ``hf://...``; None is the published model.
        tokenizer: Directory with vocab.json and merges.txt, or tokenizer.json, if they are not in
            `path`.
        preprocessing: ``"reference"`` or ``"fast"``, see :func:`rewards.preprocessing.resize`.
        gradient_checkpointing: Whether the image tower saves memory in the backward pass.
        cache_size: Number of prompts whose embeddings are kept.
        verify: Whether a tokenizer of the size of CLIP's must be CLIP's.

    Raises:
        FileNotFoundError: If a file is missing; says where to get it.
        ValueError: If a file does not hold what it should, or `preprocessing` is unknown.
    """

    takes_levels = True

    half_up: ClassVar[bool]
    """Rounding of the crop's margin, see :func:`rewards.preprocessing.center_crop`."""

    def __init__(
        self,
        path: PathLike | None = None,
        tokenizer: PathLike | None = None,
        preprocessing: Mode = "reference",
        gradient_checkpointing: bool = False,
        cache_size: int = 4096,
        verify: bool = True,
    ) -> None:
        check_mode(preprocessing)
        _, folder = _file_and_folder(path)
        origin = folder if tokenizer is None else tokenizer
        words = load_tokenizer(self.spec, origin)
        model = load_clip(self.spec, path, gradient_checkpointing)
        rows = model.config.text_config.vocab_size
        where = origin or self.spec.title
        check_vocabulary(words, rows, where)
        if verify:
            check_published(words, rows, where)
        super().__init__(model.logit_scale, cache_size)
        self.image = ImageTower(model.vision_model, model.visual_projection)
        self.text = TextTower(model.text_model, model.text_projection, words)
        self.mode: Mode = preprocessing
        self.straight_through = preprocessing == "reference"

    def preprocess(self, images: Tensor) -> Tensor:
        images = center_crop(images, self.image.size, self.mode, self.half_up)
        return normalize(images, CLIP_MEAN, CLIP_STD)

    def embed_images(self, images: Tensor) -> Tensor:
        return self.image(images)

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        return self.text(prompts)


def clip_files(repository: str, tokenizer: str | None = None) -> tuple[RewardFile, ...]:
    """The files of a CLIP that is published at ``hf://owner/repository``.

    Arguments:
        repository: Repository of configuration and weights.
        tokenizer: Repository of vocab.json and merges.txt, if it is another.
    """

    words = tokenizer or repository
    return (
        RewardFile(name="config.json", source=repository),
        RewardFile(name="model.safetensors", source=repository),
        RewardFile(name="vocab.json", source=words),
        RewardFile(name="merges.txt", source=words),
    )


def load_clip(spec: RewardSpec, path: PathLike | None, gradient_checkpointing: bool) -> Any:
    """A `CLIPModel` of transformers, in float32, without a second copy of its weights.

    Arguments:
        spec: The reward that is built; its files, as from :func:`clip_files`, say what is needed.
        path: A directory, a file of weights next to the rest, ``hf://...``, or None for the
            published files.
        gradient_checkpointing: Whether the image tower recomputes its activations in the backward
            pass, layer by layer, instead of keeping them.

    Raises:
        FileNotFoundError: If a file is missing; says where to get it.
        ValueError: If the weights do not fit the configuration.
    """

    transformers = require("transformers", spec.name)
    file, folder = _file_and_folder(path)
    config = find_file(spec, spec.file("config.json"), folder)
    weights = file or find_weights(spec, spec.file("model.safetensors"), folder)
    read_config(config)
    with empty_weights(), reading(config):
        model = transformers.CLIPModel(transformers.CLIPConfig.from_pretrained(config.parent))
    # Old checkpoints hold the positions 0, 1, ... as well.
    assign_weights(model, read_weights(weights), weights, ignored=("position_ids",))
    if gradient_checkpointing:
        checkpoint_layers(model.vision_model.encoder.layers)
    return model


def load_tokenizer(spec: RewardSpec, folder: PathLike | None) -> Any:
    """CLIP's tokenizer, without the cleaning that CLIP itself does.

    It is read from vocab.json and merges.txt, or from tokenizer.json if a local directory has only
    that.

    Arguments:
        spec: The reward that is built.
        folder: A directory, ``hf://...``, or None for the published files.

    Raises:
        FileNotFoundError: If a file is missing; says where to get it.
    """

    transformers = require("transformers", spec.name)
    names, place = ("vocab.json", "merges.txt"), local(folder)
    whole = isinstance(place, Path) and place / "tokenizer.json"
    if whole and whole.is_file() and not all((whole.parent / name).is_file() for name in names):
        words = [whole]
    else:
        words = [find_file(spec, spec.file(name), folder) for name in names]
    return build_tokenizer(transformers.CLIPTokenizerFast, words)


def clean(prompt: str) -> str:
    """Text as CLIP's own tokenizer cleans it: mended, HTML resolved, space collapsed, lower case.

    The tokenizer of transformers does not clean. On cleaned text the two agree.
    """

    ftfy = require("ftfy", "clipscore")
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return " ".join(text.split()).lower()


def _first_token(module: nn.Module, tokens: tuple[Tensor]) -> tuple[Tensor]:
    """The token that is pooled, of tokens (B, N, D); its result is added to all, which is cheap."""

    (hidden,) = tokens
    return (hidden[:, :1],)


def _file_and_folder(path: PathLike | None) -> tuple[Path | None, PathLike | None]:
    """The file of weights that a path names, if it does, and where the other files are."""

    place = local(path)
    if not isinstance(place, Path) or not place.is_file():
        return None, place
    return place, place.parent
