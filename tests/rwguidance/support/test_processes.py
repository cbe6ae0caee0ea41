"""Processes of one run: what each of them does, and how they meet."""

import os
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch

from processes_of_a_run import launch
from rwguidance.support import processes
from rwguidance.support.processes import ALONE, Processes, joined


def test_every_number_is_dealt_once():
    for size in (1, 2, 3, 7):
        dealt = [list(Processes(rank, size).deal(5)) for rank in range(size)]
        assert sorted(i for part in dealt for i in part) == list(range(5))
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
        assert all(part == sorted(part) for part in dealt)


def test_without_a_launcher_there_is_one_process(monkeypatch):
    for size in ("", "1"):
        monkeypatch.setenv("WORLD_SIZE", size)
        with joined() as processes:
            assert processes == ALONE
            assert (processes.first, list(processes.deal(3))) == (True, [0, 1, 2])
            assert processes.gather({"a": (1, 2)}) == [{"a": [1, 2]}]
            processes.wait()


def test_variables_that_are_incomplete_are_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="RANK"), joined():
        pass


@pytest.mark.parametrize(("local", "device"), [("1", 1), ("4", 1), ("", 0), (None, 0)])
def test_the_gpu_of_a_process_is_that_of_its_local_rank(monkeypatch, local, device):
    taken = []

    def nobody(*given, **options):
        raise RuntimeError("nobody else")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(processes.distributed, "init_process_group", nobody)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_RANK", local)
    with pytest.raises(ConnectionError, match="not all of the 2 processes"), joined():
        pass
    assert taken == [device]


def meet(fails):
    with joined() as processes:
        found = processes.gather({"rank": processes.rank, "text": "é" * processes.rank})
        print(found == [{"rank": i, "text": "é" * i} for i in range(processes.size)])
        if fails and processes.rank == 1:
            os._exit(3)
        try:
            processes.wait()
        except ConnectionError as error:
            print(error)


def test_who_waits_for_one_that_never_begins_gives_up(monkeypatch):
    monkeypatch.setattr(processes, "_JOINING", timedelta(seconds=1))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in (0, 1):  # of which the first one listens, and the other one looks for it
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        for name, value in {**place, "RANK": str(rank)}.items():
            monkeypatch.setenv(name, value)
        with (
            pytest.raises(ConnectionError, match=r"not all of the 2 processes .* within 1 seconds"),
            joined(),
        ):
            pass


class Meeting:
    """Threads in the place of processes: the group of each is its rank."""

    def __init__(self, monkeypatch, size):
        self.size, self.given, self.barrier = size, {}, threading.Barrier(size, timeout=60)
        monkeypatch.setattr(processes.distributed, "all_gather", self.all_gather)
        monkeypatch.setattr(processes.distributed, "all_reduce", self.all_reduce)

    def exchanged(self, tensor, rank):
        self.barrier.wait()
        self.given[rank] = tensor.clone()
        self.barrier.wait()
        return [self.given[i] for i in range(self.size)]

    def all_gather(self, parts, tensor, group):
        for part, found in zip(parts, self.exchanged(tensor, group), strict=True):
            part.copy_(found)

    def all_reduce(self, total, group):
        total.copy_(sum(self.exchanged(total, group)))

    def each(self, act):
        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(lambda i: act(Processes(i, self.size, i)), range(self.size)))


def test_each_hears_all_that_the_others_say_however_long(monkeypatch):
    said = [{"a": "é" * 5}, [], {"b": [1.5, None], "c": "x" * 300}]
    meeting = Meeting(monkeypatch, 3)
    assert meeting.each(lambda one: one.gather(said[one.rank])) == [said] * 3
    assert meeting.each(lambda one: one.gather((one.rank,))) == [[[0], [1], [2]]] * 3


def test_sums_are_those_of_all_and_leave_what_each_has(monkeypatch):
    own = [torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])]
    found = Meeting(monkeypatch, 2).each(lambda one: one.sum(own[one.rank]).tolist())
    assert found == [[11.0, 22.0]] * 2
    assert [values.tolist() for values in own] == [[1.0, 2.0], [10.0, 20.0]]
    assert ALONE.sum(own[0]) is own[0]


def test_who_does_not_come_has_ended(monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("connection closed by peer")

    monkeypatch.setattr(processes.distributed, "all_gather", fail)
    monkeypatch.setattr(processes.distributed, "all_reduce", fail)
    for act in (lambda one: one.gather(1), lambda one: one.sum(torch.ones(1)), Processes.wait):
        with pytest.raises(ConnectionError, match="another process of this run has ended"):
            act(Processes(0, 2))


@pytest.mark.slow
def test_processes_meet():
    assert [out for _, out, _ in launch(3, __file__)] == ["True\n"] * 3


@pytest.mark.slow
def test_a_process_that_ends_is_noticed_by_the_others():
    first, second = launch(2, __file__, "fails", expected=None)
    assert (first[0], second[0]) == (0, 3)
    assert "another process of this run has ended" in first[1]


if __name__ == "__main__":
    meet("fails" in sys.argv)
