"""A lock on a folder, so that two processes do not write to it at once.

The lock belongs to an open file, ``.lock`` in the folder, and the operating system releases it when
the process ends, however it ends. It is advisory: it keeps out those who ask for it.
"""

import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["locked", "remove_released"]

_NAME = ".lock"

if sys.platform == "win32":
    import msvcrt

    def _seize(file: int) -> None:
        os.lseek(file, 1 << 20, os.SEEK_SET)  # behind the text, which stays readable for others
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(file, 0, os.SEEK_SET)

else:
    import fcntl

    def _seize(file: int) -> None:
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
        with suppress(OSError):  # Windows removes no file that is open: there it stays, released
            path.unlink()
        os.close(file)


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
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _seize(file)
        except (BlockingIOError, PermissionError):
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


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
