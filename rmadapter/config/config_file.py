"""The file of ``--config``: YAML with the names of the options, read strictly."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from rmadapter.errors import InputError, nearest
from rmadapter.files import read_bytes

LARGEST = 1 << 20  # a file with every option has 3 KB

# Of YAML 1.1: 010 as eight, 1:30 as ninety; dates; << for the keys of another mapping.
_SURPRISING = ("int", "timestamp", "merge")
_INT = "tag:yaml.org,2002:int"


class _StrictLoader(yaml.SafeLoader):
    """YAML as its readers expect it: 010 is ten, a date is text, a key stands once, and ``<<`` copies nothing."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in _SURPRISING]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(_INT, re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))
_StrictLoader.add_constructor(_INT, lambda loader, node: int(loader.construct_scalar(node)))


def read_config_file(path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the YAML file ``path`` says of the options ``fields``, dotted name -> type: dotted name -> plain value.

    Names have underscores. A group without anything in it says nothing.

    Raises:
        InputError: a file that cannot be read, is no YAML, or holds more than known options with one value or a list
            of values each.
    """
    content = read_bytes(Path(path), "config", limit=LARGEST)
    try:
        values = yaml.load(content, _StrictLoader)  # a loader without Python objects
    except RecursionError as error:
        raise InputError(f"config {path} is not YAML of options: it holds too many lists in one another") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:  # of a key that is a list, a number with 5000 digits
        raise InputError(f"config {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        holds = "nothing" if values is None else type(values).__name__
        raise InputError(f"config {path} holds {holds}; valid: a mapping of option names to values")
    return _of_group(values, fields, path, "")


def _of_group(values: dict[Any, Any], fields: Mapping[str, Any], path: str, prefix: str) -> dict[str, Any]:
    """``values`` of the group that ``prefix`` names, checked."""
    found: dict[str, Any] = {}
    named: set[str] = set()
    for key, value in values.items():
        name = str(key).replace("-", "_")
        dotted = prefix + name
        if dotted not in fields:
            siblings = [field.removeprefix(prefix) for field in fields if field.startswith(prefix)]
            raise InputError(f"unknown key {prefix + str(key)!r} in config {path}{nearest(name, siblings)}")
        if dotted in named:
            raise InputError(f"config {path} has the key {dotted!r} twice, with a dash and with an underscore")
        named.add(dotted)
        if not dataclasses.is_dataclass(fields[dotted]):
            found[dotted] = _value(value, path, dotted)
        elif isinstance(value, dict):
            found |= _of_group(value, fields, path, f"{dotted}.")
        elif value is not None:
            options = [field.removeprefix(f"{dotted}.") for field in fields if field.startswith(f"{dotted}.")]
            raise InputError(
                f"{dotted} is {value!r} in config {path}; valid: a group of options, one a line below it: "
                f"{', '.join(option for option in options if '.' not in option)}"
            )
    return found


def _value(value: Any, path: str, dotted: str) -> Any:
    """``value`` where it is one value, or a list of such; a list with more in it may be of any size for its file."""
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, float) and not math.isfinite(part):
            raise InputError(f"{dotted} is {part} in config {path}; valid: a finite number")
        if part is not None and not isinstance(part, (str, int, float)):
            raise InputError(
                f"{dotted} is or holds a {type(part).__name__} in config {path}; valid: a text, a number, true, "
                "false, or a list of these"
            )
    return value
