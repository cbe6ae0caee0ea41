"""Other systems, as far as Linux can play them: what Windows lacks and refuses, and no home folder.

Nothing here is a run on Windows. Paths keep their slashes, and the processor its instructions; what
is played is what the packages touch: locks, files that are open, folders, names, texts.
"""

import builtins
import errno
import fcntl
import io
import os
import posixpath
import shutil
import struct
import sys
import types
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

__all__ = ["Colliding", "homeless", "windows"]

_LACKING = ("O_NONBLOCK", "O_NOFOLLOW", "O_DIRECTORY", "mkfifo", "sysconf", "sched_getaffinity")
_PORTS = {f"{kind}{i}" for kind in ("com", "lpt") for i in range(10)}
_RESERVED = {"con", "prn", "aux", "nul"} | _PORTS
_REFUSED = set('<>:"|?*\\')


class Colliding(AssertionError):
    """Two names differ in case or composition only: on many systems they are one file."""


@contextmanager
def homeless() -> Iterator[None]:
    """No home folder is known, as in a service or a small container."""

    with mock.patch.dict(os.environ), mock.patch.object(posixpath, "expanduser", lambda path: path):
        for name in ("HOME", "USERPROFILE", "XDG_CACHE_HOME"):
            os.environ.pop(name, None)
        yield


@contextmanager
def windows(root: Path) -> Iterator[None]:
    """Within, this process sees what Windows would show it of the files below a folder.

    ``fcntl`` and ``resource`` are absent, ``msvcrt`` locks bytes of open files, which must not be
    read by others; folders cannot be opened, nor files be flushed that are open to be read; a file
    that is open or mapped can be neither replaced nor removed; texts are written with CR LF, and in
    cp1252 unless told otherwise; names are those that Windows takes, in one case.
    """

    names: dict[tuple[str, str], str] = {}
    with ExitStack() as stack:
        for name in _LACKING:
            if hasattr(os, name):
                stack.enter_context(mock.patch.object(os, name))
                delattr(os, name)
        modules = {"fcntl": None, "resource": None, "msvcrt": _msvcrt()}
        stack.enter_context(mock.patch.dict(sys.modules, modules))
        stack.enter_context(mock.patch.object(shutil, "_use_fd_functions", False))
        for name in ("replace", "rename"):
            stack.enter_context(
                mock.patch.object(os, name, _moving(getattr(os, name), root, names))
            )
        for name in ("unlink", "remove"):
            stack.enter_context(mock.patch.object(os, name, _removing(getattr(os, name), root)))
        stack.enter_context(mock.patch.object(os, "mkdir", _naming(os.mkdir, root, names)))
        stack.enter_context(mock.patch.object(os, "open", _opening(os.open, root, names)))
        stack.enter_context(mock.patch.object(os, "fsync", _flushing(os.fsync)))
        opens = _texts(_naming(io.open, root, names))
        stack.enter_context(mock.patch.object(io, "open", opens))
        stack.enter_context(mock.patch.object(builtins, "open", opens))
        yield


def _msvcrt() -> types.ModuleType:
    def locking(file: int, mode: int, length: int) -> None:
        place = os.lseek(file, 0, os.SEEK_CUR)
        assert place < 2**31, "the place of a lock is a long, which has 32 bits there"
        assert place >= os.fstat(file).st_size, "what is locked can be read by nobody else"
        claim = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, place, length, 0)
        try:  # such a lock belongs to an open file, as those of Windows do, not to a process
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, claim)
        except OSError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    module: Any = types.ModuleType("msvcrt")
    module.locking, module.LK_NBLCK = locking, 2
    return module


def _moving(move: Any, root: Path, names: dict[tuple[str, str], str]) -> Any:
    def moved(source: Any, target: Any, **options: Any) -> None:
        for path in (source, target):
            if _below(path, root) and (_open_somewhere(path) or _open_within(path)):
                raise PermissionError(errno.EACCES, "Access is denied", str(source))
        _check_name(target, root, names)
        move(source, target, **options)

    return moved


def _removing(remove: Any, root: Path) -> Any:
    def removed(path: Any, **options: Any) -> None:
        if _below(path, root) and _open_somewhere(path):
            raise PermissionError(errno.EACCES, "Access is denied", str(path))
        remove(path, **options)

    return removed


def _opening(function: Any, root: Path, names: dict[tuple[str, str], str]) -> Any:
    def opened(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        if flags & os.O_CREAT:
            _check_name(path, root, names)
        return int(function(path, flags, *rest, **options))

    return opened


def _naming(function: Any, root: Path, names: dict[tuple[str, str], str]) -> Any:
    def named(path: Any, *rest: Any, **options: Any) -> Any:
        if not isinstance(path, int):
            _check_name(path, root, names)
        return function(path, *rest, **options)

    return named


def _flushing(flush: Any) -> Any:
    def flushed(file: int) -> None:
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flush(file)

    return flushed


def _texts(function: Any) -> Any:
    def opened(
        path: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
        newline: Any = None, *rest: Any, **options: Any,
    ) -> Any:  # fmt: skip
        if "b" not in mode:
            encoding = "cp1252" if encoding in (None, "locale") else encoding
            if newline is None and set(mode) & set("wax+"):
                newline = "\r\n"
        return function(path, mode, buffering, encoding, errors, newline, *rest, **options)

    return opened


def _check_name(path: Any, root: Path, names: dict[tuple[str, str], str]) -> None:
    path = Path(os.path.abspath(os.fsdecode(path)))
    if not _below(path, root):
        return
    for part in path.relative_to(root).parts:
        reserved = part.split(".")[0].rstrip().lower() in _RESERVED
        if reserved or part[-1] in ". " or set(part) & _REFUSED:
            raise OSError(errno.EINVAL, "Invalid argument", str(path))
    one = unicodedata.normalize("NFD", path.name).casefold()
    other = names.setdefault((str(path.parent), one), path.name)
    if other != path.name and (path.parent / other).exists():
        raise Colliding(f"{path.name} and {other} in {path.parent}")


def _below(path: Any, root: Path) -> bool:
    return os.path.abspath(os.fsdecode(path)).startswith(f"{root}{os.sep}")


def _open_somewhere(path: Any) -> bool:
    """Whether this process, or one beside it, has a file open or mapped."""

    full = os.path.realpath(os.fsdecode(path))
    return any(full in _held(process) for process in _processes())


def _open_within(folder: Any) -> bool:
    return os.path.isdir(folder) and any(
        _open_somewhere(Path(where) / file) for where, _, files in os.walk(folder) for file in files
    )


def _processes() -> Iterator[str]:
    yield "self"
    with suppress(OSError):
        yield from Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read_text().split()


def _held(process: str) -> set[str]:
    held = set()
    with suppress(OSError):
        for link in os.scandir(f"/proc/{process}/fd"):
            with suppress(OSError):
                held.add(os.readlink(link.path))
        with io.FileIO(f"/proc/{process}/maps") as file:
            lines = file.readall().decode(errors="replace").splitlines()
        held |= {line.split(None, 5)[5] for line in lines if len(line.split(None, 5)) > 5}
    return held
