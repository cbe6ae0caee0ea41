"""The command line. The only file of the core that may join the three packages, and only lazily."""

import json
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Reward-weighted guidance: sample p(x|y) exp(r(x,y)/beta) from a frozen model.",
)


class LawName(str, Enum):
    """The laws of `rwguidance toy`."""

    gaussian = "gaussian"
    mixture = "mixture"


class RewardName(str, Enum):
    """The rewards of `rwguidance toy`."""

    linear = "linear"
    quadratic = "quadratic"


class PathName(str, Enum):
    """The noise paths of `rwguidance toy`."""

    vp = "vp"
    cosine = "cosine"
    rectified = "rectified"


class MethodName(str, Enum):
    """The methods of `rwguidance generate`."""

    importance = "importance"
    network = "network"
    plug_in = "plug-in"
    best_of_n = "best-of-n"


class DtypeName(str, Enum):
    """The precisions that weights are cast to."""

    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"
    float64 = "float64"


class _PartialCommand(TyperCommand):
    """Exits with 1 after wrong options, as 2 says that something was skipped."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().make_context(*args, **kwargs)
        except Exception as error:
            if getattr(error, "exit_code", 0) == 2:
                error.exit_code = 1  # type: ignore[attr-defined]
            raise


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from .. import __version__

        typer.echo(__version__)
        raise typer.Exit()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for pictures and tables.")] = Path("out/demo"),
    seed: Annotated[int, typer.Option(help="Seed of everything.", min=0)] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A small run, in seconds.")] = False,
    digits: Annotated[
        bool,
        typer.Option(
            "--digits", help="An exact model of digits and a mixture in the plane instead."
        ),
    ] = False,
) -> None:
    """Align small text-to-image models with a learned reward, and show what it did."""

    import torch

    from rwguidance_testbed import network, shipped
    from rwguidance_testbed.data import load_names

    from ..support.outside import require
    from .demo import run, run_digits
    from .demo.emoji import PROMPTS, Case, Scorer, Settings

    if digits:
        torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
        run_digits(out, seed=seed, quick=quick)
        return
    for module in ("diffusers", "transformers", "PIL"):
        require(module, "the demo needs", "demo")
    for name in ("emoji-flow", "emoji-pick", "emoji-judge"):
        shipped.folder(name)  # raises where it is missing, before anything else is loaded

    import backbones
    import rewards

    # Decoding is most of the work, and a third faster so.
    load = lambda name: (
        backbones.load(name).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    )
    cases = [Case("emoji-flow", load("emoji-flow"), 4)]
    if {"emoji-turbo", "emoji-turbo-guide"} <= set(shipped.names()):
        guide, figures = network.read(shipped.folder("emoji-turbo-guide"))
        cases.append(Case("emoji-turbo", load("emoji-turbo"), 1, guide, figures["beta"]))
    else:
        typer.echo("emoji-turbo and its network do not come with this version: emoji-flow alone")
    names = [name for part in load_names().values() for name in part]
    things = dict(list(PROMPTS.items())[: 2 if quick else None])
    scorer = Scorer(rewards.load("emoji-pick").eval(), shipped.gold(), things, names)
    settings = Settings(images=2, bank=8, nats=0.5) if quick else Settings()
    run(cases, scorer, out, settings, seed)


@app.command()
def toy(
    law: Annotated[LawName, typer.Option(help="Law of the base model.")] = LawName.mixture,
    reward: Annotated[RewardName, typer.Option(help="Reward to tilt by.")] = RewardName.linear,
    path: Annotated[PathName, typer.Option(help="Noise path.")] = PathName.rectified,
    dim: Annotated[int, typer.Option(help="Dimension of the states.", min=1, max=256)] = 2,
    beta: Annotated[float, typer.Option(help="Temperature, in reward units; positive.")] = 1.0,
    bank: Annotated[int, typer.Option(help="Draws for importance sampling.", min=2)] = 4096,
    batch: Annotated[int, typer.Option(help="States per time.", min=1)] = 512,
    training_steps: Annotated[
        int, typer.Option(help="Steps for each guidance network; 0 leaves them out.", min=0)
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of everything.", min=0)] = 0,
) -> None:
    """Compare every estimator with the closed form, time by time, on a toy law."""

    from .demo.comparison import compare

    compare(
        law=law.value,
        reward=reward.value,
        path=path.value,
        dim=dim,
        beta=beta,
        bank_size=bank,
        batch=batch,
        training_steps=training_steps,
        seed=seed,
    )


@app.command("rewards")
def list_rewards(
    name: Annotated[str | None, typer.Argument(help="Everything about this reward.")] = None,
    commercial: Annotated[
        bool | None,
        typer.Option(
            "--commercial/--not-commercial",
            help="Those known to permit commercial use, or all others, the unknown among them.",
            show_default=False,
        ),
    ] = None,
    differentiable: Annotated[
        bool | None,
        typer.Option(
            "--differentiable/--not-differentiable",
            help="Those whose gradients reach the images, or not.",
            show_default=False,
        ),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(help="Those whose code or weights have this license.", metavar="SPDX"),
    ] = None,
) -> None:
    """List the rewards with their licenses and ranges, or print everything about one."""

    from rewards.console import print_reward, print_rewards

    if name is None:
        print_rewards(commercial, differentiable, license)
        return
    if any(filter is not None for filter in (commercial, differentiable, license)):
        raise ValueError("name one reward or filter the list, not both")
    try:
        print_reward(name)
    except LookupError as error:
        raise ValueError(str(error)) from None


@app.command(cls=_PartialCommand)
def score(
    folder: Annotated[Path, typer.Argument(help="The images, and those in folders below.")],
    reward: Annotated[
        str, typer.Option(help="Names that `rwguidance rewards` lists.", metavar="NAME[,NAME...]")
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A .csv (image,prompt), .jsonl or .txt, or the word sidecar for the text beside "
            "each image, which is the default if a reward needs prompts.",
            show_default=False,
        ),
    ] = None,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="The i-th prompt belongs to the i-th image.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The result, .csv or .parquet.")] = Path("scores.csv"),
    path: Annotated[
        list[str] | None,
        typer.Option(help="Where a reward's weights are; may repeat.", metavar="NAME=PATH"),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="A keyword of a reward's constructor, such as hpsv2:verify=false or "
            "clipscore:scaling=logit; may repeat.",
            metavar="NAME:KEY=VALUE",
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda:0.", show_default=False)] = None,
    dtype: Annotated[
        DtypeName | None, typer.Option(help="What weights are cast to.", show_default=False)
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Images decoded, and pairs scored, at once.", min=1)
    ] = 16,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart", help="Replace a result and discard what an unfinished run has scored."
        ),
    ] = False,
) -> None:
    """Score a folder of images for prompts, and write a table.

    Prompts in a file that names images (columns image and prompt) make one row per line. A file of
    prompts alone scores every image with every prompt, unless --pairs is given: then the images in
    order (2.png before 10.png) take one prompt each, and their numbers must agree.

    What fails is reported, left empty in the table with the reason in its column error, and
    skipped. An interrupted run goes on when the same command is given again, and ends with the
    same table.

    Exit code: 0, or 2 if something was skipped, 130 if interrupted, 1 for all other errors.
    """

    import torch

    from rewards.console import ScoreRequest, run_score

    paths, options = _paths(path), _options(option)
    _check_device(device)
    names = [name.strip() for name in reward.split(",")]
    precision = None if dtype is None else getattr(torch, dtype.value)
    try:
        code = run_score(
            ScoreRequest(
                folder=folder,
                names=names,
                out=out,
                prompts=prompts,
                pairs=pairs,
                paths=paths,
                options=options,
                device=device,
                dtype=precision,
                batch_size=batch_size,
                restart=restart,
            )
        )
    except LookupError as error:
        if type(error) is not LookupError:  # a KeyError is ours
            raise
        raise ValueError(str(error)) from None
    raise typer.Exit(code)


@app.command("backbones")
def list_backbones() -> None:
    """List the backbones that can be loaded by name."""

    import backbones

    for name in backbones.available():
        typer.echo(name)


@app.command(cls=_PartialCommand)
def generate(
    backbone: Annotated[str, typer.Option(help="A name that `rwguidance backbones` lists.")],
    reward: Annotated[str, typer.Option(help="A name that `rwguidance rewards` lists.")],
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt; may repeat.", show_default=False)
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A file of prompts: .txt, or .csv or .jsonl with prompt.", show_default=False
        ),
    ] = None,
    method: Annotated[MethodName, typer.Option(help="How to align.")] = MethodName.importance,
    beta: Annotated[
        float | None,
        typer.Option(
            help="Temperature in reward units, for importance and plug-in, and for best-of-n to "
            "draw by weight instead of taking the best.",
            show_default=False,
        ),
    ] = None,
    kl: Annotated[
        float | None,
        typer.Option(
            help="How far to move each prompt's law, in nats, instead of beta; for importance, "
            "where 1 is the default.",
            show_default=False,
        ),
    ] = None,
    bank: Annotated[
        int | None,
        typer.Option(
            help="Draws per prompt for importance (64), or per image for best-of-n (16).",
            show_default=False,
        ),
    ] = None,
    ess: Annotated[
        float | None,
        typer.Option(
            help="Share of the bank to keep effective by flattening the kernel, for importance.",
            show_default=False,
        ),
    ] = None,
    network: Annotated[
        Path | None,
        typer.Option(help="The file of a trained guidance network.", show_default=False),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(help="Multiplies the shift; 1 is exact.", show_default=False),
    ] = None,
    window: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Times in [0, 1] between which to guide.", show_default=False),
    ] = None,
    images: Annotated[int, typer.Option(help="Pictures per prompt.", min=1)] = 1,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the sampler.", min=1, show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything.", min=0)] = 0,
    negative_prompt: Annotated[
        str | None,
        typer.Option(help="What classifier-free guidance leads away from.", show_default=False),
    ] = None,
    path: Annotated[
        list[str] | None,
        typer.Option(
            help="Where the weights of the backbone or the reward are; may repeat.",
            metavar="NAME=PATH",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="A keyword of the backbone's or the reward's constructor, such as "
            "sdxl:guidance_scale=6; may repeat.",
            metavar="NAME:KEY=VALUE",
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda:0.", show_default=False)] = None,
    dtype: Annotated[
        DtypeName | None,
        typer.Option(help="What the backbone's weights are cast to.", show_default=False),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Samples that the networks see at once.", min=1)
    ] = 4,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder for draws of the model; by default rwguidance/banks in the user's cache.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for pictures and tables.")] = Path(
        "out/generate"
    ),
    restart: Annotated[
        bool, typer.Option("--restart", help="Replace pictures of other settings.")
    ] = False,
) -> None:
    """Make pictures of prompts twice from the same noise: by the model alone, and aligned.

    Writes pictures with their settings and rewards in the metadata, a table results.csv, and sheets
    of base beside aligned. A picture depends on the seed, its prompt and its number, not on the
    batch size or on other prompts. An interrupted run goes on when the same command is given again.

    Exit code: 0, or 2 if a prompt or a reward failed, 130 if interrupted, 1 for all other errors.
    """

    import torch

    import backbones
    import rewards
    from rewards.prompt_files import read_prompts

    from ..generation import Store
    from ..generation import generate as generate_pairs
    from ..generation.console import run_generate

    if (prompt is None) == (prompts is None):
        raise ValueError("give --prompt or --prompts, one of them")
    texts = prompt or list(dict.fromkeys(line.text for line in read_prompts(prompts or "")))
    paths, options = _paths(path), _options(option)
    for what, names in (("path", paths), ("option", options)):
        stray = [name for name in names if name not in (backbone, reward)]
        if stray:
            raise ValueError(f"{what} names {stray[0]!r}, which is neither {backbone} nor {reward}")
    settings: dict[str, Any] = {
        "beta": beta,
        "kl": kl,
        "bank": bank,
        "ess": ess,
        "network": network,
        "scale": scale,
        "window": window,
    }
    how = _method(method, {key: value for key, value in settings.items() if value is not None})
    _check_device(device)
    precision = None if dtype is None else getattr(torch, dtype.value)
    try:
        judge = rewards.load(reward, paths.get(reward), device, **options.get(reward, {}))
        model = backbones.load(
            backbone, paths.get(backbone), device, precision, **options.get(backbone, {})
        )
    except LookupError as error:
        if type(error) is not LookupError:  # a KeyError is ours
            raise
        raise ValueError(str(error)) from None
    work = lambda report: generate_pairs(
        model,
        judge,
        texts,
        out,
        how,
        images,
        seed,
        steps,
        batch_size,
        negative_prompt,
        Store.default() if cache is None else Store(cache),
        restart,
        {"backbone name": backbone, "reward name": reward},
        report,
    )
    raise typer.Exit(run_generate(work, restart))


def _method(name: MethodName, given: dict[str, Any]) -> Any:
    """The method of a name, if it takes the options that were given."""

    from ..generation import BestOfN, Importance, Network, PlugInMean
    from ..networks import LatentExpectation, load

    takes = {
        MethodName.importance: {"beta", "kl", "bank", "ess", "scale", "window"},
        MethodName.network: {"network", "scale", "window"},
        MethodName.plug_in: {"beta", "scale", "window"},
        MethodName.best_of_n: {"bank", "beta"},
    }[name]
    stray = sorted(set(given) - takes)
    if stray:
        raise ValueError(
            f"--{stray[0]} is not for --method {name.value}, which takes "
            + ", ".join(f"--{option}" for option in sorted(takes))
        )
    if name is MethodName.best_of_n:
        return BestOfN(given.get("bank", 16), given.get("beta"))
    if name is MethodName.importance:
        return Importance(**(given if {"beta", "kl"} & set(given) else {"kl": 1.0, **given}))
    needed = "network" if name is MethodName.network else "beta"
    if needed not in given:
        raise ValueError(f"--method {name.value} needs --{needed}")
    if name is MethodName.plug_in:
        return PlugInMean(**given)
    trained = load(given.pop("network"))
    return Network(trained, isinstance(trained, LatentExpectation), **given)


def _check_device(device: str | None) -> None:
    """Raises ValueError if there is no such device, where torch raises this or that."""

    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"device {device!r} cannot be used: {reason}") from None


def _paths(entries: list[str] | None) -> dict[str, str]:
    """Entries NAME=PATH by name."""

    paths: dict[str, str] = {}
    for entry in entries or ():
        key, equals, value = entry.partition("=")
        if not (key and equals and value) or key in paths:
            raise ValueError(f"path must be NAME=PATH, once per name, got {entry!r}")
        paths[key] = value
    return paths


def _options(entries: list[str] | None) -> dict[str, dict[str, Any]]:
    """Entries NAME:KEY=VALUE by name and key; values are JSON, or plain words."""

    options: dict[str, dict[str, Any]] = {}
    for entry in entries or ():
        left, equals, value = entry.partition("=")
        name, colon, key = left.partition(":")
        if not (name and colon and key and equals):
            raise ValueError(f"option must be NAME:KEY=VALUE, got {entry!r}")
        try:
            options.setdefault(name, {})[key] = json.loads(value)
        except json.JSONDecodeError:  # a plain word
            options[name][key] = value
    return options


def main() -> None:
    """Runs the command line: exit code 0, or 1 with one line for an error the user can mend."""

    try:
        app()
    except (ValueError, TypeError, ImportError, OSError, FloatingPointError) as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(1)
