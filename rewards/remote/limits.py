"""Limits of both ends of a connection: its whole time, and what lies in memory at once.

A socket has a time limit of its own, but for each sign of life: who sends a byte now and then
holds the other end for ever.
"""

import http.client
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["Budget", "Deadline", "watched_handlers"]


class Deadline:
    """Ends connections when a time has passed, whatever their owners wait for; a context.

    Arguments:
        seconds: The time from the beginning of the context.

    Attributes:
        passed: Whether it has passed.
    """

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> "Deadline":
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            while self._sockets:
                self._sockets.pop().close()

    def watch(self, connection: socket.socket) -> None:
        """Ends this connection, too, when the time has passed."""

        # A second handle: the first one is lost where encryption begins.
        with self._lock:
            handle = connection.dup()
            self._sockets.append(handle)
            if self.passed:
                _shut(handle)

    def cancel(self) -> None:
        """Gives the connections as much time as they want."""

        self._timer.cancel()

    def _end(self) -> None:
        with self._lock:
            self.passed = True
            for connection in self._sockets:
                _shut(connection)


class Budget:
    """A number of bytes that some threads share.

    Arguments:
        size: The number.
    """

    def __init__(self, size: int) -> None:
        self._left = size
        self._lock = threading.Lock()

    @contextmanager
    def take(self, size: int) -> Iterator[bool]:
        """Takes bytes for the time of the context; yields whether there were so many."""

        with self._lock:
            granted = size <= self._left
            self._left -= size if granted else 0
        try:
            yield granted
        finally:
            with self._lock:
                self._left += size if granted else 0


def watched_handlers(deadline: Deadline) -> list[urllib.request.BaseHandler]:
    """Handlers of urllib whose connections a deadline ends."""

    class Plain(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> Any:
            return self.do_open(_watched(http.client.HTTPConnection, deadline), req)

    class Encrypted(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> Any:
            kind = _watched(http.client.HTTPSConnection, deadline)
            return self.do_open(kind, req, context=vars(self).get("_context"))

    return [Plain(), Encrypted()]


def _watched(kind: Any, deadline: Deadline) -> Any:
    """A function that makes connections that are watched from their first byte."""

    def make(*args: Any, **kwargs: Any) -> Any:
        connection = kind(*args, **kwargs)
        create = connection._create_connection

        def connect(*args: Any, **kwargs: Any) -> socket.socket:
            made: socket.socket = create(*args, **kwargs)
            deadline.watch(made)
            return made

        connection._create_connection = connect
        return connection

    return make


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):  # the other end has gone already
        connection.shutdown(socket.SHUT_RDWR)
