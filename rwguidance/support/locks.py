"""A lock on a folder, so that two processes do not write to it at once.

The lock belongs to an open file, ``.lock`` in the folder, and the operating system releases it when
the process ends, however it ends. It is advisory: it keeps out those who ask for it.
"""

import importlib
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .files import own_file

__all__ = ["locked", "remove_released", "seize"]

_NAME = ".lock"

_BYTE = 1 << 30
"""Place of the byte that is locked on Windows, where nobody else can read what is locked."""


def seize(file: int) -> None:
    """Locks an open file, until it is closed, against all others who ask for its lock.

    Raises:
        BlockingIOError: If another has locked it.
        OSError: If it is on a file system without locks.
    """

    try:
        import fcntl
    except ImportError:
        _seize_byte(file)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def locked(folder: Path, wait: float = 0.0) -> Iterator[None]:
    """Holds the lock of a folder, which is made if needed.

    Arguments:
        folder: The folder.
        wait: Time to wait for another holder, in seconds.

    Raises:
        ValueError: If another process, or another thread of this one, holds it all that time; names
            the process.
        OSError: If the folder cannot be made or written to.

    Warns:
        RuntimeWarning: If the file system has no locks, so that nothing keeps out another process.
    """

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _NAME
    file = _open(folder, path, time.monotonic() + wait)
    try:
        with suppress(OSError):  # on a full disk the lock holds, without saying whose it is
            if os.fstat(file).st_size:  # ext4 writes a file out when it is closed after that
                os.truncate(file, 0)
            os.write(file, str(os.getpid()).encode())
        yield
    finally:
        removed = _removed(path)
        os.close(file)
        if not removed:
            _removed(path)


def remove_released(folder: Path) -> None:
    """Removes the file of a lock whose holder was killed, if there is one; waits for nobody.

    Arguments:
        folder: The folder, for which others who want the lock wait a moment.
    """

    if (folder / _NAME).exists():
        with suppress(OSError, ValueError), locked(folder):  # which removes it at its end
            pass


def _open(folder: Path, path: Path, deadline: float) -> int:
    """Returns the open file that holds the lock."""

    while True:
        file = own_file(path, os.O_RDWR | os.O_CREAT)
        try:
            seize(file)
        except BlockingIOError:
            holder = os.read(file, 20).decode(errors="replace").strip()
            os.close(file)
            if time.monotonic() < deadline:
                time.sleep(0.01)
                continue
            raise ValueError(
                f"{folder} is in use by {f'process {holder}' if holder else 'another process'}: "
                "wait until it ends, or write elsewhere"
            ) from None
        except OSError as error:
            warnings.warn(
                f"{folder} is on a file system without locks ({error.strerror}): take care that no "
                "other process writes to it",
                RuntimeWarning,
                stacklevel=4,
            )
            return file
        if _is_at(file, path):
            return file
        os.close(file)  # its holder removed it between our two calls: ask for the new one


def _seize_byte(file: int) -> None:
    msvcrt = importlib.import_module("msvcrt")  # which type checkers know on Windows alone
    place = os.lseek(file, 0, os.SEEK_CUR)
    os.lseek(file, _BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    except PermissionError as error:
        raise BlockingIOError(error.errno, error.strerror) from None
    finally:
        os.lseek(file, place, os.SEEK_SET)


def _removed(path: Path) -> bool:
    """Removes a file; returns False if that is to be tried again when it is closed, as on Windows.

    There no file is removed that is open, and so none that another holds by then.
    """

    try:
        path.unlink()
    except PermissionError:
        return False
    except OSError:
        pass
    return True


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
