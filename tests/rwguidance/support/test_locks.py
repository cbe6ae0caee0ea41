"""A lock on a folder: one holder at a time, and none after the holder's death."""

import errno
import os
import subprocess
import sys
import types
from contextlib import ExitStack

import pytest

from rwguidance.support import locks
from rwguidance.support.locks import locked, remove_released

HOLD = """
import os, sys
from pathlib import Path
from rwguidance.support.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
    os._exit(9)
"""


def test_a_second_holder_is_refused_at_once_and_told_who_is_the_first(tmp_path):
    folder = tmp_path / "new" / "folder"
    with locked(folder):
        message = f"folder is in use by process {os.getpid()}: wait"
        with pytest.raises(ValueError, match=message), locked(folder):
            pass
        with locked(tmp_path / "other"):
            pass
    assert not list(folder.iterdir())
    with locked(folder):
        pass


@pytest.mark.parametrize("released", [True, False])
def test_another_holder_is_waited_for_as_long_as_is_asked_for(tmp_path, monkeypatch, released):
    clock = types.SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    with ExitStack() as first:
        first.enter_context(locked(tmp_path))

        def sleep(seconds):
            assert 0 < seconds <= 0.05
            clock.now += seconds
            if released and clock.now > 100.3:
                first.close()

        clock.sleep = sleep
        monkeypatch.setattr(locks, "time", clock)
        if released:
            with locked(tmp_path, 0.5):
                assert clock.now == pytest.approx(100.3, abs=0.05)
            return
        with pytest.raises(ValueError, match="is in use by"), locked(tmp_path, 0.5):
            pass
        assert clock.now == pytest.approx(100.5, abs=0.05)


def test_a_holder_that_died_holds_nothing(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"in use by process {holder.pid}"), locked(tmp_path):
            pass
        holder.communicate("\n")
    assert holder.returncode == 9
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    assert not list(tmp_path.iterdir())


def test_a_block_that_fails_releases_the_lock(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def refuse(file):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "seize", refuse)
    with (
        pytest.warns(RuntimeWarning, match=r"without locks \(No locks available\)"),
        locked(tmp_path),
    ):
        pass


def test_a_lock_that_nobody_holds_is_removed_and_no_other(tmp_path):
    remove_released(tmp_path)
    (tmp_path / ".lock").write_text("1")
    remove_released(tmp_path)
    assert not list(tmp_path.iterdir())
    with locked(tmp_path):
        remove_released(tmp_path)
        assert (tmp_path / ".lock").exists()


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links are followed on this system")
@pytest.mark.parametrize("there", [True, False])
def test_a_lock_that_is_a_link_changes_no_other_file(tmp_path, there):
    other, folder = tmp_path / "other", tmp_path / "folder"
    folder.mkdir()
    (folder / ".lock").symlink_to(other)
    if there:
        other.write_text("of somebody")
    with pytest.raises(OSError, match=r"\.lock"), locked(folder):
        pass
    assert (other.read_text() == "of somebody") if there else not other.exists()
