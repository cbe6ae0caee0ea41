"""The remote reward against servers that behave, and against all kinds that do not."""

import base64
import io
import json
import math
import textwrap
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

import rewards
from rewards.base import Reward, RewardSpec
from rewards.remote import RemoteReward, serve
from rwguidance.testing import check_reward

TOKEN = "correct-horse-battery-staple"


class Brightness(Reward):
    """Mean of the 8-bit image, plus the length of the prompt."""

    depends_on = ()

    spec = RewardSpec(
        name="brightness",
        title="Brightness",
        differentiable=True,
        needs_prompt=True,
        code_license="MIT",
        weights_license="none",
        formula="mean + len(prompt)",
        typical_range=(0.0, 1.0),
        citation="none",
    )

    def forward(self, images, prompts):
        means = images.flatten(1).mean(1)
        return means + torch.tensor([float(len(p)) for p in prompts], device=images.device)


class Plain(Brightness):
    depends_on = ()
    spec = RewardSpec(**{**vars(Brightness.spec), "name": "plain", "needs_prompt": False})

    def forward(self, images, prompts):
        assert prompts == []
        return images.flatten(1).mean(1)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@contextmanager
def running(server):
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def scripted(*replies):
    """A server that answers with these replies (status, headers, body), the last one for ever.

    Yields its address and the list of the requests that it got.
    """

    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append((self.path, dict(self.headers), body))
            reply = replies[min(len(requests), len(replies)) - 1]
            reply = reply(self) if callable(reply) else reply
            if reply is None:
                return
            status, headers, content = reply
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield f"http://127.0.0.1:{server.server_port}/score", requests


def answer(*values):
    return 200, {}, json.dumps({"rewards": list(values)}).encode()


def images(n=2, height=5, width=7, seed=0):
    levels = torch.randint(
        0, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(seed)
    )
    return levels / 255


def pil(tensor):
    return Image.fromarray((255 * tensor).round().byte().permute(1, 2, 0).numpy())


@pytest.fixture
def slept(monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


@pytest.fixture(scope="module")
def brightness():
    with running(serve(Brightness())) as server:
        yield f"http://127.0.0.1:{server.server_port}"


def test_server_and_client_are_the_reward_itself(brightness):
    prompts = ["a cat", "", '一只猫 🐱 «ü»\n"quoted"', "b", "c"]
    x = images(5)
    remote = rewards.load("remote", url=brightness, batch_size=2)
    torch.testing.assert_close(remote(x, prompts), Brightness()(x, prompts), rtol=0, atol=1e-6)


def test_contract(brightness):
    remote = RemoteReward(brightness, batch_size=3)
    check_reward(remote, images(3), ["a", "bbb", "cc"])
    assert remote(images(2).double(), ["a", "b"]).dtype == torch.float64
    assert remote(images(2).bfloat16(), ["a", "b"]).dtype == torch.float32


def test_sizes_and_pil_images_mix(brightness):
    mixed = [images(1)[0], pil(images(1, 8, 8, 1)[0]), images(1, 4, 9, 2)[0], images(1, seed=3)[0]]
    prompts = ["a", "bb", "ccc", "dddd"]
    remote = RemoteReward(brightness, batch_size=1)
    expected = Brightness()(mixed, prompts)
    torch.testing.assert_close(remote(mixed, prompts), expected, rtol=0, atol=1e-6)


def test_score_matrix(brightness):
    x, prompts = images(3), ["a", "bbbb"]
    remote = RemoteReward(brightness)
    expected = Brightness().score_matrix(x, prompts)
    torch.testing.assert_close(remote.score_matrix(x, prompts), expected, rtol=0, atol=1e-6)


def test_no_prompts_are_sent_if_none_are_needed():
    with running(serve(Plain())) as server:
        remote = RemoteReward(f"http://127.0.0.1:{server.server_port}", needs_prompt=False)
        torch.testing.assert_close(remote(images(2)), Plain()(images(2)))
    with scripted(answer(1.0, 2.0)) as (url, requests):
        assert RemoteReward(url, needs_prompt=False)(images(2), ["secret", "text"]).tolist() == [
            1,
            2,
        ]
    assert json.loads(requests[0][2])["prompts"] == []


def test_what_goes_over_the_wire():
    x = images(3)
    with scripted(answer(1, 2), answer(3.5)) as (url, requests):
        remote = RemoteReward(url, batch_size=2, token=TOKEN)
        assert requests == []
        assert remote(x, ["a", "ü", "c"]).tolist() == [1, 2, 3.5]
    path, headers, body = requests[0]
    assert path == "/score"
    assert headers["Content-Type"] == "application/json"
    assert headers["Authorization"] == f"Bearer {TOKEN}"
    sent = json.loads(body)
    assert set(sent) == {"version", "images", "prompts"}
    assert sent["version"] == 1
    assert sent["prompts"] == ["a", "ü"]
    assert json.loads(requests[1][2])["prompts"] == ["c"]
    picture = Image.open(io.BytesIO(base64.b64decode(sent["images"][1])))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (7, 5))
    assert np.array_equal(np.asarray(picture), np.asarray(pil(x[1])))


@pytest.mark.parametrize("off", [-0.49, 0.49])
def test_levels_are_rounded_to_the_nearest(off):
    levels = images(1) * 253 + 1
    with scripted(answer(1.0)) as (url, requests):
        RemoteReward(url)((levels.round() + off) / 255, ["a"])
    (sent,) = json.loads(requests[0][2])["images"]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(sent))))
    assert np.array_equal(picture, levels[0].round().byte().permute(1, 2, 0).numpy())


def test_null_and_nan_are_nan():
    with scripted((200, {}, b'{"rewards": [1, null, NaN]}')) as (url, _):
        values = RemoteReward(url)(images(3), ["a", "b", "c"])
    assert values[0] == 1
    assert values[1:].isnan().all()


def test_there_is_no_gradient(brightness):
    x = images(2).requires_grad_()
    assert not RemoteReward(brightness)(x, ["a", "b"]).requires_grad


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (answer(1.0), "one reward per image, 2, got 1"),
        (answer(1.0, 2.0, 3.0), "one reward per image, 2, got 3"),
        (answer(1.0, "2.0"), r'finite numbers or null, got "2.0" for image 1'),
        (answer(1.0, [2.0]), "finite numbers or null"),
        (answer({"value": 1}, 1.0), "finite numbers or null"),
        (answer(True, 1.0), "got true for image 0"),
        (answer(1.0, math.inf), "got Infinity for image 1"),
        (answer(10**400, 1.0), "for image 0"),
        (answer(1.0, -1e300), r"numbers in the range of torch\.float32, got -1e\+300"),
        ((200, {}, b"[1.0, 2.0]"), "must answer with .*rewards"),
        ((200, {}, b'{"rewards": 1.0}'), "must answer with .*rewards"),
        ((200, {}, b'{"scores": [1.0, 2.0]}'), "must answer with .*rewards"),
        ((200, {}, b"rewards: 1, 2"), "well-formed JSON, got rewards: 1, 2"),
        ((200, {}, b""), "well-formed JSON, got nothing"),
        ((200, {}, b"[" * 100_000), "well-formed JSON"),
        ((200, {}, b"\xff\xfe"), "well-formed JSON"),
        ((200, {"Content-Type": "text/html"}, b"<html>\nlogin"), "text/html: <html>"),
        ((200, {"Content-Type": "application/x-pickle"}, b"\x80\x04"), "application/x-pickle"),
        ((200, {}, b" " * (1 << 20) + b'{"rewards": [1, 2]}'), "1048576 bytes, got a longer one"),
    ],
)
def test_wrong_answers_are_refused(reply, message, slept):
    with scripted(reply) as (url, requests), pytest.raises(ValueError, match=message) as caught:
        RemoteReward(url)(images(2), ["a", "b"])
    assert url in str(caught.value)
    assert len(requests) == 1  # asking again would not help


def test_the_longest_answer_is_read():
    with scripted((200, {}, b'{"rewards": [1, 2]}'.rjust(1 << 20))) as (url, _):
        assert RemoteReward(url)(images(2), ["a", "b"]).tolist() == [1, 2]


@pytest.mark.parametrize("status", [500, 503, 599, 429])
def test_retries_after_temporary_errors(status, slept):
    with scripted((status, {}, b"busy"), (status, {}, b"busy"), answer(1.0)) as (url, requests):
        assert RemoteReward(url)(images(1), ["a"]).tolist() == [1]
    assert len(requests) == 3
    assert slept == [0.5, 1.0]


def test_retries_after_a_lost_connection(slept):
    def hang_up(handler):
        handler.close_connection = True
        handler.connection.close()

    with scripted(hang_up, answer(1.0)) as (url, requests):
        assert RemoteReward(url)(images(1), ["a"]).tolist() == [1]
    assert len(requests) == 2


def test_gives_up_after_the_retries(slept):
    with (
        scripted((503, {"Content-Type": "text/plain"}, b"\n the queue is full\nsecond")) as (
            url,
            requests,
        ),
        pytest.raises(ConnectionError, match=r"failed 2 times: status 503, the queue is full$"),
    ):
        RemoteReward(url, retries=1)(images(1), ["a"])
    assert len(requests) == 2


def test_waits_as_long_as_the_server_asks(slept):
    busy = (429, {"Retry-After": "60"}, b"busy")
    date = (503, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, b"busy")
    with scripted(busy, date, answer(1.0)) as (url, _):
        RemoteReward(url)(images(1), ["a"])
    assert slept == [60.0, 1.0]


def test_does_not_wait_for_longer_than_a_minute(slept):
    with (
        scripted((429, {"Retry-After": "61"}, b"quota")) as (url, requests),
        pytest.raises(ConnectionError, match="failed: status 429, quota"),
    ):
        RemoteReward(url)(images(1), ["a"])
    assert len(requests) == 1
    assert slept == []


@pytest.mark.parametrize("status", [400, 401, 404, 413, 600])
def test_does_not_retry_other_errors(status, slept):
    with (
        scripted((status, {"Content-Type": "text/plain"}, b"no such thing\nTraceback")) as (
            url,
            got,
        ),
        pytest.raises(ConnectionError, match=f"status {status}, no such thing$") as caught,
    ):
        RemoteReward(url)(images(1), ["a"])
    assert url in str(caught.value)
    assert len(got) == 1


def test_redirects_are_not_followed(slept):
    with scripted(answer(1.0)) as (other, there):
        for status in (300, 301, 302, 307, 308, 399):
            with (
                scripted((status, {"Location": other}, b"")) as (url, _),
                pytest.raises(ConnectionError, match="redirect"),
            ):
                RemoteReward(url, token=TOKEN)(images(1), ["a"])
    assert there == []


def test_slow_server_times_out_and_is_not_asked_again():
    released = threading.Event()

    def wait(handler):
        released.wait(10)

    with scripted(wait) as (url, requests):
        start = time.monotonic()
        with pytest.raises(TimeoutError, match=r"did not answer within 0.2 seconds.*timeout="):
            RemoteReward(url, timeout=0.2)(images(1), ["a"])
        assert time.monotonic() - start < 5
        released.set()
    assert len(requests) == 1


def test_nobody_listens(slept):
    with scripted(answer(1.0)) as (url, _):
        pass
    with pytest.raises(ConnectionError, match=r"failed 3 times: .*refused") as caught:
        RemoteReward(url)(images(1), ["a"])
    assert url in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/x",
        "data:application/json,{}",
        "127.0.0.1:8000",
        "http://",
        "",
        "http://host:port",
        "http://ho st/",
        "http://host/\r\nX: y",
    ],
)
def test_other_addresses_are_refused(url):
    with pytest.raises(ValueError, match="url must be"):
        RemoteReward(url)


def test_passwords_in_the_address_are_refused_and_not_repeated():
    with pytest.raises(ValueError, match="must not hold a user or password") as caught:
        RemoteReward(f"http://me:{TOKEN}@host/")
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0.0},
        {"timeout": math.inf},
        {"timeout": math.nan},
        {"retries": -1},
        {"batch_size": 0},
        {"token": ""},
        {"token": "two\r\nlines"},
        {"token": "ü"},
        {"token": "a", "token_variable": "B"},
        {"token_variable": "RWGUIDANCE_NO_SUCH_VARIABLE"},
        {"typical_range": (1.0, 0.0)},
    ],
)
def test_bad_arguments(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        RemoteReward("http://127.0.0.1:1", **options)


def test_secrets_stay_secret(slept, monkeypatch):
    def echo(handler):
        return 500, {"Content-Type": "text/plain"}, handler.headers["Authorization"].encode()

    monkeypatch.setenv("RWGUIDANCE_TEST_TOKEN", TOKEN)
    with scripted(echo) as (url, requests):
        remote = RemoteReward(f"{url}?key={TOKEN}", token_variable="RWGUIDANCE_TEST_TOKEN")
        with pytest.raises(ConnectionError, match=r"Bearer \*\*\*") as caught:
            remote(images(1), ["a"])
    assert requests[0][0] == f"/score?key={TOKEN}"
    assert requests[0][1]["Authorization"] == f"Bearer {TOKEN}"
    for text in (str(caught.value), repr(caught.value), repr(remote), repr(remote.spec)):
        assert TOKEN not in text
    assert url in repr(remote)
    with pytest.raises(ValueError, match="token must be") as caught:
        RemoteReward(url, token=f"{TOKEN}\n")
    assert TOKEN not in str(caught.value)


def test_token_is_not_in_an_answer_that_is_refused():
    with (
        scripted(lambda h: (200, {}, h.headers["Authorization"].encode())) as (url, _),
        pytest.raises(ValueError, match="well-formed") as caught,
    ):
        RemoteReward(url, token=TOKEN)(images(1), ["a"])
    assert TOKEN not in str(caught.value)


def test_spec_is_of_the_instance():
    remote = RemoteReward("http://host:1/x", needs_prompt=False, typical_range=(-3.0, 4.0))
    assert remote.spec.citation == "http://host:1/x"
    assert remote.spec.typical_range == (-3.0, 4.0)
    assert not remote.spec.needs_prompt
    assert RemoteReward.spec.needs_prompt
    assert RemoteReward.spec.citation == "none"
    assert RemoteReward.spec.weights_license == "unknown"
    assert RemoteReward.spec.commercial_use is None
    assert not RemoteReward.spec.differentiable


# The server


def post(url, body, **headers):
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, body, headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def request_body(**changes):
    body = {"version": 1, "images": [png(pil(images(1)[0]))], "prompts": ["a"], **changes}
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"not json", "Expecting value"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "version"),
        (request_body(version=2), "version"),
        (request_body(images=[]), "at least one PNG"),
        (request_body(images="x"), "at least one PNG"),
        (request_body(images=["???"]), r"images[0] must be a PNG"),
        (request_body(images=[3]), r"images[0] must be a PNG"),
        (request_body(images=[base64.b64encode(b"\x80\x04N.").decode()]), "must be a PNG"),
        (request_body(prompts=[]), "prompts must hold"),
        (request_body(prompts=["a", "b"]), "prompts must hold"),
        (request_body(prompts="a"), "prompts must hold"),
        (request_body(prompts=[1]), "prompts must be strings"),
    ],
)
def test_server_explains_bad_requests(brightness, body, message):
    status, text = post(brightness, body)
    assert status == 400
    assert message in text


def test_server_wants_json_and_a_length(brightness):
    status, _ = post(brightness, request_body(), **{"Content-Type": "text/plain"})
    assert status == 415
    status, _ = post(brightness, request_body(), **{"Content-Length": str(1 << 40)})
    assert status == 413
    assert post(brightness, request_body())[0] == 200


def test_server_survives_its_reward_and_sends_nan_as_null():
    class Moody(Plain):
        def forward(self, images, prompts):
            values = images.flatten(1).mean(1)
            if float(values[0]) > 0.9:
                raise RuntimeError("too bright")
            return torch.full_like(values, math.nan)

    white = request_body(images=[png(Image.new("RGB", (4, 4), "white"))])
    with running(serve(Moody())) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        assert post(url, white) == (500, "RuntimeError: too bright")
        assert post(url, request_body()) == (200, '{"rewards": [null]}')


def test_server_listens_on_loopback_only():
    with running(serve(Plain())) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_the_server_in_the_documentation_works():
    code = textwrap.dedent(rewards.remote.protocol.__doc__.split("is one::\n")[1])
    start = 'HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()'
    assert start in code
    assert len(code.strip().splitlines()) <= 15
    score = lambda pictures, prompts: [
        picture.size[0] + len(prompt) for picture, prompt in zip(pictures, prompts, strict=True)
    ]
    names = {"score": score}
    exec(code.replace(start, ""), names)
    with running(HTTPServer(("127.0.0.1", 0), names["Handler"])) as server:
        remote = RemoteReward(f"http://127.0.0.1:{server.server_port}")
        assert remote(images(2), ["a", "bcd"]).tolist() == [8, 10]
