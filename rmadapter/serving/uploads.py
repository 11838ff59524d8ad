"""From a request's body to what is asked: a form with an image, read within limits."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import BinaryIO

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from rmadapter.config import check_template
from rmadapter.errors import InputError, check_choice, check_range, printable_line
from rmadapter.serving.request_limits import RefusedRequest, RequestLimits

FORM = "multipart/form-data"
FIELDS = ("image", "classes", "template", "strength", "errors", "picture")
SWITCHES = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False, "": False}
# Far beyond what is of use; features stay finite.
MOST_STRENGTH = 1000
# Of a file's name in messages.
LONGEST_NAME = 80


@dataclass(frozen=True)
class UploadedForm:
    """A form's fields.

    Attributes:
        file: with the image in it, at its beginning.
        name: what messages call it.
        classes: names; empty where the form has none.
        template: None where the form has none.
        strength, errors, picture: as ``web_app`` says.
    """

    file: BinaryIO
    name: str
    classes: tuple[str, ...]
    template: str | None
    strength: float
    errors: bool
    picture: bool


async def read_form(request: Request, limits: RequestLimits) -> UploadedForm:
    """The form in the body of ``request``; its file is to be closed.

    Raises:
        RefusedRequest: a body that is larger than allowed or no form.
        InputError: a field that is missing, unknown, there twice or has a value that it cannot have.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != FORM:
        raise RefusedRequest(415, f"content-type is {kind!r}; valid: {FORM}, with the fields {', '.join(FIELDS)}")
    parser = MultiPartParser(
        request.headers,
        limited_body(request, limits),
        max_files=1,
        max_fields=len(FIELDS),
        max_part_size=4 * (limits.classes + 1) * (limits.name_length + 2),  # characters of up to four bytes
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RefusedRequest(400, f"the form cannot be read: {error.message}") from error
    try:
        return _fields(form, limits)
    except BaseException:
        await form.close()
        raise


async def limited_body(request: Request, limits: RequestLimits) -> AsyncGenerator[bytes, None]:
    """The body, piece by piece.

    Raises:
        RefusedRequest: it is larger than allowed, by what its header says before anything is read.
    """
    too_large = RefusedRequest(413, f"the request has more than {limits.megabytes:g} MB; valid: a smaller image")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.bytes:
        raise too_large
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > limits.bytes:
            raise too_large
        yield piece


def _fields(form: FormData, limits: RequestLimits) -> UploadedForm:
    values: dict[str, str] = {}
    image: UploadFile | None = None
    for name, value in form.multi_items():
        check_choice("field", name[:LONGEST_NAME], FIELDS)
        if name in values or (name == "image" and image is not None):
            raise InputError(f"{name} is there twice; valid: once")
        if (name == "image") != isinstance(value, UploadFile):
            found, valid = ("a text", "a file") if name == "image" else ("a file", "a text")
            raise InputError(f"{name} is {found}; valid: {valid}")
        if isinstance(value, UploadFile):
            image = value
        else:
            values[name] = value
    if image is None:
        raise InputError("image is missing; valid: one file")
    template = values.get("template", "").strip() or None
    if template is not None:
        check_template(template)
        limits.check_length("template", template)
    text = values.get("classes", "")
    return UploadedForm(
        image.file,
        printable_line(image.filename or "without a name")[:LONGEST_NAME],
        limits.class_names(text) if text.strip() else (),
        template,
        _number("strength", values.get("strength", "1")),
        _switch("errors", values),
        _switch("picture", values),
    )


def _number(field: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{field} is {text[:LONGEST_NAME]!r}; valid: a number >= 0 and <= {MOST_STRENGTH}") from None
    check_range(field, value, 0, MOST_STRENGTH)
    return value


def _switch(field: str, values: dict[str, str]) -> bool:
    value = values.get(field, "").strip().lower()[:LONGEST_NAME]
    check_choice(field, value, SWITCHES)
    return SWITCHES[value]
