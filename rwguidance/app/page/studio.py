"""The models and the rewards of a page, and what they make of a request, one after the other."""

import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from ...backbone import TextToImage
from ...generation import Method, Row, Store, generate
from ...generation.choice import Situation, calls_of, situation_of
from ...generation.console import Terminal
from ...generation.run import Report
from ...support.checks import integer
from ...support.image_files import opened
from ...tilt import RewardFunction
from .requests import Limits, Request, method_for

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Answer", "Studio", "weights_of_sum"]


@dataclass(frozen=True)
class Answer:
    """What was made of a request.

    Arguments:
        pairs: Pictures of the model alone and aligned, from the same noise.
        rows: Their rewards, and what the method says of them; the files are gone.
        method: The method, with its settings.
        doubts: Warnings about estimates, one for each run of the sampler.
        calls: Number of calls of the network, at most.
    """

    pairs: "Sequence[tuple[Image, Image]]"
    rows: Sequence[Row]
    method: Method
    doubts: Sequence[str]
    calls: float


class Studio:
    """Makes the pictures of a page; visitors take turns, and nothing of one reaches another.

    Pictures are written as `rwguidance generate` writes them, to a folder of their own that is gone
    when they are read. Draws of the latest prompts are kept until the studio is closed.

    Arguments:
        backbones: The models by name.
        rewards: The rewards by name.
        limits: The most that a visitor may ask for at once; None is the default.
        batch_size: Number of samples that the networks see at once.

    Raises:
        TypeError: If the batch size is no integer.
        ValueError: If there is no model or no reward, or the batch size is less than one.
    """

    def __init__(
        self,
        backbones: Mapping[str, TextToImage],
        rewards: Mapping[str, RewardFunction],
        limits: Limits | None = None,
        batch_size: int = 4,
    ) -> None:
        for name, found in (("backbones", backbones), ("rewards", rewards)):
            if not found:
                raise ValueError(f"{name} must hold one at least, got none")
        self.backbones = backbones
        self.rewards = rewards
        self.limits = limits or Limits()
        self.batch_size = integer("batch_size", batch_size, 1)
        self._turn = Lock()
        self._draws: OrderedDict[Any, tempfile.TemporaryDirectory[str]] = OrderedDict()

    def make(self, request: Request, report: Report = lambda stage, done, total: None) -> Answer:
        """Returns what the model makes of a request, alone and aligned.

        Arguments:
            request: The request.
            report: Is told about progress.

        Raises:
            TypeError: If a value of the request is of the wrong kind.
            ValueError: If the request is not to be made, in words for the visitor, or could not be.
        """

        method, calls = self.plan(request)
        terminal = Terminal(quiet=True)
        with self._turn, ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rwguidance-"))
            doubts = stack.enter_context(terminal.warnings())
            made = generate(
                self.backbones[request.backbone],
                self.reward(request.weights),
                [request.prompt],
                folder,
                method,
                images=request.images,
                seed=request.seed,
                steps=request.steps,
                batch_size=self.batch_size,
                store=self._store(request),
                report=report,
            )
            for reason in (*made.failed.values(), *made.unwritten.values()):
                raise ValueError(reason)
            pairs = [(_read(row.files[0]), _read(row.files[1])) for row in made.rows]
        return Answer(pairs, made.rows, method, doubts, calls)

    def plan(self, request: Request) -> tuple[Method, float]:
        """Returns the method of a request and its calls of the network, at most, or refuses.

        Raises:
            TypeError: If a value of the request is of the wrong kind.
            ValueError: If the request is not to be made, in words for the visitor.
        """

        request.check(self.limits)
        for kind, name, known in (
            ("model", request.backbone, self.backbones),
            *(("reward", name, self.rewards) for name in request.weights),
        ):
            if name not in known:
                raise ValueError(f"there is no {kind} {name!r} here, but {', '.join(known)}")
        backbone, reward = self.backbones[request.backbone], self.reward(request.weights)
        situation = situation_of(backbone, reward, request.images, request.steps)
        method = method_for(request.method, request.nats, situation)
        calls = _calls(method, situation)
        if calls > self.limits.calls:
            raise ValueError(
                f"this takes {calls:,.0f} calls of the network, more than {self.limits.calls:,}, "
                "the most at once: ask for fewer pictures, fewer steps or another method"
            )
        return method, calls

    def reward(self, weights: Mapping[str, float]) -> RewardFunction:
        """Returns a reward, or the weighted sum of several.

        Raises:
            TypeError: If there are several and one of them is no :class:`rewards.Reward`.
        """

        from rwguidance.rewards import WeightedSum

        some = weights_of_sum(weights, self.rewards)
        if list(some.values()) == [1.0]:
            return self.rewards[next(iter(some))]
        parts: Any = [self.rewards[name] for name in some]
        return WeightedSum(parts, list(some.values()))

    def close(self) -> None:
        """Forgets all draws."""

        while self._draws:
            self._draws.popitem()[1].cleanup()

    def _store(self, request: Request) -> Store:
        """Returns where the draws of a prompt are kept, and forgets those that were not wanted."""

        key = (request.prompt, request.backbone, request.steps, request.seed)
        if key not in self._draws:
            self._draws[key] = tempfile.TemporaryDirectory(prefix="rwguidance-draws-")
        self._draws.move_to_end(key)
        while len(self._draws) > self.limits.kept:
            self._draws.popitem(last=False)[1].cleanup()
        return Store(Path(self._draws[key].name))


def weights_of_sum(
    weights: Mapping[str, float], rewards: Mapping[str, RewardFunction]
) -> dict[str, float]:
    """Returns the weights of a sum, per reward unit, of the rewards that have some weight.

    The weights of a request count typical ranges. A reward that stands alone keeps its unit, since
    strengths in nats do not depend on it.

    Arguments:
        weights: Weights of the request by name of the reward.
        rewards: The rewards by name.

    Raises:
        TypeError: If there are several and one of them does not state its typical range.
    """

    some = {name: weight for name, weight in weights.items() if weight}
    if len(some) == 1 and min(some.values()) > 0:
        return dict.fromkeys(some, 1.0)
    found: dict[str, float] = {}
    for name, weight in some.items():
        spec = getattr(rewards[name], "spec", None)
        if spec is None:
            raise TypeError(f"{name} does not state its typical range, so it must stand alone")
        low, high = spec.typical_range
        found[name] = float(f"{weight / (high - low):.6g}")
    return found


def _calls(method: Method, situation: Situation) -> float:
    """Returns the calls of the network for all pictures of a request, the unguided among them."""

    aligned = calls_of(method, situation) * situation.images
    return aligned if method.chooses else aligned + situation.images * situation.steps


def _read(path: Path) -> "Image":
    with opened(path) as image:
        return image.convert("RGB")
