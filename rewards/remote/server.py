"""A server of any reward, by the protocol of :mod:`rewards.remote.protocol`."""

import base64
import binascii
import io
import json
import math
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import torch

from rwguidance.support.checks import instance, integer

from ..base import Reward, as_strings
from ..loading import require
from .protocol import CONTENT_TYPE, VERSION

__all__ = ["RewardServer", "serve"]

_MAX_REQUEST = 1 << 28
"""Bytes of a request that the server reads."""


class RewardServer(HTTPServer):
    """Serves a reward by :mod:`rewards.remote.protocol`, one request after the other.

    Knows no tokens and no encryption: whoever reaches it can use it.

    Arguments:
        reward: The reward to serve, ready to be used.
        host: The interface to listen on; the default cannot be reached from other machines.
        port: The port, or 0 for any free one, see `server_port`.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If there is no such port.
    """

    def __init__(self, reward: Reward, host: str = "127.0.0.1", port: int = 0) -> None:
        instance("reward", reward, Reward, "a Reward")
        instance("host", host, str, "a name or an address of this machine")
        self.reward = reward
        self.image_module = require("PIL.Image", reward.spec.name)
        super().__init__((host, integer("port", port, 0, 65535)), _Handler)

    def score(self, body: bytes) -> list[float | None]:
        """The rewards that a request's body asks for.

        Raises:
            ValueError: If it is not a request of the protocol, or the reward refuses the images.
        """

        images, prompts = self._parse(body)
        with torch.no_grad():
            values = self.reward(images, prompts).tolist()
        return [value if math.isfinite(value) else None for value in values]

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
        images = [self._image(file, i) for i, file in enumerate(files)]
        if not self.reward.spec.needs_prompt:
            return images, None
        try:
            return images, as_strings(request.get("prompts") or [], len(images))
        except TypeError as error:
            raise ValueError(str(error)) from error

    def _image(self, file: object, i: int) -> Any:
        try:
            if not isinstance(file, str):
                raise TypeError(f"got {type(file).__name__}")
            raw = io.BytesIO(base64.b64decode(file, validate=True))
            image = self.image_module.open(raw, formats=["PNG"])
            image.load()
        except (TypeError, OSError, binascii.Error, self.image_module.DecompressionBombError) as e:
            raise ValueError(f"images[{i}] must be a PNG file in base64: {e}") from e
        return image


def serve(reward: Reward, host: str = "127.0.0.1", port: int = 0) -> RewardServer:
    """A server of `reward` for :class:`RemoteReward`, bound to its port; call `serve_forever()`.

    Arguments are those of :class:`RewardServer`. For instance::

        serve(rewards.load("hpsv2", device="cuda"), port=8000).serve_forever()

    is there for ``rewards.load("remote", url="http://127.0.0.1:8000")``.
    """

    return RewardServer(reward, host, port)


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer
    timeout = 60.0  # for a client that stops in the middle of its request

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != CONTENT_TYPE:  # which a web page cannot send unasked
            return self._answer(415, f"send content of type {CONTENT_TYPE}")
        if not (length.isascii() and length.isdigit()):
            return self._answer(411, "state the Content-Length")
        if int(length) > _MAX_REQUEST:
            return self._answer(413, f"send at most {_MAX_REQUEST} bytes at once")
        body = self.rfile.read(int(length))
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
