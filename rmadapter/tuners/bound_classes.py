"""Which of the classes that something was trained on are meant, where it knows no others."""

from __future__ import annotations

import reprlib

from rmadapter.errors import InputError, nearest


def check_same(own: list[str] | None, stored: list[str] | None, what: str) -> None:
    """Raise InputError unless what is ``stored`` of each class is of a model's ``own``, in their order; None: any.

    ``what`` begins the message.
    """
    if own is not None and own != stored:
        raise InputError(
            f"{what} has something of each of its classes, {reprlib.repr(stored)}, the model of {reprlib.repr(own)}; "
            "inject with the adapter's class_names, or use rmadapter.load"
        )


def rows_of(class_names: list[str], trained: list[str], what: str) -> list[int]:
    """For each name its place in ``trained``; of a half of them in its order, which tells equal names apart.

    Raises:
        InputError: a name that is not in it; ``what`` begins the message.
    """
    count = len(class_names)
    for first in range(len(trained) - count + 1):
        if trained[first : first + count] == class_names:
            return list(range(first, first + count))
    if unknown := [name for name in class_names if name not in trained]:
        raise InputError(
            f"{what} was not trained on class {unknown[0]!r}{nearest(unknown[0], trained)}; valid: the {len(trained)} "
            "classes that it was trained on, or some of them; in eval and predict also --unknown zeroshot"
        )
    return [trained.index(name) for name in class_names]
