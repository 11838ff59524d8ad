"""Sizes as options, and as they are shown."""

from __future__ import annotations

import pytest

from rmadapter.config.sizes import parse_bytes, shown_bytes
from rmadapter.errors import InputError


@pytest.mark.parametrize(
    ("text", "found"), [("100", 100), ("2KB", 2048), ("1.5 GB", 3 * 2**29), ("3gib", 3 * 2**30), ("4M", 2**22)]
)
def test_sizes(text, found):
    assert parse_bytes("text_memory", text) == found


@pytest.mark.parametrize("text", ["", "GB", "0", "-1GB", "2XB", "1e9"])
def test_what_is_no_size(text):
    with pytest.raises(InputError, match=f"cache_limit is '{text}'; valid: a size such as"):
        parse_bytes("cache_limit", text)


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (7, "7 bytes"),
        (272, "272 bytes"),
        (1005, "1.00 KB"),
        (273_408, "273.41 KB"),
        (5 * 10**8, "500.00 MB"),
        (2**40, "1099.51 GB"),
    ],
)
def test_sizes_in_the_unit_that_suits_them(count, shown):
    assert shown_bytes(count) == shown
    # What a message shows may be given as the option: there a unit is of 1024.
    assert parse_bytes("cache_limit", shown.removesuffix(" bytes")) >= count
