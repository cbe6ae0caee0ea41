"""Vision-language models behind one protocol, for rewards that ask questions about an image.

Such models weigh tens of gigabytes, so nothing is imported, read or fetched before the first
score. Any object that implements :class:`VisionLanguageModel` will do in place of :func:`load_vlm`,
such as one that asks a server.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rwguidance.support.outside import on_hub, split_hub

from .images import to_pil
from .loading import PathLike, local, require

__all__ = [
    "LazyModule",
    "TransformersVLM",
    "VisionLanguageModel",
    "choose_vlm",
    "load_vlm",
]

_WHO = "vision-language model"


class VisionLanguageModel(nn.Module, ABC):
    """A model that reads images and text, and writes text."""

    depends_on: ClassVar[tuple[str, ...]]
    """Names of the attributes that decide results, see :mod:`rwguidance.support.fingerprint`."""

    @abstractmethod
    def token_log_probs(
        self, images: Tensor, questions: Sequence[str], answers: Sequence[str]
    ) -> list[Tensor]:
        """Log-probabilities of the tokens of given answers, each after those before it.

        Arguments:
            images: Images in [0, 1], sRGB, with shape (B, 3, H, W).
            questions: One question per image, as a user would write it; a chat template is the
                model's own.
            answers: One answer per image.

        Returns:
            One tensor per image, in float32 or wider, in nats, with shape (T,), where T is the
            number of tokens of its answer. A token that ends the answer does not count.
        """

    @abstractmethod
    def generate(self, images: Tensor, instructions: Sequence[str]) -> list[str]:
        """The most likely continuation token by token, without randomness, one text per image.

        Arguments:
            images: Images in [0, 1], sRGB, with shape (B, 3, H, W).
            instructions: One instruction per image.
        """

    def log_likelihood(
        self, images: Tensor, questions: Sequence[str], answers: Sequence[str]
    ) -> Tensor:
        """Log-probability of each answer, in nats, with shape (B,); the sum over its tokens.

        Arguments are those of :meth:`token_log_probs`.
        """

        return torch.stack([x.sum() for x in self.token_log_probs(images, questions, answers)])


class LazyModule(nn.Module, ABC):
    """A module that builds its network at the first use, where it has been moved to until then.

    Arguments:
        dtype: Precision that the network is cast to, unless this module is cast before or after.
    """

    depends_on: ClassVar[tuple[str, ...]]
    """Names of the attributes that decide results, see :mod:`rwguidance.support.fingerprint`."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("_place", torch.empty(0, dtype=dtype), persistent=False)
        self._place: Tensor
        self._network: nn.Module | None = None

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, read from its files, on the CPU."""

    @property
    def network(self) -> Any:
        """The network, frozen and in eval mode."""

        if self._network is None:
            # Weights born in inference mode could not serve a later call that needs gradients.
            with torch.inference_mode(False):
                network = self.build().to(device=self._place.device, dtype=self._place.dtype)
            self._network = network.eval().requires_grad_(False)
        return self._network


class TransformersVLM(LazyModule, VisionLanguageModel):
    """A vision-language model of transformers, with the processor and chat template it came with.

    Read at the first use. Runs where it is moved to, in the precision it is cast to, before or
    after it is read; a reward that holds it takes it along. Code that comes with a model is never
    executed, so it must be one of those that transformers knows, with weights in safetensors.

    Images are rounded to 8 bits and given to the processor as PIL images, so there is no gradient.
    Prompts of different lengths are padded on the left.

    Arguments:
        path: A directory with the model and its processor, or ``hf://owner/name[@revision]``.
        dtype: Precision that the model is cast to. A model of 7e9 parameters takes 15 GB in
            bfloat16, and twice that in float32.
        max_new_tokens: Largest number of tokens that :meth:`generate` writes.

    Raises:
        FileNotFoundError: If there is no model in the directory.
        ValueError: If `max_new_tokens` is not positive. At the first use, if there is no chat
            template, or the model does not continue its prompt.
        ImportError: At the first use, if transformers is missing.
    """

    depends_on = ("network", "processor", "max_new_tokens")

    def __init__(
        self,
        path: PathLike,
        dtype: torch.dtype = torch.bfloat16,
        max_new_tokens: int = 512,
    ) -> None:
        super().__init__(dtype)
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        path = local(path) or path
        if not on_hub(path) and not (Path(path) / "config.json").is_file():
            raise FileNotFoundError(
                f"{path} must be a directory with a model of transformers (config.json, "
                "model*.safetensors, and the files of its processor), or hf://owner/name"
            )
        self.path = os.fspath(path)
        self.max_new_tokens = max_new_tokens
        self._processor: Any = None

    def build(self) -> nn.Module:
        transformers = require("transformers", _WHO)
        # The name of this argument has changed; without it, one version takes what the file has,
        # and the other float32.
        if not hasattr(transformers, "AutoModelForImageTextToText"):
            raise ImportError(
                f"a {_WHO} needs transformers 4.46 or later, got {transformers.__version__}"
            )
        dtype = "dtype" if int(transformers.__version__.partition(".")[0]) >= 5 else "torch_dtype"
        model: nn.Module = self._load(
            transformers.AutoModelForImageTextToText,
            use_safetensors=True,
            **{dtype: self._place.dtype},
        )
        if getattr(model.config, "is_encoder_decoder", False):
            raise ValueError(
                f"{self.path} must be a model that continues its prompt, but it has an encoder and "
                "a decoder"
            )
        return model

    @property
    def processor(self) -> Any:
        """The processor, which pads on the left.

        Raises:
            ValueError: If it has no chat template.
        """

        if self._processor is None:
            processor = self._load(require("transformers", _WHO).AutoProcessor)
            if not getattr(processor, "chat_template", None):
                raise ValueError(
                    f"{self.path} must have a chat template, to know how it was taught to be asked"
                )
            processor.tokenizer.padding_side = "left"
            if processor.tokenizer.pad_token is None:
                processor.tokenizer.pad_token = processor.tokenizer.eos_token
            self._processor = processor
        return self._processor

    @torch.no_grad()
    def token_log_probs(
        self, images: Tensor, questions: Sequence[str], answers: Sequence[str]
    ) -> list[Tensor]:
        inputs = self._inputs(images, questions)
        tokenizer = self.processor.tokenizer
        # Tokenized by themselves: no token may straddle the end of the question.
        tokens = [tokenizer(a, add_special_tokens=False).input_ids for a in answers]
        if not all(tokens):
            raise ValueError("answers must hold at least one token each, got an empty one")
        lengths = [len(t) for t in tokens]
        longest = max(lengths)
        pad = lambda rows, value: inputs["input_ids"].new_tensor(
            [[*row, *[value] * (longest - len(row))] for row in rows]
        )
        ids = pad(tokens, tokenizer.pad_token_id)
        mask = pad([[1] * n for n in lengths], 0)
        shape = inputs["input_ids"].shape
        for name, value in list(inputs.items()):
            if isinstance(value, Tensor) and value.shape == shape:
                more = {"input_ids": ids, "attention_mask": mask}.get(name, torch.zeros_like(ids))
                inputs[name] = torch.cat([value, more.to(value.dtype)], dim=1)

        logits = self.network(**inputs).logits
        # The logits at one position are of the token at the next.
        log_probs = logits[:, -longest - 1 : -1].float().log_softmax(-1)
        chosen = log_probs.gather(-1, ids[..., None])[..., 0]
        return [row[:n] for row, n in zip(chosen, lengths, strict=True)]

    @torch.no_grad()
    def generate(self, images: Tensor, instructions: Sequence[str]) -> list[str]:
        inputs = self._inputs(images, instructions)
        written = self.network.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=self.max_new_tokens,
            pad_token_id=self.processor.tokenizer.pad_token_id,
        )
        new = written[:, inputs["input_ids"].shape[1] :]
        texts: list[str] = self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        return texts

    def _inputs(self, images: Tensor, texts: Sequence[str]) -> dict[str, Any]:
        chats = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
            for text in texts
        ]
        asked = [
            self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            for chat in chats
        ]
        start = self.processor.tokenizer.bos_token
        inputs = self.processor(
            text=asked,
            images=[[image] for image in to_pil(images)],
            padding=True,
            # Some templates write the token that starts a text, and it must not be there twice.
            add_special_tokens=start is None or not asked[0].startswith(start),
            return_tensors="pt",
        )
        device, dtype = self._place.device, self._place.dtype
        move = lambda x: x.to(device, dtype) if x.is_floating_point() else x.to(device)
        return {k: move(v) if isinstance(v, Tensor) else v for k, v in inputs.items()}

    def _load(self, factory: Any, **options: Any) -> Any:
        """The product of `factory` and the files; code that comes with them is never executed."""

        if not on_hub(self.path):
            options["local_files_only"] = True
            return factory.from_pretrained(self.path, trust_remote_code=False, **options)
        repository, revision = split_hub(self.path)
        return factory.from_pretrained(
            repository, revision=revision, trust_remote_code=False, **options
        )


def load_vlm(
    path: PathLike, dtype: torch.dtype = torch.bfloat16, max_new_tokens: int = 512
) -> VisionLanguageModel:
    """A model of transformers; arguments and errors are those of :class:`TransformersVLM`."""

    return TransformersVLM(path, dtype, max_new_tokens)


def choose_vlm(model: VisionLanguageModel | None, path: PathLike | None) -> VisionLanguageModel:
    """The model that a reward was given, or the one at `path`.

    Raises:
        TypeError: If not exactly one of them is given, or `model` implements another protocol.
        FileNotFoundError: If there is no model at `path`.
    """

    if (model is None) == (path is None):
        raise TypeError("exactly one of path and model must be given, to know what to ask")
    if path is not None:
        return load_vlm(path)
    if not isinstance(model, VisionLanguageModel):
        raise TypeError(
            "model must be a rewards.vlm.VisionLanguageModel, such as rewards.vlm.load_vlm(path), "
            f"got {type(model).__name__}"
        )
    return model
