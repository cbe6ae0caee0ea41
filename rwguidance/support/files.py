"""Reading and writing files: nothing that hangs is read, and a reader never meets half of one."""

import hashlib
import os
import re
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "expanded",
    "flush",
    "naming",
    "open_regular",
    "own_file",
    "read_regular",
    "remove_abandoned",
    "replacing",
]

_PARTIAL = re.compile(r".+\.(?:(?P<host>[0-9a-f]{8})-)?[0-9a-f]{8}\.partial", re.DOTALL)
"""Names of what is being written; older versions did not name the machine, and wrote files."""

_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]

_DAY = 86400.0
"""Seconds after which a file is given up whose writer cannot be asked for a sign of life."""


_MOMENT = 1.0
"""Seconds in which others may close a file that they read, such as a search for viruses."""

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}

_SMALL = 1 << 28
"""Bytes of a file that is read at once, at most."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Returns a file that is opened to be read, and is one: a pipe or a device could hang.

    Raises:
        OSError: If it is something else, is not there, or cannot be read.
    """

    return os.fdopen(_descriptor(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)), "rb")


def own_file(path: str | os.PathLike[str], flags: int) -> int:
    """Returns the descriptor of a file that is written in place: an opener for :func:`open`.

    It is not opened through a link: who makes a folder that we write to could lead us elsewhere.

    Arguments:
        path: The file.
        flags: Flags of :func:`os.open`.

    Raises:
        OSError: If it is a link, a pipe, a device or a folder, or cannot be opened.
    """

    return _descriptor(path, flags | getattr(os, "O_NOFOLLOW", 0))


def _descriptor(path: str | os.PathLike[str], flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        found = _KINDS.get(kind, "something else")
        raise OSError(f"{os.fspath(path)} must be a regular file, got {found}")
    return descriptor


def read_regular(path: str | os.PathLike[str], limit: int = _SMALL) -> bytes:
    """Returns the content of a regular file that is not absurdly large.

    Arguments:
        path: The file.
        limit: Number of bytes, at most.

    Raises:
        OSError: If it is no file, is larger, is not there, or cannot be read.
    """

    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(f"{os.fspath(path)} must have at most {limit:,} bytes, got {size:,}")
        return file.read()


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[Path]:
    """A temporary file to write to, which takes the place of `path` when the block succeeds.

    If the block fails, the temporary file is removed and an old one at `path` stays as it was.
    Writers of the same file do not meet: each writes in a folder of its own beside it, and the last
    one stays. What writers who were killed have left there is removed.

    A writer holds an advisory lock on its folder, which ends with the process however that ends: a
    folder that can be locked has no writer. (A lock on the file would not do, as some libraries
    write another one and rename it.) Where there are no locks (Windows, some network folders), and
    where the writer was on another machine, it must be older than a day as well.

    Raises:
        OSError: If the disk is full or cannot be written to; names `path`.
        PermissionError: If `path` is open in another program, on Windows.
    """

    path = Path(path)
    with naming(path):
        remove_abandoned(path.parent)
        folder, lock = _claim(path)
        try:
            yield folder / path.name
            if durable:  # before the rename, lest the name is there without the contents
                flush(folder / path.name)
            _put(folder / path.name, path)
            if durable:
                flush(path.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if lock is not None:
                os.close(lock)


def expanded(path: str | os.PathLike[str]) -> Path:
    """Returns a path in which ``~`` is the user's own folder, and ``~name`` that of another.

    The name of nobody stays as it is, for a file may be called so.

    Raises:
        ValueError: If it is in the user's own folder, and there is none.
    """

    try:
        return Path(path).expanduser()
    except RuntimeError:
        if Path(path).parts[0] == "~":
            raise ValueError(
                f"{os.fspath(path)} is in the home folder, and there is none: give the whole path"
            ) from None
        return Path(path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives errors of the disk that say nothing of a file the name of this one."""

    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        # What is written by a library in Rust (safetensors) fails with a class of its own.
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from error


def flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk.

    Raises:
        OSError: If it is not there, or cannot be opened for writing.
    """

    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        if path.is_dir():  # Windows opens no folders, and writes their names by itself
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(partial: Path, path: Path) -> None:
    """Puts a file in the place of another, which Windows refuses while any program has it open."""

    deadline = time.monotonic() + _MOMENT
    while True:
        try:
            os.replace(partial, path)
            return
        except PermissionError as error:
            if time.monotonic() > deadline:
                advice = "close it if it is open in another program, or write elsewhere"
                text = f"{error.strerror}; {advice}"
                raise PermissionError(error.errno, text, str(path)) from None
        time.sleep(0.02)


def _claim(path: Path) -> tuple[Path, int | None]:
    """Makes and locks a folder; returns it and the descriptor that holds the lock, if any."""

    while True:
        folder = path.with_name(f"{path.name}.{_HOST}-{uuid.uuid4().hex[:8]}.partial")
        try:
            folder.mkdir()
        except OSError as error:
            error.filename = str(path)
            raise
        # Between its creation and the lock, another writer may take it for an abandoned one.
        try:
            locked, descriptor = _lock(folder)
        except FileNotFoundError:
            continue
        if locked is not False and folder.exists():
            return folder, descriptor
        if descriptor is not None:
            os.close(descriptor)


def remove_abandoned(parent: Path) -> None:
    """Removes what writers who were killed have left in a folder, as far as it can be removed."""

    with suppress(OSError), os.scandir(parent) as entries:
        found = [(entry, match) for entry in entries if (match := _PARTIAL.fullmatch(entry.name))]
        for entry, match in found:
            with suppress(OSError):  # gone meanwhile, or of another user
                _remove_if_abandoned(Path(entry.path), match["host"])


def _remove_if_abandoned(partial: Path, host: str | None) -> None:
    locked, descriptor = _lock(partial)
    try:
        near = locked and host == _HOST
        if locked is False or not (near or time.time() - _last_change(partial) > _DAY):
            return
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink()
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _last_change(partial: Path) -> float:
    return max(path.stat().st_mtime for path in (partial, *partial.glob("*")))


def _lock(path: Path) -> tuple[bool | None, int | None]:
    """Locks a file or folder, if it can be: not if another has, and None where there are no locks.

    The lock is held by the descriptor that is returned, if there is one.
    """

    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe hangs
    except (ImportError, PermissionError):
        return None, None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False, descriptor
    except OSError:
        return None, descriptor
    return True, descriptor
