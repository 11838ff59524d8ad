"""The page and the JSON endpoints as an ASGI application.

GET  /              the page
POST /api/predict   a form with an image -> probabilities
GET  /api/info      the model, its classes, what it can do, the limits
GET  /api/health    whether it answers
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import time
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any, TypeVar

import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from rmadapter.data import Preprocessing, eval_transform
from rmadapter.data.reading import read_image_file
from rmadapter.errors import InputError
from rmadapter.serving.answerer import Answered, Answerer, Asked, ClassQuestion
from rmadapter.serving.batching import BatchWorker
from rmadapter.serving.origin_guard import OriginGuard
from rmadapter.serving.request_limits import RefusedRequest, RequestLimits
from rmadapter.serving.served_model import ServedModel
from rmadapter.serving.uploads import UploadedForm, read_form

Found = TypeVar("Found")

PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
SECONDS_TO_COME_AGAIN = 1


class ServedApp:
    """The endpoints, over one model.

    Args:
        served: the model.
        limits: of requests.
        batch_size: images a batch.
        workers: threads that decode images.
    """

    def __init__(self, served: ServedModel, limits: RequestLimits, *, batch_size: int, workers: int):
        self.served, self.limits = served, limits
        self._preprocessing = served.backbone.preprocessing
        self._transform = eval_transform(self._preprocessing)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self.worker: BatchWorker[Asked, Answered] = BatchWorker(Answerer(served), batch_size)
        self._active = 0
        self._info = self._described()

    async def predict(self, request: Request) -> Response:
        """``POST /api/predict``; docs/serve.md has the fields of the form and of the answer."""
        if self._active >= self.limits.queue:
            raise RefusedRequest(
                503, f"{self._active} requests are being answered; valid: a little later", SECONDS_TO_COME_AGAIN
            )
        self._active += 1
        began = time.perf_counter()
        try:
            form = await self._in_time(read_form(request, self.limits), began, 408, "the request did not arrive")
            try:
                question = self._question(form)
                decoding = asyncio.get_running_loop().run_in_executor(self._pool, self._decoded, form)
                image, picture = await self._in_time(decoding, began, 504, "the image was not decoded")
            finally:
                form.file.close()
            asked = asyncio.wrap_future(self.worker.submit(Asked(image, question, form.errors)))
            answered = await self._in_time(asked, began, 504, "the model did not answer")
        finally:
            self._active -= 1
        return JSONResponse(self._result(form, question, answered, picture))

    async def _in_time(self, coming: Awaitable[Found], began: float, status: int, what: str) -> Found:
        left = began + self.limits.seconds - time.perf_counter()
        try:
            return await asyncio.wait_for(coming, max(left, 0.0))
        except asyncio.TimeoutError as error:  # its own class before Python 3.11
            raise RefusedRequest(status, f"{what} within {self.limits.seconds:g} seconds") from error
        except asyncio.CancelledError as error:  # by a server that was told twice to end, in the end of its loop
            raise RefusedRequest(503, "the server ends") from error

    def _question(self, form: UploadedForm) -> ClassQuestion:
        names = form.classes or self.served.class_names
        if not names:
            raise InputError("classes is missing, and the model has none of its own; valid: names, one a line")
        if not self.served.model.knows(names):
            unknown = next(name for name in names if not self.served.model.knows([name]))
            raise InputError(
                f"classes has {unknown!r}, and what was trained is bound to its own classes; valid: some of "
                f"{', '.join(self.served.class_names)}"
            )
        obstacle = self.served.model.strength_obstacle
        if form.strength != 1 and obstacle is not None:
            raise InputError(f"strength is {form.strength:g}, but {obstacle}; valid: 1")
        return ClassQuestion(names, form.template or self.served.template, form.strength)

    def _decoded(self, form: UploadedForm) -> tuple[Tensor, str | None]:
        """The image [3, size, size] of a form, and as a picture where the form asks for it."""
        image = self._transform(read_image_file(form.file, form.name, self.limits.pixels))
        return image, seen_picture(image, self._preprocessing) if form.picture else None

    def _result(
        self, form: UploadedForm, question: ClassQuestion, answered: Answered, picture: str | None
    ) -> dict[str, Any]:
        found: dict[str, Any] = {
            "classes": list(question.names),
            "template": question.template,
            "strength": question.strength,
            "zeroshot": answered.zeroshot,
            "adapted": answered.adapted,
            "temperature": answered.temperature,
            "notes": list(answered.notes),
        }
        if form.errors:
            layers = [
                {"layer": layer, "errors": [[float(f"{value:.5g}") for value in row] for row in error.tolist()]}
                for layer, error in zip(self.served.layers, answered.errors, strict=True)
            ]
            found["reconstruction"] = layers or None
        if picture is not None:
            found["picture"] = picture
        return found

    async def info(self, request: Request) -> Response:
        """``GET /api/info``."""
        return JSONResponse(self._info)

    async def health(self, request: Request) -> Response:
        """``GET /api/health``: 200 while the model's thread answers."""
        alive = self.worker.alive
        return JSONResponse({"status": "ok" if alive else "ended", "requests": self._active}, 200 if alive else 503)

    def _described(self) -> dict[str, Any]:
        served, limits = self.served, self.limits
        source = served.backbone.source
        calibration = served.calibration
        return {
            "model": {"name": _without_folders(source.name), "pretrained": _without_folders(source.pretrained)},
            "method": served.method,
            "adapter_sha256": served.weights_sha256,
            "precision": served.precision,
            "device": str(served.backbone.clip.logit_scale.device),
            "class_names": list(served.class_names),
            "template": served.template,
            "adapted": served.zeroshot is not None,
            "strength_obstacle": served.model.strength_obstacle,
            "reconstruction": {
                "layers": served.layers,
                "obstacle": served.reconstruction_obstacle,
            },
            "calibration": None
            if calibration is None
            else {"temperature": calibration.temperature, "strength": calibration.strength},
            "limits": {
                "bytes": limits.bytes,
                "pixels": limits.pixels,
                "classes": limits.classes,
                "name_length": limits.name_length,
                "requests": limits.queue,
                "seconds": limits.seconds,
            },
        }

    def close(self) -> None:
        """End the threads, after what they have begun."""
        self._pool.shutdown(cancel_futures=True)
        self.worker.close()


def _without_folders(name: str | None) -> str | None:
    """A model's or a tag's name; of a path of this machine the last part alone."""
    scheme, colon, path = (name or "").rpartition(":")
    return name if not os.path.isabs(path) else f"{scheme}{colon}{os.path.basename(path)}"


def seen_picture(image: Tensor, preprocessing: Preprocessing) -> str:
    """What the model sees, ``image`` [3, size, size], as the address of a PNG with the data in it."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    file = io.BytesIO()
    to_pil_image((image * std + mean).clamp(0, 1)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def make_app(app: ServedApp, hosts: frozenset[str] | None) -> Starlette:
    """The application; ``hosts`` are the names that it may be called by, None for any.

    It has no lifespan of ASGI's: a server that is told twice to end would complain of that. Whoever has made ``app``
    closes it.
    """
    return Starlette(
        routes=[
            *(Route(path, _page(*found)) for path, found in PAGE.items()),
            Route("/api/predict", app.predict, methods=["POST"]),
            Route("/api/info", app.info),
            Route("/api/health", app.health),
        ],
        middleware=[Middleware(OriginGuard, hosts=hosts)],
        exception_handlers={
            RefusedRequest: _refused,
            InputError: _not_valid,
            HTTPException: _no_such,
            ClientDisconnect: _gone,
            Exception: _failed,
        },
    )


def _page(name: str, kind: str) -> Any:
    content = resources.files("rmadapter.serving").joinpath("page").joinpath(name).read_bytes()

    async def page(request: Request) -> Response:
        return Response(content, media_type=kind)

    return page


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedRequest)  # registered for it
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse({"error": error.sentence}, error.status, headers)


async def _not_valid(request: Request, error: Exception) -> Response:
    return await _refused(request, RefusedRequest(422, str(error)))


async def _no_such(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # registered for it
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server failed; its log says how"}, 500)
