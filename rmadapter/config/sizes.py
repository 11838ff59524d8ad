"""Sizes of memory and files, as options and for people."""

from __future__ import annotations

import re

from rmadapter.errors import InputError

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_bytes(field: str, text: str) -> int:
    """ "800MB", "4 GB", "2GiB" or a number of bytes, in units of 1024.

    Raises:
        InputError: anything else, or nothing at all.
    """
    match = re.fullmatch(r"(\d{1,18}(?:\.\d+)?)\s*([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    found = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    if found < 1:
        raise InputError(f"{field} is {text!r}; valid: a size such as 800MB or 4GB")
    return found


def shown_bytes(count: int) -> str:
    """``count`` bytes in the unit that suits them, of 1000: given as an option it is no less."""
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"
