"""Writes tables of pages anew: ``python docs/tables.py``.

Those of docs/generation.md are made from the methods, and those of docs/paper_claims.md from the
result files of `benchmarks.alignment_cost` (all methods on some prompts, those that decide on all),
`benchmarks.alignment_curves` and `benchmarks.alignment.shipped`.

A table stands between the marks ``<!-- table: NAME -->`` and ``<!-- end -->``.
"""

import json
import re
from pathlib import Path

from rwguidance.generation.choice import Situation, choose
from rwguidance.generation.methods import METHODS
from rwguidance.generation.settings import flag, method_options, method_settings, summary

PAGE = Path(__file__).with_name("generation.md")
PAPER = Path(__file__).with_name("paper_claims.md")
README = Path(__file__).resolve().parent.parent / "README.md"
GROUP = 16  # pictures of a prompt that share a bank
SHOWN = ("scale", "nats", "eta", "size", "data", "reward")
RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
_MARKED = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def methods():
    """A row for each method: its name, the options that it cannot do without, and what it is."""

    rows = []
    for name, method in METHODS.items():
        required = [s.option for s in method_settings(method) if s.note == "required"]
        rows.append((f"`{name}`", ", ".join(f"`{flag(o)}`" for o in required), summary(method)))
    return _markdown(("`--method`", "needs", "what it is"), rows)


def settings():
    """A row for each meaning of an option: its name, the methods that take it, what it is."""

    rows = [
        (f"`{flag(option.name)}`", methods, meaning)
        for option in method_options(METHODS)
        for meaning, methods in option.meanings.items()
    ]
    return _markdown(("option", "of", "what it is"), rows)


# What was asked for, with `Situation` and settings: pictures, steps, whether there is a path and a
# gradient, calls; and the settings.
SITUATIONS = [
    (Situation(16, 4, True, False), {}),
    (Situation(64, 4, True, False), {}),
    (Situation(16, 4, True, False), {"kl": 2.0}),
    (Situation(16, 4, True, False), {"kl": 4.0}),
    (Situation(16, 4, True, False, 8), {}),
    (Situation(16, 4, True, False, 6), {}),
    (Situation(16, 4, True, False, 4), {"kl": 4.0}),
    (Situation(4, 4, True, False), {}),
    (Situation(1, 4, True, True), {}),
    (Situation(1, 4, True, True, 60), {}),
    (Situation(1, 4, True, True, 20), {"beta": 1.0}),
    (Situation(1, 4, True, False, 4), {"kl": 4.0}),
    (Situation(16, 1, True, False), {}),
    (Situation(1, 1, True, False), {}),
    (Situation(1, 1, True, True, 4), {"beta": 1.0}),
    (Situation(16, 1, False, False), {}),
]


def choice():
    """A row for each situation: the situation, the method that the command chooses, its calls."""

    rows = []
    for situation, given in SITUATIONS:
        model = "a path" if situation.path else "none, a Generator"
        reward = "a gradient" if situation.gradient else "values"
        nats = given.get("kl", 1.0)
        strength = "`--beta`" if "beta" in given else f"{nats:g} nat{'s' * (nats != 1)}"
        asked = "" if situation.calls is None else f"{situation.calls:g}"
        try:
            found = choose(situation, given)
            bank = found.settings.get("bank")
            name = f"`{found.kind.name}`" + ("" if bank is None else f", bank of {bank}")
            cells = (name, f"{found.calls:.3g}")
        except ValueError:
            cells = ("refused", "")
        rows.append(
            (str(situation.images), str(situation.steps), model, reward, strength, asked, *cells)
        )
    headings = (
        "pictures",
        "steps",
        "model",
        "reward",
        "strength",
        "`--calls`",
        "it takes",
        "calls",
    )
    return _markdown(headings, rows)


def written(page):
    """The page with its tables as they should be."""

    tables = {"methods": methods(), "settings": settings(), "choice": choice()}
    return _MARKED.sub(lambda found: f"{found[1]}\n{tables[found[2]]}\n\n{found[4]}", page)


def costs(found):
    """A row for each method, trial and budget that was reported: gains over the base and costs."""

    law = found["tilted law"]
    gains = ("emoji-gold", "emoji-hps", "emoji-match", "emoji-pick", "energy", "diversity")
    rows = []
    for row in found["rows"]:
        total = row["operations with pictures"]
        rows.append(
            (
                f"**{row['method']}**" if row["group"] == "ours" else row["method"],
                _trial(row),
                f"{row['budget']:,}",
                str(len(row["seeds"])),
                *(_pair(row[f"{name} gain"]) for name in gains),
                f"{row['precision']:.2f}, {row['recall']:.2f}",
                f"{row['training operations'] / 1e12:.3g}",
                *(f"{total[n] / 1e12:.3g}" for n in ("10", "1000", "10000")),
                f"{row['training seconds']:.0f}, {row['picture seconds']:.2g}",
                f"{max(row['training memory'], row['picture memory']) / 1e6:.0f}",
                "law" if row["reaches at the law"] else "gold" if row["reaches gold"] else "",
            )
        )
    rows.sort(key=lambda row: (row[0].strip("*"), row[1], int(row[2].replace(",", ""))))
    target = [_pair(law[name]) if name in law else "" for name in gains[:4]]
    rows.append(("tilted law, 1 nat", "", "", "", *target, *[""] * 10))
    headings = ("method", "settings", "budget", "seeds", "gold", "HPS", "match", "proxy")
    headings += ("energy distance", "diversity", "precision, recall", "training", "10 pictures")
    headings += ("1,000", "10,000", "seconds", "MB", "reaches")
    return _markdown(headings, rows)


def ratios(found):
    """A row for each ratio of the definition, and what it rests on."""

    rows = []
    for name in ("cost_ratio", "cost_ratio_at_law"):
        details, value = found[f"{name} details"], found[name]
        picked = [_method(details["chosen"][group]) for group in ("ours", "fine-tuner")]
        best = [
            _method(details["cheapest on reported prompts"][group])
            for group in ("ours", "fine-tuner")
        ]
        again = details["ratio of these"]
        interval = details["interval"]
        rows.append(
            (
                f"`{name}`",
                "null" if value is None else f"{value:.2f}",
                *picked,
                *best,
                "none" if again is None else f"{again:.2f}",
                "none" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}",
                f"{100 * details['share without']:.0f} %",
            )
        )
    headings = ("", "ratio", "ours, chosen", "fine-tuner, chosen", "ours, cheapest reported")
    headings += ("fine-tuner, cheapest reported", "ratio of these", "interval", "resamples without")
    return _markdown(headings, rows)


def by_part(found):
    """A row for each method on all reported prompts: gains by whether the name was learned."""

    law = found["tilted law by part"]
    parts = ("learned", "held out")
    rows = []
    for row in found["rows"]:
        gold, energy = (row[f"{name} gain by part"] for name in ("emoji-gold", "energy"))
        rows.append(
            (
                f"**{row['method']}**" if row["group"] == "ours" else row["method"],
                _trial(row),
                f"{row['budget']:,}",
                str(len(row["seeds"])),
                _pair(row["emoji-gold gain"]),
                *(_pair(gold[part]) for part in parts),
                _pair(row["energy gain"]),
                *(_pair(energy[part]) for part in parts),
                f"{row['operations with pictures']['10000'] / 1e12:.3g}",
                "law" if row["reaches at the law"] else "gold" if row["reaches gold"] else "",
            )
        )
    rows.sort(key=lambda row: (row[0].strip("*"), row[1], int(row[2].replace(",", ""))))
    target = (_pair(found["tilted law"]["emoji-gold"]), *(_pair(law[part]) for part in parts))
    rows.append(("tilted law, 1 nat", "", "", "", *target, *[""] * 5))
    headings = ("method", "settings", "budget", "seeds")
    for what in ("gold", "energy distance"):
        headings += (what, f"{what}, learned names", f"{what}, held-out names")
    headings += ("10,000 pictures", "reaches")
    return _markdown(headings, rows)


def shipped(found):
    """A row for each network that comes with the test bed: gains on all reported prompts."""

    columns = {
        "gold": "emoji-gold gain",
        "gold less the tilted law's": "gold less the tilted law's",
        "energy distance": "energy gain",
        "proxy": "emoji-pick gain",
        "match": "emoji-match gain",
    }
    gold = "emoji-gold gain"
    rows = [
        (
            f"`{name}`",
            *(_pair(row[key]) for key in columns.values()),
            *(_pair(row[f"{key} by part"]["held out"]) for key in (gold, "energy gain")),
        )
        for name, row in found.items()
        if name.startswith("emoji-turbo")
    ]
    law, apart = found["tilted law"]["emoji-gold"], found["tilted law by part"]["held out"]
    rows.append(("tilted law, 1 nat", _pair(law), *[""] * 4, _pair(apart), ""))
    headings = ("network", *columns, "gold, held-out names", "energy distance, held-out names")
    return _markdown(headings, rows)


def full_size(found):
    """A row for each recipe at full size: operations and memory of a training picture."""

    rows = []
    for name, recipes in found["full size"].get("recipes", {}).items():
        for what, cost in recipes.items():
            memory = f"{cost['memory'] / 1e9:.2f}" if "memory" in cost else ""
            rows.append((name, what, f"{cost['operations'] / 1e12:.3g}", memory))
    return _markdown(("model", "what", "operations, 1e12", "memory beside the weights, GB"), rows)


def moved(found):
    """A row for each model and decoder: what the measured numbers of pictures would cost there."""

    rows = [
        (
            name,
            *(f"{cost[key] / 1e15:.3g}" for key in ("training of the network", "training of LoRA")),
            f"{cost['pictures'] / 1e15:.3g}",
            f"{cost['ratio of trainings']:.2f}",
            f"{cost['ratio']:.2f}",
        )
        for name, cost in found["full size"].get("measured numbers of pictures", {}).items()
    ]
    headings = ("model", "network, 1e15", "LoRA, 1e15", "10,000 pictures, 1e15")
    return _markdown((*headings, "ratio of trainings", "ratio"), rows)


def cost(found):
    """The sentence of the README: whether the claim holds, and where it does."""

    details = found["cost_ratio details"]
    value = found["cost_ratio"]
    own, other = (_row(found, details["chosen"][group]) for group in ("ours", "fine-tuner"))
    few = {group: _cheapest(found, group) for group in ("ours", "fine-tuner")}
    less = 100 * (1 - _few(few["ours"]) / _few(few["fine-tuner"]))
    said = "could not be tested"
    if value is not None:
        alone = own["training operations"] / other["training operations"]
        said = (
            f"{'holds' if value <= 0.4 else 'does not hold'}: at the gold of the tilted law, "
            f"{own['method']} takes {value:.2f} times the operations of {other['method']} with "
            f"10,000 pictures, and {alone:.2g} times those of the training alone"
        )
    return (
        "On the test bed the paper's claim of at least 60 % less computation than fine-tuning "
        f"{said}. For {GROUP} pictures of one prompt, which is all that a bank of draws serves, "
        f"{few['ours']['method']} takes {less:.0f} % less than {few['fine-tuner']['method']} "
        "with its training."
    )


def _row(found, one):
    """The reported row of a method that was chosen, None for none."""

    if one is None:
        return None
    keys = ("method", "trial", "budget")
    return next(row for row in found["rows"] if all(row[key] == one[key] for key in keys))


def _cheapest(found, group):
    """The row of a group that reaches gold at the least cost of a few pictures."""

    return min(
        (row for row in found["rows"] if row["group"] == group and row["reaches gold"]), key=_few
    )


def _few(row):
    """Operations of the training and of the pictures of one prompt that share a bank."""

    return row["training operations"] + GROUP * row["picture operations"]


def sweep(found, name):
    """A row for each point of a sweep: gains over the base model."""

    columns = {
        "proxy": "emoji-pick",
        "gold": "emoji-gold",
        "HPS": "emoji-hps",
        "match": "emoji-match",
        "energy distance": "energy",
        "diversity": "diversity",
        "high frequency": "high frequency",
        "clipped": "clipped",
        "chroma": "chroma",
    }
    shown = lambda row, key: _pair(row[key]) if key in row else ""
    rows = [
        (
            re.sub(r"\b1 nats$", "1 nat", label),
            str(len(row["seeds"]) or ""),
            *(shown(row, f"{key} gain") for key in columns.values()),
        )
        for label, row in found[name].items()
    ]
    return _markdown(("point", "seeds", *columns), rows)


def _pair(value):
    return f"{value[0]:.3f} ± {value[1]:.3f}"


def _method(one):
    if one is None:
        return "none"
    return f"{one['method']} ({_trial(one)}), {one['budget']:,}"


def _trial(one):
    number = lambda value: str(value) if isinstance(value, bool | str) else f"{value:g}"
    return ", ".join(f"{key} {number(value)}" for key, value in one["trial"].items())


def paper(page):
    """The page on the paper's claims, or the README, with its tables as they should be."""

    read = lambda name: json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    few, every, curves = map(read, ("alignment_cost", "alignment_cost_all", "alignment_curves"))
    tables = {"costs": costs(few), "full_size": full_size(few), "by_part": by_part(every)}
    tables |= {"cost": cost(every), "ratios": ratios(every), "moved": moved(every)}
    tables |= {name: sweep(curves, name) for name in SHOWN}
    tables["shipped"] = shipped(read("shipped_networks"))
    return _MARKED.sub(lambda found: f"{found[1]}\n{tables[found[2]]}\n\n{found[4]}", page)


def _markdown(headings, rows):
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    lines = [headings, ["---"] * len(headings), *escaped]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    for file, make in ((PAGE, written), (PAPER, paper), (README, paper)):
        file.write_text(make(file.read_text(encoding="utf-8")), encoding="utf-8")
