"""``rmadapter serve``: how it begins and ends, and what it says before."""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import json
import os
import re
import select
import signal
import socket
import threading
import time
import urllib.request

import pytest
from served_cases import FORM, form_of, picture

from rmadapter.cli import main
from rmadapter.errors import InputError
from rmadapter.serving.serve_command import HEADER_BYTES, ServeConfig, listening


@pytest.mark.parametrize(("signals", "status"), [([signal.SIGTERM], 200), ([signal.SIGINT] * 2, 503)])
def test_how_it_ends(base_run, capsys, signals, status):
    """What has been begun is answered, but for who is told twice; another thread sends half of a request before."""
    port, body, statuses = free_port(), form_of(picture()), []

    def ask():
        connection = connected(port)
        connection.putrequest("POST", "/api/predict")
        for name, value in {**FORM, "content-length": str(len(body))}.items():
            connection.putheader(name, value)
        connection.endheaders(body[:100])
        while requests_at(port) == 0:
            pass
        for number in signals:
            os.kill(os.getpid(), number)
            while not refused(port):
                pass
        if status == 200:
            connection.send(body[100:])
        statuses.append(connection.getresponse().status)

    asking = threading.Thread(target=ask)
    asking.start()
    words = ["--adapter", str(base_run / "adapter"), "--trust-base", "--port", str(port), "--timeout", "60"]
    assert main(["serve", *words]) == 0
    asking.join(60)
    assert statuses == [status]
    out, err = capsys.readouterr()
    assert re.fullmatch(
        rf"local-dir:.*, rmadapter, fp32\nserving at http://127\.0\.0\.1:{port}/ \(Ctrl-C ends it\)\nended\n", out
    )
    assert err == ""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_does_not_wait_for_connections_without_a_request(base_run, capsys, number):
    """However long a request may take: one that is silent, one with half of its headers, one that was answered."""
    port, ends = free_port(), []

    def ask():
        answered = connected(port)
        answered.request("GET", "/api/health")
        assert answered.getresponse().read()
        silent, half = (socket.create_connection(("127.0.0.1", port), 60) for _ in range(2))
        half.sendall(b"POST /api/predict HTTP/1.1\r\nhost: local")
        os.kill(os.getpid(), number)
        for one in (answered.sock, silent, half):
            ends.append(one.recv(1))
            one.close()

    asking = threading.Thread(target=ask)
    asking.start()
    words = ["--adapter", str(base_run / "adapter"), "--trust-base", "--port", str(port), "--timeout", "3600"]
    assert main(["serve", *words]) == 0
    asking.join(60)
    assert ends == [b"", b"", b""]
    assert capsys.readouterr().out.endswith("\nended\n")


def test_a_request_has_its_time_when_that_is_less_than_a_second(base_run, capsys):
    """And then its answer, though the server was told to end before."""
    port, statuses = free_port(), []

    def ask():
        connection = connected(port)
        connection.putrequest("POST", "/api/predict")
        for name, value in {**FORM, "content-length": "1000"}.items():
            connection.putheader(name, value)
        connection.endheaders(b"--x")
        while requests_at(port) == 0 and not select.select([connection.sock], [], [], 0)[0]:
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        statuses.append(connection.getresponse().status)

    asking = threading.Thread(target=ask)
    asking.start()
    words = ["--adapter", str(base_run / "adapter"), "--trust-base", "--port", str(port), "--timeout", "0.45"]
    assert main(["serve", *words]) == 0
    asking.join(60)
    assert statuses == [408]


def test_headers_have_a_bound(base_run, capsys):
    """Where it is passed before they end; what has come whole is read."""
    port, found = free_port(), []

    def ask():
        for size, rest in ((HEADER_BYTES // 2, b"\r\n\r\n"), (HEADER_BYTES, b"")):
            connected(port)
            with socket.create_connection(("127.0.0.1", port), 60) as connection:
                connection.sendall(b"GET /api/health HTTP/1.1\r\nhost: localhost\r\nx: " + size * b"a" + rest)
                found.append(connection.recv(12))
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    assert main(["serve", "--adapter", str(base_run / "adapter"), "--trust-base", "--port", str(port)]) == 0
    asking.join(60)
    assert found == [b"HTTP/1.1 200", b"HTTP/1.1 400"]


def free_port():
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def requests_at(port):
    """How many requests are being answered."""
    return json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=60))["requests"]


def connected(port):
    """A connection, once somebody listens."""
    while refused(port):
        time.sleep(0.05)
    return http.client.HTTPConnection("127.0.0.1", port, timeout=60)


def refused(port):
    """Whether nobody listens."""
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) != 0


def test_a_port_that_is_taken(base_run, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "--adapter", str(base_run / "adapter"), "--trust-base", "--port", port]) == 2
    said = capsys.readouterr().err
    assert f"port is {port} at 127.0.0.1: Address already in use; valid: another --port, or 0 for a free one" in said


def test_a_missing_package_is_named(base_run, monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "uvicorn" else real(name, *a))
    assert main(["serve", "--adapter", str(base_run / "adapter")]) == 2
    assert "serve needs uvicorn, which is missing; pip install 'rmadapter[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_has_its_names_alone(host):
    if host == "::1" and not socket.has_ipv6:
        pytest.skip("no IPv6")
    with listening(host, 0) as (listener, url, hosts):
        port = listener.getsockname()[1]
        assert url in (f"http://127.0.0.1:{port}/", f"http://[::1]:{port}/")
        assert {"localhost", "127.0.0.1", "::1"} <= hosts


def test_elsewhere_it_warns(base_run, monkeypatch, capsys):
    import uvicorn

    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: self.config.load())
    words = ["--adapter", str(base_run / "adapter"), "--trust-base", "--host", "0.0.0.0", "--port", "0"]
    assert main(["serve", *words]) == 0
    said = capsys.readouterr().err
    assert "host is '0.0.0.0': everyone who can reach this machine there may use the model; there is no pass" in said


def test_no_such_host():
    message = r"host is 'no such\.host': .*; valid: 127\.0\.0\.1, or an address"
    with pytest.raises(InputError, match=message), listening("no such.host", 0):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter": None}, "adapter and model are both None"),
        ({"port": 70000}, "port is 70000; valid"),
        ({"queue": 0}, "queue is 0; valid"),
        ({"template": "x"}, "template is 'x'; valid"),
        ({"workers": 0}, "workers is 0; valid"),
        ({"classes": "a,b", "classes_file": "x"}, "classes and classes_file are both given"),
    ],
)
def test_options(options, message):
    with pytest.raises(InputError, match=message):
        ServeConfig(**{"adapter": "a", **options})


@pytest.mark.parametrize("twice", [False, True])
def test_who_is_told_twice_cancels_what_it_would_wait_for(twice, monkeypatch):
    """On every Python: from 3.12 on uvicorn itself waits, though it was told twice."""
    uvicorn = pytest.importorskip("uvicorn")
    from rmadapter.serving.server import Server

    async def ends():
        server = Server(uvicorn.Config(lambda *_: None))
        task = asyncio.ensure_future(asyncio.sleep(0.2 if not twice else 600))
        server.server_state.tasks.add(task)

        async def waits(self, sockets):
            await asyncio.wait([task])

        monkeypatch.setattr(uvicorn.Server, "shutdown", waits)
        server.force_exit = twice
        await asyncio.wait_for(server.shutdown(), 20)
        return task.cancelled()

    assert asyncio.run(ends()) == twice
