"""Folders of images to score, rewards of colors that can be computed by hand, and a way to die."""

import csv
import math
import sys
from pathlib import Path

import PIL.Image
import pytest
import torch

import rewards
import rewards.registry
from rewards.images import from_pil
from rewards.scoring import score
from rewards.towers import EmbeddingReward
from rwguidance.app.cli import main

FACTS = {
    "differentiable": True,
    "code_license": "MIT",
    "weights_license": "none",
    "formula": "simple",
    "typical_range": (0.0, 1.0),
    "citation": "none",
}
SEEN = []
"""For each call of the reward "brightness", the number of images."""


class Brightness(rewards.Reward):
    depends_on = ("quality",)
    quality = 0

    spec = rewards.RewardSpec(name="brightness", title="Brightness", needs_prompt=False, **FACTS)

    def preprocess(self, images):
        return images.mean((2, 3))

    def forward(self, images, prompts):
        SEEN.append(len(images))
        return images.mean(1)


class Redness(rewards.Reward):
    """The mean of the red channel, once per letter of the prompt."""

    depends_on = ()

    spec = rewards.RewardSpec(name="redness", title="Redness", needs_prompt=True, **FACTS)

    def forward(self, images, prompts):
        assert len(images) == len(prompts)
        letters = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.float64)
        return images[:, 0].double().mean((1, 2)) * letters


class Picky(Redness):
    """Cannot say anything of a "riddle", refuses gray images, and is of infinite mind on "zero"."""

    depends_on = ()

    spec = rewards.RewardSpec(name="picky", title="Picky", needs_prompt=True, **FACTS)

    def forward(self, images, prompts):
        if any(bool((image == image[:1]).all()) for image in images):
            raise ValueError("no gray images,\nplease")
        values = super().forward(images, prompts)
        values[[prompt == "riddle" for prompt in prompts]] = math.nan
        values[[prompt == "zero" for prompt in prompts]] = -math.inf
        return values


class Moody(EmbeddingReward):
    """Embeds prompts differently in company, as kernels do in the last digit."""

    depends_on = ()

    spec = rewards.RewardSpec(name="moody", title="Moody", needs_prompt=True, **FACTS)

    def __init__(self, cache_size=100):
        super().__init__(torch.tensor(0.0), cache_size)

    def embed_images(self, images):
        return images.mean((2, 3))

    def embed_prompts(self, prompts):
        lengths = torch.tensor([float(len(prompt)) for prompt in prompts])
        return torch.stack([lengths, lengths.sum().expand(len(prompts)), lengths + 1], 1)

    def value(self, cosine):
        return cosine


KINDS = {kind.spec.name: kind for kind in (Brightness, Redness, Picky, Moody)}


@pytest.fixture
def registered(monkeypatch, tmp_path):
    """The rewards by name, and an empty folder to work in."""

    registry = rewards.registry._registry
    monkeypatch.setattr(registry, "_values", {**registry._values, **KINDS})
    monkeypatch.chdir(tmp_path)
    SEEN.clear()


def paint(path, size=(4, 4), color=(255, 0, 0), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, color).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path):
    """Five images of several sizes and modes, in natural order, and things that are no images."""

    root = tmp_path / "images"
    paint(root / "1.png", (4, 4), (255, 0, 0))
    paint(root / "2.PNG", (6, 5), (128, 64, 0), "RGBA")
    paint(root / "10.png", (6, 5), (51, 51, 51), "L")
    paint(root / "größe [b]" / "é.gif", (3, 9), (0, 255, 0), "P")
    paint(root / "z.webp", (4, 4), (0, 0, 255))
    paint(root / ".hidden.png")
    paint(root / ".cache" / "1.png")
    (root / "notes.md").write_text("nothing")
    return root


IMAGES = ["1.png", "2.PNG", "10.png", "größe [b]/é.gif", "z.webp"]


def write(name, text, encoding="utf-8"):
    Path(name).write_bytes(text.encode(encoding))
    return Path(name)


def read(path="scores.csv"):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def score_(job, *names, out="scores.csv", **options):
    return score(job, {name: KINDS[name]() for name in names}, out, **options)


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["rwguidance", "score", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capsys.readouterr()

    return run


def expected(folder, name, image, prompt=""):
    with PIL.Image.open(folder / image) as opened:
        pixels = from_pil(opened)
    return float(pixels.mean()) if name == "brightness" else float(pixels[0].mean()) * len(prompt)


@pytest.fixture
def broken(folder):
    """Four files among the images that cannot be scored."""

    (folder / "3.png").write_text("I am a text")
    photo = folder / "4.jpg"
    PIL.Image.effect_noise((64, 64), 50).save(photo)
    photo.write_bytes(photo.read_bytes()[:900])
    (folder / "5.png").write_bytes(b"")
    PIL.Image.new("I;16", (4, 4)).save(folder / "6.png")
    return folder


class Killed(BaseException):
    """As a signal, it passes every except clause."""


def killed_after(monkeypatch, calls, error=Killed):
    """Makes the reward "brightness" die in the call after `calls`."""

    forward = Brightness.forward

    def forward_or_die(self, images, prompts):
        if len(SEEN) == calls:
            raise error
        return forward(self, images, prompts)

    monkeypatch.setattr(Brightness, "forward", forward_or_die)
    return lambda: monkeypatch.setattr(Brightness, "forward", forward)


JOBS = {
    "matrix": ("p.txt", "a\nbcd\nef"),
    "pairs": (
        "p.csv",
        "image,prompt\n"
        + "".join(
            f"{image},{prompt}\n"
            for i, image in enumerate(IMAGES)
            for prompt in ("a", "bcd", "ef", "g" * i)[i % 2 :]
        ),
    ),
}
