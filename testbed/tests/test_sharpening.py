"""The decoder trained further: what stays, what its figures say, and what it is taught."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from rwguidance.support.randomness import seeded
from rwguidance_testbed import decoder, vae
from rwguidance_testbed.training.timed import adam, set_rate

pytest.importorskip("diffusers")


class Mapped(nn.Module):
    """An autoencoder whose latents are pictures, and whose decoder changes them."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def encode(self, x):
        law = type("Law", (), {"mode": lambda self: x, "mean": x, "std": torch.zeros_like(x)})()
        return type("Output", (), {"latent_dist": law})()

    def decode(self, z):
        return type("Output", (), {"sample": self.change(z)})()


def blurred(x):
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def test_a_run_changes_the_decoder_alone(emoji_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(decoder, "_write_figures", lambda *_: None)
    start = tmp_path / "vae"
    autoencoder = vae.new(smoke=True)
    autoencoder.register_to_config(scaling_factor=0.7, shift_factor=0.1)
    autoencoder.half().save_pretrained(start)
    options = replace(decoder.OPTIONS, minutes=1e-6, batch=4, painted=8)
    decoder.train(emoji_folder, start, tmp_path / "sharp", options)
    config = lambda folder: json.loads((folder / "config.json").read_text())
    for name in ("scaling_factor", "shift_factor", "block_out_channels"):
        assert config(tmp_path / "sharp")[name] == config(start)[name]
    file = "diffusion_pytorch_model.safetensors"
    before, after = (load_file(folder / file) for folder in (start, tmp_path / "sharp"))
    assert before.keys() == after.keys()
    for name, value in before.items():
        if name.startswith("encoder"):
            assert torch.equal(value, after[name]), name
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert len(changed) > 10


def test_sharpness_is_kept_by_a_decoder_that_changes_nothing(generator):
    pictures = torch.rand(4, 3, 64, 64, generator=generator)
    assert decoder.sharpness_kept(Mapped(lambda z: z), pictures) == pytest.approx(1.0)
    assert 0.1 < decoder.sharpness_kept(Mapped(blurred), pictures) < 0.9


def test_the_error_counts_differences_of_neighbors(generator):
    pictures = torch.rand(2, 3, 8, 8, generator=generator)
    assert float(decoder.error(pictures, pictures)) == 0.0
    assert float(decoder.error(pictures + 0.5, pictures)) == pytest.approx(0.75)
    stripes = 0.5 * torch.ones(8).cumsum(0).remainder(2)
    # Half of the pixels are off, and all neighbors in a row.
    assert float(decoder.error(pictures + stripes, pictures)) == pytest.approx(0.875)


def sharpening(generator, adversarial, judge):
    """Steps of a decoder that adds a constant, the error small beside the discriminator."""

    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = nn.Parameter(torch.zeros(()))

        def forward(self, z):
            return z + self.by

    shift = Shift()
    optimizers = {"decoder": adam(shift.parameters(), torch.device("cpu"), (0.9, 0.99))}
    optimizers["discriminator"] = adam(judge.parameters(), torch.device("cpu"), (0.0, 0.99))
    set_rate(optimizers["decoder"], 0.01)
    pictures = torch.randint(256, (16, 3, 16, 16), generator=generator, dtype=torch.uint8)
    steps = decoder.Sharpening(
        Mapped(shift), judge, optimizers, pictures, 8, adversarial, generator
    )
    return steps, shift


class Brightness(nn.Module):
    """A discriminator to which bright pictures look painted."""

    def __init__(self, sign):
        super().__init__()
        self.sign = nn.Parameter(torch.tensor(float(sign)))

    def forward(self, pictures):
        return self.sign * pictures.mean((1, 2, 3)), [0 * pictures]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_decoder_follows_its_discriminator(generator, sign):
    steps, shift = sharpening(generator, 5.0, Brightness(sign))
    with torch.no_grad():
        shift.by.add_(1e-3)  # where it is exact, errors have no slope that sets the size
    for _ in range(5):
        steps.step()
    assert sign * shift.by.item() > 0.02


def test_a_discriminator_learns_to_tell_decoded_pictures(generator):
    with seeded(0):
        judge = decoder.PatchDiscriminator(width=8)
    steps, shift = sharpening(generator, 0.0, judge)
    set_rate(steps.optimizers["decoder"], 0.0)
    set_rate(steps.optimizers["discriminator"], 3e-3)
    with torch.no_grad():
        shift.by.add_(0.8)
    for _ in range(40):
        steps.step()
    pictures = steps.pictures.float() / 127.5 - 1
    with torch.no_grad():
        real, drawn = judge(pictures)[0], judge(pictures + 0.8)[0]
    assert float((real - drawn).mean()) > 0.5
