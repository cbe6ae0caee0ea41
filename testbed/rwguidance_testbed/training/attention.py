r"""Attention for training: without the fused kernel, whose backward pass is slow on a CPU.

StableDiffusion3Pipeline without a third text encoder appends `max_sequence_length` zeros to the
tokens of the prompt. They stay equal to each other in every block, and n equal keys weigh as much
as one whose logit is larger by :math:`\log n`. So a network that shall do its work with any number
of them is trained on one of them, with a number drawn for every sample.
"""

from typing import Any

import torch
from torch import Tensor

from rwguidance.support.outside import require

__all__ = ["CountedAttention", "unfuse_attention", "unfused_processor"]


class CountedAttention:
    """Joint attention of SD3 in which the last token of the prompt counts several times.

    It equals ``JointAttnProcessor2_0`` of diffusers if the count is one. It forms the matrix of
    weights.

    Arguments:
        log_count: Logarithm of how often the last token of the prompt stands there, with shape
            (B,); None is once. It may be set between calls.
    """

    def __init__(self, log_count: Tensor | None = None) -> None:
        self.log_count = log_count

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
    ) -> tuple[Tensor, Tensor]:
        tokens = hidden_states.shape[1]
        heads = lambda x: x.unflatten(2, (attn.heads, -1)).transpose(1, 2)
        norm = lambda layer, x: x if layer is None else layer(x)
        join = lambda image, text: torch.cat((image, text), dim=2)
        query = join(
            norm(attn.norm_q, heads(attn.to_q(hidden_states))),
            norm(attn.norm_added_q, heads(attn.add_q_proj(encoder_hidden_states))),
        )
        key = join(
            norm(attn.norm_k, heads(attn.to_k(hidden_states))),
            norm(attn.norm_added_k, heads(attn.add_k_proj(encoder_hidden_states))),
        )
        value = join(heads(attn.to_v(hidden_states)), heads(attn.add_v_proj(encoder_hidden_states)))
        logits = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
        if self.log_count is not None:
            last = torch.nn.functional.pad(self.log_count[:, None], (logits.shape[-1] - 1, 0))
            logits = logits + last[:, None, None].to(logits.dtype)
        mixed = (logits.softmax(dim=-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)
        image, text = mixed[:, :tokens], mixed[:, tokens:]
        if not attn.context_pre_only:
            text = attn.to_add_out(text)
        return attn.to_out[1](attn.to_out[0](image)), text


def unfuse_attention(model: Any) -> None:
    """Lets a model of transformers form its matrices of attention weights."""

    model.config._attn_implementation = "eager"


def unfused_processor() -> Any:
    """Returns a processor of attention of diffusers that forms the matrix of weights."""

    module = "diffusers.models.attention_processor"
    return require(module, "the test bed needs", "backbones").AttnProcessor()
