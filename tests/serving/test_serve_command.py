"""``rmadapter serve``: how it begins and ends, and what it says before."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import threading
import time
import urllib.request

import pytest
from served_cases import FORM, form_of, picture

from rmadapter.cli import main
from rmadapter.errors import InputError
from rmadapter.serving.serve_command import ServeConfig, listening


@pytest.mark.parametrize(("signals", "status"), [([signal.SIGTERM], 200), ([signal.SIGINT] * 2, 503)])
def test_how_it_ends(base_run, capsys, signals, status):
    """What has been begun is answered, but for who is told twice; another thread sends half of a request before."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    body, statuses = form_of(picture()), []

    def ask():
        connection = connected(port)
        connection.putrequest("POST", "/api/predict")
        for name, value in {**FORM, "content-length": str(len(body))}.items():
            connection.putheader(name, value)
        connection.endheaders(body[:100])
        while json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=60))["requests"] == 0:
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
