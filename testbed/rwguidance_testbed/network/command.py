"""The guidance network of the test bed's model of one step.

.. code-block:: text

    python -m rwguidance_testbed.network --backbone NAME --reward NAME --out FOLDER

draws a bank of every prompt, scores it, and trains a network for the shift at the largest noise.
:mod:`rwguidance_testbed.network.objective` says what that shift is, and what it is not.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from rwguidance.store import Store

from ..training.cards import write_card
from .fitting import Settings, make
from .storage import FILE

__all__ = ["SETTINGS", "train"]


SETTINGS = Settings()
"""Default settings."""


def train(
    backbone: str = "emoji-turbo",
    reward: str = "emoji-pick",
    out: Path = Path("out/testbed/emoji-turbo-guide"),
    decoder: str = "float32",
    threads: int = 1,
    smoke: bool = False,
    settings: Settings = SETTINGS,
) -> None:
    """Trains the guidance network and writes it to `out`, with figures and a card.

    Draws, rewards and the state of the training are kept beside `out`: the same command goes on
    where it was, and with fewer or more prompts it takes the draws that are there.

    Arguments:
        backbone: Model by name, or a folder with one of the class of emoji-turbo.
        reward: Reward by name, or a folder with one of the format of emoji-pick.
        out: Folder to write to.
        decoder: Precision in which draws are decoded; bfloat16 is faster where the CPU has it.
        threads: Threads of PyTorch.
        smoke: Whether the network is tiny, of few prompts, draws and steps, for tests.
        settings: Settings of the draws and of the training.
    """

    import backbones
    import rewards

    torch.set_num_threads(threads)
    if smoke:
        settings = Settings(4, 4, 0.3, 3, 16, widths=(8,), checked=2, seed=settings.seed)
    model: Any = _load(backbones.load, backbone, "emoji-turbo").requires_grad_(False).eval()
    model.pipe.vae.to(dtype=getattr(torch, decoder))
    model.to(memory_format=torch.channels_last)
    judge = _load(rewards.load, reward, "emoji-pick").requires_grad_(False).eval()
    started = time.monotonic()
    store = Store(out.with_name(f"{out.name}.state"))
    network, figures = make(model, judge, settings, store, _say, progress=True)
    figures["minutes"] = round((time.monotonic() - started) / 60, 1)
    figures = {k: round(value, 5) for k, value in figures.items() if not math.isnan(value)}
    out.mkdir(parents=True, exist_ok=True)
    network.half().save(out / FILE)
    command = f"--backbone {Path(backbone).name} --reward {Path(reward).name} --decoder {decoder}"
    _write_card(out, settings, figures, command)
    print(json.dumps(figures, indent=2))


def _load(load: Callable[..., Any], name: str, kind: str) -> Any:
    return load(kind, name) if Path(name).is_dir() else load(name)


def _say(stage: str, done: int, total: int) -> None:
    if stage == "prompts" and done % 10 == 0:
        print(json.dumps({"prompts": done, "of": total}), flush=True)


def _write_card(
    folder: Path, settings: Settings, figures: Mapping[str, float], command: str
) -> None:
    write_card(
        folder,
        f"The guidance network of `emoji-turbo` for one step, towards `emoji-pick` by "
        f"{settings.nats:g} nats: a `LatentShift` of {figures['parameters'] / 1e6:.2f} million "
        "parameters, stored in half precision. It sees the noise and the pooled embedding of the "
        "prompt, and gives what to add to the predicted latents. See `rwguidance_testbed.network` "
        "for what that is, and what it is not.\n\n"
        "    network, figures = rwguidance_testbed.network.read(folder)\n"
        '    guided = GuidedModel(backbones.load("emoji-turbo"), LearnedShift(network))',
        f"{settings.draws} draws of `emoji-turbo` for each of {settings.prompts} prompts of the "
        "names that it learned, with and without backgrounds, and what `emoji-pick` says of them.",
        "Regression of the shift that these draws give.",
        f"network {command} --prompts {settings.prompts} --draws {settings.draws} "
        f"--nats {settings.nats:g} --steps {settings.steps} --batch {settings.batch} "
        f"--peak {settings.peak:g} --seed {settings.seed}",
        f"Over {settings.checked} prompts of learned names and {settings.checked} of names held "
        f"out, against {2 * settings.draws} new draws of each: see `agreement` and `gain` of "
        "`rwguidance_testbed.network`.",
        figures,
    )
