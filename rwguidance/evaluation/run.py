"""The pictures of a prompt: every method at every strength, from the same noise.

The unguided pictures are made first. Then follow the methods, each at all its strengths: they start
from the noise of those pictures and share the banks of the prompt, and each picture is scored by
all rewards and embedded once. Last come the draws that stand for the exactly tilted law, from a
random stream that no method reads.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..generation.base import Aligned, Method
from ..generation.failures import reason
from ..generation.pictures import save_picture
from ..generation.work import Forecast
from .judged import judged_draws
from .judges import Judges, Looks, join
from .meter import Counted, Meter, MeteredRun
from .plan import Plan
from .records import Found, Record
from .results import BASE, Cell, Failure
from .targets import Draws

__all__ = ["TARGET", "Evaluation"]

TARGET = "target"
"""Name of the random stream of draws that no method reads, and of what fails about them."""


@dataclass(frozen=True)
class _Batch:
    """Unguided pictures: the run of their seed, their numbers and states, and what is seen."""

    run: MeteredRun
    numbers: range
    x_0: Tensor
    images: Tensor
    looks: Looks


@dataclass(frozen=True)
class Evaluation:
    """An evaluation whose model is loaded.

    Arguments:
        plan: The plan.
        runs: A run for each seed, of one model and the reward that is aligned to.
        judges: What looks at pictures.
        forecast: Is told how long the first batch took.
    """

    plan: Plan
    runs: Sequence[MeteredRun]
    judges: Judges
    forecast: Forecast

    def record(self, number: int, prompt: str) -> Record:
        """Makes and judges the pictures of one prompt.

        What fails is stated in the record, and ends nothing but what starts from it.

        Arguments:
            number: Number of the prompt.
            prompt: The prompt.
        """

        report = self.runs[0].report
        cells: dict[Cell, Found] = {}
        failures: dict[str, str] = {}
        meter, draws = self._meter(), None
        try:
            batches = [
                self._unguided(run, numbers, prompt, meter)
                for run in self.runs
                for numbers in self.plan.batches
            ]
            looks = [(batch.images, batch.looks) for batch in batches]
            cells[BASE] = self._found(number, prompt, BASE, looks, meter.costs(), {}, failures)
        except Exception as error:  # whatever fails, other prompts go on
            return Record(prompt, {}, None, [Failure(prompt, str(BASE), reason(error))])
        for i, (cell, method) in enumerate(self.plan.cells.items()):
            report("methods", i, len(self.plan.cells))
            try:
                cells[cell] = self._cell(number, prompt, cell, method, batches, meter, failures)
            except Exception as error:
                failures[str(cell)] = reason(error)
        try:
            draws = self._draws(number, prompt, failures)
        except Exception as error:
            failures[TARGET] = reason(error)
        return Record(prompt, cells, draws, [Failure(prompt, *one) for one in failures.items()])

    def _unguided(self, run: MeteredRun, numbers: range, prompt: str, meter: Meter) -> _Batch:
        """Makes a batch of unguided pictures."""

        with run.metered(meter):
            run.condition(prompt, len(numbers))  # once for all batches, and so not timed with them
            start = time.perf_counter()
            x_0 = run.sample(run.backbone, prompt, [("image", prompt, i) for i in numbers])
            x_0.cpu()  # a device may return before it has finished
            drawn = time.perf_counter()
            images = run.decode(x_0)
            scores = run.score(images, prompt)
        scored = time.perf_counter()
        looks = self.judges.look(images, prompt, scores)
        judging = time.perf_counter() - scored
        self.forecast.timed(len(numbers), drawn - start, scored - drawn, judging)
        return _Batch(run, numbers, x_0, images, looks)

    def _cell(
        self,
        number: int,
        prompt: str,
        cell: Cell,
        method: Method,
        batches: Sequence[_Batch],
        base: Meter,
        failures: dict[str, str],
    ) -> Found:
        """Makes the pictures of one method at one strength."""

        meter, looks, aligned = self._meter(), [], []
        for batch in batches:
            run, rewards = batch.run, batch.looks.rewards[self.plan.aligned]
            with run.metered(meter):
                samples = method.align(run, prompt, batch.numbers, batch.x_0, rewards)
                with meter.shared(when=method.chooses):  # which it has seen already
                    images = run.decode(samples.x_0)
                    scores = run.score(images, prompt)
            aligned.append(samples)
            looks.append((images, self.judges.look(images, prompt, scores)))
        costs = meter.costs(base if method.chooses else None)
        return self._found(number, prompt, cell, looks, costs, _facts(aligned), failures)

    def _found(
        self,
        number: int,
        prompt: str,
        cell: Cell,
        looks: Sequence[tuple[Tensor, Looks]],
        costs: Sequence[float],
        facts: Mapping[str, Any],
        failures: dict[str, str],
    ) -> Found:
        """Returns what was found of a cell, and keeps its first picture if that is to be shown."""

        seen = join([look for _, look in looks])
        failures.update({f"{name} of {cell}": why for name, why in seen.errors.items()})
        file = ""
        if number < self.plan.shown:
            place = [BASE, *self.plan.cells].index(cell)
            slug = re.sub(r"[^a-z0-9]+", "-", str(cell).lower()).strip("-")[:40]
            file = f"pictures/{number:04d}/{place:02d}-{slug}.png"
            path = self.plan.folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            save_picture(looks[0][0][0], path, {"prompt": prompt, "cell": str(cell)})
        return Found(seen.rewards, seen.embeddings, costs, facts, file)

    def _draws(self, number: int, prompt: str, failures: dict[str, str]) -> Draws | None:
        """Returns draws that stand for the tilted law of a prompt."""

        n, strengths = self.plan.target(number)
        if not n:
            return None
        seen = judged_draws(self.runs[0], self.judges, prompt, n, TARGET)
        failures.update({f"{name} of the {TARGET}": why for name, why in seen.errors.items()})
        return Draws(seen.rewards, seen.embeddings, strengths)

    def _meter(self) -> Meter:
        run = self.runs[0]
        assert isinstance(run.reward, Counted)
        return Meter(run.backbone, run.reward, run.device)


def _facts(aligned: Sequence[Aligned]) -> dict[str, Any]:
    """Returns what a method states, of batches and of pictures."""

    each = [facts for samples in aligned for facts in samples.each]
    return {"batches": [samples.facts for samples in aligned], "pictures": each}
