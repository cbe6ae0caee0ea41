r"""Muon: steps along the orthogonal factor of the momentum for matrices, Adam for all else."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = ["Muon", "groups", "orthogonal"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's, of the quintic iteration


class Muon(torch.optim.Optimizer):
    r"""Momentum whose matrices are made nearly orthogonal before the step.

    The update of a matrix is the orthogonal factor of its (Nesterov) momentum, scaled by
    :math:`0.2 \sqrt{\max(m, n)}` to have the size of Adam's, so that one learning rate serves
    both kinds of parameters.

    Arguments:
        parameters: Groups as :func:`groups` makes them, each with a flag "matrices".
        lr: Learning rate of both kinds.
        momentum: Momentum of the matrices.
        betas: Decay rates of Adam's moments.
        weight_decay: Decoupled weight decay of both kinds.

    References:
        | Muon: an optimizer for hidden layers in neural networks (Jordan et al., 2024)
        | Muon is Scalable for LLM Training (Liu et al., 2025), arXiv:2502.16982
    """

    def __init__(
        self,
        parameters: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            for p in weights:
                p.mul_(1 - group["lr"] * group["weight_decay"])
            (self._turn if group["matrices"] else self._adam)(weights, group)

    def _turn(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for p in weights:
            by_shape.setdefault(p.shape, []).append(p)
        for shape, some in by_shape.items():
            rows, columns = shape[0], shape[1:].numel()
            updates = []
            for p in some:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                gradient = cast(Tensor, p.grad)
                momentum.lerp_(gradient, 1 - group["momentum"])
                updates.append(torch.lerp(gradient, momentum, group["momentum"]))
            scale = group["lr"] * 0.2 * max(rows, columns) ** 0.5
            turned = orthogonal(torch.stack(updates).flatten(2))
            for p, update in zip(some, turned, strict=True):
                p.add_(update.unflatten(1, shape[1:]).to(p.dtype), alpha=-scale)

    def _adam(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        first, second = group["betas"]
        for p in weights:
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros(())
                state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
            state["step"] += 1
            state["mean"].lerp_(p.grad, 1 - first)
            state["square"].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
            count = float(state["step"])
            root = (state["square"] / (1 - second**count)).sqrt_().clamp_(min=1e-8)
            p.addcdiv_(state["mean"], root, value=-group["lr"] / (1 - first**count))


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Returns nearly the orthogonal factor of each matrix, singular values from 0.6 to 1.3.

    Arguments:
        matrices: Matrices with shape (B, m, n).
        steps: Steps of the Newton-Schulz iteration.

    Returns:
        Matrices of the same shape, in bfloat16.
    """

    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    norm = x.flatten(1).norm(dim=1).clamp(min=1e-30)
    x = (x / norm[:, None, None]).bfloat16()
    for _ in range(steps):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    return x.transpose(1, 2) if tall else x


def groups(modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """Returns parameters in two groups: the matrices inside blocks, and the others.

    A convolution counts as a matrix with a row for each of its output channels.

    Arguments:
        modules: Modules of the parameters; their blocks are in lists of modules.
    """

    matrices: dict[Tensor, None] = {}
    others: dict[Tensor, None] = {}
    for module in modules:
        for name, parameter in module.named_parameters():
            inside = any(part.isdigit() for part in name.split("."))
            matrix = inside and parameter.ndim in (2, 4)
            (matrices if matrix else others)[parameter] = None
    return [
        {"params": list(matrices), "matrices": True},
        {"params": list(others), "matrices": False},
    ]
