"""The SD3 family: a transformer that predicts the velocity of a straight path."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rwguidance import Prediction, RectifiedSchedule, Schedule
from rwguidance.schedules import Scales

from .conditioning import Embeddings, named_embeddings
from .pipelines import PipelineBackbone

__all__ = ["SD3", "shift_of_size"]


class SD3(PipelineBackbone):
    r"""StableDiffusion3Pipeline, of versions 3 and 3.5, as a model.

    Its scheduler corresponds to the sampler DDIM().

    References:
        | Scaling Rectified Flow Transformers for High-Resolution Image Synthesis
          (Esser et al., 2024), arXiv:2403.03206
    """

    pipeline_class = "StableDiffusion3Pipeline"
    schedulers = ("FlowMatchEulerDiscreteScheduler",)
    denoiser = "transformer"
    patch = 2
    default_steps = 28
    default_sequence_length = 256
    latent_channels = 16
    tiny_autoencoder = "taesd3"

    @classmethod
    def path(cls, pipe: Any) -> Schedule:
        return RectifiedSchedule()

    def network(self, x_t: Tensor, t: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        output: Tensor = self.pipe.transformer(
            hidden_states=x_t,
            timestep=1000 * t.float().to(x_t.device),
            encoder_hidden_states=embeddings["text"],
            pooled_projections=embeddings["pooled"],
            return_dict=False,
        )[0]
        return output

    def predict(self, output: Tensor, x_t: Tensor, scales: Scales) -> Prediction:
        return Prediction.from_velocity(output, x_t, scales)

    def encode_text(
        self, prompts: list[str], negative_prompts: list[str] | None
    ) -> tuple[Embeddings, Embeddings | None]:
        encoded = self.pipe.encode_prompt(
            prompt=prompts,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=self.guided,
            negative_prompt=negative_prompts,
            max_sequence_length=self.max_sequence_length,
        )
        return named_embeddings(encoded)

    def times(self, steps: int | None = None) -> Tensor:
        keywords = {}
        if self.pipe.scheduler.config.get("use_dynamic_shifting", False):
            keywords["mu"] = shift_of_size(self, default_max=1.16)
        sigmas: Tensor = self._scheduler_at(steps, **keywords).sigmas
        return sigmas.double()


def shift_of_size(backbone: PipelineBackbone, default_max: float) -> float:
    r"""Logarithm of the shift of a scheduler whose shift grows with the size of the image.

    It is linear in the number of tokens, through two points of the scheduler's configuration.

    Arguments:
        backbone: The backbone, of which size and scheduler matter.
        default_max: Shift at the larger of the two sizes, if the configuration does not say.
    """

    config = backbone.pipe.scheduler.config
    side = backbone.pixels_per_latent * backbone.patch
    tokens = (backbone.height // side) * (backbone.width // side)
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    bottom, top = config.get("base_shift", 0.5), config.get("max_shift", default_max)
    return float(bottom + (top - bottom) * (tokens - low) / (high - low))
