"""Fixtures of the backbones' tests; helpers are in tests/*.py."""

import socket

import pytest


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("what is there must not need a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
