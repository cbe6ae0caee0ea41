"""HPSv2: a CLIP trained on human preferences, in its two published versions."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import RewardFile, RewardSpec
from .loading import PathLike, assign_weights, empty_weights, find_file, read_weights, require
from .preprocessing import CLIP_MEAN, CLIP_STD, letterbox, normalize
from .registry import register
from .towers import EmbeddingReward, checkpoint_layers

__all__ = ["HPSv2", "HPSv21"]

Architecture = str | Mapping[str, Any]


class _HPS(EmbeddingReward):
    """HPSv2 in both its versions, which differ in their weights alone."""

    def __init__(
        self,
        path: PathLike | None = None,
        architecture: Architecture = "ViT-H-14",
        gradient_checkpointing: bool = False,
        cache_size: int = 4096,
        verify: bool = True,
    ) -> None:
        open_clip = require("open_clip", self.spec.name)
        published = self.spec.files[0]
        file = find_file(self.spec, published, path, verify and architecture == "ViT-H-14")
        with empty_weights():
            model = _build(open_clip, architecture)
        assign_weights(model, read_weights(file), file)
        super().__init__(model.logit_scale, cache_size)
        self.model: Any = model
        self.tokenizer = _tokenizer(open_clip, architecture)
        size = model.visual.image_size
        self.size: int = max(size) if isinstance(size, Sequence) else size
        if gradient_checkpointing:
            checkpoint_layers(model.visual.transformer.resblocks)

    def preprocess(self, images: Tensor) -> Tensor:
        return normalize(letterbox(images, self.size), CLIP_MEAN, CLIP_STD)

    def embed_images(self, images: Tensor) -> Tensor:
        embedded: Tensor = self.model.encode_image(images.to(self.model.logit_scale.dtype))
        return embedded

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(prompts)).to(self.model.logit_scale.device)
        return _encode_text(self.model, tokens)

    def value(self, cosine: Tensor) -> Tensor:
        return cosine


def _spec(name: str, title: str, file: str, md5: str, low: float, high: float) -> RewardSpec:
    return RewardSpec(
        name=name,
        title=title,
        differentiable=True,
        needs_prompt=True,
        code_license="Apache-2.0",
        weights_license="Apache-2.0",
        commercial_use=True,
        formula="cos(image, prompt), without the logit scale",
        preprocessing="bicubic in floats to 224 on the longer side, black bars to 224 x 224",
        context_length=77,
        typical_range=(low, high),
        published_scale="raw; benchmark tables show 100 times that",
        files=(RewardFile(name=file, source="hf://xswu/HPSv2", digest=f"md5:{md5}"),),
        parity="2e-7; hpsv2 1.2.0",
        citation="Wu et al., 2023, arXiv:2306.09341",
    )


@register("hpsv2")
class HPSv2(_HPS):
    r"""HPSv2.0, the cosine of the embeddings of image and prompt, without a scale.

    Comparable only among images of one prompt, and not with HPSv2.1. :meth:`prefer` multiplies by
    the logit scale of the training, as preferences were learned with it.

    Arguments:
        path: The file ``HPS_v2_compressed.pt`` with open_clip's names, a directory that holds it,
            or ``hf://...``; None is the published one.
        architecture: Name of an open_clip configuration, or the configuration itself as a mapping
            of `embed_dim`, `vision_cfg`, `text_cfg`.
        gradient_checkpointing: Whether the image tower saves memory in the backward pass.
        cache_size: Number of prompts whose embeddings are kept.
        verify: Whether to compare the digest of a file for the published architecture.

    Raises:
        FileNotFoundError: If the file is missing; says where to get it.
        ValueError: If the file does not hold what it should, or the architecture is unknown.

    References:
        | Human Preference Score v2: A Solid Benchmark for Evaluating Human Preferences of
          Text-to-Image Synthesis (Wu et al., 2023), arXiv:2306.09341
    """

    depends_on = ("tokenizer", "size")

    spec = _spec(
        "hpsv2", "HPSv2.0", "HPS_v2_compressed.pt", "fd9180de357abf01fdb4eaad64631db4", 0.23, 0.29
    )


@register("hpsv2.1")
class HPSv21(_HPS):
    """HPSv2.1: as :class:`HPSv2`, with the weights of ``HPS_v2.1_compressed.pt``."""

    depends_on = ("tokenizer", "size")

    spec = _spec(
        "hpsv2.1",
        "HPSv2.1",
        "HPS_v2.1_compressed.pt",
        "4067542e34ba2553a738c5ac6c1d75c0",
        0.14,
        0.34,
    )


def _build(open_clip: Any, architecture: Architecture) -> Any:
    if isinstance(architecture, Mapping):
        config = dict(architecture)
    else:
        config = open_clip.get_model_config(architecture)
        if config is None:
            raise ValueError(
                f"architecture must be a configuration of open_clip, got {architecture!r}; "
                "open_clip.list_models() names them, and a mapping describes one of your own"
            )
    # Not open_clip.create_model, which moves the model and so cannot build one without weights.
    custom = config.pop("custom_text", False)
    return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)


def _tokenizer(open_clip: Any, architecture: Architecture) -> Any:
    if isinstance(architecture, Mapping):
        length = architecture["text_cfg"].get("context_length", 77)
        return open_clip.SimpleTokenizer(context_length=length)
    return open_clip.get_tokenizer(architecture)


def _encode_text(model: Any, tokens: Tensor) -> Tensor:
    """Embeddings as of `model.encode_text`, without computing the padding after the longest prompt.

    The text tower is causal and read at the last token of the prompt, which has the largest id, so
    that what comes after does not matter. That costs more than the prompt itself, usually.
    """

    if getattr(model, "text_pool_type", None) != "argmax":
        encoded: Tensor = model.encode_text(tokens)
        return encoded
    end = tokens.argmax(-1)
    length = int(end.max()) + 1
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)[torch.arange(len(x), device=x.device), end]
    return (
        model.text_projection(x) if callable(model.text_projection) else x @ model.text_projection
    )
