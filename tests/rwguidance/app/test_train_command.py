"""From files of preference data to pictures of a guided model, by commands alone."""

import csv
import json

import pytest
import torch
from typer.testing import CliRunner

from preference_files import pick_a_pic
from processes_of_a_run import launch
from rwguidance import networks
from rwguidance.app.cli import app

pytestmark = [
    pytest.mark.filterwarnings("ignore::rwguidance.UnreliableEstimate"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

TINY = ("--network-preset", "tiny", "--batch-size", "8", "--warm-up", "0")
PICTURES = ("--shown", "1", "--images", "2")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Files of a user: a model, two rewards, preference data, its captions and more."""

    root = tmp_path_factory.mktemp("user")
    (root / "mine.py").write_text(
        "import torch\n"
        "from path_model import PathModel\n"
        "from preference_files import Light\n\n"
        "class Left(torch.nn.Module):\n"
        "    depends_on = ()\n\n"
        "    def forward(self, images, prompts):\n"
        "        return images[..., :8].mean((1, 2, 3))\n\n"
        "model, light, left = PathModel(), Light(), Left()\n"
    )
    rows, _ = pick_a_pic(root / "a.parquet", n=24, dirty=False)
    captions = sorted({row["caption"] for row in rows} | {f"a hat {i}" for i in range(8)})
    (root / "prompts.txt").write_text("\n".join(captions) + "\n")
    return root


@pytest.fixture(autouse=True)
def inside(root, monkeypatch):
    monkeypatch.chdir(root)


def command(*arguments, code=0):
    found = CliRunner().invoke(app, list(map(str, arguments)))
    assert found.exit_code == code, (found.output, found.exception)
    return found.output


@pytest.fixture(scope="module")
def draws(root):
    """Prepared draws of the model for the captions."""

    if not (root / "draws" / "prepared.json").exists():
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)
            prompts = ("--prompts", "prompts.txt", "--draws", 32, "--validation", 0.4)
            model = ("--backbone", "mine.py:model", "--reward", "mine.py:light")
            command("prepare", *model, *prompts, "--out", "draws")
    return root / "draws"


def train(out, *arguments, code=0):
    model = ("--backbone", "mine.py:model", "--out", out)
    return command("train", *model, *TINY, *arguments, code=code)


def rewarded(folder):
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_from_captions_to_guided_pictures(root, draws):
    said = train(
        *("network", "--data", "draws", "--preset", "gradient", "--steps", 40),
        *("--reward", "mine.py:light", "--held-out", "mine.py:left", *PICTURES),
    )
    assert "40 steps of 8 states" in said
    assert "has the network, its card and report.html" in said
    network = networks.load(root / "network")
    assert network.output == "changes"
    assert (network.text, network.tokens) == (3, 3)
    (row,) = [
        row
        for row in json.loads((root / "network" / "report.json").read_text())["pictures"]
        if row["method"] == "network"
    ]
    assert row["mine.py:light gain"] > 0
    assert row["mine.py:left gain"] > 0
    command(
        *("generate", "--backbone", "mine.py:model", "--reward", "mine.py:light"),
        *("--method", "change-network", "--network", "network", "--prompt", "a red cat"),
        *("--images", 2, "--out", "pictures"),
    )
    assert len(rewarded(root / "pictures")) == 2
    assert "is finished already" in train(
        *("network", "--data", "draws", "--preset", "gradient", "--steps", 40),
        *("--reward", "mine.py:light", "--held-out", "mine.py:left", *PICTURES),
    )


def test_pairs_train_the_preset_of_the_paper(root):
    command(
        *("prepare", "--backbone", "mine.py:model", "--data", "a.parquet", "--size", 16),
        *("--out", "pairs", "--validation", 0.5, "--seed", 1),
    )
    said = train("of-pairs", "--data", "pairs", "--preset", "paper", "--nats", 0.2, "--steps", 4)
    assert "48 draws of" not in said  # some captions are held out
    report = json.loads((root / "of-pairs" / "report.json").read_text())
    assert report["facts"]["reward"] == "preference"
    assert report["explained variance of weights"]["0.2"]
    assert networks.load(root / "of-pairs").output == "log_h"


def test_two_processes_train_what_one_trains(root, draws):
    settings = ("--data", "draws", "--nats", "0.5,1", "--steps", 5, "--accumulate", 2)
    train("one", *settings)
    arguments = ("--backbone", "mine.py:model", "--out", "two", *TINY, *settings)
    launch(2, "-m", "rwguidance", "train", *arguments)
    one, two = (networks.load(root / name) for name in ("one", "two"))
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    losses = [
        [
            float(row["loss"])
            for row in csv.DictReader((root / name / "log.csv").read_text().splitlines())
        ]
        for name in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_it_is_uploaded_and_tracked_on_request(root, draws, monkeypatch):
    import accelerate
    import huggingface_hub

    seen = {"steps": []}

    class Api:
        def create_repo(self, repository, private, exist_ok):
            return f"https://hub/{repository}"

        def upload_folder(self, repo_id, folder_path, allow_patterns):
            seen["uploaded"] = repo_id, folder_path, allow_patterns

    class Tracker:
        def finish(self):
            seen["finished"] = True

    class Accelerator:
        def __init__(self, log_with, project_dir):
            seen["names"], self.trackers = log_with, []

        def init_trackers(self, project):
            self.trackers.append(Tracker())

        def log(self, figures, step):
            seen["steps"].append((step, "loss" in figures))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(accelerate, "Accelerator", Accelerator)
    settings = ("--data", "draws", "--nats", 0.5, "--steps", 2)
    said = train("shared", *settings, "--push-to", "some/one", "--tracker", "tensorboard")
    assert "uploaded to https://hub/some/one" in said
    files = ["model.safetensors", "config.json", "README.md"]
    assert seen["uploaded"] == ("some/one", "shared", files)
    assert seen["names"] == ["tensorboard"]
    assert seen["steps"] == [(0, True), (1, True)]
    assert seen["finished"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "best"), "preset must be one of recommended, paper, gradient, got 'best'"),
        (("--precision", "fp8"), "precision must be no or bf16, got 'fp8'"),
        (("--nats", "a"), "nats must be numbers separated by commas, got 'a'"),
        (("--nats", "0"), "nats must be positive"),
        (("--loss", "mse"), "loss must be one of .*itakura_saito.*, got 'mse'"),
        (("--network-preset", "giant"), "network must be one of tiny, .*, got 'giant'"),
        (("--accumulate", "3"), "parts must divide the batch of 8 states, got 3"),
        (("--held-out", "mine.py:left"), "held_out judges pictures, which are not made"),
        (("--nats", "9"), r"nats must lie in the range that this bank reaches"),
        (("--push-to", "name"), "push_to must be OWNER/NAME, got 'name'"),
    ],
)
def test_wrong_calls_are_one_line(root, draws, arguments, message):
    given = ("train", "--backbone", "mine.py:model", "--out", "wrong", "--data", "draws")
    found = CliRunner().invoke(app, [*given, *TINY, *arguments])
    assert isinstance(found.exception, ValueError | LookupError)
    assert found.exit_code == 1
    with pytest.raises(type(found.exception), match=message):
        raise found.exception
    assert not (root / "wrong" / "model.safetensors").exists()


def test_data_that_is_none_is_refused(root):
    found = CliRunner().invoke(
        app, ["train", "--backbone", "mine.py:model", "--out", "none", "--data", "."]
    )
    assert "folder must hold prepared.json" in str(found.exception)
    assert found.exit_code == 1
