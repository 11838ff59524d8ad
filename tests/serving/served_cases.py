"""What the tests of serving share: a model behind the endpoints, and forms to ask it with."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from rmadapter.serving.request_limits import RequestLimits
from rmadapter.serving.serve_command import ServeConfig, listening
from rmadapter.serving.served_model import ServedModel, load_served
from rmadapter.serving.web_app import ServedApp, make_app

HERE = "http://127.0.0.1:8000"
HOSTS = frozenset({"127.0.0.1", "localhost"})
NAMES = ("ant", "bee", "cat", "dog")


def served_model(adapter: Path | None, **changes) -> ServedModel:
    """What is in the folder ``adapter``, in fp32."""
    options = {"adapter": None if adapter is None else str(adapter), "precision": "fp32", "trust_base": True}
    return load_served(ServeConfig(**{**options, **changes}), None, None)


def app_of(served: ServedModel, **limits) -> ServedApp:
    """The endpoints over a model, with other limits."""
    return ServedApp(served, RequestLimits(**limits), batch_size=8, workers=2)


@contextlib.contextmanager
def client_of(app: ServedApp) -> Iterator[TestClient]:
    """A client that asks in this process."""
    with contextlib.closing(app):
        yield TestClient(make_app(app, HOSTS), base_url=HERE, raise_server_exceptions=False)


@contextlib.contextmanager
def running(app: ServedApp) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    with contextlib.closing(app), listening("127.0.0.1", 0) as (listener, url, hosts):
        server = uvicorn.Server(uvicorn.Config(make_app(app, hosts), log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join()


def picture(seed: int = 0, size: tuple[int, int] = (36, 40)) -> bytes:
    """A PNG of noise, of ``size`` rows and columns."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def ask(client: TestClient, image: bytes | None = None, **fields):
    """The response to a form."""
    files = {"image": ("a.png", picture() if image is None else image)}
    return client.post("/api/predict", files=files, data=fields)


FORM = {"content-type": "multipart/form-data; boundary=x"}


def form_of(image: bytes, **fields) -> bytes:
    """The body that ``FORM`` announces, for clients that make none."""
    begin = "--x\r\ncontent-disposition: form-data; name="
    parts = [f'{begin}"{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()]
    return "".join([*parts, f'{begin}"image"; filename="a"\r\n\r\n']).encode() + image + b"\r\n--x--\r\n"
