"""The conformance check of generators."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbone import Generator
from ..support.conditions import take
from ..support.randomness import generator_for
from .requirements import Select, require, require_same, require_tensor, tolerance_for, untouched

__all__ = ["check_generator"]


def check_generator(
    generator: Generator,
    prompts: Sequence[str],
    differentiable: bool = True,
    select: Select = take,
    seed: int = 0,
) -> None:
    """Checks that a generator makes pictures of noise and prompts alone, sample by sample.

    Arguments:
        generator: The generator, in eval mode.
        prompts: At least two prompts, not all the same.
        differentiable: Whether a gradient must reach the noise.
        select: A function from (condition, indices) to the condition of those samples.
        seed: Seed of the noise.

    Raises:
        AssertionError: If the generator breaks the contract of :class:`rwguidance.Generator`.
    """

    name, n = type(generator).__name__, len(prompts)
    require(isinstance(generator, Generator), f"expected a Generator, got {name}")
    require(len(set(prompts)) > 1, f"prompts must hold two that differ, got {list(prompts)}")
    condition = generator.condition(prompts)
    require(len(condition) == n, f"{name}.condition must have a length, {n}, got {len(condition)}")

    noise = _check_noise(name, generator, n, seed)
    with torch.no_grad(), untouched(f"{name}.generate", noise=noise):
        x_0 = generator(noise, condition)
        again = generator(noise, condition)
        alone = [generator(noise[i : i + 1], select(condition, [i])) for i in range(n)]
        rolled = generator(noise, select(condition, [*range(1, n), 0]))
        images = generator.decode(x_0)
    require_tensor(f"{name}.generate", x_0, (n, *x_0.shape[1:]), noise.dtype)
    tolerance = tolerance_for(noise)
    as_dict = lambda x: {"x_0": x}
    same = lambda other, why: require_same(
        as_dict(x_0), as_dict(other), tolerance, f"{name}: {why}"
    )
    same(again, "two equal calls must agree; call .eval(), and draw no random numbers")
    same(torch.cat(alone), "a sample must not depend on the others of its batch")
    require(
        not torch.equal(rolled, x_0),
        f"{name} must depend on its condition, but permuting the prompts changes nothing",
    )
    require_tensor(f"{name}.decode", images, (n, 3, *images.shape[2:]))
    require(
        bool(((images >= 0) & (images <= 1)).all()), f"{name}.decode must return images in [0, 1]"
    )
    if differentiable:
        _check_gradient(name, generator, noise, condition)


def _check_noise(name: str, generator: Generator, n: int, seed: int) -> Tensor:
    """Checks that noise follows its sources and has its standard deviation; returns some."""

    sources = lambda: [generator_for(seed, i) for i in range(n)]
    noise = generator.draw_noise(n, sources())
    require_tensor(f"{name}.draw_noise", noise, (n, *noise.shape[1:]))
    last = generator.draw_noise(1, sources()[-1])
    require(
        torch.equal(last, noise[-1:]),
        f"{name}.draw_noise must take one source per sample, and draw nothing from elsewhere; "
        "rwguidance.support.randomness.normal does",
    )
    many = generator.draw_noise(4096, generator_for(seed, "std")).double()
    std, size = float(many.std()), many.numel()
    error = 5 / (2 * size) ** 0.5  # five standard errors of a standard deviation
    require(
        abs(std / generator.std - 1) < error and float(many.mean().abs()) < 5 * std / size**0.5,
        f"{name}.draw_noise must be centered, with standard deviation std = {generator.std}, got "
        f"mean {float(many.mean()):.3g} and standard deviation {std:.3g}",
    )
    return noise


def _check_gradient(name: str, generator: Generator, noise: Tensor, condition: object) -> None:
    z = noise.clone().requires_grad_()
    images = generator.decode(generator(z, condition))
    gradient = None
    if images.requires_grad:
        (gradient,) = torch.autograd.grad(images.sum(), z, allow_unused=True)
    require(
        gradient is not None and bool((gradient != 0).any()),
        f"{name} must carry gradients from the noise to its pictures; is there a detach, or a "
        "no_grad? If it cannot, say differentiable=False",
    )
