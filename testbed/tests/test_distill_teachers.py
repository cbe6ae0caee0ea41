"""Teachers: where their equations lead, against closed forms and their pipelines."""

import math

import pytest
import torch
from gaussian_teachers import (
    NAMES,
    SCALING,
    SHIFT,
    STD,
    captions,
    carry,
    gaussian_noise,
    gaussian_velocity,
    guided_mean,
    teacher_alphas,
)

from rwguidance_testbed.distill import teachers
from rwguidance_testbed.distill.teachers import FlowTeacher, NoiseTeacher, read_teacher

pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


class TestTeachers:
    def test_the_flow_is_followed_with_guidance(self, teacher_flow, generator):
        teacher = FlowTeacher(teacher_flow, 3.0, gaussian_velocity)
        x = torch.randn(5, 8, 8, 8, generator=generator)
        tokens = captions(teacher_flow, 5)
        errors = []
        for count in (50, 100):
            sigmas = torch.linspace(0.9, 0.2, count + 1).tolist()
            errors.append(teacher.follow(x, sigmas, tokens) - carry(x, 0.9, 0.2))
        assert float(errors[0].abs().max()) < 0.05
        # Steps of Euler: half as long, half as wrong.
        assert torch.allclose(errors[0], 2 * errors[1], atol=2e-3)

    @pytest.mark.parametrize("step", [999, 749, 499, 249])
    def test_both_classes_lead_to_the_same_clean_latents(
        self, teacher_flow, teacher_unet, generator, monkeypatch, step
    ):
        monkeypatch.setattr(teachers, "_PATH_STEPS", 1000)
        sigma = float(((1 - teacher_alphas()[step]) / teacher_alphas()[step]).sqrt())
        x = sigma * torch.randn(3, 8, 8, 8, generator=generator)
        tokens = captions(teacher_flow, 3)
        mean = guided_mean(3.0) + SHIFT * SCALING
        along_noise = NoiseTeacher(teacher_unet, 3.0, gaussian_noise).clean(x, step, sigma, tokens)
        expected = mean + (x - mean) * STD / math.sqrt(STD**2 + sigma**2)
        torch.testing.assert_close(along_noise, expected, atol=5e-2, rtol=0)
        along_flow = FlowTeacher(teacher_flow, 3.0, gaussian_velocity).clean(x, step, sigma, tokens)
        if step == 999:  # taken as pure noise
            expected = mean + STD * x / sigma
        torch.testing.assert_close(along_flow, expected, atol=2e-2, rtol=0)

    def test_the_flow_takes_the_steps_of_its_pipeline(self, teacher_flow, exact, generator):
        noise = torch.randn(3, 8, 8, 8, generator=generator)
        prompts = list(NAMES[:3])
        teacher_flow.set_progress_bar_config(disable=True)
        expected = teacher_flow(
            prompts, height=64, width=64, num_inference_steps=5, guidance_scale=3.0,
            latents=noise, output_type="latent", max_sequence_length=1,
        ).images  # fmt: skip
        sigmas = teacher_flow.scheduler.sigmas.tolist()
        found = FlowTeacher(teacher_flow, 3.0).follow(noise, sigmas, captions(teacher_flow, 3))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        other = FlowTeacher(teacher_flow, 1.0).follow(noise, sigmas, captions(teacher_flow, 3))
        assert float((other - found).abs().max()) > 0.01

    def test_the_network_of_noise_takes_the_steps_of_its_pipeline(
        self, teacher_unet, exact, generator
    ):
        noise = torch.randn(3, 8, 8, 8, generator=generator)
        teacher_unet.set_progress_bar_config(disable=True)
        expected = teacher_unet(
            list(NAMES[:3]), height=64, width=64, num_inference_steps=teachers._PATH_STEPS,
            guidance_scale=3.0, latents=noise, output_type="latent",
        ).images  # fmt: skip
        top = float(teacher_unet.scheduler.sigmas[0])
        teacher = NoiseTeacher(teacher_unet, 3.0)
        found = teacher.clean(top * noise, 999, top, captions(teacher_unet, 3))
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
        other = NoiseTeacher(teacher_unet, 1.0)
        other = other.clean(top * noise, 999, top, captions(teacher_unet, 3))
        assert float((other - found).abs().max()) > 0.01

    def test_another_class_is_refused(self, tmp_path, distill_vae):
        (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
        with pytest.raises(ValueError, match=r"teacher must hold .* got a FluxPipeline"):
            read_teacher(tmp_path, distill_vae, 3.0)
