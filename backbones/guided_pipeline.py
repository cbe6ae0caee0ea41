"""A guided pipeline for `custom_pipeline=` of diffusers, from the file of a bank or of a network.

.. code-block:: python

    pipe = DiffusionPipeline.from_pretrained(
        "path/to/z-image-turbo",
        custom_pipeline=backbones.guided_pipeline.__file__,
        trust_remote_code=True,  # this very file; diffusers asks for it
        bank="bank.safetensors",
        nats=1.0,
    )
    pipe("a cat", guidance_scale=0.0).images

The pipeline is of the class that its folder names, as without `custom_pipeline`, and guided as by
:func:`backbones.guide`. diffusers copies the file to a folder of its own, so that it stands alone.
"""

import inspect
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from rwguidance import Bank, ConditionalExpectation, ImportanceSampling, Tilt
from rwguidance.estimators import LearnedExpectation, LearnedShift
from rwguidance.support.outside import require

__all__ = ["GuidedPipeline", "estimator_of"]


def estimator_of(
    bank: Any, nats: float | None, network: Any, strength: float | None, device: Any
) -> ConditionalExpectation:
    """Returns the estimator of a file.

    Arguments:
        bank: A bank that holds rewards, or its file; None takes the network.
        nats: The divergence of the tilted law from the model's, by which beta is chosen.
        network: A guidance network, or its file or name; None takes the bank.
        strength: The strength of a network that takes one.
        device: Device of the bank or of the network, which is that of the pipeline; None is the
            CPU.

    Raises:
        ValueError: If there is not one of bank and network, a bank comes without `nats` or holds
            no rewards, or an argument is for the other one.
    """

    if (bank is None) == (network is None):
        raise ValueError("a guided pipeline takes either bank= or network=, the path of a file")
    device = "cpu" if device is None else device
    if network is not None:
        from rwguidance import networks

        if nats is not None:
            raise ValueError(f"nats is for a bank, a network may take strength=, got nats={nats}")
        found: Any = network
        if not isinstance(network, torch.nn.Module):
            found = networks.load(network, device)
        module = found if strength is None else found.at(strength)
        return LearnedExpectation(module) if found.output == "log_h" else LearnedShift(module)
    if nats is None or strength is not None:
        raise ValueError(
            "a bank takes nats=, how far the tilted law may be from the model's, and no strength, "
            f"got nats={nats}, strength={strength}"
        )
    held = bank if isinstance(bank, Bank) else Bank.load(bank, device)
    if held.rewards is None:
        raise ValueError(
            "the bank must hold rewards: save it with bank.scored(tilt).save(path), got one that "
            "was not scored"
        )
    return ImportanceSampling(held, Tilt.for_kl(_scored_before, held, nats))


def _scored_before(images: Tensor, prompts: Any) -> Tensor:
    raise ValueError("this bank holds its rewards, and has no reward to ask")


def _guided_pipeline_class() -> type:
    diffusers = require("diffusers", "guided pipelines need", "backbones")
    base: Any = diffusers.DiffusionPipeline

    class GuidedPipeline(base):  # type: ignore[misc]
        """A pipeline of any class, which guides itself.

        Arguments:
            bank: Path of a bank that holds rewards; or a bank.
            nats: The divergence of the tilted law from the model's, with a bank.
            network: Path of a guidance network; or the network.
            strength: The strength of a network that takes one.
            device: Device of the bank or of the network, which is that of the pipeline.
            scale: Factor of the shift.
            window: Closed interval of times (low, high) in which to guide.
            plain: Class and settings of the pipeline, as its folder states them.
            components: Components of the pipeline.
        """

        _optional_components = ["components"]  # diffusers asks for one of this name  # noqa: RUF012

        def __new__(cls, **given: Any) -> Any:
            from rwguidance.backbones import guide

            names = ("bank", "nats", "network", "strength", "device")
            estimator = estimator_of(**{name: given.pop(name, None) for name in names})
            keywords = {name: given.pop(name) for name in ("scale", "window") if name in given}
            name, settings = given.pop("plain")
            given.pop("components", None)
            missing = getattr(diffusers, name)._optional_components
            parts = {part: given.get(part) for part in {*given, *missing}}
            return guide(getattr(diffusers, name)(**parts, **settings), estimator, **keywords)

        def __init__(
            self,
            bank: Any = None,
            nats: float | None = None,
            network: Any = None,
            strength: float | None = None,
            device: Any = None,
            scale: float = 1.0,
            window: tuple[float, float] = (0.0, 1.0),
            plain: Any = None,
            **components: Any,
        ) -> None:
            raise NotImplementedError  # what is made is of another class

        @classmethod
        def extract_init_dict(cls, config_dict: Any, **kwargs: Any) -> Any:
            name = config_dict["_class_name"]
            found, unused, hidden = getattr(diffusers, name).extract_init_dict(
                config_dict, **kwargs
            )
            parts = {k: v for k, v in found.items() if isinstance(v, list | tuple) and len(v) == 2}
            settings = {k: v for k, v in found.items() if k not in parts}
            return {**parts, "plain": (name, settings)}, unused, hidden

        @classmethod
        def _get_signature_types(cls) -> Any:
            return defaultdict(lambda: (inspect.Signature.empty,))

    return GuidedPipeline


GuidedPipeline = _guided_pipeline_class()
"""The class that diffusers finds in this file."""
