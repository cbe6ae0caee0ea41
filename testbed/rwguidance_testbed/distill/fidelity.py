"""How near a student is to its teacher, and how wide the laws of both are."""

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
    """How near a student comes to its teacher from the same noise, and how wide its law is.

    Arguments:
        student: The student, whose pipeline is run.
        network: Which to run it with.
        steps: Of the pipeline.
        draws: Of each of six prompts.
        seed: Of noise and pictures.

    Returns:
        The mean squared difference of clean latents from those of the teacher; and of student,
        teacher and true pictures the variance of latents given a prompt and its effective
        dimension; means over prompts.
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
