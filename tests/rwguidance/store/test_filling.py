"""Filling: batches are a function of the job, whoever makes them and whatever is there."""

import os
import sys

import pytest
import torch

from processes_of_a_run import launch
from rwguidance.store import Store, Task, fill
from rwguidance.support.batches import batches
from rwguidance.support.processes import Processes, joined
from rwguidance.support.randomness import generator_for, normal


def draw(rows):
    return normal((len(rows), 3), [generator_for(0, "draw", i) for i in rows])


def rounding(rows):
    """Draws that depend on their batch, as the rounding of a device does, but visibly."""

    return draw(rows) + 0.1 * len(rows)


def test_a_longer_run_begins_with_a_shorter_one_and_batches_at_multiples(tmp_path):
    column = Store(tmp_path).of({}).column("x_0")
    for n, expected in [
        (7, [range(4), range(4, 7)]),
        (13, [range(4, 8), range(8, 12), range(12, 13)]),
        (16, [range(12, 16)]),
        (16, []),
        (5, []),
    ]:
        made = []
        column.fill(n, lambda rows, made=made: made.append(rows) or draw(rows), 4)
        assert made == expected, f"{n} draws"
    assert torch.equal(column.read(), draw(range(16)))


@pytest.mark.parametrize("stop", range(0, 8, 3))
def test_a_run_that_was_interrupted_ends_with_the_same_bits(tmp_path, stop):
    whole, parts = (Store(tmp_path / name).of({}).column("x_0") for name in ("whole", "parts"))
    whole.fill(30, rounding, 4)
    made = []

    def interrupted(rows):
        if len(made) == stop:
            raise KeyboardInterrupt
        made.append(rows)
        return rounding(rows)

    with pytest.raises(KeyboardInterrupt):
        parts.fill(30, interrupted, 4)
    assert len(parts) == 4 * stop, "what was finished is there"
    parts.fill(30, lambda rows: made.append(rows) or rounding(rows), 4)
    assert len(made) == 8, "nothing is made twice"
    assert torch.equal(parts.read(), whole.read())


def test_columns_are_filled_together_and_read_from_each_other(tmp_path):
    told = []
    drawers = [Store(tmp_path).of({"prompt": prompt}) for prompt in ("a", "b")]
    states = [drawer.column("x_0") for drawer in drawers]
    fill([Task(one, 5 + i, draw, 2) for i, one in enumerate(states)],
         report=lambda done, total: told.append((done, total)))  # fmt: skip
    assert told == [(0, 11), (2, 11), (4, 11), (5, 11), (7, 11), (9, 11), (11, 11)]
    rewards = [drawer.column("rewards/sum") for drawer in drawers]
    score = lambda x_0: lambda rows: x_0.read(rows).sum(1)
    tasks = [Task(one, 5, score(x_0), 3) for one, x_0 in zip(rewards, states, strict=True)]
    fill(tasks)
    for drawer, x_0, one in zip(drawers, states, rewards, strict=True):
        bank = drawer.bank(5, one)
        assert torch.equal(bank.x_0, draw(range(5)))
        assert torch.equal(bank.rewards, x_0.read(range(5)).sum(1))


def test_short_columns_fill_batches_together(tmp_path):
    whole, parts = (
        [Store(tmp_path / name).of({"number": i}).column("x_0") for i in range(4)]
        for name in ("whole", "parts")
    )
    made, left = [], []
    fill([Task(whole, 3, lambda rows: made.append(rows) or rounding(rows), 5)])
    assert made == [range(5), range(5, 10), range(10, 12)]
    expected = torch.cat([rounding(rows) for rows in made])
    assert torch.equal(torch.cat([column.read() for column in whole]), expected)
    parts[1].append(0, expected[3:6])
    parts[2].append(0, expected[6:9])
    parts[3].append(0, expected[9:10])
    fill([Task(parts, 3, lambda rows: left.append(rows) or rounding(rows), 5)])
    assert left == [range(5), range(10, 12)], "what is there is not made, what is made rounds alike"
    assert torch.equal(torch.cat([column.read() for column in parts]), expected)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_batches(tmp_path, count):
    whole = Store(tmp_path / "whole").of({}).column("x_0")
    whole.fill(23, rounding, 4)
    made = []
    for index in range(count):  # one after the other: none of them sees all of it

        class Alone(Processes):
            def gather(self, value):
                assert value is None
                return []

        column = Store(tmp_path / "shared", shard_bytes=500).of({}).column("x_0")
        task = Task(column, 23, lambda rows: made.append(rows) or rounding(rows), 4)
        fill([task], Alone(index, count))
    assert sorted(rows.start for rows in made) == [0, 4, 8, 12, 16, 20]
    assert torch.equal(column.read(), whole.read())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_two_processes_may_fill_one_store_at_a_time(tmp_path):
    children = []
    for _ in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            code = 1
            try:
                drawers = [Store(tmp_path, 1000).of({"prompt": prompt}) for prompt in "abc"]
                fill([Task(drawer.column("x_0"), 40, draw, 2) for drawer in drawers])
                code = 0
            finally:
                os._exit(code)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    drawers = list(Store(tmp_path).drawers())
    assert len(drawers) == 3
    for drawer in drawers:
        column = drawer.column("x_0")
        assert torch.equal(column.read(), draw(range(40)))
        parts = [shard.rows for shard in column._shards()]
        assert sum(map(len, parts)) == 40, "no row is there twice"


def shared(root, fails):
    """What a process of several does: it fills the columns of three prompts with the others."""

    columns = [Store(root, 1000).of({"prompt": prompt}).column("x_0") for prompt in "abc"]
    made = []

    def make(rows):
        if fails and processes.rank == 1:
            raise FloatingPointError("NaN")
        made.append(rows)
        return rounding(rows)

    with joined() as processes:
        try:
            fill([Task(column, 9, make, 2) for column in columns], processes)
        except (FloatingPointError, RuntimeError) as error:
            print(error)
        else:
            whole = torch.cat([rounding(batch) for batch in batches(9, 2)])
            print(len(made), all(torch.equal(column.read(), whole) for column in columns))


@pytest.mark.slow
def test_two_processes_over_gloo_give_the_draws_of_one(tmp_path):
    outputs = [out for _, out, _ in launch(2, __file__, tmp_path)]
    assert outputs == ["8 True\n", "7 True\n"]


@pytest.mark.slow
def test_all_processes_hear_of_the_failure_of_one(tmp_path):
    first, second = (out for _, out, _ in launch(2, __file__, tmp_path, "fails"))
    assert first == "another process failed: FloatingPointError: NaN\n"
    assert second == "NaN\n"
    assert len(Store(tmp_path).of({"prompt": "a"}).column("x_0")) == 2, "what was made is there"


def test_nothing_is_made_where_nothing_is_asked_for(tmp_path):
    told = []
    column = Store(tmp_path).of({}).column("x_0")
    tell = lambda done, total: told.append((done, total))
    column.fill(0, lambda rows: pytest.fail("nothing is missing"), 1, tell)
    assert told == [(0, 0)]
    assert len(column) == 0
    with pytest.raises(ValueError, match="n must be at least 0"):
        column.fill(-1, draw, 1)


def test_what_is_made_must_have_an_entry_per_draw(tmp_path):
    column = Store(tmp_path).of({}).column("x_0")
    for wrong in (torch.zeros(3, 2), torch.zeros(()), [1.0, 2.0]):
        with pytest.raises(
            ValueError, match=r"make must return one entry per draw, shape \(2, ..."
        ):
            column.fill(4, lambda rows, wrong=wrong: wrong, 2)
    for arguments, message in [
        ((column, -1, draw, 2), "n must be at least 0"),
        ((column, 1, draw, 0), "batch_size must be at least 1"),
        (("x_0", 1, draw, 2), "column must be a Column of a Drawer, got str"),
        ((column, 1, 3, 2), "make must be callable"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            Task(*arguments)
    assert len(column) == 0


if __name__ == "__main__":
    shared(sys.argv[1], len(sys.argv) > 2)
