"""An evaluation from end to end: the plan, its folder, every prompt, and the results.

.. code-block:: python

    results = evaluate(
        backbone, pickscore, prompts, "out/table",
        {"importance": Importance(kl=1.0), "best of 4": BestOfN(4)},
        held_out={"hpsv2": hpsv2}, embeddings={"clip": clip}, strengths=[0.5, 1, 2],
    )
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..backbone import TextToImage
from ..generation.base import Method
from ..generation.extensions import check_negative_prompt, sampling_times
from ..generation.folder import differences
from ..generation.pairs import check_device
from ..generation.run import Report, Run
from ..generation.work import Forecast, Work, work_on_draws
from ..store import Store
from ..support.checks import function, instance, path
from ..support.files import read_regular, replacing
from ..support.fingerprint import NotKept
from ..support.locks import locked
from ..support.processes import ALONE, Processes
from ..tilt import RewardFunction
from . import records
from .judges import Embedding, Judges
from .meter import Counted, MeteredRun
from .plan import Plan, TargetSize
from .results import Results
from .run import Evaluation

__all__ = ["claimed", "evaluate", "load_results", "run_plan"]

_PLAN = "plan.json"


def evaluate(
    backbone: TextToImage,
    reward: RewardFunction,
    prompts: Sequence[str],
    out: Path | str,
    methods: Mapping[str, Method],
    *,
    aligned: str = "reward",
    held_out: Mapping[str, RewardFunction] | None = None,
    embeddings: Mapping[str, Embedding] | None = None,
    strengths: Sequence[float] = (0.25, 0.5, 1.0, 2.0),
    images: int = 1,
    seeds: Sequence[int] = (0,),
    steps: int | None = None,
    batch_size: int = 8,
    negative_prompt: str | None = None,
    target_draws: int = 256,
    targets: Mapping[float, TargetSize] | None = None,
    shown: int = 12,
    restart: bool = False,
    store: Store | None = None,
    report: Report = lambda stage, done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> Results:
    """Runs methods at strengths on prompts, and returns what was found.

    All start from the same noise. What is finished of an interrupted evaluation is kept when it is
    called again, prompt by prompt; prompts of which something failed are made again.

    Arguments:
        backbone: The model.
        reward: The reward that is aligned to, which maps (images, prompts) to rewards, (B,).
        prompts: Distinct prompts.
        out: A folder for the results, made if needed.
        methods: Methods by label.
        aligned: Name of the reward.
        held_out: Rewards that no method sees, by name.
        embeddings: Embeddings in which laws are compared, by name.
        strengths: Strengths, in nats, at which methods that have one run.
        images: Pictures per prompt and seed.
        seeds: Seeds; each has its own noise and its own banks.
        steps: Steps of the sampler. None is what the model's authors recommend.
        batch_size: Samples that the network, the decoder and the rewards see at once.
        negative_prompt: The text that classifier-free guidance leads away from. None is the
            backbone's own.
        target_draws: Number of draws that stand for the tilted law of each prompt; 0 is no target.
        targets: Sizes of the targets at strengths where they are other ones.
        shown: Number of first prompts of which a picture of each cell is kept.
        restart: Whether to replace results of another plan.
        store: Keeps draws of the model and their rewards. None is a folder in `out`.
        report: Is told about progress: the stage, how much of it is done, and out of how much.
        say: Is told in sentences how much work there is, and how long it takes.

    Raises:
        TypeError: If an argument is of the wrong kind, or the backbone takes no negative prompt.
        ValueError: If an argument makes no sense, `out` holds results of another plan or is in use
            by another process, or reward and backbone are on different devices.
        OSError: If `out` cannot be written to.

    Warns:
        NotKept: If the model, a reward, an embedding or a method does not say what it depends on,
            so that nothing is kept for another call.
        RuntimeWarning: If the store cannot be written to, or a record is damaged.
    """

    instance("backbone", backbone, TextToImage, "a Backbone, such as backbones.load(name)")
    rewards = {aligned: reward, **(held_out or {})}
    for name, function_of in (*rewards.items(), *(embeddings or {}).items()):
        function(name, function_of, classes=False)
    plan = Plan(
        prompts=prompts,
        out=out,
        methods=methods,
        aligned=aligned,
        held_out=list(held_out or {}),
        embeddings=list(embeddings or {}),
        strengths=strengths,
        images=images,
        seeds=seeds,
        steps=steps,
        batch_size=batch_size,
        negative_prompt=negative_prompt,
        target_draws=target_draws,
        targets=targets or {},
        shown=shown,
        restart=restart,
    )
    with claimed(plan):
        return run_plan(plan, backbone, rewards, embeddings or {}, store, report, say)


@contextmanager
def claimed(plan: Plan) -> Iterator[None]:
    """Holds the folder of a plan against other processes, once it is known that it is of this plan.

    Arguments:
        plan: The plan.

    Raises:
        ValueError: If another process writes to the folder, or it holds results of another plan;
            says which settings differ.
        OSError: If the folder cannot be made or written to.
    """

    with locked(plan.folder):
        if not plan.restart:
            _check_folder(plan.folder, plan.settings)
        yield


def run_plan(
    plan: Plan,
    backbone: TextToImage,
    rewards: Mapping[str, RewardFunction],
    embeddings: Mapping[str, Embedding],
    store: Store | None = None,
    report: Report = lambda stage, done, total: None,
    say: Callable[[str], None] = lambda text: None,
    processes: Processes = ALONE,
) -> Results:
    """Runs a plan whose folder is claimed, prompt by prompt.

    Arguments:
        plan: The plan.
        backbone: The model.
        rewards: Rewards by name, the one that is aligned to first.
        embeddings: Embeddings by name.
        store: Keeps draws of the model and their rewards. None is a folder in that of the plan.
        report: Is told about progress.
        say: Is told sentences for the user.
        processes: The processes that share the prompts, and the folder.

    Returns:
        The results of all prompts, in every process. It raises what :func:`evaluate` raises.
    """

    evaluation = _evaluation(plan, backbone, rewards, embeddings, store, report, say)
    settings = _settings(plan, evaluation)
    if processes.first:
        _claim(plan, settings)
    processes.wait()
    finished: dict[int, records.Record] = {}
    for number in processes.deal(len(plan.prompts)):
        report("prompts", number, len(plan.prompts))
        path = _path(plan.folder, number)
        record = records.read(path)
        if record is None or record.failures:
            records.write(evaluation.record(number, plan.prompts[number]), path)
        else:
            finished[number] = record
    report("prompts", len(plan.prompts), len(plan.prompts))
    processes.wait()
    return _collected(plan.folder, finished)


def load_results(folder: Path | str) -> Results:
    """Returns the results in the folder of an evaluation, of the prompts that are finished.

    Raises:
        FileNotFoundError: If there is no evaluation.
        ValueError: If its plan is damaged; names the file.
    """

    place = path("folder", folder)
    if not (place / _PLAN).exists():
        raise FileNotFoundError(f"{place} must be the folder of an evaluation, it has no {_PLAN}")
    return _collected(place, {})


def _collected(folder: Path, known: Mapping[int, records.Record]) -> Results:
    """Returns the results in a folder, of which some records are known and not read again."""

    file = folder / _PLAN
    try:
        settings = dict(json.loads(read_regular(file)))
        numbers = range(len(settings["prompts"]))
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged, evaluate again: {error}") from None
    found = [known.get(number) or records.read(_path(folder, number)) for number in numbers]
    return records.collect([one for one in found if one is not None], settings, folder)


def _evaluation(
    plan: Plan,
    backbone: TextToImage,
    rewards: Mapping[str, RewardFunction],
    embeddings: Mapping[str, Embedding],
    store: Store | None,
    report: Report,
    say: Callable[[str], None],
) -> Evaluation:
    """Returns an evaluation with a run for each seed."""

    times = sampling_times(backbone, plan.steps)
    check_negative_prompt(backbone, plan.negative_prompt)
    aligned = rewards[plan.aligned]
    options = (plan.batch_size, plan.negative_prompt, store or Store(plan.folder / "draws"), report)
    run = Run(backbone, aligned, times, plan.seeds[0], *options)
    for cell, method in plan.cells.items():
        try:
            method.check(times)
            method.check_run(run, plan.prompts[0])
        except ValueError as error:
            raise ValueError(f"{cell}: {error}") from None
    counted = Counted(aligned)
    runs = [MeteredRun(backbone, counted, times, seed, *options, run) for seed in plan.seeds]
    judges = Judges(run, rewards, embeddings)
    for one in judges.runs.values():
        check_device(one)
    forecast = _forecast(plan, run, say)
    return Evaluation(plan, runs, judges, forecast)


def _forecast(plan: Plan, run: Run, say: Callable[[str], None]) -> Forecast:
    """Returns the forecast of the prompts that have no record."""

    steps, size, methods = len(run.times) - 1, plan.batch_size, plan.cells.values()
    samples = lambda n: Work.of_samples(n, steps, size)
    asked = [streams for method in methods for streams in method.streams(plan.images)]
    drawn = run.drawer(plan.prompts[0], ()) is not None
    scored = drawn and run.reward_key is not None
    one = samples(plan.images) + work_on_draws(asked, steps, size, drawn, scored)
    for method in methods:
        one += method.work(plan.images, steps, size)
    numbers = range(len(plan.prompts))
    absent = [number for number in numbers if not _path(plan.folder, number).exists()]
    work = one * len(plan.seeds) * len(absent)
    count = (len(methods) + 1) * plan.pictures
    judged = count * len(absent)
    for number in absent:
        targets = plan.target(number)[0]
        work += samples(targets)
        judged += targets
    what = f"{count} pictures of each of {len(absent):,} prompts" if absent else ""
    return Forecast(what, work, steps, say, judged)


def _settings(plan: Plan, evaluation: Evaluation) -> dict[str, Any]:
    """Returns everything that decides the results, as JSON has it."""

    run, judges = evaluation.runs[0], evaluation.judges
    origin = {key: value for key, value in run.origin.items() if key != "seed"}
    found = [pair for keys in judges.keys.values() for pair in keys.values()]
    reasons = [*plan.undescribed, *run.undescribed, *(reason for _, reason in found if reason)]
    key = lambda kind: {name: key for name, (key, _) in judges.keys[kind].items()}
    keys = {
        "undescribed": list(dict.fromkeys(reasons)),
        "reward keys": key("rewards"),
        "embedding keys": key("embeddings"),
    }
    return dict(json.loads(json.dumps({**plan.settings, **origin, **keys})))


def _claim(plan: Plan, settings: Mapping[str, Any]) -> None:
    """Writes the settings to the folder, and removes the records of others."""

    reasons = settings["undescribed"]
    if reasons:
        text = f"what it makes is not kept for another run: {'; '.join(reasons)}"
        warnings.warn(text, NotKept, stacklevel=4)
    if not plan.restart:
        _check_folder(plan.folder, settings)
    if reasons or (plan.restart and _differences(plan.folder, settings)):
        for path in plan.folder.glob("prompts/*.safetensors"):
            path.unlink()
    with replacing(plan.folder / _PLAN) as partial:
        text = json.dumps(settings, indent=1, ensure_ascii=False)
        partial.write_bytes(text.encode())


def _check_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises ValueError if a folder holds results of another plan; says which settings differ."""

    differ = _differences(folder, settings)
    if differ:
        raise ValueError(
            f"{folder} holds results of another plan: {', '.join(differ)} differ; write elsewhere, "
            "or replace them with restart=True (on the command line, --restart)"
        )


def _differences(folder: Path, settings: Mapping[str, Any]) -> list[str]:
    """Returns which of these settings are others in a folder with results."""

    label = folder / _PLAN
    if not label.exists() or not any(folder.glob("prompts/*.safetensors")):
        return []
    return differences(label, settings)


def _path(folder: Path, number: int) -> Path:
    return folder / "prompts" / f"{number:04d}.safetensors"
