"""A server of any reward, by the protocol of :mod:`rewards.remote.protocol`."""

import base64
import io
import json
import math
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import Any

import torch

from rwguidance.support.checks import instance, integer, number
from rwguidance.support.image_files import MAX_PIXELS, TooLarge, opened

from ..base import Reward, as_strings
from ..loading import require
from .limits import Budget, Deadline
from .protocol import CONTENT_TYPE, VERSION

__all__ = ["RewardServer", "serve"]

_MAX_REQUEST = 1 << 28
"""Bytes of a request that the server reads."""


_MAX_IMAGES = 256
"""Images of a request: a reward enlarges the smallest to what its network takes."""

_MAX_TEXT = 1 << 20
"""Characters of all prompts of a request, which tokenizers read to their end."""

_MAX_BODIES = 1 << 30
"""Bytes of all requests that are in memory at once."""


class RewardServer(ThreadingMixIn, HTTPServer):
    """Serves a reward by :mod:`rewards.remote.protocol`, one request after the other.

    Each connection has a thread, so that none that is silent keeps others waiting, and is given up
    when it has not sent its request in time. Of requests beyond the bounds on connections and
    memory, the client is told to come again. Knows no tokens and no encryption: whoever reaches it
    can use it.

    Arguments:
        reward: The reward to serve, ready to be used.
        host: The interface to listen on; the default cannot be reached from other machines.
        port: The port, or 0 for any free one, see `server_port`.
        request_timeout: Seconds within which a client must have sent its whole request.
        max_connections: Connections that are held at once.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If there is no such port, or a bound is out of range.
    """

    daemon_threads = True  # a client that hangs does not keep the process

    def __init__(
        self,
        reward: Reward,
        host: str = "127.0.0.1",
        port: int = 0,
        request_timeout: float = 60.0,
        max_connections: int = 32,
    ) -> None:
        instance("reward", reward, Reward, "a Reward")
        instance("host", host, str, "a name or an address of this machine")
        self.reward = reward
        self.request_timeout = number("request_timeout", request_timeout, above=0)
        self.bodies = Budget(_MAX_BODIES)
        self._turn = threading.Lock()
        self._free = threading.BoundedSemaphore(integer("max_connections", max_connections, 1))
        require("PIL.Image", reward.spec.name)
        super().__init__((host, integer("port", port, 0, 65535)), _Handler)

    def score(self, body: bytes) -> list[float | None]:
        """The rewards that a request's body asks for.

        Raises:
            ValueError: If it is not a request of the protocol, or the reward refuses the images.
        """

        with self._turn:  # the pictures of one request in memory, and one use of the reward
            images, prompts = self._parse(body)
            with torch.no_grad():
                values = self.reward(images, prompts).tolist()
        return [value if math.isfinite(value) else None for value in values]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Gives the connection to a thread, if there is one left."""

        if self._free.acquire(blocking=False):
            return super().process_request(request, client_address)
        with suppress(OSError):
            request.settimeout(1.0)
            request.sendall(_BUSY)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers a request, in its thread."""

        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a connection that was lost."""

    def _parse(self, body: bytes) -> tuple[list[Any], list[str] | None]:
        try:
            request = json.loads(body)
        except RecursionError as error:
            raise ValueError("the request is nested too deeply") from error
        if not isinstance(request, dict) or request.get("version") != VERSION:
            raise ValueError(f'the request must be an object with "version": {VERSION}')
        files = request.get("images")
        if not isinstance(files, list) or not files:
            raise ValueError('"images" must be a list of at least one PNG file in base64')
        if len(files) > _MAX_IMAGES:
            raise ValueError(
                f"images must be {_MAX_IMAGES} at most, got {len(files):,}: send fewer at once"
            )
        images: list[Any] = []
        for i, file in enumerate(files):
            held = sum(image.width * image.height for image in images)
            images.append(self._image(file, i, MAX_PIXELS - held))
        if not self.reward.spec.needs_prompt:
            return images, None
        try:
            prompts = as_strings(request.get("prompts") or [], len(images))
        except TypeError as error:
            raise ValueError(str(error)) from error
        length = sum(map(len, prompts))
        if length > _MAX_TEXT:
            raise ValueError(
                f"prompts must have {_MAX_TEXT:,} characters together, at most, got {length:,}"
            )
        return images, prompts

    def _image(self, file: object, i: int, max_pixels: int) -> Any:
        try:
            if not isinstance(file, str):
                raise TypeError(f"got {type(file).__name__}")
            with opened(io.BytesIO(base64.b64decode(file, validate=True)), _PNG, max_pixels) as im:
                return im.copy()
        except TooLarge:
            raise ValueError(
                f"images must have {MAX_PIXELS:,} pixels together, at most: send fewer at once"
            ) from None
        except Exception as e:  # decoders raise anything on broken files
            raise ValueError(f"images[{i}] must be a PNG file in base64: {e}") from e


def serve(
    reward: Reward,
    host: str = "127.0.0.1",
    port: int = 0,
    request_timeout: float = 60.0,
    max_connections: int = 32,
) -> RewardServer:
    """A server of `reward` for :class:`RemoteReward`, bound to its port; call `serve_forever()`.

    Arguments are those of :class:`RewardServer`. For instance::

        serve(rewards.load("hpsv2", device="cuda"), port=8000).serve_forever()

    is there for ``rewards.load("remote", url="http://127.0.0.1:8000")``.
    """

    return RewardServer(reward, host, port, request_timeout, max_connections)


_PNG = ("PNG",)
_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\n\r\ntoo many connections\n"


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer
    timeout = 60.0  # for a client that stops in the middle of its request

    def handle(self) -> None:
        with Deadline(self.server.request_timeout) as self.deadline:
            self.deadline.watch(self.connection)
            super().handle()

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != CONTENT_TYPE:  # which a web page cannot send unasked
            return self._answer(415, f"send content of type {CONTENT_TYPE}")
        if not (length.isascii() and length.isdigit()):
            return self._answer(411, "state the Content-Length")
        if len(length) > 12 or int(length) > _MAX_REQUEST:
            return self._answer(413, f"send at most {_MAX_REQUEST} bytes at once")
        with self.server.bodies.take(int(length)) as granted:
            if not granted:
                return self._answer(503, "too many requests at once")
            self._score(int(length))

    def _score(self, length: int) -> None:
        body = self.rfile.read(length)
        if len(body) < length:
            return self._answer(400, f"the request ends after {len(body)} of {length} bytes")
        self.deadline.cancel()  # the reward may take its time
        try:
            rewards = self.server.score(body)
        except ValueError as error:
            return self._answer(400, str(error))
        except Exception as error:  # whatever the reward does, the server goes on
            return self._answer(500, f"{type(error).__name__}: {error}")
        self._send(200, CONTENT_TYPE, json.dumps({"rewards": rewards}, allow_nan=False).encode())

    def _answer(self, status: int, text: str) -> None:
        self._send(status, "text/plain; charset=utf-8", text.encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""
