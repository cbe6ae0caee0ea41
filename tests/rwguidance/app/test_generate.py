"""`rwguidance generate`: backbones and methods by name, exit codes, and messages."""

import math
import os
import sys
from pathlib import Path

import pytest
import typer

import backbones
import rewards
from pixel_law import QUIET, table
from rwguidance import RectifiedSchedule, networks
from rwguidance.app.cli import app, main
from rwguidance.generation.methods import METHODS
from rwguidance.generation.pictures import read_facts
from rwguidance.generation.settings import Setting, build, flag, method_options, method_settings
from rwguidance.networks import LatentShift
from rwguidance.support.fingerprint import fingerprint
from rwguidance.support.locks import locked

pytestmark = QUIET


SIZES = {
    "z-image-turbo": (
        "--option", "z-image-turbo:height=16", "--option", "z-image-turbo:width=16",
    )
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    for name in ("sdxl-turbo", "sd3.5-turbo", "z-image"):
        backbones.tiny(name).save_pretrained(root / name)
    return {
        "sdxl-turbo": f"sdxl-turbo={root / 'sdxl-turbo'}",
        "sd3.5-large-turbo": f"sd3.5-large-turbo={root / 'sd3.5-turbo'}",
        "z-image-turbo": f"z-image-turbo={root / 'z-image'}",
    }


@pytest.fixture
def command(monkeypatch, capsys, folders, tmp_path):
    def command(
        *arguments, backbone="sd3.5-large-turbo", reward="shade", out="out", method="importance"
    ):
        given = () if "--method" in arguments or method is None else ("--method", method)
        monkeypatch.setattr(sys, "argv", [
            "rwguidance", "generate", "--backbone", backbone, "--reward", reward,
            *(("--path", folders[backbone]) if backbone in folders else ()),
            *SIZES.get(backbone, ()),
            "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / out), *given, *arguments,
        ])  # fmt: skip
        monkeypatch.setenv("COLUMNS", "120")
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return command


class Shade(rewards.Reward):
    """The mean of the red channel."""

    depends_on = ()

    spec = rewards.RewardSpec(
        name="shade", title="Shade", differentiable=True, needs_prompt=True, code_license="MIT",
        weights_license="none", formula="mean red", typical_range=(0.0, 1.0), citation="none",
    )  # fmt: skip

    def forward(self, images, prompts):
        if "nan" in prompts:
            return images.mean((1, 2, 3)) * math.nan
        return images[:, 0].mean((1, 2))


@pytest.fixture(autouse=True)
def shade(monkeypatch):
    values = rewards.registry._registry._values
    monkeypatch.setattr(rewards.registry._registry, "_values", {**values, "shade": Shade})


@pytest.mark.parametrize("backbone", ["sdxl-turbo", "sd3.5-large-turbo", "z-image-turbo"])
def test_a_backbone_is_swapped_by_one_string(command, tmp_path, backbone):
    code, out, err = command(
        "--prompt", "a cat", "--prompt", "a dog", "--bank", "8", "--images", "2",
        "--window", "0.9", "1", backbone=backbone,
    )  # fmt: skip
    assert code == 0, err
    assert "target" in out
    assert "all 2 prompts" in out
    assert "4 pairs, 0 of them from before" in out
    assert (tmp_path / "out" / "sheet.png").exists()
    facts = read_facts(next((tmp_path / "out").rglob("0001-aligned.png")))
    assert facts["settings"]["backbone name"] == backbone
    assert facts["settings"]["reward name"] == "shade"
    code, out, _ = command(
        "--prompt", "a cat", "--prompt", "a dog", "--bank", "8", "--images", "2",
        "--window", "0.9", "1", backbone=backbone,
    )  # fmt: skip
    assert code == 0
    assert "4 pairs, 4 of them from before" in out


def test_every_method_runs(command, tmp_path):
    network = LatentShift(16, RectifiedSchedule(), widths=(8, 8))
    network.save(tmp_path / "network.safetensors")
    for name, options in {
        "best-of-n": ("--bank", "3"),
        "plug-in": ("--beta", "0.1"),
        "network": ("--network", str(tmp_path / "network.safetensors")),
        "importance": ("--beta", "0.1", "--bank", "4", "--ess", "0.6"),
    }.items():
        code, out, err = command("--prompt", "a cat", "--method", name, *options, out=name)
        assert code == 0, err
        assert "1 pairs" in out
        (row,) = table(tmp_path / name / "results.csv")
        gain = float(row["gain"])
        assert gain == 0 if name == "network" else gain > 0 or name == "best-of-n"


OWN = {
    "backbone", "reward", "prompt", "prompts", "method", "images", "steps", "seed",
    "negative_prompt", "path", "option", "device", "dtype", "batch_size", "cache", "out", "restart",
    "prompt_column", "calls",
}  # fmt: skip


@pytest.fixture
def parse():
    """The values of the command's options by name, as they are read from arguments."""

    generate = typer.main.get_command(app).commands["generate"]
    return lambda *arguments: generate.make_context("generate", list(arguments)).params


def test_every_option_of_a_method_is_helped_by_the_method_alone():
    params = {p.name: p for p in typer.main.get_command(app).commands["generate"].params}
    options = {option.name: option for option in method_options(METHODS)}
    assert params.keys() == OWN | options.keys()
    for name, option in options.items():
        assert params[name].help == option.help
        for setting in option.settings:
            assert setting.meaning.rstrip(".") in params[name].help


def test_every_method_has_its_name_and_no_other_is_taken(parse):
    names = ["--backbone", "x", "--reward", "y"]
    assert parse(*names)["method"] == "auto"
    for name in METHODS:
        assert parse(*names, "--method", name)["method"] == name
    with pytest.raises(Exception, match="is not one of 'auto', 'importance', 'pool'"):
        parse(*names, "--method", "magic")


@pytest.mark.parametrize(
    ("method", "setting"),
    [(method, s) for method in METHODS.values() for s in method_settings(method)],
    ids=lambda value: value.field if isinstance(value, Setting) else value.name,
)
def test_every_keyword_of_a_method_can_be_given(parse, tmp_path, method, setting):
    network = LatentShift(16, RectifiedSchedule(), widths=(8, 8))
    network.save(tmp_path / "network.safetensors")
    values = {
        int: (["9"], 9),
        float: (["0.5"], 0.5),
        tuple[float, float]: (["0.25", "0.75"], (0.25, 0.75)),
        Path: ([str(tmp_path / "network.safetensors")], fingerprint(network)),
        bool: ([], True),
    }
    arguments = ["--backbone", "x", "--reward", "y", "--method", method.name]
    needed = [s for s in method_settings(method) if s.note == "required" and s != setting]
    for given in (*needed, setting):
        arguments += [flag(given.option), *values[given.kind][0]]
    options = {name: value for name, value in parse(*arguments).items() if name not in OWN}
    assert build(method, options).settings()[setting.field] == values[setting.kind][1]


def test_prompts_come_from_a_file_once_each(command, tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\na cat\n", encoding="utf-8")
    code, out, _ = command(
        "--prompts", str(tmp_path / "prompts.txt"), "--method", "best-of-n", "--bank", "2"
    )
    assert code == 0
    assert "2 pairs" in out


def test_prompts_come_from_a_published_set(command, tmp_path):
    (tmp_path / "evaluation_metadata.jsonl").write_text(
        '{"tag": "colors", "prompt": "a cat"}\n{"tag": "colors", "prompt": "a cat"}\n'
    )
    (tmp_path / "own.csv").write_text("text\na cat\n")
    best = ("--method", "best-of-n", "--bank", "2")
    code, out, err = command("--prompts", f"geneval={tmp_path}", *best)
    assert (code, "1 pairs" in out) == (0, True)
    assert "note: 1 of 2 prompts" in err
    own = ("--prompts", str(tmp_path / "own.csv"), "--prompt-column", "text")
    code, out, _ = command(*own, *best)
    assert "1 pairs, 1 of them from before" in out
    code, _, err = command("--prompts", "geneval", *best)
    assert code == 1
    assert "https://github.com/djghosh13/geneval (license: MIT)" in err


def test_failures_are_reported_and_end_with_2(command):
    code, out, err = command("--prompt", "nan", "--prompt", "a cat", "--bank", "4")
    assert code == 2
    assert "failed: nan: a reward must not be NaN" in err
    assert "1 pairs" in out


def test_an_interruption_says_how_to_go_on(command, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Shade, "forward", interrupt)
    code, _, err = command("--prompt", "a cat", "--bank", "4")
    assert code == 130
    assert "the same command goes on where this one stopped" in err


def test_unreliable_steps_are_noted_once_in_the_words_of_the_command(command):
    code, _, err = command(
        "--prompt", "a cat", "--prompt", "a dog", "--bank", "4", "--beta", "0.001"
    )
    assert code == 0
    # The first step is among them, so that guiding only at higher noise would not help.
    assert "You can flatten the kernel, --leave-one-out, at the price of bias; tilt less" in err
    assert "a smaller --kl or a larger --beta; or use a larger --bank." in err
    assert "higher noise" not in err
    assert "window=" not in err
    assert "TargetESS" not in err
    assert err.count("meaningless at") == 1
    assert "for 2 of the runs" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --prompt or --prompts, one of them"),
        (("--prompt", "a", "--prompts", "b.txt"), "one of them"),
        (("--prompt", "a", "--method", "plug-in", "--beta", "1", "--kl", "1"), "one of them"),
        (("--prompt", "a", "--method", "network"), "--method network needs --network"),
        (("--prompt", "a", "--method", "best-of-n", "--ess", "1"), "--ess is not for --method"),
        (("--prompt", "a", "--method", "network", "--kl", "1"), "--kl is not for --method network"),
        (("--prompt", "a", "--kl", "9"), "kl must be less than log"),
        (("--prompt", "a", "--path", "pickscore=x"), "path names 'pickscore', which is neither"),
        (("--prompt", "a", "--option", "shade:x"), "option must be NAME:KEY=VALUE"),
        (("--prompt", "a", "--prompt", "a"), "distinct, got 'a' twice"),
        (("--prompt", "a", "--device", "gpu"), "device 'gpu' cannot be used"),
        (("--prompt", "a", "--window", "1", "0.5"), "window must be times (low, high)"),
        (("--prompt", "a", "--window", "0.1", "0.11"), "window must hold the time of a step, 1"),
        (("--prompt", "a", "--scale", "nan"), "scale must be finite, got nan"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_exit_code_1(command, arguments, message):
    code, out, err = command(*arguments)
    assert code == 1
    assert message in err.replace("\n", " ")
    assert "Traceback" not in err
    assert not out


@pytest.mark.parametrize(("images", "name"), [(1, "resample"), (4, "pool")])
def test_the_command_says_what_it_chose(command, tmp_path, images, name):
    options = ("--prompt", "a cat", "--images", str(images), "--bank", "8", "--steps", "2")
    code, _, err = command(*options, method=None)
    assert code == 0, err
    assert f"method {name}, at most {8 * 2 // images + 2 * (images > 1)} calls a picture: " in err
    facts = read_facts(next((tmp_path / "out").rglob("0000-aligned.png")))
    assert facts["settings"]["method"]["name"] == name


def test_calls_decide_and_refuse_before_any_work(command, tmp_path):
    options = ("--prompt", "a cat", "--images", "4", "--steps", "2", "--batch-size", "4")
    code, _, err = command(*options, "--calls", "8", method=None)
    assert code == 0, err
    assert "method pool, at most 8 calls a picture: " in err
    facts = read_facts(next((tmp_path / "out").rglob("0000-aligned.png")))
    assert facts["settings"]["method"]["bank"] == 12
    for given, message in [
        (("--kl", "4", "--calls", "4"), "no method makes 4 pictures of a prompt at 4 nats with 4"),
        (("--method", "importance", "--calls", "4"), "importance takes up to 34 calls"),
        (("--network", "none"), "--method is needed with --network"),
    ]:
        code, _, err = command(*options, *given, out="other", method=None)
        assert code == 1
        assert message in err.replace("\n", " ")
        assert not list((tmp_path / "other").rglob("*.png"))


def test_work_is_forecast_before_it_begins(command):
    code, _, err = command("--prompt", "a cat", "--images", "3", "--batch-size", "2", "--bank", "4",
                           "--steps", "2")  # fmt: skip
    assert code == 0
    assert (
        "to make 3 pairs: 12 calls of the network, 10 pictures drawn, 10 decoded, "
        "10 scored" in " ".join(err.split())
    )
    assert "minutes, by the first batch" in err


def test_what_can_be_refused_is_refused_before_weights_are_loaded(command, monkeypatch, tmp_path):
    options = ("--prompt", "a cat", "--method", "best-of-n", "--bank", "2")
    assert command(*options)[0] == 0
    loaded = []
    monkeypatch.setattr(backbones, "load", lambda *names, **options: loaded.append(names))
    monkeypatch.setattr(rewards, "load", lambda *names, **options: loaded.append(names))
    (tmp_path / "prompts.docx").touch()
    for arguments, message in {
        (*options, "--seed", "1"): "holds pictures of other settings: seed differ",
        (*options, "--beta", "1"): "other settings: method differ",
        (*options, "--prompt", "a cat"): "distinct, got 'a cat' twice",
        ("--prompts", str(tmp_path / "prompts.docx")): "prompts must be in a file .csv",
    }.items():
        code, _, err = command(*arguments)
        assert (code, loaded) == (1, [])
        assert message in err.replace("\n", " ")
    with locked(tmp_path / "out"):
        code, _, err = command(*options)
    assert (code, loaded) == (1, [])
    assert f"in use by process {os.getpid()}" in err


def test_a_network_may_be_named(command, monkeypatch, tmp_path):
    network = LatentShift(16, RectifiedSchedule(), widths=(8, 8))
    network.save(tmp_path / "network.safetensors")
    published = networks.registry.PublishedNetwork(
        name="to-red", backbone="sd3.5-large-turbo", reward="shade", beta=1.0, source=str(tmp_path)
    )
    monkeypatch.setattr(networks.registry._registry, "_values", {"to-red": published})
    code, _, err = command("--prompt", "a cat", "--method", "network", "--network", "to-red")
    assert code == 0, err
    code, _, err = command("--prompt", "a cat", "--method", "network", "--network", "to-blue")
    assert code == 1
    assert "to-blue" in err


@pytest.mark.parametrize("names", [{"backbone": "sdx"}, {"reward": "shad"}])
def test_unknown_names_are_one_line(command, names):
    code, _, err = command("--prompt", "a", **names)
    assert code == 1
    assert "Traceback" not in err
    assert "there is no" in err
