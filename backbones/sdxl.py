r"""The SDXL family: a U-Net that predicts noise on a variance preserving path.

diffusers keeps states as :math:`x_0 + (\sigma_t / \alpha_t) \epsilon` and divides them by
:math:`\sqrt{1 + \sigma_t^2 / \alpha_t^2}` before the network. What the network receives,
:math:`\alpha_t x_0 + \sigma_t \epsilon`, is the state here.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rwguidance import DDIM, DiscreteSchedule, Prediction, Sampler, Schedule
from rwguidance.schedules import Scales

from .conditioning import Embeddings, named_embeddings
from .coordinates import read_output, table_times
from .pipelines import PipelineBackbone

__all__ = ["SDXL"]


class SDXL(PipelineBackbone):
    r"""StableDiffusionXLPipeline as a model.

    The Euler scheduler corresponds to the sampler DDIM(), the ancestral one, with which the turbo
    model is published, to DDIM(eta=1).

    The pipeline's scheduler says whether the network predicts noise or v.

    References:
        | SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis
          (Podell et al., 2023), arXiv:2307.01952
        | Adversarial Diffusion Distillation (Sauer et al., 2023), arXiv:2311.17042
    """

    depends_on = PipelineBackbone.depends_on

    pipeline_class = "StableDiffusionXLPipeline"
    schedulers = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
    denoiser = "unet"
    patch_size = 1
    default_steps = 50

    latent_channels = 4
    shifts_latents = False
    tiny_autoencoder = "taesdxl"

    @classmethod
    def path(cls, pipe: Any) -> Schedule:
        config = pipe.scheduler.config
        if config.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(
                "the scheduler's prediction_type must be 'epsilon' or 'v_prediction', "
                f"got {config.prediction_type!r}"
            )
        if config.get("timestep_type", "discrete") != "discrete":
            raise ValueError(
                f"the scheduler's timestep_type must be 'discrete', got {config.timestep_type!r}"
            )
        if pipe.unet.config.time_cond_proj_dim is not None:
            raise ValueError("networks with an embedding of the guidance scale are not supported")
        return DiscreteSchedule(pipe.scheduler.alphas_cumprod)

    @property
    def num_train_timesteps(self) -> int:
        """Number of noise levels on which the network was trained."""

        return len(self.pipe.scheduler.alphas_cumprod)

    def network(self, x_t: Tensor, t: Tensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        text, pooled = embeddings["text"], embeddings["pooled"]
        height, width = (self.vae_scale_factor * size for size in x_t.shape[-2:])
        # Original size, offset of the crop, target size: an image that was never cropped.
        sizes = text.new_tensor([height, width, 0, 0, height, width]).expand(len(x_t), -1)
        timestep = (t * self.num_train_timesteps - 1).clamp(min=0).float().to(x_t.device)
        output: Tensor
        (output,) = self.pipe.unet(
            x_t,
            timestep,
            encoder_hidden_states=text,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
            return_dict=False,
        )
        return output

    def predict(self, output: Tensor, x_t: Tensor, scales: Scales) -> Prediction:
        return read_output(self.pipe.scheduler.config.prediction_type, output, x_t, scales)

    def encode_text(
        self, prompts: list[str], negative_prompts: list[str] | None
    ) -> tuple[Embeddings, Embeddings | None]:
        encoded = self.pipe.encode_prompt(
            prompts,
            device=self.device,
            do_classifier_free_guidance=self.guided,
            negative_prompt=negative_prompts,
        )
        return named_embeddings(encoded)

    def times(self, steps: int | None = None) -> Tensor:
        sigmas = self._scheduler_at(steps).sigmas.double()  # sigma / alpha, from noise to data
        return table_times(self.schedule, self.num_train_timesteps, -2 * sigmas.log())

    @property
    def noise_scale(self) -> float:
        scheduler = self._scheduler_at(None)
        return float(scheduler.init_noise_sigma) / math.hypot(1, float(scheduler.sigmas[0]))

    @property
    def sampler(self) -> Sampler:
        """The steps that the pipeline's scheduler takes."""

        return DDIM(eta=float("Ancestral" in type(self.pipe.scheduler).__name__))
