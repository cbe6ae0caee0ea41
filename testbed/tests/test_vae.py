"""The autoencoder: how its latents and its quality are measured, and a smoke run."""

import json
from dataclasses import replace

import pytest
import torch

from rwguidance.support.randomness import seeded
from rwguidance_testbed import vae
from rwguidance_testbed.scenes import sample_pictures


def test_what_a_smoke_run_writes_is_read_by_its_class(emoji_folder, tmp_path):
    import diffusers

    options = replace(vae.OPTIONS, steps=2, batch=4, smoke=True)
    vae.train(emoji_folder, tmp_path / "vae", options=options)
    with seeded(0):
        autoencoder = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae")
    state = torch.load(tmp_path / "vae.state", weights_only=True)
    for name, value in autoencoder.state_dict().items():
        assert torch.equal(value.half(), state["modules"]["vae"][name].half())
    figures = json.loads((tmp_path / "vae" / "figures.json").read_text())
    assert (figures["steps"], figures["pictures_seen"]) == (2, 8)


def test_latents_are_standardized(tmp_path, emoji_drawings, generator):
    import diffusers

    autoencoder = vae.new(smoke=True).eval()
    pictures, _ = sample_pictures(emoji_drawings, 64, generator)
    vae.export(autoencoder, pictures, tmp_path)
    with seeded(0):
        read = diffusers.AutoencoderKL.from_pretrained(tmp_path).float()
    latents = vae.encode(read, pictures)
    assert float(latents.mean()) == pytest.approx(0, abs=0.01)
    assert float(latents.std()) == pytest.approx(1, abs=0.01)


def test_the_quality_is_that_of_the_pictures():
    class Off(torch.nn.Module):
        def encode(self, x):
            law = type("Law", (), {"mode": lambda self: x})()
            return type("Output", (), {"latent_dist": law})()

        def decode(self, z):
            return type("Output", (), {"sample": z + 0.2})()

    pictures = torch.full((3, 3, 64, 64), 0.5)
    assert vae.psnr(Off(), pictures) == pytest.approx(20.0, abs=1e-4)
