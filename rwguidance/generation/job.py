"""A job: what a generation is asked for, checked before anything expensive is loaded or made."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import rwguidance

from ..support.batches import batches
from ..support.checks import described, flag, instance, integer, optional, path
from ..support.conditions import has_half_surrogate
from ..support.fingerprint import Undescribed
from ..support.locks import locked
from ..support.outside import require
from ..support.processes import ALONE, Processes
from .base import Method, set_checked
from .folder import check_settings

__all__ = ["Job"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Pictures of prompts, as they are asked for; the model and the reward come later.

    Batches are a function of the job: they are made of all numbers of a prompt's pictures,
    whichever are there. So a job that was interrupted ends with the pictures of one that was not,
    to the bit where the device rounds the same batch in the same way.

    Arguments:
        prompts: Distinct prompts.
        out: A folder, made if needed.
        method: The method of alignment, with its settings.
        images: Pictures per prompt.
        seed: Seed of everything.
        steps: Steps of the sampler. None is what the model's authors recommend.
        batch_size: Samples that the network, the decoder and the reward see at once.
        negative_prompt: The text that classifier-free guidance leads away from. None is the
            backbone's own.
        restart: Whether to replace pictures of other settings.
        names: Names of backbone and reward, for the metadata.

    Raises:
        ImportError: If Pillow is missing.
        TypeError: If an argument is of the wrong kind, such as prompts that are not a list.
        ValueError: If an argument makes no sense.
    """

    prompts: Sequence[str]
    out: Path | str
    method: Method
    images: int = 1
    seed: int = 0
    steps: int | None = None
    batch_size: int = 4
    negative_prompt: str | None = None
    restart: bool = False
    names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_prompts(self.prompts)
        instance("out", self.out, (Path, str), "a path")
        instance("method", self.method, Method, "a Method such as Importance(kl=1.0)")
        set_checked(
            self,
            images=integer("images", self.images, 1),
            seed=integer("seed", self.seed),
            steps=optional(integer, "steps", self.steps, 1),
            batch_size=integer("batch_size", self.batch_size, 1),
        )
        instance("negative_prompt", self.negative_prompt, (str, type(None)), "a string or None")
        check_text(self.negative_prompt or "")
        flag("restart", self.restart)
        instance("names", self.names, Mapping, "a mapping from names to names")
        require("PIL.Image", "pictures need", "rewards")

    @property
    def folder(self) -> Path:
        """The folder of the pictures."""

        return path("out", self.out)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that decide the pictures, of those that are known without the model, as JSON."""

        settings = {
            "rwguidance": rwguidance.__version__,
            **self.names,
            "method": {"name": self.method.name, **self._details[0]},
            "negative prompt": self.negative_prompt,
            "seed": self.seed,
        }
        return dict(json.loads(json.dumps(settings)))

    @property
    def undescribed(self) -> list[str]:
        """The reason why pictures of the method are not kept, in one line, if there is one."""

        return self._details[1]

    @cached_property
    def _details(self) -> tuple[dict[str, Any], list[str]]:
        """The settings of the method, or none and the reason why they cannot be told apart."""

        try:
            return self.method.settings(), []
        except Undescribed as reason:
            return {}, [str(reason)]

    @contextmanager
    def claimed(self, processes: Processes = ALONE) -> Iterator[None]:
        """Holds the folder against other runs, once it is known that it is of these settings.

        Arguments:
            processes: The processes of this run, the first of which holds it.

        Raises:
            ConnectionError: If another process of this run has ended.
            ValueError: If another run writes to the folder, or it holds pictures of other settings;
                says which ones differ.
            OSError: If the folder cannot be made or written to.
        """

        with locked(self.folder) if processes.first else nullcontext():
            if not self.restart:
                check_settings(self.folder, self.settings)
            processes.wait()
            yield

    def batches(self) -> list[range]:
        """Returns the numbers of a prompt's pictures in batches, the same whatever is there."""

        return batches(self.images, self.batch_size)


def check_prompts(prompts: Sequence[str]) -> None:
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise TypeError(f"prompts must be a list of strings, got {described(prompts)}")
    wrong = [prompt for prompt in prompts if not isinstance(prompt, str)]
    if wrong:
        raise TypeError(f"prompts must be a list of strings, got {described(wrong[0])} in it")
    if not prompts:
        raise ValueError("prompts must hold at least one prompt, got none")
    twice = [prompt for prompt, count in Counter(prompts).items() if count > 1]
    if twice:
        raise ValueError(
            f"prompts must be distinct, got {twice[0]!r} twice; ask for more images instead"
        )
    for prompt in prompts:
        check_text(prompt)


def check_text(text: str) -> None:
    if has_half_surrogate(text):
        raise ValueError(f"prompts must be text, got half of a surrogate pair in {text!a}")
