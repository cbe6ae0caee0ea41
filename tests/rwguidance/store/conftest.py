"""The tests of stores do not wait for the disk, except those that are about it."""

import os

import pytest


@pytest.fixture(autouse=True)
def waiting_for_no_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
