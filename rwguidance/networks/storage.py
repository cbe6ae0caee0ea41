"""Files of guidance networks: one of safetensors, or a folder as the Hugging Face hub has them."""

import json
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..schedules import (
    CosineSchedule,
    DiscreteSchedule,
    RectifiedSchedule,
    Schedule,
    VESchedule,
    VPSchedule,
)
from ..support import checks
from ..support.files import read_regular, replacing
from ..support.outside import on_hub, require, split_hub
from ..support.tensors import check_config, read_tensor_file, write_tensor_file

S = TypeVar("S", bound="StoredNetwork")

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


class StoredNetwork(nn.Module, ABC):
    """A guidance network that knows its arguments, and is written and read with them."""

    channels: int
    schedule: Schedule
    output: str
    text: int | None
    tokens: int | None
    strength: bool

    @property
    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Constructor arguments but the schedule, in values that JSON can hold."""

    @property
    def config(self) -> dict[str, Any]:
        """What ``config.json`` holds: the class and the constructor arguments.

        Raises:
            TypeError: If the schedule is not one of :mod:`rwguidance.schedules`.
        """

        return {"network": type(self).__name__, **_described(self)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes weights and constructor arguments as one safetensors file, atomically.

        :func:`rwguidance.networks.load` reads it.

        Raises:
            TypeError: If the schedule is not one of :mod:`rwguidance.schedules`. If the path is
                neither a string nor a path.
            FileNotFoundError: If there is no such directory.
        """

        metadata = {"network": type(self).__name__, "arguments": json.dumps(_described(self))}
        path = checks.path("path", path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"no directory {path.parent} to save a network in")
        write_tensor_file(path, self.state_dict(), metadata)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        facts: Mapping[str, Any] | None = None,
        notes: str = "",
    ) -> None:
        """Writes ``model.safetensors``, ``config.json`` and a card, ``README.md``, into a folder.

        Arguments:
            folder: The folder, which is made if it is not there.
            facts: What the network was trained for, by name, such as backbone, reward and beta, for
                the table of the card.
            notes: More of the card, in Markdown.

        Raises:
            TypeError: If the schedule is not one of :mod:`rwguidance.schedules`, or an argument is
                of the wrong kind.
        """

        folder = checks.path("folder", folder)
        checks.optional(checks.instance, "facts", facts, Mapping, "a mapping")
        checks.instance("notes", notes, str, "a string")
        config = json.dumps(self.config, indent=1) + "\n"
        texts = {CARD: _card(self, facts or {}, notes), CONFIG: config}
        folder.mkdir(parents=True, exist_ok=True)
        write_tensor_file(folder / WEIGHTS, self.state_dict(), {"format": "pt"})
        for name, text in texts.items():
            with replacing(folder / name) as partial:
                partial.write_bytes(text.encode())

    def push_to_hub(self, repository: str, private: bool = True, **options: Any) -> str:
        """Uploads the folder that :meth:`save_pretrained` writes; returns the address.

        Arguments:
            repository: The repository of the hub, as ``owner/name``, which is made if need be.
            private: Whether a new one is private.
            options: Arguments of :meth:`save_pretrained`.

        Raises:
            ImportError: If huggingface_hub is not installed; says how to install it.
        """

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **options)
            return push_folder(Path(folder), repository, private)

    @classmethod
    def from_pretrained(
        cls: type[S],
        source: str | os.PathLike[str],
        revision: str | None = None,
        device: torch.device | str = "cpu",
    ) -> S:
        """Reads a network that :meth:`save_pretrained` wrote; nothing in it is executed.

        Arguments:
            source: A folder, or a repository of the hub, as ``owner/name``.
            revision: Commit, tag or branch of the repository.
            device: The device of the network.

        Raises:
            FileNotFoundError: If there is neither such a folder nor such a repository.
            ValueError: If a file is damaged, or holds another network.
            ImportError: If huggingface_hub is needed and not installed.
        """

        folder = _folder(source, revision)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"no {name} in {folder}, as save_pretrained writes it")
        file = folder / CONFIG
        try:
            config = json.loads(read_regular(file))
            name = config.pop("network")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{file} is no configuration of a network: {error}") from error
        if name != cls.__name__:
            raise ValueError(f"{file} is of a {name}, expected {cls.__name__}")
        tensors, _ = read_tensor_file(folder / WEIGHTS, checks.device("device", device) or "cpu")
        return build(cls, config, tensors, folder)


def push_folder(folder: Path, repository: str, private: bool = True) -> str:
    """Uploads a folder that :meth:`StoredNetwork.save_pretrained` wrote; returns the address.

    Arguments:
        folder: The folder, of which weights, configuration and card are taken.
        repository: The repository of the hub, as ``owner/name``, which is made if need be.
        private: Whether a new one is private.

    Raises:
        ImportError: If huggingface_hub is not installed; says how to install it.
    """

    hub = require("huggingface_hub", "push_to_hub needs", "train")
    api = hub.HfApi()
    address = api.create_repo(repository, private=private, exist_ok=True)
    files = [WEIGHTS, CONFIG, CARD]
    api.upload_folder(repo_id=repository, folder_path=str(folder), allow_patterns=files)
    return str(address)


def build(
    cls: Callable[..., S],
    arguments: dict[str, Any],
    tensors: Mapping[str, Tensor],
    path: Path,
) -> S:
    """Makes a network of its arguments and weights.

    Raises:
        ValueError: If they do not fit; names the file.
    """

    name = getattr(cls, "__name__", "the network")
    try:
        check_config(arguments, path)
        schedule = _schedule(**arguments.pop("schedule"))
        with torch.device("meta"):  # the weights of the file take their place
            network = cls(schedule=schedule, **arguments)
        network.load_state_dict(tensors, assign=True)
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit {name} of this version: {error}") from error
    return network


def _folder(source: str | os.PathLike[str], revision: str | None) -> Path:
    path = checks.path("source", source)
    if path.is_dir():
        return path
    repository = str(source)
    if on_hub(repository):
        repository, at = split_hub(repository)
        revision = revision or at
    if repository.count("/") != 1 or repository.startswith((".", "/")):
        raise FileNotFoundError(f"no folder {source}, and no repository, as owner/name, either")
    hub = require("huggingface_hub", "networks of the hub need", "train")
    try:
        files = [CONFIG, WEIGHTS]
        return Path(hub.snapshot_download(repository, revision=revision, allow_patterns=files))
    except Exception as error:  # offline, not there, not allowed: one thing to the user
        line = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"there is no folder {source}, and {repository} is neither cached nor to be had from "
            f"the hub ({type(error).__name__}: {line})"
        ) from error


def _card(network: StoredNetwork, facts: Mapping[str, Any], notes: str) -> str:
    """A model card: what the network is, what it was trained for, and how to use it."""

    count = sum(parameter.numel() for parameter in network.parameters())
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    rows = {
        **facts,
        "output": network.output,
        "parameters": f"{count / 1e6:.2f} million, {size / 1e6:.3g} MB",
        "path": type(network.schedule).__name__,
        "latents": f"{network.channels} channels, any height and width",
        "sees": ", ".join(_inputs(network)),
    }
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    strength = ".at(1.0)" if network.strength else ""
    use = {
        "shift": f"guided = GuidedModel(backbone, LearnedShift(network{strength}))",
        "log_h": f"guided = GuidedModel(backbone, LearnedExpectation(network{strength}))",
        "change": "generate = output_map(generator, network)  # or noise_map, as it was trained",
        "changes": "generate = change_map(generator, network)",
    }[network.output]
    return (
        "---\nlibrary_name: rwguidance\ntags:\n- reward-weighted-guidance\n- diffusion\n---\n\n"
        f"# Guidance network\n\n| | |\n| --- | --- |\n{table}\n\n"
        "```python\nfrom rwguidance.networks import GuidanceNetwork\n\n"
        f'network = GuidanceNetwork.from_pretrained("...")\n{use}\n```\n'
        + (f"\n{notes.strip()}\n" if notes.strip() else "")
    )


def _inputs(network: StoredNetwork) -> list[str]:
    sees = ["the state", "the noise level"]
    sees += [f"the pooled text ({network.text})"] if network.text else []
    sees += [f"the tokens of the text ({network.tokens})"] if network.tokens else []
    return [*sees, "the strength of the tilt"] if network.strength else sees


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _described(network: StoredNetwork) -> dict[str, Any]:
    """Constructor arguments, for JSON."""

    return {**network.arguments, "schedule": _describe(network.schedule)}


_SCHEDULES: dict[str, tuple[type[Schedule], tuple[str, ...]]] = {
    cls.__name__: (cls, arguments)
    for cls, arguments in (
        (CosineSchedule, ()),
        (DiscreteSchedule, ("alphas_cumprod",)),
        (RectifiedSchedule, ()),
        (VESchedule, ("sigma_min", "sigma_max")),
        (VPSchedule, ("beta_min", "beta_max")),
    )
}


def _describe(schedule: Schedule) -> dict[str, Any]:
    """A schedule of the library as a name and constructor arguments, for JSON."""

    name = type(schedule).__name__
    cls, names = _SCHEDULES.get(name, (None, ()))
    if type(schedule) is not cls:
        raise TypeError(f"schedule must be one of {list(_SCHEDULES)} to be saved, got {name}")
    arguments = {key: getattr(schedule, key) for key in names}
    plain = lambda value: value.tolist() if isinstance(value, Tensor) else value
    return {"name": name, **{key: plain(value) for key, value in arguments.items()}}


def _schedule(name: str, **arguments: Any) -> Schedule:
    if name not in _SCHEDULES:
        raise ValueError(f"schedule must be one of {list(_SCHEDULES)}, got {name!r}")
    return _SCHEDULES[name][0](**arguments)
