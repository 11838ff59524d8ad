"""``rmadapter serve``: a page to try a model, and its answers as JSON, on this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import socket
import warnings
from dataclasses import dataclass

from rmadapter.config import PRECISIONS, check_template
from rmadapter.config.chosen_model import check_class_choice, check_model_choice
from rmadapter.config.paths import ModelText, PathText
from rmadapter.errors import InputError, check_choice, check_range
from rmadapter.evaluation.predict import wanted_class_names
from rmadapter.runtime import usable_processors
from rmadapter.serving.request_limits import RequestLimits
from rmadapter.serving.served_model import load_served

# Module -> the distribution that it comes from, of the extra "serve".
NEEDED = {"starlette": "starlette", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
# Open connections, beside those of requests that are being answered: pages keep some open.
IDLE_CONNECTIONS = 256
# Of the first line and the headers of a request. h11 keeps to it; uvicorn's other parser has no such bound.
HEADER_BYTES = 16 * 1024


@dataclass
class ServeConfig:
    """A page where a dropped image is classified, zero-shot and adapted side by side, and the same as JSON.

    Args:
        adapter: folder of an adapter; without one the base model alone classifies
        classes: class names that the page begins with, separated by commas; default: those the adapter was trained on
        classes_file: text file with one class name a line, in place of classes; a line that begins with "# " is none
        template: prompt with {}; default: the adapter's, else 'a photo of a {}.'
        host: address to listen at; others than this machine's own let everyone in who can reach them
        port: to listen at; 0 takes a free one
        max_megabytes: of one request, image and names together
        max_pixels: of one image
        max_classes: names in one request
        max_name: characters of one name
        queue: requests at a time; one more is told to come again
        timeout: seconds for one request, from its first byte to its answer
        model: open_clip model name; default: the adapter's
        pretrained: open_clip tag, weights file, or none for random weights; default: the adapter's
        trust_base: load the folder, hub repository or weights file that the adapter alone names as its base model
        precision: auto (the adapter's), bf16, fp16 or fp32
        device: auto, cpu, cuda or cuda:N
        fused: use the fastest adapter backend there is
        backend: one adapter backend by name
        batch_size: images a batch, of requests that wait together
        workers: threads that decode images; default: one a processor
    """

    adapter: PathText | None = None
    classes: str | None = None
    classes_file: PathText | None = None
    template: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    max_megabytes: float = RequestLimits.megabytes
    max_pixels: int = RequestLimits.pixels
    max_classes: int = RequestLimits.classes
    max_name: int = RequestLimits.name_length
    queue: int = RequestLimits.queue
    timeout: float = RequestLimits.seconds
    model: ModelText | None = None
    pretrained: PathText | None = None
    trust_base: bool = False
    precision: str = "auto"
    device: str = "auto"
    fused: bool = True
    backend: str | None = None
    batch_size: int = 32
    workers: int | None = None

    def __post_init__(self) -> None:
        check_model_choice(self.adapter, self.model)
        check_class_choice(self.classes, self.classes_file)
        if self.template is not None:
            check_template(self.template)
        check_choice("precision", self.precision, PRECISIONS)
        check_range("port", self.port, 0, 65535)
        check_range("batch_size", self.batch_size, 1)
        if self.workers is not None:
            check_range("workers", self.workers, 1)
        self.limits  # noqa: B018  # checks them

    @property
    def limits(self) -> RequestLimits:
        """Of requests."""
        return RequestLimits(
            self.max_megabytes, self.max_pixels, self.max_classes, self.max_name, self.queue, self.timeout
        )


def run_serve(config: ServeConfig) -> None:
    """``rmadapter serve``: answer until Ctrl-C or SIGTERM, then what has been begun.

    Raises:
        InputError: a missing package, an address that cannot be listened at, what loading a model raises.
    """
    missing = [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(f"serve needs {', '.join(missing)}, which is missing; pip install 'rmadapter[serve]'")
    import uvicorn

    from rmadapter.serving.server import Server
    from rmadapter.serving.web_app import ServedApp, make_app

    names = wanted_class_names(config, None) if config.classes or config.classes_file else None
    with listening(config.host, config.port) as (listener, url, hosts):
        served = load_served(config, names, config.template)
        if hosts is None:
            warnings.warn(
                f"host is {config.host!r}: everyone who can reach this machine there may use the model; there is no "
                "password and no encryption",
                stacklevel=2,
            )
        workers = config.workers or usable_processors()
        app = ServedApp(served, config.limits, batch_size=config.batch_size, workers=workers)
        server = Server(
            uvicorn.Config(
                make_app(app, hosts),
                http="h11",
                h11_max_incomplete_event_size=HEADER_BYTES,
                lifespan="off",
                access_log=False,
                log_config=None,
                ws="none",
                server_header=False,
                limit_concurrency=config.queue + IDLE_CONNECTIONS,
                # Whole seconds; 0 would end requests without an answer.
                timeout_graceful_shutdown=max(1, round(config.timeout)),
            )
        )
        what = "zero-shot" if served.zeroshot is None else served.method or "adapted"
        print(f"{served.backbone.source}, {what}, {served.precision}")
        print(f"serving at {url} (Ctrl-C ends it)", flush=True)
        # uvicorn ends what has been begun, and then raises the signal again.
        with contextlib.closing(app), contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
        print("ended")


@contextlib.contextmanager
def listening(host: str, port: int):
    """Inside, a listening socket, its address as a URL, and the names that it may be called by, None for any.

    Raises:
        InputError: the name is none, the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise InputError(f"host is {host!r}: {error}; valid: 127.0.0.1, or an address of this machine") from error
    with contextlib.closing(socket.socket(family, kind, protocol)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(1024)
        except OSError as error:
            raise InputError(
                f"port is {port} at {host}: {error.strerror}; valid: another --port, or 0 for a free one"
            ) from error
        bound, number = listener.getsockname()[:2]
        local = ipaddress.ip_address(bound.partition("%")[0]).is_loopback
        hosts = frozenset({*LOOPBACK_NAMES, host.lower(), bound}) if local else None
        yield listener, f"http://{f'[{bound}]' if ':' in bound else bound}:{number}/", hosts
