"""What a request may ask for, and the errors that refuse it."""

from __future__ import annotations

from dataclasses import dataclass

from rmadapter.data.reading import MAX_PIXELS
from rmadapter.errors import InputError, check_range


class RefusedRequest(Exception):
    """A request that is not answered: ``status`` of HTTP, a sentence, and after how many seconds to try again."""

    def __init__(self, status: int, sentence: str, retry_after: int | None = None):
        super().__init__(sentence)
        self.status, self.sentence, self.retry_after = status, sentence, retry_after


@dataclass(frozen=True)
class RequestLimits:
    """Bounds of one request and of how many there are at a time.

    Attributes:
        megabytes: of a request's body, image and fields together; a megabyte is 1,000,000 bytes.
        pixels: of the image, which is refused by what its header says, before it is decoded.
        classes: how many names.
        name_length: characters of a class name, and of a template without the name.
        queue: requests at a time, from the first byte to the answer; one more is told to come again.
        seconds: from the first byte to the answer.

    Raises:
        InputError: a number outside of what can be kept to.
    """

    megabytes: float = 20.0
    pixels: int = MAX_PIXELS
    classes: int = 1000
    name_length: int = 200
    queue: int = 64
    seconds: float = 30.0

    def __post_init__(self) -> None:
        check_range("max_megabytes", self.megabytes, 0, 1000, open_low=True)
        check_range("max_pixels", self.pixels, 1, MAX_PIXELS)
        check_range("max_classes", self.classes, 2)
        check_range("max_name", self.name_length, 1)
        check_range("queue", self.queue, 1)
        check_range("timeout", self.seconds, 0, open_low=True)

    @property
    def bytes(self) -> int:
        """Of a request's body."""
        return int(self.megabytes * 1e6)

    def class_names(self, text: str) -> tuple[str, ...]:
        """The names in ``text``, one a line, without blanks around them; one that stands twice counts once.

        Raises:
            InputError: fewer than two, too many, or a name that is too long.
        """
        names = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
        if not 2 <= len(names) <= self.classes:
            raise InputError(f"classes has {len(names)} names; valid: 2 to {self.classes}, one a line")
        self.check_length("classes", *names)
        return names

    def check_length(self, field: str, *texts: str) -> None:
        """Raise InputError where one of the field's ``texts`` is too long."""
        for text in texts:
            if len(text) > self.name_length:
                raise InputError(f"{field} has {text[:20]!r}... of {len(text)} characters; valid: {self.name_length}")
