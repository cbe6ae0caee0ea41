"""A reward that asks a server, by the protocol of :mod:`rewards.remote.protocol`."""

import base64
import email.message
import http.client
import io
import json
import math
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from typing import IO, Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

import torch
from torch import Tensor

from rwguidance.schedules import working_dtype
from rwguidance.support.checks import flag, instance, integer, number, optional

from ..base import Reward, RewardSpec
from ..images import to_pil
from ..loading import require
from ..registry import register
from .limits import Deadline, watched_handlers
from .protocol import CONTENT_TYPE, VERSION

__all__ = ["RemoteReward"]

_MAX_ANSWER = 1 << 20
"""Bytes of an answer: enough for tens of thousands of numbers."""

_LONGEST_WAIT = 60.0
"""Seconds to wait before another try, at most."""


@register("remote")
class RemoteReward(Reward):
    r"""A reward that asks a server, by the protocol of :mod:`rewards.remote.protocol`.

    Images are rounded to 8 bits. There is no gradient. Nothing is sent before the first call.

    Arguments:
        url: Address to POST to, with the scheme http or https. Redirects are not followed.
        needs_prompt: Whether the server looks at the prompts; if not, they are not sent.
        timeout: Seconds without a sign of life after which a request is given up.
        total_timeout: Seconds after which a request is given up in any case, of those after the
            address has been looked up; None is five times `timeout`.
        retries: Number of repetitions of a request after a lost connection or the status 429 or
            5xx, with pauses of 1/2, 1, 2, ... seconds, or what the server asks for, but at most 60.
            A request that timed out is not repeated: the server may still be busy with it.
        batch_size: Number of images per request.
        token: Secret that is sent as ``Authorization: Bearer ...``, and appears in no message. Over
            http, everybody on the way can read it.
        token_variable: Name of the environment variable that holds the token, instead.
        typical_range: Smallest and largest usual reward, for the `spec` of this instance; nobody
            but the server's owner knows it.

    Attributes:
        spec: States the given facts and the address; licenses are unknown.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If the address is not one of http or https, holds a password, a number is out of
            range, or the token is missing, given twice or cannot be sent. When called: if the reply
            is not an answer of the protocol.
        ConnectionError: When called: if the server is not reached, or answers with an error.
        TimeoutError: When called: if the server does not answer in time.
    """

    depends_on = ("url", "spec")

    spec = RewardSpec(
        name="remote",
        title="Remote reward",
        differentiable=False,
        needs_prompt=True,
        code_license="unknown",
        weights_license="unknown",
        commercial_use=None,
        formula="what the server answers",
        preprocessing="rounded to 8 bits; the rest is the server's",
        typical_range=(0.0, 1.0),
        published_scale="unknown, and so is the range: state it as typical_range=",
        citation="none",
        parity="depends on the server",
    )

    def __init__(
        self,
        url: str,
        needs_prompt: bool = True,
        timeout: float = 60.0,
        retries: int = 2,
        batch_size: int = 16,
        token: str | None = None,
        token_variable: str | None = None,
        typical_range: tuple[float, float] = (0.0, 1.0),
        total_timeout: float | None = None,
    ) -> None:
        super().__init__()
        self.url, self._shown = url, _checked_address(url)
        self.timeout = number("timeout", timeout, above=0)
        total = 5 * self.timeout if total_timeout is None else total_timeout
        self.total_timeout = number("total_timeout", total, above=0)
        self.retries = integer("retries", retries, 0)
        self.batch_size = integer("batch_size", batch_size, 1)
        self._token = _checked_token(token, token_variable)
        require("PIL", self.spec.name)
        self.spec = replace(
            type(self).spec,
            needs_prompt=flag("needs_prompt", needs_prompt),
            typical_range=typical_range,
            citation=self._shown,
        )

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        files = [_png(image) for image in to_pil(images)]
        values: list[float] = []
        for start in range(0, len(files), self.batch_size):
            part = slice(start, start + self.batch_size)
            values += self._ask(files[part], list(prompts[part]))
        rewards = torch.tensor(values, dtype=working_dtype(images.dtype), device=images.device)
        if bool(rewards.isinf().any()):
            self._reject(f"numbers in the range of {rewards.dtype}", f"{max(values, key=abs):g}")
        return rewards

    def extra_repr(self) -> str:
        return f"{self._shown}, needs_prompt={self.spec.needs_prompt}"

    def _ask(self, images: list[str], prompts: list[str]) -> list[float]:
        body = json.dumps({"version": VERSION, "images": images, "prompts": prompts}).encode()
        for attempt in range(self.retries + 1):
            reply = self._post(body)
            if reply.status == 200:
                return self._read(reply, len(images))
            pause = reply.pause if reply.pause is not None else 0.5 * 2**attempt
            if attempt == self.retries or not reply.again or pause > _LONGEST_WAIT:
                break
            time.sleep(pause)
        tries = f" {attempt + 1} times" if attempt else ""
        raise ConnectionError(f"{self._shown} failed{tries}: {self._safe(reply.text())}")

    def _post(self, body: bytes) -> "_Reply":
        """The reply to one request. A connection that fails is a reply of status 0."""

        headers = {"Content-Type": CONTENT_TYPE, "Accept": CONTENT_TYPE}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self.url, body, headers, method="POST")
        with Deadline(self.total_timeout) as deadline:
            reply = self._reply(request, deadline)
        if deadline.passed:
            raise TimeoutError(
                f"{self._shown} did not finish its answer within {self.total_timeout:g} seconds; "
                "allow more with total_timeout=, or send less at once with batch_size="
            )
        return reply

    def _reply(self, request: urllib.request.Request, deadline: Deadline) -> "_Reply":
        opener = urllib.request.build_opener(_NoRedirects, *watched_handlers(deadline))
        try:
            try:
                response = opener.open(request, timeout=self.timeout)
            except urllib.error.HTTPError as error:
                response = error  # which is an answer, too
            with response:
                return _Reply.read(response.status, response.headers, response)
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, TimeoutError) and not deadline.passed:
                raise TimeoutError(
                    f"{self._shown} did not answer within {self.timeout:g} seconds; "
                    "allow more with timeout=, or send less at once with batch_size="
                ) from None
            lost = not isinstance(reason, ssl.SSLCertVerificationError)
            return _Reply(0, "", f"{type(reason).__name__}: {reason}".encode(), lost, None)

    def _read(self, reply: "_Reply", n: int) -> list[float]:
        """The numbers in an answer; null is NaN, so that the reward's NaN names the image."""

        if len(reply.body) > _MAX_ANSWER:
            self._reject(f"one of at most {_MAX_ANSWER} bytes", "a longer one")
        if reply.kind != CONTENT_TYPE:
            self._reject(f"content of type {CONTENT_TYPE}", f"{reply.kind}: {reply.line()}")
        try:
            answer = json.loads(reply.body)
        except (ValueError, RecursionError):
            self._reject("well-formed JSON", reply.line())
        rewards = answer.get("rewards") if isinstance(answer, dict) else None
        if not isinstance(rewards, list):
            self._reject('{"rewards": [number or null, ...]}', reply.line())
        if len(rewards) != n:
            self._reject(f"one reward per image, {n}", f"{len(rewards)}")
        for i, value in enumerate(rewards):
            if not _is_reward(value):
                self._reject(
                    "finite numbers or null", f"{json.dumps(value)[:200]} for image {i} of {n}"
                )
        return [math.nan if value is None else float(value) for value in rewards]

    def _reject(self, expected: str, got: str) -> NoReturn:
        raise ValueError(f"{self._shown} must answer with {expected}, got {self._safe(got)}")

    def _safe(self, text: str) -> str:
        """The text without the token, which a server may have echoed."""

        return text if self._token is None else text.replace(self._token, "***")


def _png(image: Any) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


class _Reply(NamedTuple):
    """A reply to a request, whatever it is.

    Arguments:
        status: Status of HTTP, or 0 if there was no connection.
        kind: The content type.
        body: The body; of a body that is too long, one byte more than the limit.
        again: Whether another try may help.
        pause: Seconds that the server asks to wait before it; None if it does not ask.
    """

    status: int
    kind: str
    body: bytes
    again: bool
    pause: float | None

    @staticmethod
    def read(status: int, headers: email.message.Message, file: IO[bytes]) -> "_Reply":
        after = headers.get("Retry-After", "").strip()
        pause = float(after) if after.isascii() and after.isdigit() else None  # or a date
        body = file.read(_MAX_ANSWER + 1)
        again = status == 429 or 500 <= status <= 599
        return _Reply(status, headers.get_content_type(), body, again, pause)

    def line(self) -> str:
        """The first line of the body that is not empty, for a message."""

        text = self.body.decode("utf-8", "replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()] or ["nothing"]
        return "".join(c if c.isprintable() else "?" for c in lines[0])[:200]

    def text(self) -> str:
        if self.status == 0:
            return self.line()
        if 300 <= self.status <= 399:
            return f"status {self.status}, a redirect, which is not followed; give the address"
        return f"status {self.status}, {self.line()}"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: images and tokens go nowhere but where the user sent them."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _is_reward(value: object) -> bool:
    if value is None:
        return True
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return not math.isinf(float(value))  # NaN is null in the dialect that Python writes
    except OverflowError:
        return False


def _checked_address(url: str) -> str:
    """The address without what may be secret in it, for messages. Raises if it is not one."""

    instance("url", url, str, "an address such as 'http://host:port/score'")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("url must be an address such as http://host:port/score") from None
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("url must be ASCII text without spaces; quote other characters")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            "url must be an address with the scheme http or https, such as "
            f"http://host:port/score, got the scheme {parts.scheme!r}"
        )
    if parts.username is not None or parts.password is not None:
        raise ValueError("url must not hold a user or password; give a token as token=")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{f':{port}' if port is not None else ''}{parts.path}"


def _checked_token(token: str | None, variable: str | None) -> str | None:
    for name, value in (("token", token), ("token_variable", variable)):
        optional(instance, name, value, str, "a string or None")
    if token is not None and variable is not None:
        raise ValueError("token and token_variable must not be given both")
    if variable is not None:
        token = os.environ.get(variable)
        if not token:
            raise ValueError(f"token_variable names {variable}, which is not set")
    if token is not None and not (token and token.isascii() and token.isprintable()):
        raise ValueError("token must be printable ASCII text")
    return token
