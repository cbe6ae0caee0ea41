"""Evaluations of a model whose pictures have a law in closed form."""

import pytest

from pixel_law import Brightness, Law
from rwguidance.evaluation.engine import evaluate, load_results
from rwguidance.evaluation.results import BASE, Cell
from rwguidance.generation import BestOfN, Importance

pytestmark = pytest.mark.filterwarnings("ignore::rwguidance.UnreliableEstimate")

METHODS = {"importance": Importance(bank=32, kl=1.0), "best of 3": BestOfN(3)}
PROMPTS = ("ab", "abcdef")


def flat(images):
    return images.flatten(1)


def run(out, **changes):
    options = {
        "backbone": Law(), "reward": Brightness(), "prompts": PROMPTS, "methods": METHODS,
        "held_out": {"red": lambda images, prompts: images[:, 0].mean((1, 2))},
        "embeddings": {"pixels": flat}, "strengths": (0.25, 1.0), "images": 3, "seeds": (0, 1),
        "steps": 3, "target_draws": 20, "shown": 1, "batch_size": 2,
    } | changes  # fmt: skip
    return evaluate(out=out, **options)


def test_it_runs(tmp_path):
    results = run(tmp_path)
    assert list(results.cells) == [
        BASE,
        Cell("importance", 0.25),
        Cell("importance", 1.0),
        Cell("best of 3"),
    ]
    print(results.failures)
    print({str(k): {n: v.tolist() for n, v in c.costs.items()} for k, c in results.cells.items()})
    print(results.cells[BASE].rewards["reward"], results.targets[0.25])
    again = load_results(tmp_path)
    assert again.prompts == results.prompts
