r"""Changes of low rank: kept so while a network is trained, and written as a LoRA.

The change of each matrix, and of each kernel as a matrix of its outputs by everything else, is
replaced by the nearest one of small rank every few steps, and vectors are set back. So what is
trained is a LoRA from the beginning, but steps are those of the whole matrices: their size does not
depend on how a change is written as a product.

References:
    | LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., 2021), arXiv:2106.09685
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from rwguidance.support.outside import require

__all__ = ["lora_layers", "project", "write"]


@torch.no_grad()
def project(module: nn.Module, base: nn.Module, rank: int) -> float:
    """Replaces the changes of all weights by the nearest ones of a rank, those of vectors by none.

    Arguments:
        module: Module, changed in place.
        base: The same module before its training.
        rank: The rank.

    Returns:
        Share of the changes of matrices, by their norm, that is lost.
    """

    lost = total = 0.0
    for weight, before in zip(module.parameters(), base.parameters(), strict=True):
        if weight.ndim < 2:
            weight.copy_(before)
            continue
        change = (weight - before).flatten(1).double()
        if min(change.shape) > rank:
            nearest = _nearest(change, rank)
            weight.copy_(before + nearest.reshape(weight.shape).to(weight.dtype))
            lost += float((change - nearest).square().sum())
        total += float(change.square().sum())
    return (lost / total) ** 0.5 if total else 0.0


def _nearest(matrix: Tensor, rank: int) -> Tensor:
    """Returns the nearest matrix of a rank, by its smaller square, much faster than all factors."""

    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    leading = torch.linalg.eigh(wide @ wide.T).eigenvectors[:, -rank:]
    nearest = leading @ (leading.T @ wide)
    return nearest if wide is matrix else nearest.T


@torch.no_grad()
def lora_layers(module: nn.Module, base: nn.Module, rank: int) -> dict[str, Tensor]:
    """Returns the changes of all linear and convolutional layers as products, in half precision.

    Names are those of peft: the layer's and ``.lora_A.weight``, with as many outputs as the rank,
    or ``.lora_B.weight``, from these to the layer's outputs. A kernel's first factor has its shape
    in space, the second is one of 1 x 1. Both are equally large, so that neither is rounded to
    nothing.

    Arguments:
        module: Module whose changes have that rank, see :func:`project`.
        base: The same module before its training.
        rank: The rank.
    """

    found: dict[str, Tensor] = {}
    before = dict(base.named_modules())
    for name, layer in module.named_modules():
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            continue
        old = before[name].get_parameter("weight")
        change = (layer.weight - old).flatten(1).double()
        left, values, right = torch.linalg.svd(change, full_matrices=False)
        root = values[:rank].sqrt()
        down, up = root[:, None] * right[:rank], left[:, :rank] * root
        missing = rank - len(root)  # of layers that have fewer inputs or outputs
        down, up = nn.functional.pad(down, (0, 0, 0, missing)), nn.functional.pad(up, (0, missing))
        found[f"{name}.lora_A.weight"] = down.view(rank, *old.shape[1:]).half()
        found[f"{name}.lora_B.weight"] = up.view(-1, rank, *(1,) * (old.ndim - 2)).half()
    return {name: value.contiguous() for name, value in found.items()}


def write(folder: Path, unet: nn.Module, base: nn.Module, rank: int) -> None:
    """Writes the change of a UNet as diffusers does, so that ``load_lora_weights`` reads it.

    Arguments:
        folder: Folder to write to.
        unet: UNet of a StableDiffusionXLPipeline, whose changes have that rank.
        base: The same UNet before its training.
        rank: The rank.
    """

    diffusers = require("diffusers", "the test bed needs", "backbones")
    diffusers.StableDiffusionXLPipeline.save_lora_weights(
        folder, unet_lora_layers=lora_layers(unet, base, rank), safe_serialization=True
    )
