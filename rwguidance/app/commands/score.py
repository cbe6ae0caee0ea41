"""`rwguidance score`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import DtypeName, check_device, parse_options, parse_paths


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

    from rwguidance.rewards.console import ScoreRequest, run_score

    paths, options = parse_paths(path), parse_options(option)
    check_device(device)
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
