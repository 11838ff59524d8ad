"""The command line's conventions on top of jsonargparse.

jsonargparse makes options, YAML files, types and help from a dataclass. Four habits that users expect are
added here, by rewriting the arguments before it sees them: dashes and underscores are alike, booleans are
``--flag`` / ``--no-flag``, an unknown option or key is refused with its nearest match, and an option is never
abbreviated.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from jsonargparse import ArgumentParser

from rmadapter.config.help import HelpLayout, docstring_of, help_text
from rmadapter.errors import InputError, nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

HELP_ALL = "--help-all"
EPILOG = (
    "Dashes and underscores are alike. Switches: --option, --no-option (--no-adapter.reconstruct). "
    "--config FILE reads YAML with the same names, options after it override it; --print_config writes one."
)


def parse_arguments(
    config: type[Config],
    argv: list[str],
    *,
    prog: str,
    positional: str | None = None,
    layout: HelpLayout | None = None,
    taken_before: typing.Mapping[str, str] | None = None,
) -> Config:
    """Build the dataclass ``config`` from ``argv``; ``positional`` names its one field that takes the bare words.

    ``layout`` says what ``--help`` shows first, where it is not to show everything; ``--help-all`` does.
    ``taken_before`` are options that the caller has taken out of ``argv``: name -> what that help says of them.

    Raises:
        InputError: an unknown option or key, a value of the wrong type, a config file that cannot be read.
        SystemExit: after ``--help``, ``--help-all`` and ``--print_config``, with status 0.
    """
    parser = _parser(config, prog, positional)
    options, words = _rewrite(argv, option_fields(config))
    if "--help" in options or HELP_ALL in options:
        if layout is None:
            parser.print_help()
        else:
            everything = HELP_ALL in options
            print(help_text(config, layout, prog=prog, epilog=EPILOG, everything=everything, others=taken_before))
        raise SystemExit(0)
    if words and not positional:
        raise InputError(f"argument {words[0]!r} belongs to no option; options start with --")
    try:
        values = parser.parse_args(options).as_dict()
    except argparse.ArgumentError as error:
        raise InputError(" ".join(str(error).replace("Parser key", "option").split())) from error
    # argparse takes bare words in one run only; here they may stand between the options.
    return _build(config, {**values, positional: words} if positional else values)


@functools.cache
def _parser(config: type, prog: str, positional: str | None) -> ArgumentParser:
    """The parser of ``config``, made once: that takes tens of milliseconds, and a sweep parses each of its runs."""
    parser = ArgumentParser(
        prog=prog, description=docstring_of(config)[0], epilog=EPILOG, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="YAML file with the same names as the options")
    parser.add_class_arguments(config, None, fail_untyped=True, skip={positional} if positional else None)
    if positional:
        parser.add_argument(positional, nargs="*", type=str, help=docstring_of(config)[1][positional])
    return parser


def split_options(
    argv: list[str], own: type, others: type, *, reserved: typing.Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """The words for the dataclass ``own``, and those for ``others``, whose options it passes on.

    Options that both have are ``own``'s; bare words and ``--help`` too; ``--config`` is of ``others``.

    Raises:
        InputError: an option that neither has, one of ``reserved`` (decided by the command itself), a missing value.
    """
    own_fields, other_fields = option_fields(own), option_fields(others)
    split: tuple[list[str], list[str]] = [], []
    words = iter(argv)
    for word in words:
        if not word.startswith("--") or word in ("--help", HELP_ALL):
            split[0].append(word)
            continue
        name, equals, _ = word[2:].partition("=")
        name = name.replace("-", "_")
        positive = name if name in own_fields or name in other_fields else name.removeprefix("no_")
        if positive in own_fields:
            target, kind = split[0], own_fields[positive]
        else:
            target, kind = split[1], other_fields.get(positive)
            if positive in reserved:
                raise InputError(f"option {word!r} is decided by this command, run by run")
            if kind is None and name != "config":
                known = (f"--{option}" for option in (*own_fields, *other_fields))
                raise InputError(f"unknown option {word!r}{nearest(f'--{name}', known)}")
        target.append(word)
        if kind is not bool and not equals:
            following = next(words, None)
            if following is None:
                raise InputError(f"option {word} needs a value")
            target.append(following)
    return split


def option_fields(config: type, prefix: str = "") -> dict[str, Any]:
    """Dotted option name -> type, for every field of ``config`` and of the dataclasses inside it."""
    hints = typing.get_type_hints(config)
    found: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        kind = hints[item.name]
        found[prefix + item.name] = kind
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            found |= option_fields(kind, f"{prefix}{item.name}.")
    return found


def _build(config: type[Config], values: dict[str, Any]) -> Config:
    hints = typing.get_type_hints(config)
    arguments = {}
    for item in dataclasses.fields(config):
        value = values[item.name]
        arguments[item.name] = _build(hints[item.name], value) if dataclasses.is_dataclass(hints[item.name]) else value
    return config(**arguments)


def _rewrite(argv: list[str], fields: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The options in the one form that jsonargparse takes, and the bare words."""
    rewritten: list[str] = []
    bare: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            bare += words
            break
        if word in ("-h", "--help", HELP_ALL, "--help_all"):
            rewritten.append(HELP_ALL if "all" in word else "--help")
            continue
        if not word.startswith("--"):
            if word.startswith("-"):
                raise InputError(f"argument {word!r} belongs to no option; options start with --")
            bare.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if name == "print_config" and not equals:
            rewritten.append("--print_config")
        elif name == "config":
            rewritten.append("--config=" + _read_config(_value(word, equals, value, words), fields))
        elif fields.get(name) is bool:
            rewritten.append(f"--{name}={value if equals else 'true'}")
        elif name.startswith("no_") and fields.get(name.removeprefix("no_")) is bool and not equals:
            rewritten.append(f"--{name.removeprefix('no_')}=false")
        elif name in fields:
            rewritten.append(f"--{name}={_value(word, equals, value, words)}")
        else:
            options = [
                *fields,
                "config",
                "print_config",
                "help",
                "help_all",
                *(f"no_{n}" for n, k in fields.items() if k is bool),
            ]
            raise InputError(f"unknown option {word!r}{nearest('--' + name, ('--' + o for o in options))}")
    return rewritten, bare


def _value(word: str, equals: str, value: str, words: typing.Iterator[str]) -> str:
    """What follows an option: the part after ``=``, else the next word."""
    if equals:
        return value
    following = next(words, None)
    if following is None:
        raise InputError(f"option {word} needs a value")
    return following


def _read_config(path: str, fields: dict[str, Any]) -> str:
    """The YAML file as JSON text with underscores in its keys, each of which is a known option."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"config is {path!r}, which cannot be read: {error.strerror}") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"config {path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"config {path} holds {type(values).__name__}; valid: a mapping of option names to values")
    return json.dumps(_known_keys(values, fields, path, ""))


def _known_keys(values: dict[Any, Any], fields: dict[str, Any], path: str, prefix: str) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        dotted = prefix + name
        if dotted not in fields:
            siblings = [f.removeprefix(prefix) for f in fields if f.startswith(prefix)]
            raise InputError(f"unknown key {prefix + str(key)!r} in config {path}{nearest(name, siblings)}")
        if isinstance(value, dict) and dataclasses.is_dataclass(fields[dotted]):
            value = _known_keys(value, fields, path, dotted + ".")
        known[name] = value
    return known
