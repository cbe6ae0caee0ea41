"""ImageReward: a BLIP that reads the prompt while looking at the image, trained on preferences."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwguidance.support.outside import on_hub

from .base import Reward, RewardFile, RewardSpec
from .loading import (
    PathLike,
    assign_weights,
    build_tokenizer,
    empty_weights,
    find_file,
    local,
    read_config,
    read_weights,
    reading,
    require,
)
from .preprocessing import CLIP_MEAN, CLIP_STD, Mode, center_crop, check_mode, normalize
from .registry import register
from .towers import AffineHead, checkpoint_layers
from .vocabulary import check_published, check_vocabulary

__all__ = ["ImageReward"]

_MEAN, _STD = 0.16717362830052426, 1.0333394966054072
"""Mean and standard deviation of the raw output over the authors' validation images."""

_TOKENS = 35
"""Prompts are cut after this many tokens."""


@register("imagereward")
class ImageReward(Reward):
    r"""ImageReward v1.0: a linear head on BLIP's [CLS] token, standardized.

    The text tower attends to the image, so that embeddings of prompts cannot be cached;
    :meth:`score_matrix` encodes each image once.

    Arguments:
        path: Directory with ``ImageReward.pt``, ``med_config.json`` and the tokenizer's
            ``vocab.txt`` (in it, or in a folder ``bert-base-uncased`` within), or the weights
            within one, or ``hf://...``; None is the published model.
        tokenizer: Directory with ``vocab.txt``, if it is elsewhere.
        preprocessing: ``"reference"`` or ``"fast"``, see :func:`rewards.preprocessing.resize`.
        gradient_checkpointing: Whether both towers save memory in the backward pass.
        verify: Whether the tokenizer must be that of bert-base-uncased, as it was published.

    Raises:
        FileNotFoundError: If a file is missing; says where to get it.
        ValueError: If a file does not hold what it should, or `preprocessing` is unknown.

    References:
        | ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation
          (Xu et al., 2023), arXiv:2304.05977
    """

    depends_on = ("mode", "tokenizer")

    takes_levels = True

    spec = RewardSpec(
        name="imagereward",
        title="ImageReward v1.0",
        differentiable=True,
        needs_prompt=True,
        code_license="Apache-2.0",
        weights_license="Apache-2.0",
        commercial_use=True,
        formula="(linear layers on BLIP's [CLS] - 0.16717) / 1.03334",
        preprocessing="8-bit bicubic to 224 on the shorter side, central 224 x 224",
        context_length=_TOKENS,
        typical_range=(-2.3, 2.0),
        published_scale="standardized: mean 0, standard deviation 1 on the authors' images",
        files=(
            RewardFile(name="ImageReward.pt", source="hf://THUDM/ImageReward"),
            RewardFile(name="med_config.json", source="hf://THUDM/ImageReward"),
            RewardFile(name="vocab.txt", source="hf://google-bert/bert-base-uncased"),
        ),
        parity="2e-6; image-reward 1.5",
        citation="Xu et al., 2023, arXiv:2304.05977",
    )

    def __init__(
        self,
        path: PathLike | None = None,
        tokenizer: PathLike | None = None,
        preprocessing: Mode = "reference",
        gradient_checkpointing: bool = False,
        verify: bool = True,
    ) -> None:
        super().__init__()
        check_mode(preprocessing)
        transformers = require("transformers", self.spec.name)
        file = find_file(self.spec, self.spec.file("ImageReward.pt"), path)
        folder = file.parent if path is not None and not on_hub(path) else path
        config = find_file(self.spec, self.spec.file("med_config.json"), folder)
        words = _find_words(self.spec, folder if tokenizer is None else tokenizer)
        weights = read_weights(file)
        part = lambda prefix: {
            name.removeprefix(prefix): value
            for name, value in weights.items()
            if name.startswith(prefix)
        }

        vision = {_vision_name(name): v for name, v in part("blip.visual_encoder.").items()}
        self.image: Any = _build_vision(transformers, vision, file)
        width = self.image.config.hidden_size
        options = read_config(config)
        with reading(config):
            self.text: Any = _build_text(transformers, options, width)
        assign_weights(self.image, vision, file)
        text = part("blip.text_encoder.")
        assign_weights(self.text, text, file, ignored=("position_ids",))
        self.head = AffineHead(part("mlp."), file)
        self.head.check_width(self.text.config.hidden_size, file)
        self.tokenizer = _load_tokenizer(transformers, words)
        check_vocabulary(self.tokenizer, self.text.config.vocab_size, words)
        if verify:
            check_published(self.tokenizer, self.text.config.vocab_size, words)
        self.mode: Mode = preprocessing
        self.straight_through = preprocessing == "reference"
        if gradient_checkpointing:
            checkpoint_layers(self.image.encoder.layers)
            checkpoint_layers(self.text.encoder.layer)

    def preprocess(self, images: Tensor) -> Tensor:
        images = center_crop(images, self.image.config.image_size, self.mode, half_up=True)
        return normalize(images, CLIP_MEAN, CLIP_STD)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return (self._raw(self._look(images), prompts) - _MEAN) / _STD

    def logits(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self._raw(self._look(images), prompts)

    def _matrix(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        seen = self._look(pixels)
        columns = [self._raw(seen, [prompt] * len(pixels)) for prompt in prompts]
        return (torch.stack(columns, dim=1) - _MEAN) / _STD

    def _look(self, images: Tensor) -> Tensor:
        """Embeddings of the patches, with shape (B, patches + 1, D)."""

        patches: Tensor = self.image(pixel_values=images).last_hidden_state
        return patches

    def _raw(self, patches: Tensor, prompts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=_TOKENS, return_tensors="pt"
        ).to(patches.device)
        read = self.text(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=patches,
        )
        values: Tensor = self.head(read.last_hidden_state[:, 0])
        return values


def _vision_name(name: str) -> str:
    """The name in transformers of a parameter of BLIP's own vision transformer."""

    for pattern, replacement in (
        (r"^blocks\.", "encoder.layers."),
        (r"\.attn\.qkv\.", ".self_attn.qkv."),
        (r"\.attn\.proj\.", ".self_attn.projection."),
        (r"\.norm([12])\.", r".layer_norm\1."),
        (r"^norm\.", "post_layernorm."),
        (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
        (r"^cls_token$", "embeddings.class_embedding"),
        (r"^pos_embed$", "embeddings.position_embedding"),
    ):
        name = re.sub(pattern, replacement, name)
    return name


def _build_vision(transformers: Any, weights: Mapping[str, Tensor], where: Path) -> Any:
    """A vision transformer of the size of `weights`; heads are 64 wide, as in all of BLIP's."""

    try:
        width, _, patch, _ = weights["embeddings.patch_embedding.weight"].shape
        positions = weights["embeddings.position_embedding"].shape[1]
        hidden = weights["encoder.layers.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{where} does not hold an ImageReward: no vision transformer") from error
    layers = {name.split(".")[2] for name in weights if name.startswith("encoder.layers.")}
    config = transformers.BlipVisionConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, width // 64),
        image_size=patch * round((positions - 1) ** 0.5),
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    with empty_weights():
        return transformers.BlipVisionModel(config)


def _build_text(transformers: Any, med: Mapping[str, Any], vision_width: int) -> Any:
    same = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "hidden_act",
        "layer_norm_eps",
        "vocab_size",
    )
    config = transformers.BlipTextConfig(
        **{name: med[name] for name in same},
        encoder_hidden_size=vision_width,
        is_decoder=True,  # which is what adds the attention to the image
    )
    with empty_weights():
        return transformers.BlipTextModel(config, add_pooling_layer=False)


def _find_words(spec: RewardSpec, folder: PathLike | None) -> Path:
    place = local(folder)
    inner = isinstance(place, Path) and place / "bert-base-uncased"
    return find_file(spec, spec.file("vocab.txt"), inner if inner and inner.is_dir() else place)


def _load_tokenizer(transformers: Any, words: Path) -> Any:
    tokenizer = build_tokenizer(transformers.BertTokenizerFast, [words])
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return tokenizer
