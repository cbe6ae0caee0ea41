"""Every method on the models of the test bed, against the exactly tilted law.

Run `python testbed/benchmarks/methods.py`. It is one call of `rwguidance evaluate` for each model,
which it prints: the prompts that are reported, `emoji-pick` as the reward that is aligned to, and
the gold utility, with and without its terms that know no prompt, as what no method sees. Options
that it does not know go to `rwguidance evaluate`. A run that was stopped goes on.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

OWN = Path(__file__).with_name("own_methods.py")

SHARED = (
    "importance:bank=64",
    "importance:bank=64,leave_one_out=true",
    "plug-in",
    "resample:bank=64",
    "pool:bank=32",
    "pool:bank=16",
    "pool:bank=32,leave_one_out=true",
    "best-of-n:n=2",
    "best-of-n:n=4",
    "best-of-n:n=16",
    "best-of-n:n=16,kl=1",
)
"""Methods of both models."""

ALONE = {
    # Through three calls: the fourth changes next to nothing. Sizes are those of the development
    # prompts at 1 nat.
    "emoji-flow": (
        f"{OWN}:Pooled:side=1",
        "importance:bank=64,window=[0.7,1]",
        "noise-gradient:size=1.3,through=3",
    ),
    "emoji-turbo": (
        "noise-gradient:size=0.65",
        "pcn:bank=64",
        "network:network=emoji-turbo-guide",
        f"{OWN}:Jacobian",
    ),
}
"""Methods of one model: windows and wider kernels need several steps, networks are of a model."""

IMAGES = 16
"""Pictures of a prompt, which those methods weigh together that make several at once."""

SMOKE = ("--strengths", "1", "--target-draws", "8", "--shown", "2")
"""Options of a run that is over in seconds, and says nothing."""


def command(backbone: str, out: Path, prompts: int, smoke: bool, more: Sequence[str]) -> list[str]:
    """Returns the arguments of `rwguidance evaluate` for a model.

    Arguments:
        backbone: Name of the model.
        out: Folder of the results of all models.
        prompts: Number of prompts.
        smoke: Whether to make a few pictures by a few methods.
        more: Further options.
    """

    methods = SHARED[2:4] + SHARED[7:8] if smoke else (*SHARED, *ALONE.get(backbone, ()))
    return [
        *("evaluate", "--backbone", backbone, "--reward", "emoji-pick"),
        *("--held-out", "emoji-hps,emoji-gold,emoji-match", "--embedding", "emoji-judge"),
        *("--prompts", "emoji-report", "--subset", str(prompts), "--images", str(IMAGES)),
        *("--developed-on", "emoji-development", "--batch-size", str(IMAGES)),
        *(part for method in methods for part in ("--method", method)),
        *("--cache", str(out / "draws"), "--out", str(out / backbone)),
        *(SMOKE if smoke else ()),
        *more,
    ]


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Returns the options of the command, and those of `rwguidance evaluate`."""

    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--backbone", action="append", help=f"default: {', '.join(ALONE)}")
    add("--subset", type=int, default=None, help="number of prompts; default: all 200")
    add("--out", type=Path, default=Path("out/testbed-results"))
    add("--smoke", action="store_true", help="two prompts and few methods, in a minute")
    return parser.parse_known_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""

    arguments, more = parse(argv)
    prompts = arguments.subset or (2 if arguments.smoke else 200)
    for backbone in arguments.backbone or ALONE:
        line = command(backbone, arguments.out, prompts, arguments.smoke, more)
        print(f"rwguidance {shlex.join(line)}", flush=True)
        subprocess.run([sys.executable, "-m", "rwguidance", *line], check=True)


if __name__ == "__main__":
    main()
