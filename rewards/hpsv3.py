r"""HPSv3: a vision-language model that reads a rubric and gives a mean and a spread of preference.

The hidden state of one token, ``<|Reward|>``, goes through a small network with two outputs, the
mean and the logarithm of the standard deviation of what people would say. Attention is causal, so
the hidden state knows nothing of what comes after that token, padding included.
"""

import ast
import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from rwguidance.support.files import read_regular
from rwguidance.support.outside import on_hub

from .base import Reward, RewardFile, RewardSpec
from .loading import (
    PathLike,
    assign_weights,
    empty_weights,
    find_file,
    local,
    read_config,
    read_weights,
    require,
)
from .preprocessing import CLIP_MEAN, CLIP_STD, Mode, check_mode, normalize, resize
from .registry import register
from .towers import WideModule
from .vlm import LazyModule

__all__ = ["HPSv3", "read_template"]

_PIXELS = 256 * 28 * 28
"""Area that every image is brought close to."""

_REWARD = "<|Reward|>"
_PROMPT = "{text_prompt}"

_CODE = "https://raw.githubusercontent.com/MizzenAI/HPSv3/d232ff8669a0b00759766067c6c3a26e2e717fac"


@register("hpsv3")
class HPSv3(LazyModule, Reward):
    r"""HPSv3, the mean :math:`\mu` of the preference that a fine-tuned Qwen2-VL-7B predicts.

    The checkpoint holds the whole model. What it lacks comes from two other places: the
    architecture and the tokenizer from Qwen2-VL-7B-Instruct, and the rubric from the published
    code, whose file is read and never executed. All of it is read at the first score; files that
    should be in a local directory are looked for at once.

    Runs in bfloat16 unless it is cast, as the published model does; the head stays in float32.
    Images are resized as the reference does with PIL, to about 200,704 pixels with sides that are
    multiples of 28. The published code was not made for transformers 5, and its own differentiable
    mode resizes differently, without antialiasing.

    **Not verified**, for want of the published weights: that the names in the checkpoint are those
    that transformers 4.45 or 4.52 gives to this model (both are accepted, and anything else is
    refused), that the tokenizer with one more token has as many tokens as the embedding has rows
    (otherwise refused), and the score itself.

    Arguments:
        path: ``HPSv3.safetensors``, or a directory with it and the other files, or ``hf://...``;
            None is the published model.
        base: Directory with ``config.json`` and ``tokenizer.json`` of Qwen2-VL-7B-Instruct, if they
            are elsewhere.
        template: The rubric, if it is elsewhere: ``data_collator_qwen.py`` of the published code,
            or a text file, see :func:`read_template`.
        preprocessing: ``"reference"`` or ``"fast"``, see :func:`rewards.preprocessing.resize`.

    Raises:
        FileNotFoundError: If a file is missing; says where to get it.
        ValueError: If `preprocessing` is unknown. At the first score, if a file does not hold what
            it should, or a prompt holds a token with a special meaning.
        ImportError: At the first score, if transformers is missing or too old.

    References:
        | HPSv3: Towards Wide-Spectrum Human Preference Score (Ma et al., 2025), arXiv:2508.03789
    """

    depends_on = ("mode", "network", "_words", "_rubric")

    spec = RewardSpec(
        name="hpsv3",
        title="HPSv3",
        differentiable=True,
        needs_prompt=True,
        code_license="MIT",
        weights_license="unknown",
        commercial_use=None,
        formula="mean predicted by an MLP on a hidden state of Qwen2-VL-7B",
        preprocessing="8-bit bicubic to about 256 * 28 * 28 pixels, sides multiples of 28",
        typical_range=(-2.0, 14.0),
        published_scale="mean of the authors' benchmark: 5.3 for SD3 Medium, 10.4 for FLUX.1 dev",
        files=(
            RewardFile(name="HPSv3.safetensors", source="hf://MizzenAI/HPSv3"),
            RewardFile(name="config.json", source="hf://Qwen/Qwen2-VL-7B-Instruct"),
            RewardFile(name="tokenizer.json", source="hf://Qwen/Qwen2-VL-7B-Instruct"),
            RewardFile(
                name="data_collator_qwen.py",
                source=f"{_CODE}/hpsv3/dataset/data_collator_qwen.py",
            ),
        ),
        citation="Ma et al., 2025, arXiv:2508.03789",
        parity="not run here: the published model has 8e9 parameters",
    )

    def __init__(
        self,
        path: PathLike | None = None,
        base: PathLike | None = None,
        template: PathLike | None = None,
        preprocessing: Mode = "reference",
    ) -> None:
        super().__init__(torch.bfloat16)
        check_mode(preprocessing)
        self.mode: Mode = preprocessing
        self.straight_through = preprocessing == "reference"
        folder = None
        path = local(path)
        if isinstance(path, Path):
            folder = path if path.is_dir() else path.parent
        self._paths: dict[str, PathLike | None] = {
            "HPSv3.safetensors": path,
            "config.json": folder if base is None else base,
            "tokenizer.json": folder if base is None else base,
            "data_collator_qwen.py": folder if template is None else template,
        }
        for name, place in self._paths.items():
            if place is not None and not on_hub(place):
                find_file(self.spec, self.spec.file(name), place)

    def preprocess(self, images: Tensor) -> Tensor:
        resized = resize(images, _target_size(*images.shape[-2:]), self.mode)
        return normalize(resized, CLIP_MEAN, CLIP_STD)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self._outputs(images, prompts)[:, 0]

    def logits(self, images: Tensor, prompts: Sequence[str]) -> NoReturn:
        raise TypeError(
            "hpsv3 was trained on preferences between two normal variables, which are no softmax "
            "of its values; compare the values themselves"
        )

    def build(self) -> nn.Module:
        transformers = require("transformers", self.spec.name)
        weights = _standard_names(read_weights(self._find("HPSv3.safetensors")))
        where = self._paths["HPSv3.safetensors"] or self.spec.file("HPSv3.safetensors").source
        try:
            rows, width = weights["backbone.language_model.embed_tokens.weight"].shape
        except (KeyError, ValueError) as error:
            raise ValueError(f"{where} does not hold an HPSv3: no embedding of tokens") from error
        if rows != self._words.get_vocab_size():
            raise ValueError(
                f"{where} is for {rows} tokens, but tokenizer.json and {_REWARD} make "
                f"{self._words.get_vocab_size()}; pass that of Qwen2-VL-7B-Instruct as base="
            )
        options = read_config(self._find("config.json"))
        config = transformers.Qwen2VLConfig(**{**options, "vocab_size": rows})
        with empty_weights():
            network = _Network(transformers.Qwen2VLModel(config), _Head(width))
        if not hasattr(network.backbone, "language_model"):
            raise ImportError(
                "hpsv3 needs transformers 4.52 or newer, got " + transformers.__version__
            )
        # In the names of this module: the head is rm_head in the file, the backbone all the rest.
        assign_weights(network, weights, where, keep_dtype=True)
        return network

    def _outputs(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Mean and logarithm of the standard deviation, with shape (B, 2)."""

        network = self.network
        vision = network.backbone.config.vision_config
        patch, merge = vision.patch_size, vision.spatial_merge_size
        rows, columns = (side // patch for side in images.shape[-2:])
        patches = _patches(images, patch, merge, vision.temporal_patch_size)

        size = (rows // merge, columns // merge)
        texts = [self._tokens(prompt, math.prod(size)) for prompt in prompts]
        longest = max(map(len, texts))
        place = images.device
        ids = torch.tensor([[*t, *[0] * (longest - len(t))] for t in texts], device=place)
        first, *_ = texts
        start = first.index(self._id("<|image_pad|>"))
        positions = _positions(longest, start, size).to(place)
        hidden = network.backbone(
            input_ids=ids,
            position_ids=positions[:, None].expand(3, len(ids), longest),
            pixel_values=patches,
            image_grid_thw=torch.tensor([[1, rows, columns]] * len(ids), device=place),
            use_cache=False,
        ).last_hidden_state
        index = [t.index(self._id(_REWARD)) for t in texts]
        outputs: Tensor = network.head(hidden[range(len(ids)), index])
        return outputs

    def _tokens(self, prompt: str, n: int) -> list[int]:
        """Tokens of the chat about one image, which itself takes `n` tokens."""

        special = [t.content for t in self._words.get_added_tokens_decoder().values() if t.special]
        if held := [token for token in special if token in prompt]:
            raise ValueError(f"prompts must not hold {held[0]}, which has a special meaning here")
        text = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            f"<|vision_start|>{'<|image_pad|>' * n}<|vision_end|>"
            f"{self._rubric.replace(_PROMPT, prompt)}<|im_end|>\n<|im_start|>assistant\n"
        )
        ids: list[int] = self._words.encode(text, add_special_tokens=False).ids
        return ids

    def _id(self, token: str) -> int:
        number = self._words.token_to_id(token)
        if number is None:
            raise ValueError(f"tokenizer.json must hold the token {token}, as Qwen2-VL's does")
        return int(number)

    @cached_property
    def _words(self) -> Any:
        tokenizer = require("tokenizers", self.spec.name).Tokenizer
        words = tokenizer.from_file(str(self._find("tokenizer.json")))
        words.add_special_tokens([_REWARD])
        return words

    @cached_property
    def _rubric(self) -> str:
        return read_template(self._find("data_collator_qwen.py"))

    def _find(self, name: str) -> Path:
        return find_file(self.spec, self.spec.file(name), self._paths[name])


def read_template(path: PathLike) -> str:
    """The rubric that HPSv3 was trained with, which belongs to its authors and is not copied here.

    Arguments:
        path: ``hpsv3/dataset/data_collator_qwen.py`` of https://github.com/MizzenAI/HPSv3, whose
            constants `INSTRUCTION` and `prompt_with_special_token` are read, not executed; or a
            text file with the two of them joined.

    Returns:
        The text, with ``{text_prompt}`` where the prompt goes, and ``<|Reward|>`` after it.

    Raises:
        ValueError: If it does not hold each of the two once, in this order.
    """

    text = read_regular(path).decode()
    if Path(path).suffix == ".py":
        constants = _string_constants(text, path)
        try:
            text = constants["INSTRUCTION"] + constants["prompt_with_special_token"]
        except KeyError as error:
            raise ValueError(f"{path} must assign a string to {error.args[0]}") from None
    if [text.count(_PROMPT), text.count(_REWARD)] != [1, 1]:
        raise ValueError(f"{path} must hold {_PROMPT} once and {_REWARD} once")
    if text.index(_PROMPT) > text.index(_REWARD):
        raise ValueError(f"{path} must hold {_REWARD} after {_PROMPT}: it knows what it follows")
    return text


class _Head(WideModule):
    """Mean and log standard deviation from a hidden state (B, D), in float32, shape (B, 2)."""

    depends_on = ()

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.ReLU(),
            nn.Identity(),  # dropout in training, which counts in the names
            nn.Linear(1024, 16),
            nn.ReLU(),
            nn.Linear(16, 2),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.layers(hidden.to(next(self.parameters()).dtype))
        return values


class _Network(nn.Module):
    depends_on = ()

    def __init__(self, backbone: Any, head: _Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head


def _standard_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our names, from those of transformers before and since 4.52.

    The language model's own output layer, `lm_head`, is not used.
    """

    rules = (
        (r"^rm_head\.", "head.layers."),
        (r"^(model\.)?visual\.", "backbone.visual."),
        (r"^model\.(language_model\.)?", "backbone.language_model."),
    )
    renamed = {}
    for name, value in weights.items():
        if name == "lm_head.weight":
            continue
        for pattern, replacement in rules:
            new, count = re.subn(pattern, replacement, name)
            if count:
                break
        # The head is wide, whatever the file was compressed to.
        renamed[new] = value.float() if new.startswith("head.") else value
    return renamed


def _target_size(height: int, width: int) -> tuple[int, int]:
    """Height and width that Qwen2-VL's rule gives for `_PIXELS` as both lower and upper limit."""

    if max(height, width) > 200 * min(height, width):
        raise ValueError(
            f"images must not be more than 200 times as long as wide, got {height} x {width}"
        )
    rows, columns = (round(side / 28) * 28 for side in (height, width))
    area = rows * columns
    if area == _PIXELS:
        return rows, columns
    if area > _PIXELS:
        shrink = math.sqrt(height * width / _PIXELS)
        return math.floor(height / shrink / 28) * 28, math.floor(width / shrink / 28) * 28
    grow = math.sqrt(_PIXELS / (height * width))
    return math.ceil(height * grow / 28) * 28, math.ceil(width * grow / 28) * 28


def _patches(images: Tensor, patch: int, merge: int, frames: int) -> Tensor:
    """Patches in the order in which Qwen2-VL merges them, each as if of a still film.

    Arguments:
        images: Images with shape (B, 3, H, W), H and W multiples of `patch * merge`.
        patch: Side of a patch, in pixels.
        merge: Side of the square of patches that become one token, in patches.
        frames: Number of equal frames in a patch.

    Returns:
        Patches with shape (B * patches, 3 * frames * patch * patch).
    """

    b, _, height, width = images.shape
    side = patch * merge
    x = images.reshape(b, 3, height // side, merge, patch, width // side, merge, patch)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)[:, :, :, :, :, :, None]
    x = x.expand(*x.shape[:6], frames, patch, patch)
    return x.reshape(b * (height // patch) * (width // patch), 3 * frames * patch * patch)


def _positions(n: int, start: int, size: tuple[int, int]) -> Tensor:
    """Positions in time, row and column of `n` tokens, with shape (3, n).

    Text counts in all three at once. The tokens of an image share one time, and count rows and
    columns from there; the text after it goes on behind the largest of them.

    Arguments:
        n: Number of tokens.
        start: Index of the first token of the image.
        size: Rows and columns of the image, in tokens.
    """

    rows, columns = size
    before = torch.arange(start).expand(3, start)
    grid = torch.stack(
        [
            torch.zeros(rows, columns, dtype=torch.long),
            torch.arange(rows)[:, None].expand(rows, columns),
            torch.arange(columns).expand(rows, columns),
        ]
    ).flatten(1)
    rest = n - start - rows * columns
    after = torch.arange(rest).expand(3, rest) + max(rows, columns)
    return torch.cat([before, start + grid, start + after], dim=1)


def _string_constants(source: str, path: object) -> dict[str, str]:
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is not a file of Python") from error
    return {
        target.id: statement.value.value
        for statement in statements
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        for target in statement.targets
        if isinstance(target, ast.Name) and isinstance(statement.value.value, str)
    }
