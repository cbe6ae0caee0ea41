"""Every public class of the test bed with state says what its results depend on."""

import dataclasses

import pytest
import torch

from identity import Case, check, check_entries, classes_with_state
from rwguidance import Bank, Tilt, VPSchedule, toy
from rwguidance.support.fingerprint import fingerprint
from rwguidance_testbed import plugins, shipped
from rwguidance_testbed.data.drawings import Drawing, Drawings
from rwguidance_testbed.gold import Gold
from rwguidance_testbed.network import BankMean, BankShift
from rwguidance_testbed.towers.losses import AlignmentHead

ELSEWHERE = {"towers.preference_pairs.Pairs"}
"""Tested where their files are."""

WITHIN = {"encoders.hps.HPS", "encoders.judge.Judge", "encoders.pick.Pick"}
"""Towers: those of the plug-ins and of commands."""

NO_RESULT = {
    # They make weights, and no saved result is looked up by them.
    "adversarial.critic.Critic",
    "adversarial.critic.Features",
    "adversarial.critic.Trunk",
    "adversarial.objective.Widening",
    "adversarial.reader.Reader",
    "black_box.LatentScore",
    "decoder.PatchDiscriminator",
    "decoder.Sharpening",
    "distill.students.FlowStudent",
    "distill.teachers.FlowTeacher",
    "distill.teachers.NoiseTeacher",
    "distill.buffer.ReplayBuffer",
    "distill.students.TurboStudent",
    "encoders.base.Towers",
    "encoders.base.PatchSelection",
    "preferences.Generators",
    "towers.buffer.PictureBuffer",
    "training.attention.CountedAttention",
    "training.buffer.LatentBuffer",
    "training.ema.ExponentialMovingAverage",
    "training.loop.Run",
    "training.muon.Muon",
    "training.timed.TimedRun",
}

PLUGINS = ("EmojiPick", "EmojiHPS", "EmojiGold", "EmojiMatch", "JudgeEmbedding")


@pytest.mark.slow
@pytest.mark.parametrize("name", PLUGINS)
def test_plug_ins_are_identified_by_their_weights(name):
    make = getattr(plugins, name)
    one = make()
    assert fingerprint(one) == fingerprint(make())
    check_entries(one, 1)


def test_gold_is_identified_by_its_judge():
    judge = shipped.judge()
    assert fingerprint(Gold(judge)) == fingerprint(Gold(shipped.judge()))
    check_entries(Gold(judge), 1)


def bank(factor=1.0):
    x_0 = factor * torch.arange(24.0).reshape(12, 2) / 7
    return Bank(x_0, ["a"] * 6 + ["b"] * 6, x_0[:, 0].clone())


def cases():
    tilt = lambda beta: Tilt(toy.Linear([1.0, 0.0]), beta)
    drawing = Drawing("dog", "flat", "animals", "mammal", (), "generator")
    pixels = torch.zeros(1, 4, 80, 80, dtype=torch.uint8)
    return {
        "Drawings": Case(
            Drawings,
            {"entries": [drawing], "pixels": pixels},
            {"entries": [dataclasses.replace(drawing, tags=("a",))], "pixels": pixels + 1},
        ),
        "BankMean": Case(
            BankMean,
            {"schedule": VPSchedule(), "bank": bank()},
            {"schedule": VPSchedule(0.2), "bank": bank(2.0)},
        ),
        "BankShift": Case(
            BankShift,
            {"bank": bank(), "tilt": tilt(1.0), "schedule": VPSchedule()},
            {
                "bank": bank(2.0),
                "tilt": tilt(2.0),
                "schedule": VPSchedule(0.2),
                "t": 0.5,
                "batch_size": 16,
                "encode": torch.nn.Identity(),
            },
        ),
    }


@pytest.mark.parametrize("name", cases())
def test_arguments_count_and_equals_are_equal(name):
    check(lambda: cases()[name])


def test_no_public_class_with_state_is_forgotten():
    found = classes_with_state("rwguidance_testbed")
    tested = {
        Drawings,
        BankMean,
        BankShift,
        Gold,
        AlignmentHead,
        *(getattr(plugins, n) for n in PLUGINS),
    }
    known = {f"rwguidance_testbed.{name}" for name in (*NO_RESULT, *WITHIN, *ELSEWHERE)}
    assert {name for name, cls in found.items() if cls not in tested} - known == set()
    assert known <= set(found)
