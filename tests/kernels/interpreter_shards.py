"""A part of what pytest collects: ``-p interpreter_shards --shard 2/4`` runs each fourth test from the second on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


def part_of(items: Sequence[Any], shard: str) -> list[Any]:
    """Those of ``items`` that belong to ``shard``: NUMBER/COUNT, where the numbers from 1 to COUNT share all of them.

    Raises:
        ValueError: there is no such shard.
    """
    number, count = map(int, shard.split("/"))
    if not 1 <= number <= count:
        raise ValueError(f"--shard is {shard}; valid: 1/{count} to {count}/{count}")
    return list(items[number - 1 :: count])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shard", default="1/1", help="NUMBER/COUNT: the part of the tests to run")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Last, when -m and -k have taken theirs away; what is marked ``telling`` first."""
    ordered = sorted(items, key=lambda item: item.get_closest_marker("telling") is None)
    items[:] = part_of(ordered, config.getoption("--shard"))
