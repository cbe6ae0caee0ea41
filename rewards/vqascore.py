"""VQAScore: how likely a vision-language model says that the image shows the prompt."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rwguidance.schedules import working_dtype

from .base import Reward, RewardSpec
from .loading import PathLike
from .registry import register
from .vlm import VisionLanguageModel, choose_vlm

__all__ = ["VQAScore"]

_QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'


@register("vqascore")
class VQAScore(Reward):
    r"""Probability of the answer "Yes", by any vision-language model.

    .. math:: \exp \Big( \frac{1}{T} \sum_{t=1}^T \log p(a_t \mid a_{<t}, x, q) \Big) \in (0, 1]

    with the image x, the question q and the tokens a of the answer; for each image by itself. "Yes"
    is one token for most models, and then this is its probability.

    The published model, CLIP-FlanT5, is not a model of transformers, so another one takes its
    place, and **numbers of different models are not comparable**. The reference also counts the
    token that ends the answer, which a chat model need not write; this does not.

    Gradients reach the images if `model` lets them through; models of :func:`load_vlm` do not.

    Arguments:
        path: Directory with a model of transformers, or ``hf://owner/name``, read at the first
            score, in bfloat16 unless cast.
        model: A vision-language model, instead.
        question: The question, with ``{prompt}`` where the prompt goes.
        answer: The answer whose probability is the score.

    Raises:
        TypeError: If neither or both of `path` and `model` are given.
        FileNotFoundError: If there is no model at `path`.
        ValueError: If `question` does not hold ``{prompt}``, or `answer` is empty. When called: if
            `model` does not return what it should.

    References:
        | Evaluating Text-to-Visual Generation with Image-to-Text Generation (Lin et al., 2024),
          arXiv:2404.01291
    """

    depends_on = ("question", "answer")

    spec = RewardSpec(
        name="vqascore",
        title="VQAScore",
        differentiable=False,
        needs_prompt=True,
        code_license="Apache-2.0",
        weights_license="unknown",
        commercial_use=None,
        formula='exp(mean log-probability of the tokens of "Yes") after the question',
        preprocessing="the model's own, on 8 bits",
        typical_range=(0.0, 1.0),
        citation="Lin et al., 2024, arXiv:2404.01291",
        parity="not run here: the published model has 11e9 parameters",
    )

    def __init__(
        self,
        path: PathLike | None = None,
        model: VisionLanguageModel | None = None,
        question: str = _QUESTION,
        answer: str = "Yes",
    ) -> None:
        super().__init__()
        if "{prompt}" not in question:
            raise ValueError(f"question must hold {{prompt}} where the prompt goes: {question!r}")
        if not answer:
            raise ValueError("answer must hold at least one token, got an empty string")
        if path is None and model is None:
            raise TypeError(
                "vqascore needs a vision-language model: path= (a directory or hf://owner/name, "
                "such as hf://Qwen/Qwen2.5-VL-7B-Instruct) or model=; the published CLIP-FlanT5 is "
                "not a model of transformers"
            )
        self.model = choose_vlm(model, path)
        self.question, self.answer = question, answer

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        questions = [self.question.replace("{prompt}", prompt) for prompt in prompts]
        tokens = self.model.token_log_probs(images, questions, [self.answer] * len(questions))
        shapes = [tuple(log_probs.shape) for log_probs in tokens]
        if len(shapes) != len(images) or any(len(shape) != 1 or 0 in shape for shape in shapes):
            raise ValueError(
                "model.token_log_probs must return one tensor of shape (T,), T > 0, per image, "
                f"{len(images)}, got shapes {shapes}"
            )
        # Sums of float16 would lose digits.
        wide = working_dtype(*(log_probs.dtype for log_probs in tokens))
        return torch.stack([log_probs.to(wide).mean() for log_probs in tokens]).exp()
