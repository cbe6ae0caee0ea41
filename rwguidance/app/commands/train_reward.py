"""The command `rwguidance train-reward`: a reward from pairs that people compared."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .generate import Options, Paths
from .options import Device, parse_options, parse_paths
from .sources import Sources, is_own

if TYPE_CHECKING:
    from ...trainer import RewardFindings

Data = Annotated[
    Path, typer.Option(help="Folder that `rwguidance prepare --data ... --features ...` wrote.")
]
Features = Annotated[
    str,
    typer.Option(
        help="The reward whose features are weighted, as `prepare` had it.", metavar="NAME"
    ),
]
Ridge = Annotated[
    float | None,
    typer.Option(
        help="Penalty on weights of features of unit size; by default, a fifth of the training "
        "prompts chooses it.",
        show_default=False,
    ),
]


def train_reward(
    data: Data,
    features: Features,
    out: Annotated[Path, typer.Option(help="Folder for the reward.")],
    ridge: Ridge = None,
    path: Paths = None,
    option: Options = None,
    device: Device = None,
) -> None:
    """Train a reward on pairs that people compared: a weighted sum of the features of two towers.

    Its differences are the log-odds that people prefer one picture (Bradley-Terry); a tie is half a
    win for each. It is held against prompts that the training has not seen, beside all rewards that
    were prepared. Writes model.safetensors, config.json and a card, README.md. `--reward ./FOLDER`
    of the other commands reads it, with its gradient.

    Exit code: 0, or 130 if interrupted, 1 for all other errors.
    """

    from rwguidance.rewards.learned import LearnedReward

    from ...generation.console import Terminal
    from ...support.files import expanded
    from ...support.fingerprint import fingerprint
    from ...trainer import fit_reward
    from ...trainer.material import data_at
    from ...trainer.preferences import prepared_key

    if is_own(features):
        raise ValueError(
            f"features must be of a reward by name, since the folder holds no code, got {features}"
        )
    paths, options = parse_paths(path), parse_options(option)
    sources = Sources(paths, options, device)
    sources.check(features)
    prepared = data_at(data)
    key = prepared_key(prepared, features)
    tower = sources.reward(features)
    if fingerprint(tower) != key:
        raise ValueError(
            f"features {features} are others than those that were prepared: use the same weights "
            "and options"
        )
    found = fit_reward(prepared, features, ridge, device)
    reward = LearnedReward(
        expanded(out).name,
        tower,
        found.weights,
        usual=(-2 * found.spread, 2 * found.spread),
    )
    place = paths.get(features)
    if place is not None and Path(place).exists():
        place = str(Path(place).absolute())
    reward.save_pretrained(out, place, options.get(features), _card(found, features))
    terminal = Terminal(quiet=False)
    for name, text in found.rows:
        terminal.say(f"{name}: {text}")
    terminal.say(f"{out} has the reward and its card: --reward {_as_path(out)}")


def _as_path(out: Path) -> str:
    """Returns a folder as a reward's name, which has a separator."""

    return str(out) if len(out.parts) > 1 else f"./{out}"


def _card(found: "RewardFindings", features: str) -> str:
    table = "\n".join(f"| {name} | {text} |" for name, text in found.rows)
    return (
        "---\nlibrary_name: rwguidance\ntags:\n- reward-model\n---\n\n# Reward of pairs\n\n"
        f"A weighted sum of the features of {features}; differences are the log-odds that people "
        "prefer one picture to another of the same prompt. Agreement, cross-entropy and slope are "
        "of prompts that it has not seen, with errors over them.\n\n"
        f"| | |\n| --- | --- |\n{table}\n\n"
        '```python\nfrom rwguidance import rewards\n\nreward = rewards.load("./FOLDER")\n```\n'
    )
