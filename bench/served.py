"""``rmadapter serve`` as a process, and clients that ask it: images a second and how long each answer takes."""

from __future__ import annotations

import contextlib
import http.client
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import local
from urllib.parse import urlsplit

BOUNDARY = "image-of-the-benchmark"
SECONDS_TO_ANSWER = 600


@dataclass(frozen=True)
class Asking:
    """What ``clients`` at a time have met: the ``seconds`` of all, and of each answer, ascending."""

    clients: int
    seconds: float
    each: list[float]

    @property
    def rate(self) -> float:
        """Images a second."""
        return len(self.each) / self.seconds

    def milliseconds(self, percent: int) -> float:
        """The time that ``percent`` of the answers took at most."""
        cuts = statistics.quantiles(self.each, n=100, method="inclusive") if len(self.each) > 1 else self.each * 99
        return 1000 * cuts[percent - 1]


@contextlib.contextmanager
def serving(words: Sequence[str]) -> Iterator[str]:
    """The address of ``rmadapter serve`` with these options."""
    command = [sys.executable, "-m", "rmadapter", "serve", "--port", "0", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            said = ""
            while not said.startswith("serving at "):
                said = server.stdout.readline()
                if not said:
                    raise RuntimeError(f"rmadapter serve ended with status {server.wait()}")
            yield said.split()[2]
        finally:
            server.terminate()


def asking(address: str, paths: Sequence[str], clients: int) -> Asking:
    """Ask for every image of ``paths`` once, as many at a time as there are ``clients``, each over one connection."""
    bodies = [_form(Path(path)) for path in paths]
    place, own = urlsplit(address), local()

    def ask(body: bytes) -> float:
        began = time.perf_counter()
        if not hasattr(own, "connection"):
            own.connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=SECONDS_TO_ANSWER)
        own.connection.request(
            "POST", "/api/predict", body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        )
        response = own.connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(f"status {response.status}: {content[:500]!r}")
        return time.perf_counter() - began

    with ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        each = sorted(pool.map(ask, bodies))
        return Asking(clients, time.perf_counter() - began, each)


def _form(path: Path) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n\r\n'
    return head.encode() + path.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()
