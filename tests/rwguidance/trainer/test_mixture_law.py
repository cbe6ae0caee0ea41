"""From a law of two modes to samples of its exact tilt: commands, and two processes over gloo."""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

from mixture_model import APART, BETA, BRIGHT, MEAN, TILTED, along, model
from processes_of_a_run import launch
from rwguidance import DDIM, GuidedModel, LearnedShift, networks, sample
from rwguidance.app.cli import app

pytestmark = [
    pytest.mark.filterwarnings("ignore::rwguidance.UnreliableEstimate"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

N = 4000
GIVEN = ("--backbone", "mine.py:model", "--reward", "mine.py:bright")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder of a network that two processes have trained on prepared draws."""

    root = tmp_path_factory.mktemp("modes")
    (root / "mine.py").write_text("from mixture_model import bright, model\n")
    (root / "prompts.txt").write_text("\n".join(f"prompt {i}" for i in range(24)) + "\n")
    draws = ("--prompts", "prompts.txt", "--draws", 256, "--validation", 0.3, "--batch-size", 256)
    train = ("--data", "draws", "--beta", BETA, "--network-preset", "tiny", "--steps", 300)
    train += ("--learning-rate", 2e-3, "--warm-up", 20, "--average", 0.99, "--accumulate", 2)
    train += ("--validate-every", 100, "--shown", 6, "--images", 32, "--picture-batch", 192)
    with pytest.MonkeyPatch.context() as inside:
        inside.chdir(root)
        command = ["prepare", *GIVEN, *draws, "--out", "draws"]
        assert CliRunner().invoke(app, list(map(str, command))).exit_code == 0
        launch(2, "-m", "rwguidance", "train", *GIVEN, *train, "--out", "network")
    return root / "network"


def drawn(of):
    noise = model.draw_noise(N, torch.Generator().manual_seed(5))
    with torch.no_grad():
        return along(sample(of, DDIM(), noise, model.times(), ["a new prompt"] * N))


def share(places):
    return float((places > 0).double().mean())


def test_the_closed_form_is_what_it_should_be():
    draws = along(TILTED.sample(100_000, torch.Generator().manual_seed(1)))
    assert abs(share(draws) - BRIGHT) < 5 * math.sqrt(BRIGHT * (1 - BRIGHT) / 100_000)
    assert abs(float(draws.mean()) - MEAN) < 5 * float(draws.std()) / math.sqrt(100_000)


@pytest.mark.slow
class TestTwoProcesses:
    def test_guided_samples_are_of_the_exactly_tilted_law(self, out):
        plain = drawn(model)
        found = drawn(GuidedModel(model, LearnedShift(networks.load(out))))
        error = math.sqrt(BRIGHT * (1 - BRIGHT) / N)
        assert abs(share(plain) - 0.5) < 5 * 0.5 / math.sqrt(N)
        assert abs(share(found) - BRIGHT) < 5 * error
        assert abs(float(found.mean()) - MEAN) < 5 * float(found.std()) / math.sqrt(N)
        assert 5 * error < 0.1 * (BRIGHT - 0.5)  # or it would say nothing
        within = found[found > 0]
        assert abs(float(within.mean()) - APART) < 0.2

    def test_validation_says_so(self, out):
        report = json.loads((out / "report.json").read_text())
        ((_, levels),) = report["agreement"].items()
        assert levels[0]["t"] == 1.0
        assert abs(levels[0]["cosine"] - 1) < 5 * levels[0]["cosine error"] + 0.02
        assert levels[0]["chance"] == 0.01
        assert [*report["during the training"]["validation loss"]] == ["99", "199", "299"]
        rows = {row["method"]: row for row in report["pictures"]}
        row = rows["network"]
        assert (
            abs(row["mine.py:bright gain"] - MEAN) < 5 * rows["tilted law"]["mine.py:bright error"]
        )
