"""Time, number and size of connections are bounded at both ends."""

import base64
import io
import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest
import torch
from PIL import Image
from test_remote import Brightness, images, running, scripted

from rewards.remote import RemoteReward, serve
from rewards.remote.limits import Budget, Deadline


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@contextmanager
def dripping(start):
    """A server that sends the start of an answer, and then a byte now and then, for ever."""

    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def drip():
        connection, _ = listener.accept()
        connection.recv(1 << 20)
        connection.sendall(start)
        with connection:
            while not done.wait(0.02):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    done.set()
    thread.join(5)
    listener.close()


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: ",
        b"",
    ],
)
def test_a_server_that_drips_is_given_up(start):
    before = threading.active_count()
    with dripping(start) as url:
        began = time.monotonic()
        client = RemoteReward(url, timeout=5.0, total_timeout=0.4)
        with pytest.raises(
            TimeoutError, match=r"not finish its answer within 0\.4 seconds; .*total_"
        ):
            client(images(1), ["a"])
        assert time.monotonic() - began < 4
    assert threading.active_count() <= before
    assert RemoteReward(url, timeout=2.0).total_timeout == 10.0


def test_an_encrypted_connection_is_given_up_as_well():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/"
        client = RemoteReward(url, timeout=5.0, total_timeout=0.2)
        with pytest.raises(TimeoutError, match=r"not finish its answer within 0\.2 seconds"):
            client(images(1), ["a"])


def test_what_is_shown_of_an_answer_is_short():
    with (
        scripted((400, {"Content-Type": "text/plain"}, b"\n" + b"x" * 3000)) as (url, _),
        pytest.raises(ConnectionError, match=r"failed: status 400, x{200}$"),
    ):
        RemoteReward(url)(images(1), ["a"])


def reach(server):
    return socket.create_connection(("127.0.0.1", server.server_port))


def test_a_silent_client_keeps_nobody_waiting():
    with running(serve(Brightness())) as server, reach(server):
        values = RemoteReward(f"http://127.0.0.1:{server.server_port}/")(images(1), ["a"])
        assert values.shape == (1,)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST / HTTP/1.1\r\nX: ",
        b"POST / HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
    ],
)
def test_a_client_that_drips_is_given_up(sent):
    with running(serve(Brightness(), request_timeout=0.3)) as server, reach(server) as client:
        client.sendall(sent)
        client.settimeout(5)
        answer = client.recv(100)
        assert answer == b"" or b" 400 " in answer


@pytest.mark.parametrize("length", [(1 << 28) + 1, 10**13])
def test_the_length_of_a_request_is_bounded(length):
    with running(serve(Brightness(), request_timeout=5.0)) as server, reach(server) as client:
        head = f"POST / HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {length}"
        client.sendall(f"{head}\r\n\r\n".encode())
        client.settimeout(5)
        assert client.recv(100).startswith(b"HTTP/1.0 413")


def test_connections_are_counted():
    with running(serve(Brightness(), max_connections=2, request_timeout=5.0)) as server:
        with reach(server), reach(server), reach(server) as third:
            third.settimeout(5)
            assert third.recv(100).startswith(b"HTTP/1.0 503")
        url = f"http://127.0.0.1:{server.server_port}/"
        assert RemoteReward(url, retries=4)(images(1), ["a"]).shape == (1,)


def test_the_pixels_of_a_request_are_bounded(monkeypatch):
    monkeypatch.setattr("rewards.remote.server.MAX_PIXELS", 100)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    picture = base64.b64encode(file.getvalue()).decode()
    with running(serve(Brightness())) as server:
        request = lambda n: json.dumps(
            {"version": 1, "images": [picture] * n, "prompts": ["a"] * n}
        )
        assert server.score(request(1).encode()) == pytest.approx([1.0])
        with pytest.raises(ValueError, match="images must have 100 pixels together, at most"):
            server.score(request(2).encode())


def test_images_and_texts_of_a_request_are_bounded():
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    picture = base64.b64encode(file.getvalue()).decode()
    with running(serve(Brightness())) as server:
        ask = lambda n, prompt: server.score(
            json.dumps({"version": 1, "images": [picture] * n, "prompts": [prompt] * n}).encode()
        )
        assert len(ask(256, "a" * 4096)) == 256
        with pytest.raises(ValueError, match="images must be 256 at most, got 257: send fewer"):
            ask(257, "a")
        with pytest.raises(
            ValueError, match=r"prompts must have 1,048,576 .* at most, got 1,048,8"
        ):
            ask(256, "a" * 4097)


def test_a_server_builds_no_graph():
    graphs = []

    class Watched(Brightness):
        depends_on = ()

        def forward(self, pixels, prompts):
            graphs.append(torch.is_grad_enabled())
            return super().forward(pixels, prompts)

    with running(serve(Watched())) as server:
        RemoteReward(f"http://127.0.0.1:{server.server_port}/")(images(1), ["a"])
    assert graphs == [False]


def test_rewards_are_computed_one_request_after_the_other():
    class Counting(Brightness):
        depends_on = ()
        inside = most = 0

        def forward(self, pixels, prompts):
            Counting.inside += 1
            Counting.most = max(Counting.most, Counting.inside)
            time.sleep(0.02)
            Counting.inside -= 1
            return super().forward(pixels, prompts)

    with running(serve(Counting())) as server:
        client = RemoteReward(f"http://127.0.0.1:{server.server_port}/")
        ask = lambda: client(images(1), ["a"])
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert Counting.most == 1


def test_a_budget_gives_back_what_it_lent():
    budget = Budget(10)
    with budget.take(7) as first, budget.take(4) as second:
        assert (first, second) == (True, False)
        with budget.take(3) as rest:
            assert rest
    with budget.take(10) as whole:
        assert whole


def test_a_deadline_keeps_no_process_alive():
    before = set(threading.enumerate())
    with Deadline(60.0):
        (timer,) = set(threading.enumerate()) - before
        assert timer.daemon


def test_a_deadline_ends_what_it_is_told_of_late():
    one, other = socket.socketpair()
    with one, other, Deadline(0.01) as deadline:
        while not deadline.passed:
            time.sleep(0.01)
        deadline.watch(one)
        assert one.recv(1) == b""
    three, four = socket.socketpair()
    with three, four, Deadline(0.01) as deadline:
        deadline.watch(three)
        while not deadline.passed:
            time.sleep(0.01)
        later, last = socket.socketpair()
        with later, last:
            last.settimeout(10)
            deadline.watch(later)
            assert last.recv(1) == b"", "not the first one again"
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("length", [str(1 << 28), "000000000002"])
def test_the_longest_request_is_read(length):
    head = f"POST / HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {length}"
    with running(serve(Brightness(), request_timeout=0.3)) as server, reach(server) as client:
        client.sendall(head.encode() + b"\r\n\r\n{}")
        client.settimeout(5)
        assert b" 413 " not in client.recv(100)
