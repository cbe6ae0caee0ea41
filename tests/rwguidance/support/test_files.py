"""Files appear whole, and what killed writers left is removed, of nobody else."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from rwguidance.support import files
from rwguidance.support.files import replacing

WRITER = """
import sys, pathlib, time
from rwguidance.support.files import replacing
with replacing(pathlib.Path(sys.argv[1])) as partial:
    partial.write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def writer(tmp_path):
    """Another process in the middle of writing "result" in the folder."""

    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path / "result"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture(params=["locks", "no locks"])
def locks(request, monkeypatch):
    """Systems with and without advisory locks."""

    if request.param == "no locks":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    elif sys.platform == "win32":
        pytest.skip("has no advisory locks")
    return request.param == "locks"


def write(path, text="new"):
    with replacing(path) as partial:
        partial.write_text(text)


@pytest.mark.parametrize("when", ["before it is opened", "before it is locked"])
def test_a_new_folder_that_another_writer_took_for_abandoned_is_made_again(
    tmp_path, monkeypatch, when
):
    lock, taken = files._lock, []

    def late(folder):
        if taken or when == "before it is locked":
            found = lock(folder)
        if not taken:
            folder.rmdir()
            taken.append(folder)
            found = lock(folder) if when == "before it is opened" else found
        return found

    monkeypatch.setattr(files, "_lock", late)
    with replacing(tmp_path / "a") as partial:
        partial.write_text("whole")
        assert taken != [partial.parent]
    assert (tmp_path / "a").read_text() == "whole"


def test_a_file_in_a_folder_that_is_gone_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "gone" / "a"):
        pass


def partials(folder):
    return sorted(path.name for path in folder.glob("*.partial*"))


def aged(path):
    two_days_ago = time.time() - 2 * 86400
    for found in (*path.glob("*"), path):
        os.utime(found, (two_days_ago, two_days_ago))


def test_writers_of_one_file_do_not_meet(tmp_path, locks):
    path = tmp_path / "file.txt"
    with replacing(path) as one:
        one.write_text("one")
        with replacing(path) as other:
            assert other != one
            other.write_text("other")
        assert path.read_text() == "other"
        assert one.exists()
    assert path.read_text() == "one"
    assert [found.name for found in tmp_path.iterdir()] == ["file.txt"]


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, locks):
    path = tmp_path / "file.txt"
    write(path, "old")
    with pytest.raises(UnicodeEncodeError), replacing(path) as partial:
        partial.write_text("half \ud800", encoding="utf-8")
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["file.txt"]


def test_the_file_of_a_killed_writer_is_removed_by_the_next_one(tmp_path, writer):
    (left,) = partials(tmp_path)
    write(tmp_path / "other")
    assert partials(tmp_path) == [left], "its writer lives"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert partials(tmp_path) == [left]
    write(tmp_path / "other")
    assert partials(tmp_path) == []


def test_a_live_writer_keeps_its_file_however_old_it_is(tmp_path, writer, monkeypatch):
    (left,) = partials(tmp_path)
    aged(tmp_path / left)
    write(tmp_path / "other")
    monkeypatch.setattr(files, "_HOST", "00000000")  # as seen from another machine
    write(tmp_path / "other")
    assert partials(tmp_path) == [left]


def left_behind(path, kind):
    """What a killed writer leaves; older versions wrote files."""

    if kind == "folder":
        path.mkdir()
        (path / "result").write_text("half")
    else:
        path.write_text("half")
    return path


@pytest.mark.parametrize("kind", ["folder", "file"])
@pytest.mark.parametrize("host", ["00000000-", ""])
def test_a_writer_elsewhere_is_given_a_day(tmp_path, host, kind, locks):
    left = left_behind(tmp_path / f"result.{host}0123abcd.partial", kind)
    write(tmp_path / "other")
    assert left.exists()
    aged(left)
    write(tmp_path / "other")
    assert not left.exists()


def test_a_day_counts_from_the_last_thing_that_was_written(tmp_path):
    left = left_behind(tmp_path / "result.00000000-0123abcd.partial", "folder")
    aged(left)
    (left / "result").write_text("still at it")
    write(tmp_path / "other")
    assert left.exists()


def test_without_locks_a_writer_is_given_a_day(tmp_path, locks):
    left = left_behind(tmp_path / f"result.{files._HOST}-0123abcd.partial", "folder")
    write(tmp_path / "other")
    assert left.exists() != locks
    if not locks:
        aged(left)
        write(tmp_path / "other")
        assert not left.exists()


@pytest.mark.parametrize(
    "name", ["a.partial", "a.0123abcd.partial.jsonl", "a.0123ABCD.partial", "0123abcd.partial"]
)
def test_files_of_others_are_left_alone(tmp_path, name):
    aged_file = tmp_path / name
    aged_file.write_text("mine")
    aged(aged_file)
    write(tmp_path / "other")
    assert aged_file.read_text() == "mine"


def test_permissions_are_those_of_any_new_file(tmp_path):
    write(tmp_path / "ours")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_lock_survives_a_library_that_renames(tmp_path):
    with replacing(tmp_path / "weights") as partial:
        save_file({"x": torch.zeros(3)}, partial)
        write(tmp_path / "other")
        assert partial.exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError(
            f"Error while serializing: I/O error: {os.strerror(errno.ENOSPC)} "
            f"(os error {errno.ENOSPC})"
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, error):
    path = tmp_path / "file.txt"
    with (
        pytest.raises(OSError, match=r"No space left on device: .*file\.txt") as caught,
        replacing(path),
    ):
        raise error
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_disk_that_cannot_be_written_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.file\.txt'$"):
        write(tmp_path / "nowhere" / "file.txt")


def test_other_errors_pass_as_they_are(tmp_path):
    for error in (OSError("the network is down"), SafetensorError("no such dtype")):
        with pytest.raises(type(error)) as caught, replacing(tmp_path / "file.txt"):
            raise error
        assert caught.value is error
        assert getattr(error, "filename", None) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes on this system")
def test_a_pipe_with_the_name_of_a_partial_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "result.0123abcd.partial")
    code = "import sys, pathlib; from rwguidance.support.files import replacing as r\n"
    code += "with r(pathlib.Path(sys.argv[1])) as partial: partial.write_text('new')"
    subprocess.run([sys.executable, "-c", code, tmp_path / "result"], check=True, timeout=60)
    assert (tmp_path / "result").read_text() == "new"
