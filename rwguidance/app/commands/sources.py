"""Rewards and backbones as a command names them: of the registries, or of the user's own file.

``FILE.py:NAME`` is explicitly the user's own code: the file is imported, which runs it. Nothing
else on the command line runs code that is not installed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...support import checks

if TYPE_CHECKING:
    import torch

    from rwguidance import backbones
    from rwguidance.evaluation.judges import Embedding
    from rwguidance.tilt import RewardFunction

__all__ = ["Sources", "is_own", "label", "own_reward"]


@dataclass(frozen=True)
class Sources:
    """The places and the keywords of what a command loads.

    Arguments:
        paths: Paths of weights by name.
        options: Keywords of constructors by name.
        device: Device of all that is loaded; None is that of the weights.
        dtype: Precision of the backbone; None leaves the choice to it.
    """

    paths: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    device: str | None = None
    dtype: "torch.dtype | None" = None

    def check(self, *used: str) -> None:
        """Raises ValueError for the path or the options of something else, and a wrong device."""

        for what, names in (("path", self.paths), ("option", self.options)):
            stray = [name for name in names if name not in used]
            if stray:
                raise ValueError(
                    f"{what} names {stray[0]!r}, which is neither {' nor '.join(used)}"
                )
        checks.device("device", self.device)

    def reward(self, name: str) -> "RewardFunction":
        """Returns the reward of a name, or of the user's file.

        Raises:
            LookupError: If there is no such reward; lists those that exist.
            UserCodeError: If there is no such file, or it fails.
            TypeError: If it is no reward, or does not take these options.
        """

        from rwguidance import rewards

        if not is_own(name):
            path, options = self._settings(name)
            return rewards.load(name, path, self.device, **options)
        function: RewardFunction = self._own("reward", name, "a function of images and prompts")
        return function

    def embedding(self, name: str) -> "Embedding":
        """Returns the embedding of a name, or of the user's file.

        Raises:
            LookupError: If there is no such embedding; lists those that exist.
            UserCodeError: If there is no such file, or it fails.
            TypeError: If it is no embedding, or does not take these options.
        """

        from rwguidance.evaluation import embeddings

        if not is_own(name):
            path, options = self._settings(name)
            return embeddings.load(name, path, self.device, **options)
        function: Embedding = self._own("embedding", name, "a function of images")
        return function

    def _own(self, kind: str, name: str, what: str) -> Any:
        """Returns a module or a function of the user's file."""

        from torch import nn

        from rwguidance.support.registry import build
        from rwguidance.support.user_code import load_object

        value = load_object(name)
        if isinstance(value, type) and issubclass(value, nn.Module):
            path, options = self._settings(name)
            return build(kind, name, value, path, self.device, None, options)
        self._refuse_settings(name)
        if isinstance(value, nn.Module):
            return value.to(self.device).eval()
        if not callable(value) or isinstance(value, type):
            raise TypeError(
                f"{name} must be {what}, a module or a class of modules, got {value!r:.80}"
            )
        return value

    def backbone(self, name: str) -> "backbones.TextToImage":
        """Returns the backbone of a name, or of the user's file.

        Raises:
            LookupError: If there is no such backbone; lists those that exist.
            UserCodeError: If there is no such file, or it fails.
            TypeError: If it is no backbone, or does not take these options.
        """

        from rwguidance import backbones
        from rwguidance.support.user_code import load_object

        if is_own(name):
            value = load_object(name)
            if isinstance(value, backbones.TextToImage):
                self._refuse_settings(name)
                return value.to(device=self.device, dtype=self.dtype).eval().requires_grad_(False)
            backbones.register(name)(value)
        path, options = self._settings(name)
        return backbones.load(name, path, self.device, self.dtype, **options)

    def _settings(self, name: str) -> tuple[str | None, Mapping[str, Any]]:
        """Returns the path and the keywords that were given for a name."""

        return self.paths.get(name), self.options.get(name, {})

    def _refuse_settings(self, name: str) -> None:
        if name in self.paths or name in self.options:
            raise TypeError(f"{name} is no class, so --path and --option cannot be given to it")


def is_own(name: str) -> bool:
    """Returns whether a name is that of an object in the user's file, ``FILE.py:NAME``."""

    return name.rpartition(":")[0].endswith(".py")


def label(name: str) -> str:
    """Returns a name for tables, without the folders that lead to a user's file or folder."""

    return re.sub(r"^.*/(?=[^/])", "", name).rstrip("/")


def own_reward(name: str) -> str:
    """Registers the reward class of the user's file, and returns the name that its spec states.

    Raises:
        UserCodeError: If there is no such file, or it fails.
        TypeError: If it is no subclass of :class:`rewards.Reward`, or states no spec.
        ValueError: If the name in its spec is taken.
    """

    from rwguidance import rewards
    from rwguidance.support.user_code import load_object

    value = load_object(name)
    spec = getattr(value, "spec", None)
    registered = spec.name if isinstance(spec, rewards.RewardSpec) else name
    rewards.register(registered)(value)
    return registered
