"""Records of an evaluation come back from the disk as they were, and are put together in order."""

import torch

from evaluations import Moved, run
from rwguidance.evaluation import records
from rwguidance.evaluation.results import BASE, COSTS, Cell, Failure
from rwguidance.evaluation.targets import Draws

LARGE = 2.0**24 + 1  # more operations than float32 can count
COST = [LARGE + i for i in range(len(COSTS))]
POOL = Cell("pool", 0.5)
SETTINGS = {
    "cells": [["pool", 0.5]],
    "rewards": ["bright", "held"],
    "embeddings": ["pixels"],
    "strengths": [0.5],
}


def found(seed, **facts):
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    costs = [cost + seed for cost in COST]
    return records.Found(
        {"bright": values[:, 0]}, {"pixels": values.float()}, costs, facts, "a.png"
    )


def record(prompt, cells):
    seen = found(9)
    draws = Draws(seen.rewards, seen.embeddings, [0.5])
    return records.Record(prompt, cells, draws, [Failure(prompt, "pool", "out of memory")])


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(one[name].dtype == other[name].dtype for name in one)


def test_a_record_is_read_as_it_was_written(tmp_path):
    written = record("a cat", {BASE: found(0), POOL: found(1, calls=3)})
    records.write(written, tmp_path / "new" / "0.safetensors")
    read = records.read(tmp_path / "new" / "0.safetensors")
    assert (read.prompt, list(read.cells)) == ("a cat", [BASE, POOL])
    for cell, one in read.cells.items():
        other = written.cells[cell]
        same(one.rewards, other.rewards)
        same(one.embeddings, other.embeddings)
        assert (one.costs, one.facts, one.file) == (other.costs, other.facts, other.file)
    same(read.draws.rewards, written.draws.rewards)
    same(read.draws.embeddings, written.draws.embeddings)
    assert list(read.draws.strengths) == [0.5]
    assert read.failures == written.failures


def test_records_are_put_together_with_nan_where_a_cell_failed(tmp_path):
    whole = record("a", {BASE: found(0), POOL: found(1)})
    failed, lost = record("b", {BASE: found(2)}), record("c", {POOL: found(3)})
    results = records.collect([whole, failed, lost], SETTINGS, tmp_path)
    assert results.prompts == ["a", "b"]  # there is nothing to compare with what has no base
    assert len(results.failures) == 3
    assert (results.aligned, results.rewards) == ("bright", ["bright", "held"])
    assert (results.embeddings, results.strengths) == (["pixels"], [0.5])
    pool = results.cells[POOL]
    assert torch.equal(pool.rewards["bright"][0], whole.cells[POOL].rewards["bright"])
    assert bool(pool.rewards["bright"][1].isnan().all())
    assert bool(pool.embeddings["pixels"][1].isnan().all())
    for place, name in enumerate(COSTS):
        assert float(pool.costs[name][0]) == COST[place] + 1
        assert bool(pool.costs[name][1].isnan())
        assert results.cells[BASE].costs[name].tolist() == [COST[place], COST[place] + 2]
    assert pool.files == {0: tmp_path / "a.png"}


def test_a_picture_is_named_by_forty_letters_of_its_cell(tmp_path):
    methods = {"A method whose name is long: (it has 55 letters or so)": Moved()}
    run(tmp_path, methods=methods, images=1, seeds=(0,), target_draws=0, strengths=(0.25,))
    found = sorted(path.name for path in tmp_path.glob("pictures/0000/*"))
    assert found == ["00-base.png", "01-a-method-whose-name-is-long-it-has-55-le.png"]
