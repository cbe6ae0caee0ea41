"""Embeddings: normalized in float32 or wider, whatever the dtype of the towers."""

import pytest
import torch
import transformers
from torch.testing import assert_close

from common import randn
from rewards.clip import ImageTower
from rewards.towers import AffineHead, LogitScale, unit


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_embeddings_are_normalized_in_float32_or_wider(dtype):
    embedding = (7 * randn(0, 8, 768)).to(dtype)
    exact = embedding.double() / embedding.double().norm(dim=-1, keepdim=True)
    found = unit(embedding)
    working = torch.float64 if dtype == torch.float64 else torch.float32
    assert found.dtype == working
    # A norm of 768 squares, its root and one division: rounding alone, 2e-3 in bfloat16.
    bound = 8 * torch.finfo(working).eps
    assert float(((found.double() - exact) / exact).abs().max()) <= bound


def test_a_learned_scale_is_no_parameter_and_trains_no_other():
    learned = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float16))
    scale = LogitScale(learned)
    x = randn(0, 3).float().requires_grad_()
    value = scale(x)
    assert_close(value.detach(), x.detach() * torch.tensor(2.0).exp())
    assert not list(scale.parameters())
    assert not scale.log_scale.requires_grad
    assert_close(torch.autograd.grad(value.sum(), x)[0], value.detach() / x.detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_head_of_several_layers_is_rounded_once(dtype):
    sizes = ((5, 7), (3, 5), (1, 3))
    w1, w2, w3 = (randn(i, *size).to(dtype) for i, size in enumerate(sizes))
    b1, b2, b3 = (randn(i + 3, size[0]).to(dtype) for i, size in enumerate(sizes))
    layers = {"4.weight": w3, "4.bias": b3, "0.weight": w1, "0.bias": b1}
    head = AffineHead({**layers, "n.2.weight": w2, "n.2.bias": b2}, "a file")
    w1, w2, w3, b1, b2, b3 = (part.double() for part in (w1, w2, w3, b1, b2, b3))
    rounding = torch.finfo(torch.float32).eps
    assert_close(head.weight, (w3 @ w2 @ w1)[0].float(), rtol=rounding, atol=0)
    assert_close(head.bias, (w3 @ (w2 @ b1 + b2) + b3)[0].float(), rtol=rounding, atol=0)
    embedding = randn(6, 4, 7).to(dtype)
    exact = embedding.double() @ head.weight.double() + head.bias.double()
    assert_close(head(embedding), exact.float(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cosines_of_half_precision_embeddings_keep_the_spread_of_rewards(dtype):
    # Towers of one model point one way: cosines differ in the third digit, as rewards do.
    mean = randn(1, 1, 768)
    pictures, prompts = ((mean + 0.1 * randn(seed, 32, 768)).to(dtype) for seed in (2, 3))
    exact = torch.cosine_similarity(pictures.double(), prompts.double(), dim=-1)
    error = (unit(pictures) * unit(prompts)).sum(-1).double() - exact
    assert float(error.abs().max()) <= 1e-3 * float(exact.std())


def test_a_tower_that_skips_what_is_not_pooled_embeds_as_the_whole_one():
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=8,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        model = transformers.CLIPVisionModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.2, generator=generator)
    images = randn(1, 3, 3, 32, 32).float()
    whole = model(pixel_values=images).pooler_output.detach()
    inner = getattr(model, "vision_model", model)  # before transformers 5
    skipping = ImageTower(inner, torch.nn.Identity())(images).detach()
    assert float(whole.std(0).mean()) > 0.1  # pictures differ
    assert_close(skipping, whole)
