"""The FLUX.1 family: a transformer on packed latents that predicts the velocity of a straight path.

States are latents of shape (B, 16, H, W); the network sees tokens of 2 x 2 latent pixels.
"""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from rwguidance import Prediction, RectifiedSchedule, Schedule
from rwguidance.schedules import Scales

from .checks import check_patches
from .conditioning import Embeddings
from .pipelines import PipelineBackbone
from .sd3 import dynamic_shift_mu

__all__ = ["Flux"]


class Flux(PipelineBackbone):
    r"""FluxPipeline as a model. Its scheduler corresponds to the sampler DDIM().

    The dev model was distilled from classifier-free guidance and takes the scale of it as an input,
    the schnell model takes none. So neither has negative prompts or a doubled batch.

    The scale of a dev model is 3.5 if none is given, as in the pipeline; that of a schnell model
    must be None. The schnell model was trained on prompts of 256 tokens.
    """

    depends_on = PipelineBackbone.depends_on

    pipeline_class = "FluxPipeline"
    schedulers = ("FlowMatchEulerDiscreteScheduler",)
    denoiser = "transformer"
    patch_size = 2
    default_steps = 28
    default_sequence_length = 512
    latent_channels = 16
    tiny_autoencoder = "taef1"

    @classmethod
    def path(cls, pipe: Any) -> Schedule:
        return RectifiedSchedule()

    @classmethod
    def scale(cls, pipe: Any, guidance_scale: float | None) -> float | None:
        if pipe.transformer.config.guidance_embeds:
            return super().scale(pipe, 3.5 if guidance_scale is None else guidance_scale)
        if guidance_scale is not None:
            raise ValueError(
                "guidance_scale must be None, since this model (schnell) takes none, "
                f"got {guidance_scale}"
            )
        return None

    @property
    def guided(self) -> bool:
        """False: the scale is an input of the network."""

        return False

    @property
    def vae_scale_factor(self) -> int:
        # The pipeline's own vae_scale_factor counted the packing in older versions of diffusers.
        return int(self.pipe.image_processor.config.vae_scale_factor) // self.patch_size

    def network(self, x_t: Tensor, t: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        text = embeddings["text"]
        check_patches(x_t, self.patch_size, not any(size % 2 for size in x_t.shape[-2:]))
        height, width = (size // 2 for size in x_t.shape[-2:])
        numbers = functools.partial(torch.arange, dtype=x_t.dtype, device=x_t.device)
        places = torch.cartesian_prod(x_t.new_zeros(1), numbers(height), numbers(width))
        guidance = None
        if self.guidance_scale is not None:
            guidance = torch.full((len(x_t),), self.guidance_scale, device=x_t.device)
        (output,) = self.pipe.transformer(
            hidden_states=pixel_unshuffle(x_t, 2).flatten(2).mT,
            # The pipeline rounds the timestep to the precision of the network, too.
            timestep=(1000 * t.float()).to(x_t) / 1000,
            guidance=guidance,
            pooled_projections=embeddings["pooled"],
            encoder_hidden_states=text,
            txt_ids=text.new_zeros(text.shape[1], 3),
            img_ids=places,
            return_dict=False,
        )
        return pixel_shuffle(output.mT.unflatten(2, (height, width)), 2)

    def predict(self, output: Tensor, x_t: Tensor, scales: Scales) -> Prediction:
        return Prediction.from_velocity(output, x_t, scales)

    def encode_text(
        self, prompts: list[str], negative_prompts: list[str] | None
    ) -> tuple[Embeddings, Embeddings | None]:
        text, pooled, _ = self.pipe.encode_prompt(
            prompt=prompts,
            prompt_2=None,
            device=self.device,
            max_sequence_length=self.max_sequence_length,
        )
        return {"text": text, "pooled": pooled}, None

    def times(self, steps: int | None = None) -> Tensor:
        steps = self._checked_steps(steps)
        keywords: dict[str, Any] = {"mu": dynamic_shift_mu(self)}
        if not self.pipe.scheduler.config.get("use_flow_sigmas", False):
            keywords["sigmas"] = _even_sigmas(steps)
        sigmas: Tensor = self._scheduler_at(steps, **keywords).sigmas
        return sigmas.double()


def _even_sigmas(steps: int) -> Any:
    # An array: older schedulers calculate with it as it comes.
    return torch.tensor([1 - i / steps for i in range(steps)]).numpy()
