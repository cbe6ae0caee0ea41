"""The page in the browser without the browser: requests, pictures, words, and lines."""

import asyncio
import shlex
import sys
import threading

import numpy
import pytest
import torch
from PIL import Image

from page_studio import best_of_divergence, register, studio
from pixel_law import QUIET, pixels
from rwguidance.app.cli import main
from rwguidance.app.commands.sources import Sources
from rwguidance.app.page import Limits, Request, Studio
from rwguidance.app.page.blocks import Bounded, is_loopback, shown
from rwguidance.app.page.lines import _reward, command_lines, python_lines
from rwguidance.app.page.requests import LEAST_NATS, OFFERED, method_for
from rwguidance.app.page.studio import weights_of_sum
from rwguidance.app.page.words import best_of, in_words
from rwguidance.generation import Importance, NoiseGradient, Resample, generate
from rwguidance.generation.choice import Situation

pytestmark = QUIET

ASKED = Request("a cat", "pixel-law", {"brightness": 1.0, "redness": 0.0}, images=2, steps=4)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    register(monkeypatch)


@pytest.fixture
def made():
    """A studio, closed in the end."""

    found = studio()
    yield found
    found.close()


def changed(**values):
    return Request(**{**vars(ASKED), **values})


def levels(answer):
    return [numpy.asarray(picture).astype(int) for pair in answer.pairs for picture in pair]


def test_pictures_are_those_of_generate(made, tmp_path):
    answer = made.make(ASKED)
    method = Importance(kl=1.0, leave_one_out=True)
    backbone, reward = made.backbones["pixel-law"], made.rewards["brightness"]
    found = generate(backbone, reward, ["a cat"], tmp_path, method, images=2, steps=4)
    assert answer.method == method
    for one, pair in zip(found.rows, answer.pairs, strict=True):
        for left, right in zip(pixels(one), pair, strict=True):
            assert abs(left - numpy.asarray(right).astype(int)).max() <= 1
    assert [row.rewards for row in answer.rows] == [
        pytest.approx(row.rewards, rel=1e-6) for row in found.rows
    ]


def test_a_stronger_tilt_goes_further(made):
    gains = [
        sum(row.gain for row in made.make(changed(nats=nats, images=8)).rows)
        for nats in (0.1, 0.5, 2.0)
    ]
    assert 0 < gains[0] < gains[1] < gains[2]


def test_another_strength_takes_the_draws_that_are_kept(made):
    model = made.backbones["pixel-law"]
    made.make(ASKED)
    first, model.calls = model.calls, 0
    made.make(changed(nats=0.5))
    assert model.calls == 2 * 4  # both pictures in one batch, alone and guided
    assert first > model.calls + 64 // 4
    made.limits = Limits(kept=1)
    made.make(changed(prompt="a dog"))
    model.calls = 0
    made.make(ASKED)
    assert model.calls == first


def test_a_weight_below_zero_leads_away(made):
    rises, falls = (
        made.make(changed(weights={"brightness": weight}, images=8)).pairs for weight in (1.0, -0.4)
    )
    light = lambda pairs: sum(float(numpy.asarray(aligned).mean()) for _, aligned in pairs)
    assert light(rises) > light([pair[::-1] for pair in rises]) > light(falls)


def test_weights_count_typical_ranges(made):
    found = weights_of_sum({"brightness": 0.5, "redness": -1.0}, made.rewards)
    assert found == {"brightness": 0.5, "redness": -0.2}  # from -2 to 3
    assert weights_of_sum({"brightness": 0.0, "redness": 0.3}, made.rewards) == {"redness": 1.0}
    assert made.reward({"redness": 0.3}) is made.rewards["redness"]
    with pytest.raises(TypeError, match="mine does not state its typical range"):
        weights_of_sum({"mine": 1.0, "redness": 1.0}, {**made.rewards, "mine": lambda x, y: x})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": "  "}, "write a prompt"),
        ({"prompt": "x" * 301}, "301 characters"),
        ({"prompt": "a\ud800"}, "surrogate"),
        ({"backbone": "other"}, "no model 'other' here, but pixel-law"),
        ({"weights": {"brightness": 0.0}}, "all of them are 0"),
        ({"weights": {"secret": 1.0}}, "no reward 'secret'"),
        ({"weights": {"brightness": 1.01}}, "weight of brightness"),
        ({"weights": {"brightness": -1.01}}, "weight of brightness"),
        ({"nats": 3.5}, "strength"),
        ({"nats": float("nan")}, "strength"),
        ({"method": "network"}, "method must be one of"),
        ({"images": 9}, "pictures"),
        ({"images": 0}, "pictures"),
        ({"steps": 51}, "steps"),
        ({"steps": 0}, "steps"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"prompt": "unknown"}, "knows no"),
        ({"method": "pcn", "steps": 50, "images": 8}, "calls of the network, more than"),
    ],
)
def test_what_is_not_to_be_made_is_refused_in_words(values, message):
    found = studio(calls=4000)
    with pytest.raises(ValueError, match=message):
        found.make(changed(**values))
    assert not found.backbones["pixel-law"].calls  # before any work
    found.close()


@pytest.mark.parametrize(("images", "aligned"), [(1, 4), (3, 12)])
def test_calls_are_those_of_the_bank_of_guided_pictures_and_of_unguided_ones(images, aligned):
    found = studio()
    _, calls = found.plan(changed(method="importance", images=images))
    assert calls == 64 * 4 + aligned + aligned
    found.close()


def test_what_is_at_the_ends_of_its_range_may_be_made():
    weights = {"brightness": -1.0, "redness": 1.0}
    least = {"prompt": "a", "nats": LEAST_NATS, "images": 1, "steps": 1, "seed": 0}
    most = {"prompt": "a" * 300, "nats": 3.0, "images": 8, "steps": 50, "seed": 2**32 - 1}
    for ends in (least, most, {"steps": None}):
        changed(weights=weights, **ends).check(Limits())


def test_studios_and_limits_are_checked():
    with pytest.raises(ValueError, match="rewards must hold one"):
        Studio({"a": None}, {})
    with pytest.raises(ValueError, match="nats"):
        Limits(nats=4.2)
    with pytest.raises(ValueError, match="pictures"):
        Limits(pictures=0)


def test_visitors_at_the_same_time_have_each_their_own(made):
    wanted = {prompt: changed(prompt=prompt, images=1) for prompt in ("a", "a" * 40)}
    alone = {prompt: levels(made.make(one)) for prompt, one in wanted.items()}
    made.close()
    found = {}
    threads = [
        threading.Thread(target=lambda p=p, one=one: found.update({p: levels(made.make(one))}))
        for p, one in wanted.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for prompt in wanted:
        for left, right in zip(alone[prompt], found[prompt], strict=True):
            assert abs(left - right).max() <= 1
    assert abs(alone["a"][0] - alone["a" * 40][0]).max() > 20


def test_the_method_suits_model_and_reward():
    kind = lambda *facts: type(method_for("auto", 1.0, Situation(4, *facts)))
    assert kind(4, True, False) is Importance
    assert kind(1, True, True) is NoiseGradient
    assert kind(1, False, False) is Resample
    for name in OFFERED:
        assert method_for(name, 0.7, Situation(4, 4, True, True)).kl == 0.7
    assert {"network", "best-of-n"}.isdisjoint(OFFERED)


def test_nats_in_words_are_those_of_the_best_of_n():
    for n in (1.5, 2, 6.3, 40):
        assert best_of(best_of_divergence(n)) == pytest.approx(n, rel=1e-9)


def test_the_words_say_what_the_numbers_say(made):
    answer = made.make(changed(images=8))
    text = " ".join(in_words(answer))
    mean = sum(row.gain for row in answer.rows) / 8
    before = sum(row.rewards[0] for row in answer.rows) / 8
    assert f" rose from {before:.3g} to {before + mean:.3g}, by {mean:.3g} ±" in text
    assert "1 nat goes about as far as the best of 6 draws would" in text
    assert "begin with the noise" not in text
    resampled = made.make(changed(method="resample", weights={"redness": 1.0}))
    text = " ".join(in_words(resampled))
    assert "of the 2 aligned pictures are distinct" in text
    assert "do not begin with the noise" in text


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"prompt": '--it\'s a "cat"\u2014', "nats": 0.5, "seed": 3},
        {"weights": {"brightness": 0.5, "redness": -1.0}, "method": "pool"},
    ],
)
def test_the_lines_make_the_pictures_again(made, values, monkeypatch, tmp_path, capsys):
    asked = changed(**values)
    answer = made.make(asked)
    weights = weights_of_sum(asked.weights, made.rewards)
    about = (asked, answer.method, weights, Sources(), 4)

    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(python_lines(*about).replace("generate(backbone", "found = generate(backbone"), namespace)
    lines = command_lines(*about)
    if "END" in lines:
        file, lines = lines.removeprefix("cat > reward.py <<'END'\n").split("\nEND\n")
        (tmp_path / "reward.py").write_text(file)
    words = shlex.split(lines.replace("\\\n", ""))  # as a shell joins lines
    monkeypatch.setattr(sys, "argv", [*words, "--out", "told", "--cache", "kept"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code, capsys.readouterr().err

    for one, pair in zip(namespace["found"].rows, answer.pairs, strict=True):
        told = [tmp_path / "told" / path.relative_to(path.parents[1]) for path in one.files]
        for path, other, picture in zip(one.files, told, pair, strict=True):
            expected = numpy.asarray(picture).astype(int)
            for file in (path, other):
                assert abs(numpy.asarray(Image.open(file)).astype(int) - expected).max() <= 1


def test_the_lines_say_where_weights_are(made):
    sources = Sources(
        {"pixel-law": "my models/law", "redness": "red"},
        {"pixel-law": {"std": 0.2}},
        "cpu",
        torch.bfloat16,
    )
    method = Importance(kl=1.0)
    about = (ASKED, method, {"brightness": 1.0}, sources, 8)
    words = shlex.split(command_lines(*about).replace("\\\n", ""))
    assert "pixel-law=my models/law" in words
    assert "pixel-law:std=0.2" in words
    assert "redness=red" not in words  # it is not used, and the command would refuse it
    assert words[words.index("--dtype") + 1] == "bfloat16"
    code = python_lines(*about)
    assert "path='my models/law', device='cpu', dtype=torch.bfloat16, std=0.2" in code
    first, *_, last = command_lines(ASKED, method, {"brightness": 1.0}, Sources(), 8).split(" \\\n")
    assert first == "rwguidance generate --backbone pixel-law --reward brightness"
    assert last == "    --images 2 --seed 0 --steps 4 --batch-size 8"
    both = (ASKED, method, {"brightness": 1.0, "redness": 0.2}, sources, 8)
    assert "rewards.load('redness', path='red', device='cpu')" in command_lines(*both)


def test_what_is_shown_is_the_pictures_or_the_reason_as_text(made):
    say = lambda *values: shown(made, Sources(), values, lambda *told, **more: None)
    pairs, said, command, python = say("a cat", "pixel-law", 1.0, "auto", 2, 4, 0, 1.0, 0.0)
    assert [caption.split()[0] for _, caption in pairs] == ["base", "aligned"] * 2
    assert {picture.size for picture, _ in pairs} == {(256, 256)}
    assert "<li>The mean reward of 2 pictures rose" in said
    assert command.startswith("rwguidance generate --backbone pixel-law --reward brightness")
    assert "Importance(kl=1.0" in python
    for wrong, reason in (
        (("unknown", "pixel-law", 1.0, "auto", 2, 4, 0, 1.0, 0.0), "no &lt;b&gt;unknown&lt;/b&gt;"),
        (("a cat", "pixel-law", 1.0, "auto", 2, 4, 0, "1", 0.0), "weight of brightness"),
        (("a cat", ["a"], 1.0, "auto", 2, 4, 0, 1.0, 0.0), "unhashable"),
        ((None, "pixel-law", 1.0, "auto", 2, 4, 0, 1.0, 0.0), "write a prompt"),
        (("a cat", "pixel-law", 1.0, "auto", 900, 4, 0, 1.0, 0.0), "pictures"),
    ):
        pairs, said, *lines = say(*wrong)
        assert pairs == []
        assert lines == ["", ""]
        assert reason in said


@pytest.mark.parametrize(
    ("method", "headers", "passes"),
    [
        ("GET", [], True),
        ("POST", [(b"content-length", b"2000")], True),
        ("POST", [(b"content-length", b"65536")], True),
        ("POST", [(b"content-length", b"65537")], False),
        ("POST", [(b"transfer-encoding", b"chunked")], False),
        ("POST", [(b"content-length", b"9"), (b"transfer-encoding", b"chunked")], False),
        ("PUT", [(b"content-length", b"-1")], False),
    ],
)
def test_large_and_endless_requests_are_refused(method, headers, passes):
    sent, reached = [], []

    async def app(scope, receive, send):
        reached.append(scope)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "headers": headers}
    asyncio.run(Bounded(app)(scope, None, send))
    assert bool(reached) == passes
    assert [message.get("status") for message in sent[:1]] == ([] if passes else [413])


def test_loopback_addresses_are_known():
    assert is_loopback("127.0.0.1")
    assert is_loopback("localhost")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("192.168.0.2")


def test_the_command_refuses_files_and_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rwguidance", "app"])
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit):
        main()
    assert "pip install 'rwguidance[app]'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", object())
    for wrong, message in (
        (["--backbone", "mine.py:Law"], "takes names of the lists, and no files"),
        (["--path", "other=x"], "path names 'other'"),
        (["--reward", "nothing"], "there is no reward 'nothing'"),
    ):
        monkeypatch.setattr(sys, "argv", ["rwguidance", "app", *wrong])
        with pytest.raises(SystemExit):
            main()
        assert message in capsys.readouterr().err


def test_a_reward_of_weight_one_needs_no_sum():
    assert _reward({"red": 1.0}, Sources()) == "reward = rewards.load('red')"
    for weights in ({"red": 2.0}, {"red": 1.0, "blue": 1.0}):
        line = _reward(weights, Sources())
        assert line.startswith("reward = rewards.WeightedSum(")
        assert f"{list(weights.values())}," in line
