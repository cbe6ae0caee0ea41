"""The command `rwguidance score`."""

from pathlib import Path
from typing import Annotated

import typer

from ...support.files import expanded
from ...support.image_files import MAX_PIXELS
from .options import Device, DtypeName, dtype_named, parse_options, parse_paths
from .prompts import PromptColumn
from .sources import is_own, own_reward

Folder = Annotated[Path, typer.Argument(help="The images, and those in folders below.")]
RewardNames = Annotated[
    str,
    typer.Option(
        help="Names that `rwguidance rewards` lists, or FILE.py:NAME, a reward class of your own: "
        "the file is run, and the class goes by the name in its spec.",
        metavar="NAME[,NAME...]",
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        help="A .csv (image,prompt), .jsonl or .txt, the word sidecar for the text beside each "
        "image, or the word generated for what `rwguidance generate` wrote with the images, which "
        "is the default in its folders; elsewhere sidecar is, if a reward needs prompts.",
        show_default=False,
    ),
]
Pairs = Annotated[bool, typer.Option("--pairs", help="The i-th prompt belongs to the i-th image.")]
Out = Annotated[Path, typer.Option(help="The result, .csv or .parquet.")]
Paths = Annotated[
    list[str] | None,
    typer.Option(help="Where a reward's weights are; may repeat.", metavar="NAME=PATH"),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        help="A keyword of a reward's constructor, such as hpsv2:verify=false or "
        "clipscore:scaling=logit; may repeat.",
        metavar="NAME:KEY=VALUE",
    ),
]
Dtype = Annotated[
    DtypeName | None, typer.Option(help="What weights are cast to.", show_default=False)
]
BatchSize = Annotated[int, typer.Option(help="Images decoded, and pairs scored, at once.", min=1)]
Restart = Annotated[
    bool,
    typer.Option(
        "--restart", help="Replace a result and discard what an unfinished run has scored."
    ),
]
Exif = Annotated[
    bool,
    typer.Option(
        "--exif", help="Rotate images as their EXIF says, which the rewards' references do not."
    ),
]
MaxPixels = Annotated[
    int,
    typer.Option(
        help="Pixels of an image, at most: larger ones are skipped, and images that have more "
        "together are decoded and scored one after the other.",
        min=1,
    ),
]
EscapeFormulas = Annotated[
    bool,
    typer.Option(
        "--escape-formulas",
        help="Put an apostrophe before names and prompts in a .csv that a spreadsheet would "
        "compute, such as =1+1; else they are as they are.",
    ),
]


def score(
    folder: Folder,
    reward: RewardNames,
    prompts: Prompts = None,
    prompt_column: PromptColumn = "prompt",
    pairs: Pairs = False,
    out: Out = Path("scores.csv"),
    path: Paths = None,
    option: Options = None,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = 16,
    exif: Exif = False,
    max_pixels: MaxPixels = MAX_PIXELS,
    escape_formulas: EscapeFormulas = False,
    restart: Restart = False,
) -> None:
    """Score a folder of images for prompts, and write a table.

    Prompts in a file that names images (columns image and prompt) make one row per line. A file of
    prompts alone scores every image with every prompt, unless --pairs is given: then the images in
    order (2.png before 10.png) take one prompt each, and their numbers must agree.

    In a folder that `rwguidance generate` wrote, base pictures and aligned ones are scored for
    their prompts, with the kind in a column of the table. Sheets are left out.

    Started by `accelerate launch -m rwguidance score ...` or torchrun, several processes share the
    images and write one table, that of a single process.

    What fails is reported, left empty in the table with the reason in its column error, and
    skipped. An interrupted run goes on when the same command is given again, and ends with the
    same table. A finished one is left as it is, but for the images at which a reward has failed.

    Exit code: 0, or 2 if something was skipped, 130 if interrupted, 1 for all other errors.
    """

    from rwguidance.rewards.console import ScoreRequest, run_score

    names = [name.strip() for name in reward.split(",")]
    code = run_score(
        ScoreRequest(
            folder=expanded(folder),
            names=[own_reward(name) if is_own(name) else name for name in names],
            out=expanded(out),
            prompts=None if prompts is None else expanded(prompts),
            pairs=pairs,
            paths=parse_paths(path),
            options=parse_options(option),
            device=device,
            dtype=dtype_named(dtype),
            batch_size=batch_size,
            restart=restart,
            prompt_column=prompt_column,
            exif=exif,
            max_pixels=max_pixels,
            escape_formulas=escape_formulas,
        )
    )
    raise typer.Exit(code)
