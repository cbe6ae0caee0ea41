"""What an evaluation is asked for: its defaults, its bounds, and all that decides its results."""

import json

import pytest

import rwguidance
from rwguidance.evaluation.plan import Plan, TargetSize
from rwguidance.evaluation.results import Cell
from rwguidance.generation import BestOfN, Importance


def plan(**changes):
    methods = {"it": Importance(bank=8, kl=1.0), "best": BestOfN(3)}
    return Plan(**{"prompts": ["a cat", "a dog"], "out": "out", "methods": methods, **changes})


def test_settings_hold_all_that_decides_the_results():
    given = plan(
        prompts=["a cat", "a dog", "an owl"], aligned="bright", held_out=["red", "blue"],
        embeddings=["pixels"], strengths=(3, 0.5, 1), images=3, seeds=[4, 2],
        negative_prompt="ugly", target_draws=20, targets={1: TargetSize(50, prompts=2)}, shown=1,
        developed_on=["an owl"], names={"backbone name": "mine"},
    )  # fmt: skip
    (cell,) = given.omitted
    assert cell == Cell("it", 3.0)
    expected = {
        "rwguidance": rwguidance.__version__,
        "backbone name": "mine",
        "methods": {
            "it": {"name": "importance", **Importance(bank=8, kl=1.0).settings()},
            "best": {"name": "best-of-n", **BestOfN(3).settings()},
        },
        "cells": [["it", 0.5], ["it", 1.0], ["best", None]],
        "omitted": [["it", 3.0, given.omitted[cell]]],
        "strengths": [0.5, 1.0, 3.0],
        "rewards": ["bright", "red", "blue"],
        "embeddings": ["pixels"],
        "images": 3,
        "seeds": [4, 2],
        "negative prompt": "ugly",
        "targets": [[50, [0.5, 1.0, 3.0]], [50, [0.5, 1.0, 3.0]], [20, [0.5, 3.0]]],
        "shown": 1,
        "prompts": ["a cat", "a dog", "an owl"],
        "developed on": ["an owl"],
    }
    assert given.settings == json.loads(json.dumps(expected))
    assert given.undescribed == []
    assert (given.pictures, given.reused) == (6, ["an owl"])
    assert "log(bank)" in given.omitted[cell]


def test_settings_are_these_unless_others_are_given():
    found = plan()
    assert found.strengths == (0.25, 0.5, 1.0, 2.0)
    assert (found.aligned, found.held_out, found.embeddings) == ("reward", (), ())
    assert (found.images, found.seeds, found.steps, found.batch_size) == (1, (0,), None, 8)
    assert (found.target_draws, found.targets, found.shown) == (256, {}, 12)
    assert (found.negative_prompt, found.developed_on, found.restart) == (None, (), False)
    assert (found.names, found.omitted) == ({}, {})
    assert found.target(1) == (256, [0.25, 0.5, 1.0, 2.0])


def test_methods_without_strengths_run_once():
    found = plan(strengths=())
    assert list(found.cells) == [Cell("it"), Cell("best")]
    assert found.target(0) == (0, [])
    assert plan(target_draws=0).target(0) == (0, [])


@pytest.mark.parametrize(
    ("images", "size", "expected"),
    [(5, 2, [(0, 2), (2, 4), (4, 5)]), (4, 2, [(0, 2), (2, 4)]), (2, 8, [(0, 2)])],
)
def test_pictures_are_made_in_batches(images, size, expected):
    found = plan(images=images, batch_size=size, seeds=(0, 1)).batches
    assert [(batch.start, batch.stop) for batch in found] == expected


@pytest.mark.parametrize(
    ("name", "least"),
    [("images", 1), ("steps", 1), ("batch_size", 1), ("target_draws", 0), ("shown", 0)],
)
def test_numbers_of_a_plan_reach_their_bounds(name, least):
    assert getattr(plan(**{name: least}), name) == least
    with pytest.raises(ValueError, match=f"^{name} must be at least {least}, got {least - 1}"):
        plan(**{name: least - 1})


def test_a_size_of_a_target_reaches_its_bounds():
    assert TargetSize(2, 1) == TargetSize(draws=2, prompts=1)
    assert TargetSize(2).prompts is None
    with pytest.raises(ValueError, match="draws must be at least 2, got 1"):
        TargetSize(1)
    with pytest.raises(ValueError, match="prompts must be at least 1, got 0"):
        TargetSize(2, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strengths": (0.5, 0.5)}, "strengths must be distinct"),
        ({"strengths": (0.0,)}, "strengths must be positive"),
        ({"seeds": ()}, "seeds must be distinct, and one at least"),
        ({"seeds": (1, 1)}, "seeds must be distinct"),
        ({"targets": {0.3: TargetSize(2)}}, "strengths of the plan, 0.25, 0.5, 1, 2, got 0.3"),
        (
            {"methods": {"it": Importance(bank=2, kl=0.5)}, "strengths": (5.0,)},
            "methods must be able to run at one strength at least, it at 5 nats: kl must be less",
        ),
    ],
)
def test_plans_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plan(**changes)
