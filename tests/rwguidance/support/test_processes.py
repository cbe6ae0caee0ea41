"""Processes of one run: what each of them does, and how they meet."""

import os
import socket
import sys
from datetime import timedelta

import pytest

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
