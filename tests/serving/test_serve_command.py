"""``rmadapter serve`` as a process, and what it says before it begins."""

from __future__ import annotations

import importlib.util
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from served_cases import picture

from rmadapter.cli import main
from rmadapter.errors import InputError
from rmadapter.serving.serve_command import ServeConfig, listening


def test_it_answers_until_it_is_told_to_end(base_run, tmp_path):
    command = [sys.executable, "-m", "rmadapter", "serve", "--adapter", str(base_run / "adapter"), "--trust-base"]
    server = subprocess.Popen(
        [*command, "--port", "0", "--timeout", "5"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert "local-dir:" in server.stdout.readline()
        url = re.fullmatch(
            r"serving at (http://127\.0\.0\.1:\d+/) \(Ctrl-C ends it\)\n", server.stdout.readline()
        ).group(1)
        body = b'--x\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n' + picture() + b"\r\n--x--\r\n"
        request = urllib.request.Request(
            f"{url}api/predict", body, {"content-type": "multipart/form-data; boundary=x", "expect": ""}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            assert response.status == 200
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=60)
    finally:
        server.kill()
    assert (server.returncode, out, err) == (0, "ended\n", "")


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
    assert "host is '0.0.0.0': everyone who can reach this machine there may use the model; there is no password" in said


def test_no_such_host(capsys):
    with pytest.raises(InputError, match=r"host is 'no such\.host': .*; valid: 127\.0\.0\.1, or an address"):
        with listening("no such.host", 0):
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
