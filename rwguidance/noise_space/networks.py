r"""Generators with a network beside them: changed noise, :math:`G(z + d(z, y), y)`, or output.

A network gives a change of the state that it sees, such as
:class:`rwguidance.networks.GuidanceNetwork` with ``output="change"``. It is called as all guidance
networks are, with states, times and condition: noise at the time 1, clean states at the time 0.
:mod:`rwguidance.training.one_step` trains both kinds. What they make is a generator as any other,
for the methods of this package and :func:`rwguidance.noise_space.draw_bank`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..support import checks
from .generators import Generate

__all__ = ["change_map", "noise_map", "output_map"]


def change_of(network: nn.Module, states: Tensor, time: float, condition: Any) -> Tensor:
    r"""Returns the change that a network wants of states.

    Arguments:
        network: A network from (states, times, condition) to changes of the shape of the states.
        states: Noise or clean states, with shape (B, \*event).
        time: 1 for noise, 0 for clean states.
        condition: Conditions of the B states.

    Raises:
        ValueError: If the network returns another shape.
    """

    times = torch.full((len(states),), time, dtype=torch.float64, device=states.device)
    change: Tensor = network(states, times, condition)
    if change.shape != states.shape:
        raise ValueError(
            "network must return a change of the shape of the state, "
            f"{tuple(states.shape)}, got {tuple(change.shape)}"
        )
    return change.to(states.dtype)


def noise_map(generate: Generate, network: nn.Module) -> Generate:
    r"""Makes the generator :math:`G(z + d(z, y), y)`; one pass of the network more.

    Arguments:
        generate: The generator G.
        network: The network for the change d of the noise.

    Raises:
        TypeError: If an argument is of the wrong kind.
    """

    _check(generate, network)
    return lambda noise, condition: generate(
        noise + change_of(network, noise, 1.0, condition), condition
    )


def output_map(generate: Generate, network: nn.Module) -> Generate:
    r"""Makes the generator :math:`x + f(x, y)`, where :math:`x = G(z, y)`.

    Arguments:
        generate: The generator G.
        network: The network for the change f of the clean state.

    Raises:
        TypeError: If an argument is of the wrong kind.
    """

    _check(generate, network)

    def changed(noise: Tensor, condition: Any) -> Tensor:
        x_0 = generate(noise, condition)
        return x_0 + change_of(network, x_0, 0.0, condition)

    return changed


def change_map(generate: Generate, network: nn.Module) -> Generate:
    r"""Makes the generator :math:`x + f(x, y)` with :math:`x = G(z + d(z, y), y)`.

    One network gives both changes, as :class:`rwguidance.training.GradientObjective` trains it.

    Arguments:
        generate: The generator G.
        network: The network for the changes d, at the time 1, and f, at the time 0.

    Raises:
        TypeError: If an argument is of the wrong kind.
    """

    return output_map(noise_map(generate, network), network)


def _check(generate: Callable[..., Any], network: nn.Module) -> None:
    checks.function("generate", generate)
    checks.instance("network", network, nn.Module, "a torch.nn.Module")
