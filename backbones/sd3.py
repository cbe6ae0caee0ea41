"""The SD3 family: a transformer that predicts the velocity of a straight path."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rwguidance import Prediction, RectifiedSchedule, Schedule
from rwguidance.schedules import Scales

from .conditioning import Embeddings, named_embeddings
from .pipelines import PipelineBackbone

__all__ = ["SD3", "dynamic_shift_mu"]


class SD3(PipelineBackbone):
    r"""StableDiffusion3Pipeline, of versions 3 and 3.5, as a model.

    Its scheduler corresponds to the sampler DDIM().

    References:
        | Scaling Rectified Flow Transformers for High-Resolution Image Synthesis
          (Esser et al., 2024), arXiv:2403.03206
    """

    depends_on = PipelineBackbone.depends_on

    pipeline_class = "StableDiffusion3Pipeline"
    schedulers = ("FlowMatchEulerDiscreteScheduler",)
    denoiser = "transformer"
    patch_size = 2
    default_steps = 28
    default_sequence_length = 256
    latent_channels = 16
    tiny_autoencoder = "taesd3"

    @classmethod
    def path(cls, pipe: Any) -> Schedule:
        return RectifiedSchedule()

    def network(self, x_t: Tensor, t: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        output: Tensor
        (output,) = self.pipe.transformer(
            hidden_states=x_t,
            timestep=1000 * t.float().to(x_t.device),
            encoder_hidden_states=embeddings["text"],
            pooled_projections=embeddings["pooled"],
            return_dict=False,
        )
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
        if self.pipe.scheduler.config.use_dynamic_shifting:
            keywords["mu"] = dynamic_shift_mu(self)
        sigmas: Tensor = self._scheduler_at(steps, **keywords).sigmas
        return sigmas.double()


def dynamic_shift_mu(backbone: PipelineBackbone) -> float:
    r"""The parameter mu of a scheduler that shifts its times by the size of the image.

    It is the logarithm of the shift, and linear in the number of tokens, through two points of the
    scheduler's configuration.

    Arguments:
        backbone: The backbone, of which size and scheduler matter.
    """

    config = backbone.pipe.scheduler.config
    side = backbone.vae_scale_factor * backbone.patch_size
    tokens = (backbone.height // side) * (backbone.width // side)
    low, high = config.base_image_seq_len, config.max_image_seq_len
    bottom, top = config.base_shift, config.max_shift
    return float(bottom + (top - bottom) * (tokens - low) / (high - low))
