"""Adapter files of format 2 from when adapters were all that could be trained: their configuration is the adapters'.

Tensors have the same names, and all other fields are the same: such a file says all that one of today says. Files of
format 1 do not, and are refused (``stored_facts``).
"""

from __future__ import annotations

from typing import Any


def as_written_now(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of ``adapter_config.json`` with ``config`` as it is written now; of a file of today they stay.

    A configuration of all that is trained has groups alone. ``layers`` is a field of the adapters', which was always
    written.
    """
    config = values.get("config")
    return {**values, "config": {"adapter": config}} if isinstance(config, dict) and "layers" in config else values
