"""The command `rwguidance train`: a guidance network from prepared data, with card and report."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .evaluate import Embeddings, HeldOut
from .generate import BackboneName, Dtype, Options, Paths
from .options import Device, Seed, dtype_named, parse_names, parse_options, parse_paths
from .prepare import progress_bars
from .sources import Sources, label

if TYPE_CHECKING:
    from ...generation.run import Report
    from ...support.processes import Processes
    from ...trainer import Findings, Settings

Data = Annotated[Path, typer.Option(help="Folder that `rwguidance prepare` wrote.")]
Preset = Annotated[
    str,
    typer.Option(
        help="recommended: the shift, regressed on the bank's own estimate, for any reward and "
        "several strengths. paper: log h, as the method's paper has it. gradient: changes of "
        "the noise and the output of a model of few steps, by the gradient of the reward."
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        "--network-preset",
        help="Size of the network: tiny (2 MB), small (12), paper (72), large (185), huge (502).",
        show_default=False,
    ),
]
TrainedReward = Annotated[
    str | None,
    typer.Option(
        help="The reward, as `rwguidance prepare` had it. Without it the network is trained on the "
        "first prepared one, and neither calibrated nor shown in pictures. `preference`, for "
        "pairs, is the share of its pairs that a picture wins.",
        metavar="NAME",
        show_default=False,
    ),
]
PANEL = "Single settings, in the place of the preset's"


def _setting(text: str, *names: str, **options: Any) -> Any:
    return typer.Option(*names, help=text, show_default=False, rich_help_panel=PANEL, **options)


def train(
    data: Data,
    backbone: BackboneName,
    out: Annotated[Path, typer.Option(help="Folder for the network.")],
    preset: Preset = "recommended",
    network_preset: Size = None,
    reward: TrainedReward = None,
    held_out: HeldOut = None,
    embedding: Embeddings = None,
    objective: Annotated[str | None, _setting("shift, log-h, output or gradients.")] = None,
    nats: Annotated[
        str | None, _setting("Strengths, in nats; several make it an input.", metavar="D,D")
    ] = None,
    beta: Annotated[float | None, _setting("Temperature, in the place of strengths.")] = None,
    loss: Annotated[str | None, _setting("Loss for log h, of rwguidance.losses.")] = None,
    eta: Annotated[float | None, _setting("Weight of the consistency term.")] = None,
    penalty: Annotated[float | None, _setting("Weight of the gradient penalty.")] = None,
    tilted: Annotated[float | None, _setting("Share of states of the tilted law.")] = None,
    effective: Annotated[
        float | None, _setting("Effective draws from which on the bank's mean is taken.")
    ] = None,
    variance: Annotated[float | None, _setting("Variance of the proximal term.")] = None,
    pictures: Annotated[
        int | None, _setting("Pictures that are made and scored, for gradients.")
    ] = None,
    steps: Annotated[int | None, _setting("Steps of the training.")] = None,
    batch_size: Annotated[int | None, _setting("States of a step, in all.")] = None,
    learning_rate: Annotated[float | None, _setting("Learning rate.")] = None,
    weight_decay: Annotated[float | None, _setting("Weight decay.")] = None,
    warm_up: Annotated[int | None, _setting("Steps in which the rate grows.")] = None,
    max_norm: Annotated[float | None, _setting("Bound on the norm of the gradient.")] = None,
    average: Annotated[
        float | None, _setting("Decay of the moving average of the weights; 0 for none.")
    ] = None,
    precision: Annotated[str, typer.Option(help="no, or bf16 for the network.")] = "no",
    accumulate: Annotated[
        int | None,
        typer.Option(
            help="Parts of a batch, one after another or shared by processes; by default one for "
            "each process. Trainings of equal parts are equal, whatever the processes.",
            min=1,
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option(
            "--most-prompts", help="Prompts to train on, at most.", min=1, show_default=False
        ),
    ] = None,
    sampler_steps: Annotated[
        int | None,
        typer.Option(
            help="Steps of runs; by default those of prepared draws.", min=1, show_default=False
        ),
    ] = None,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.", min=1)] = 200,
    decode_batch: Annotated[
        int | None,
        typer.Option(
            help="States that are decoded and scored at once for the gradient of a reward: the "
            "memory of decoder and reward is that of so many. By default all of a batch's part.",
            min=1,
            show_default=False,
        ),
    ] = None,
    validate_every: Annotated[
        int | None,
        typer.Option(
            help="Steps between validations on held-out prompts, 0 for none; by default a "
            "twentieth of the steps, and none in trainings of less than 200.",
            min=0,
            show_default=False,
        ),
    ] = None,
    shown: Annotated[
        int, typer.Option(help="Held-out prompts of which pictures are made.", min=1)
    ] = 8,
    images: Annotated[int, typer.Option(help="Pictures of each of them.", min=1)] = 4,
    picture_batch: Annotated[int, typer.Option(help="Pictures that are made at once.", min=1)] = 8,
    tracker: Annotated[
        list[str] | None,
        typer.Option(help="Trackers of accelerate, such as tensorboard, wandb.", metavar="NAME"),
    ] = None,
    push_to: Annotated[
        str | None,
        typer.Option(
            help="Repository of the hub to upload the network to, private if it is new.",
            metavar="OWNER/NAME",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    path: Paths = None,
    option: Options = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Train a guidance network on prepared data, and hold it against prompts that it has not seen.

    Writes model.safetensors, config.json and a card, README.md, which `rwguidance generate --method
    network --network FOLDER` reads; report.html and report.json; log.csv; pictures of held-out
    prompts. The same command goes on after an interruption. Several processes share the batches:
    `accelerate launch -m rwguidance train ...`, or torchrun.

    Exit code: 0, or 130 if interrupted, 1 for all other errors.
    """

    from ...trainer import Training

    given = {
        "network": network_preset,
        "objective": objective,
        "nats": None if nats is None else _numbers(nats),
        "beta": beta,
        "loss": loss,
        "eta": eta,
        "penalty": penalty,
        "tilted": tilted,
        "effective": effective,
        "variance": variance,
        "pictures": pictures,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "warm_up": warm_up,
        "max_norm": max_norm,
        "average": average,
        "bfloat16": _bfloat16(precision),
        "seed": seed,
    }
    job = Training(
        data=data,
        out=out,
        settings=_settings(preset, given),
        reward=None if reward is None else label(reward),
        parts=accumulate,
        prompts=prompts,
        sampler_steps=sampler_steps,
        save_every=save_every,
        validate_every=validate_every,
        decode_batch=decode_batch,
        held_out=shown,
        images=images,
        picture_batch=picture_batch,
        names={"backbone": label(backbone), "preset": preset},
    )
    out = job.folder
    names = [*([] if reward is None else [reward]), *parse_names(held_out)]
    if held_out and reward is None:
        raise ValueError("held_out judges pictures, which are not made without --reward")
    spaces = parse_names(embedding)
    sources = Sources(parse_paths(path), parse_options(option), device, dtype_named(dtype))
    sources.check(backbone, *names, *spaces)
    if push_to is not None:
        _check_hub(push_to)

    def work(processes: "Processes", say: Callable[[str], None], report: "Report") -> Any:
        from ...trainer import fit
        from ...trainer.tracking import tracking

        rewards = {label(name): sources.reward(name) for name in names}
        embeddings = {label(name): sources.embedding(name) for name in spaces}
        model = sources.backbone(backbone)
        with tracking(tracker or [] if processes.first else [], out) as track:
            return fit(
                job,
                model,
                rewards,
                embeddings,
                say=say,
                report=report,
                track=track,
                processes=processes,
            )

    raise typer.Exit(_run(work, out, push_to))


def _settings(preset: str, given: Mapping[str, Any]) -> "Settings":
    from ...trainer import PRESETS

    if preset not in PRESETS:
        raise LookupError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    return replace(PRESETS[preset], **{k: v for k, v in given.items() if v is not None})


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(sorted(float(part) for part in text.split(",") if part.strip()))
    except ValueError:
        raise ValueError(f"nats must be numbers separated by commas, got {text!r}") from None


def _bfloat16(precision: str) -> bool:
    if precision not in ("no", "bf16"):
        raise ValueError(f"precision must be no or bf16, got {precision!r}")
    return precision == "bf16"


def _check_hub(repository: str) -> None:
    from ...support.outside import require

    require("huggingface_hub", "--push-to needs", "train")
    if repository.count("/") != 1:
        raise ValueError(f"push_to must be OWNER/NAME, got {repository!r}")


def _run(work: Callable[..., "Findings | None"], out: Path, push_to: str | None) -> int:
    """Runs the work with a bar, says what was found, and returns the exit code."""

    from ...generation.console import Terminal
    from ...support.processes import joined

    with joined() as processes:
        terminal = Terminal(quiet=not processes.first)
        try:
            with terminal.warnings(), progress_bars(terminal) as report:
                found = work(processes, terminal.say, report)
        except KeyboardInterrupt:
            terminal.say("interrupted: the same command goes on where this one stopped")
            return 130
        if found is None:
            terminal.say(f"{out} is finished already")
        for sentence in found.doubts if found is not None else ():
            terminal.say(f"note: {sentence}")
        terminal.say(f"{out} has the network, its card and report.html")
        if push_to is not None and processes.first:
            terminal.say(f"uploaded to {_pushed(out, push_to)}")
    return 0


def _pushed(folder: Path, repository: str) -> str:
    from ...networks.storage import push_folder

    return push_folder(folder, repository)
