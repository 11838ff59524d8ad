"""The endpoints: the numbers of predict, and what is refused, each limit by its sentence."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import zlib
from urllib.parse import urlsplit

import pytest
from served_cases import FORM, HERE, HOSTS, NAMES, app_of, ask, client_of, picture, running, served_model

from rmadapter.cli import main
from rmadapter.serving.request_limits import RequestLimits
from rmadapter.serving.web_app import make_app

LINES = "\n".join(NAMES)


@pytest.fixture(scope="module")
def served(base_run):
    return served_model(base_run / "adapter")


@pytest.fixture(scope="module")
def client(served):
    with client_of(app_of(served)) as client:
        yield client


def predicted(capsys, *words):
    capsys.readouterr()
    assert main(["predict", "--json", "--precision", "fp32", "--classes", ",".join(NAMES), *map(str, words)]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    return [one["probability"] for one in sorted(record["predictions"], key=lambda one: one["index"])]


def test_the_numbers_are_those_of_predict(client, base_run, clip_folder, served, tmp_path, capsys):
    path = tmp_path / "a.png"
    path.write_bytes(picture(5))
    adapter = ["--adapter", base_run / "adapter", "--trust-base"]
    for strength in ("1", "0.5"):
        found = ask(client, path.read_bytes(), classes=LINES, strength=strength).json()
        assert found["classes"] == list(NAMES)
        assert found["strength"] == float(strength)
        assert found["adapted"] == pytest.approx(predicted(capsys, *adapter, path, "--strength", strength), abs=1e-5)
        zeroshot = predicted(capsys, "--model", f"local-dir:{clip_folder}", path, "--template", served.template)
        assert found["zeroshot"] == pytest.approx(zeroshot, abs=1e-5)
        assert "reconstruction" not in found
        assert "picture" not in found


def test_errors_and_the_picture_where_they_are_asked_for(client, served):
    found = ask(client, errors="true", picture="true").json()
    assert found["classes"] == ["ant", "bee"]  # what it was trained on
    assert [layer["layer"] for layer in found["reconstruction"]] == [2, 3]
    for layer in found["reconstruction"]:
        assert [len(row) for row in layer["errors"]] == [2, 2]
        assert all(value > 0 for row in layer["errors"] for value in row)
    assert found["picture"].startswith("data:image/png;base64,")


def test_another_template_changes_both(client):
    own, other = (ask(client, classes=LINES, **more).json() for more in ({}, {"template": "a {} on a plate"}))
    assert other["template"] == "a {} on a plate"
    assert other["zeroshot"] != pytest.approx(own["zeroshot"], abs=1e-6)
    assert other["adapted"] != pytest.approx(own["adapted"], abs=1e-6)


def bomb(side):
    """A PNG of a few bytes whose header says ``side`` x ``side``."""
    content = bytearray(picture())
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("image", "fields", "status", "said"),
    [
        (b"no image", {}, 422, "image a.png cannot be read: it is no image of a format that is read"),
        (picture()[:-60], {}, 422, "image a.png cannot be read: "),
        (bomb(9000), {}, 422, "it has 9000 x 9000 pixels; valid: up to 2,000 of them"),
        (bomb(60_000), {}, 422, "it has more pixels; valid: up to 2,000 of them"),
        (picture(size=(50, 41)), {}, 422, "it has 41 x 50 pixels; valid: up to 2,000 of them"),
        (picture(size=(500, 500)), {}, 413, "the request has more than 0.02 MB; valid: a smaller image"),
        (None, {"classes": "ant"}, 422, "classes has 1 names; valid: 2 to 4, one a line"),
        (None, {"classes": "a\nb\nc\nd\ne"}, 422, "classes has 5 names; valid: 2 to 4, one a line"),
        (None, {"classes": "ant\n" + "b" * 31}, 422, f"classes has '{'b' * 20}'... of 31 characters; valid: 30"),
        (None, {"classes": "ant\n" + "b" * 5000}, 400, "the form cannot be read: "),
        (None, {"template": "a photo"}, 422, "template is 'a photo'; valid: a text with one {}"),
        (None, {"template": "a {} " + "b" * 30}, 422, "template has 'a {} bbbbbbbbbbbbbbb'... of 35 characters"),
        (None, {"strength": "-1"}, 422, "strength is -1.0; valid: a number >= 0"),
        (None, {"strength": "nan"}, 422, "strength is nan; valid: a number >= 0"),
        (None, {"strength": "1001"}, 422, "strength is 1001.0; valid: a number >= 0 and <= 1000"),
        (None, {"strength": "much"}, 422, "strength is 'much'; valid: a number >= 0"),
        (None, {"errors": "yes"}, 422, "errors is 'yes'; valid: 'true'"),
        (None, {"strengh": "1"}, 422, "field is 'strengh'; valid: 'image', 'classes'"),
        (None, {"strength": ["1", "2"]}, 422, "strength is there twice; valid: once"),
    ],
)
def test_what_is_refused(served, image, fields, status, said):
    with client_of(app_of(served, megabytes=0.02, pixels=2000, classes=4, name_length=30)) as client:
        response = ask(client, image, **fields)
        assert response.status_code == status, response.text
        assert said in response.json()["error"]
        assert ask(client).status_code == 200


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        ({"json": {"image": "a"}}, 415, "content-type is 'application/json'; valid: multipart/form-data"),
        ({"data": {"classes": "a"}}, 415, "content-type is 'application/x-www-form-urlencoded'; valid"),
        ({"files": {"classes": (None, "a\nb")}}, 422, "image is missing; valid: one file"),
        ({"files": {"image": (None, "a")}}, 422, "image is a text; valid: a file"),
        ({"files": {"strength": ("a.png", b"1")}}, 422, "strength is a file; valid: a text"),
        (
            {"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data"}},
            400,
            "the form cannot be read: Missing boundary",
        ),
        ({"files": [("image", ("a", b"")), ("image", ("b", b""))]}, 400, "the form cannot be read: Too many files"),
    ],
)
def test_what_is_no_such_form(client, sent, status, said):
    response = client.post("/api/predict", **sent)
    assert (response.status_code, response.json()["error"][: len(said)]) == (status, said)


def test_other_paths_and_methods(client):
    for response, status in ((client.get("/docs"), 404), (client.get("/api/predict"), 405)):
        assert response.status_code == status
        assert set(response.json()) == {"error"}


@pytest.mark.parametrize("length", [True, False])
def test_a_body_that_is_too_large(served, length):
    """Refused by its length, or as it comes; its sender, which is still writing, gets to the answer."""
    pieces = [b"--x\r\n", *[b"a" * 100_000] * 100]
    size = {"content-length": str(sum(map(len, pieces)))} if length else {}
    with running(app_of(served, megabytes=0.02)) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        connection.request("POST", "/api/predict", iter(pieces), FORM | size, encode_chunked=not length)
        response = connection.getresponse()
        assert response.status == 413
        assert "the request has more than 0.02 MB; valid: a smaller image" in response.read().decode()


class TestHeaders:
    def test_nothing_comes_from_elsewhere(self, client):
        for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
            response = client.get(path)
            assert response.headers["content-type"] == f"{kind}; charset=utf-8"
            assert "http:" not in response.text
            assert "https:" not in response.text
            assert response.headers["x-content-type-options"] == "nosniff"
            policy = response.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
            assert "unsafe" not in policy

    @pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "LocalHost:8000"])
    def test_its_own_names(self, client, host):
        assert client.get("/api/health", headers={"host": host}).json() == {"status": "ok", "requests": 0}

    @pytest.mark.parametrize("host", ["attacker.example:8000", "127.0.0.1.example", "[::2", ""])
    def test_other_names_are_refused(self, client, host):
        response = client.get("/api/health", headers={"host": host})
        assert response.status_code == 403
        assert "valid: 127.0.0.1, localhost" in response.json()["error"]
        assert "content-security-policy" in response.headers

    @pytest.mark.parametrize("origin", ["https://attacker.example", "null", "http://127.0.0.1:9000", "http://[::1"])
    def test_other_pages_are_refused(self, client, origin):
        response = client.post("/api/predict", headers={"origin": origin})
        assert response.status_code == 403
        assert "valid: the page of this server" in response.json()["error"]
        assert client.get("/api/health", headers={"origin": HERE}).status_code == 200


def test_the_strongest_is_answered(client):
    assert ask(client, strength="1000", errors="true").status_code == 200


def test_info_says_what_there_is(client, served, clip_folder):
    info = client.get("/api/info").json()
    assert info["model"] == {"name": f"local-dir:{clip_folder.name}", "pretrained": None}  # nobody needs the path
    assert info["class_names"] == ["ant", "bee"]
    assert (info["method"], info["precision"], info["device"]) == ("rmadapter", "fp32", "cpu")
    assert info["reconstruction"] == {"layers": [2, 3], "obstacle": None}
    assert info["strength_obstacle"] is None
    assert info["limits"]["bytes"] == 20_000_000
    assert info["adapter_sha256"] == served.weights_sha256


class Held:
    """Keeps the model's thread until it is let go."""

    def __init__(self, app):
        self.real, self.began, self.let_go = app.worker._answer, threading.Event(), threading.Event()
        app.worker._answer = self

    def __call__(self, several):
        self.began.set()
        assert self.let_go.wait(60)
        return self.real(several)


def test_one_request_too_many_is_told_to_come_again(served):
    app = app_of(served, queue=1)
    held = Held(app)
    with client_of(app) as client:
        found = []
        first = threading.Thread(target=lambda: found.append(ask(client)))
        first.start()
        assert held.began.wait(60)
        second = ask(client)
        assert (second.status_code, second.headers["retry-after"]) == (503, "1")
        assert second.json()["error"] == "1 requests are being answered; valid: a little later"
        held.let_go.set()
        first.join(60)
        assert found[0].status_code == 200
        assert ask(client).status_code == 200


def test_a_request_ends_in_time(served):
    app = app_of(served, seconds=0.3)
    held = Held(app)
    with client_of(app) as client:
        response = ask(client)
        assert response.status_code == 504
        assert response.json()["error"] == "the model did not answer within 0.3 seconds"
        assert client.get("/api/health").json()["requests"] == 0
        held.let_go.set()


def test_a_body_that_does_not_come(served):
    """By ASGI itself: a client of tests sends all that it has."""
    application = make_app(app_of(served, seconds=0.2), HOSTS)
    sent = []

    async def receive():
        if not sent:
            sent.append(None)
            return {"type": "http.request", "body": b"--x\r\n", "more_body": True}
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=x")]
    scope = {"type": "http", "method": "POST", "path": "/api/predict", "headers": headers, "query_string": b""}
    asyncio.run(application(scope, receive, send))
    assert sent[1]["status"] == 408
    assert b"the request did not arrive within 0.2 seconds" in sent[2]["body"]


def test_what_fails_is_told_without_its_inside(served, caplog):
    app = app_of(served)

    def fail(several):
        raise RuntimeError("secret")

    app.worker._answer = fail
    with client_of(app) as client:
        response = ask(client)
        assert response.status_code == 500
        assert response.json() == {"error": "the server failed; its log says how"}


def test_concurrent_requests_are_gathered(served):
    app = app_of(served)
    held, sizes = Held(app), []
    real = held.real
    held.real = lambda several: (sizes.append(len(several)), real(several))[1]
    with client_of(app) as client:
        alone = [ask_later(client, seed) for seed in range(5)]
        alone[0][0].start()
        assert held.began.wait(60)
        for thread, _ in alone[1:]:
            thread.start()
        while app.worker._waiting.qsize() < 4:
            pass
        held.let_go.set()
        for thread, _ in alone:
            thread.join(60)
        assert sizes == [1, 4]
        for seed, (_, found) in enumerate(alone):
            assert found[0]["adapted"] == pytest.approx(ask(client, picture(seed)).json()["adapted"], abs=1e-6)


def ask_later(client, seed):
    found = []
    return threading.Thread(target=lambda: found.append(ask(client, picture(seed)).json())), found


@pytest.mark.parametrize(
    "changes",
    [{"megabytes": 0}, {"pixels": 10**9}, {"classes": 1}, {"name_length": 0}, {"queue": 0}, {"seconds": 0}],
)
def test_limits_that_are_none(changes):
    with pytest.raises(ValueError, match="valid: a number"):
        RequestLimits(**changes)
