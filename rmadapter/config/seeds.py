"""Seeds as options: one, or several between commas."""

from __future__ import annotations

from rmadapter.errors import InputError

LARGEST_SEED = 2**63 - 1  # what torch, numpy, YAML and JSON all take


def seed_list(text: str) -> list[int]:
    """The seeds in ``text``, such as "1,2,3".

    Raises:
        InputError: something else, or nothing.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if not (word.isdecimal() and len(word) <= len(str(LARGEST_SEED)) and int(word) <= LARGEST_SEED):
            raise InputError(f"seeds has {word!r}; valid: numbers from 0 to {LARGEST_SEED}, such as 1,2,3")
    if not words:
        raise InputError(f"seeds is {text!r}; valid: numbers from 0, such as 1,2,3")
    return [int(word) for word in words]
