"""The fidelity of a student: its distance from its teacher, and the widths of both laws."""

import torch
from torch import Generator, nn

from ..effective_dimension import effective_dimension
from ..scenes import render, scenes_with_caption
from ..tokenizer import tokenize
from ..vae import encode
from .students import Student

__all__ = ["measure"]


@torch.no_grad()
def measure(
    student: Student, network: nn.Module, steps: int, draws: int = 48, seed: int = 0
) -> dict[str, float]:
    """Measures the distance of a student from its teacher, and the width of its law.

    Arguments:
        student: Student whose pipeline is run.
        network: Network to run it with.
        steps: Steps of the pipeline.
        draws: Number of draws of each of six prompts.
        seed: Seed of noise and pictures.

    Returns:
        The mean squared difference of clean latents from those of the teacher from the same noise;
        and the variance and the effective dimension of latents given a prompt, of student, teacher
        and true pictures; all of them means over prompts.
    """

    pipe, teacher = student.pipe(network), student.teacher
    pipe.set_progress_bar_config(disable=True)
    generator = Generator().manual_seed(seed)
    learned = [entry.name for entry in student.drawings.entries]
    prompts = [f"{name} on a blue background" for name in sorted(set(learned))]
    rows = []
    for prompt in prompts[:: max(1, len(prompts) // 6)][:6]:
        noise = student.noise(draws, generator)
        found = pipe(
            [prompt] * draws,
            height=64,
            width=64,
            num_inference_steps=steps,
            guidance_scale=0.0,
            latents=noise,
            generator=generator,
            output_type="latent",
            **student.options,
        ).images
        tokens = tokenize(teacher.pipe.tokenizer, [prompt] * draws)
        wanted = student.target(noise, tokens)
        scenes = scenes_with_caption(student.drawings, prompt, draws, generator)
        true = encode(pipe.vae, render(student.drawings, scenes))
        row = {"distance": float((found - wanted).square().mean())}
        for name, x in (("student", found), ("teacher", wanted), ("pictures", true)):
            row[f"variance_{name}"] = float(x.var(dim=0).mean())
            row[f"dimension_{name}"] = effective_dimension(x)
        rows.append(row)
    return {key: round(sum(row[key] for row in rows) / len(rows), 4) for key in rows[0]}
