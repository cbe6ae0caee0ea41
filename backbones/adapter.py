"""What all adapters of pipelines share: a backbone that holds a pipeline of diffusers."""

from abc import ABC
from typing import Any, ClassVar

import torch
from torch import nn

from rwguidance import Schedule
from rwguidance.backbone import Backbone
from rwguidance.support import checks

__all__ = ["PipelineAdapter"]


class PipelineAdapter(Backbone, ABC):
    """A pipeline of diffusers as a model. Its weights are shared.

    Arguments:
        pipe: The pipeline.
        schedule: The path on which its network was trained.
        guidance_scale: Scale of classifier-free guidance. None is without.
        steps: Number of steps that :meth:`times` takes by default.
    """

    pipeline_class: ClassVar[str] = ""
    """Name of the pipeline's class; empty if it may be of several."""

    latent_channels: ClassVar[int] = 0
    """Channels of the latents of the family's published models."""

    tiny_autoencoder: ClassVar[str] = ""
    """Beginning of the names of the files of the family's tiny autoencoder."""

    def __init__(
        self, pipe: Any, schedule: Schedule, guidance_scale: float | None, steps: int
    ) -> None:
        super().__init__(schedule)
        self.pipe = pipe
        self.guidance_scale = guidance_scale
        self.steps = checks.integer("steps", steps, 1)
        # So that .to(), .eval(), .requires_grad_() and .parameters() reach them.
        self.components = nn.ModuleDict(
            {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
        )

    @property
    def parts(self) -> dict[str, Any]:
        """The pipeline's configuration and its components as they are now, by name."""

        config = {k: v for k, v in self.pipe.config.items() if k not in self.pipe.components}
        public = {k: v for k, v in config.items() if not k.startswith("_")}
        return {**self.pipe.components, "pipeline": public}

    @property
    def device(self) -> torch.device:
        """The device on which the pipeline computes; under offloading its weights are elsewhere."""

        device: torch.device = self.pipe._execution_device
        return device

    def _checked_steps(self, steps: int | None) -> int:
        return self.steps if steps is None else checks.integer("steps", steps, 1)
