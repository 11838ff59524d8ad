"""The command line's conventions on top of jsonargparse.

jsonargparse makes options, types and help from a dataclass. Habits that users expect are added here, by rewriting the
arguments before it sees them: dashes and underscores are alike, booleans are ``--flag`` / ``--no-flag``, an unknown
option or key is refused with its nearest match, and an option is never abbreviated. ``--config FILE`` stands for the
options in that file. Texts stay what they are; jsonargparse takes each for YAML first, where ``~`` and ``#1`` are
nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
import reprlib
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from jsonargparse import ArgumentParser

from rmadapter.commands import guarded
from rmadapter.config.config_file import read_config_file
from rmadapter.config.help import HelpLayout, docstring_of, help_text, is_switch
from rmadapter.config.paths import expand, expanded, path_fields
from rmadapter.config.typed import type_hints, type_words
from rmadapter.errors import InputError, nearest, printable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

HELP_ALL = "--help-all"
# Of a whole number: far beyond every range, whose own message then says what it is, and quick to read.
MOST_DIGITS = 40
# What stands in a file or on a line for values that Python calls otherwise.
AS_WRITTEN = {"": "''", "None": "null", "True": "true", "False": "false"}
EPILOG = (
    "Dashes and underscores are alike. Switches: --option, --no-option (--no-adapter.reconstruct). "
    "--config FILE reads YAML with the same names, options after it override it; --print_config writes one."
)
# Of a command whose training runs get the options that are none of its own.
EPILOG_OF_RUNS = (
    "Dashes and underscores are alike. Switches: --option, --no-option. Other options go to every training run, as "
    "rmadapter train has them; --config FILE reads these from YAML, options after it override it."
)


def parse_arguments(
    config: type[Config],
    argv: list[str],
    *,
    prog: str,
    positional: str | None = None,
    layout: HelpLayout | None = None,
    taken_before: typing.Mapping[str, str] | None = None,
    of_runs: bool = False,
) -> Config:
    """Build the dataclass ``config`` from ``argv``; ``positional`` names its one field that takes the bare words.

    ``layout`` says what ``--help`` shows first, where it is not to show everything; ``--help-all`` does.
    ``taken_before`` are options that the caller has taken out of ``argv``: name -> what that help says of them. With
    ``of_runs`` they are those of training runs, and a config file too (``split_options``).

    Raises:
        InputError: an unknown option or key, a value of the wrong type, a config file that cannot be read.
        SystemExit: after ``--help``, ``--help-all`` and ``--print_config``, with status 0.
    """
    parser = _parser(config, prog, positional, of_runs)
    found = _rewrite(argv, option_fields(config), positional)
    if found.help:
        if layout is None:
            parser.print_help()
        else:
            everything = found.help == HELP_ALL
            print(help_text(config, layout, prog=prog, epilog=EPILOG, everything=everything, others=taken_before))
        raise SystemExit(0)
    if found.words and not positional:
        raise InputError(f"argument {found.words[0]!r} belongs to no option; options start with --")
    given = _given(config, parser, found)
    # argparse takes bare words in one run only; here they may stand between the options.
    if positional:
        given[positional] = found.words or given.get(positional, [])
    values = _completed(config, given, None)
    if found.print_config:
        _print_config(config, values)
        raise SystemExit(0)
    return _build(config, values)


def given_options(config: type, argv: list[str], *, prog: str) -> dict[str, Any]:
    """Dotted name -> value of the options of ``config`` that ``argv`` names, in its config files too.

    Raises:
        InputError: as ``parse_arguments``, but for what ``config`` itself refuses.
    """
    found = _rewrite(argv, option_fields(config))
    return dotted_values(_given(config, _parser(config, prog, None), found))


def dotted_values(values: typing.Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested groups, such as ``dataclasses.asdict`` gives, by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= dotted_values(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def run_module(
    config: type[Config], run: Callable[[Config], Any], argv: list[str] | None, *, prog: str, hint: str = ""
) -> int:
    """``python -m MODULE``: ``run`` with the options that ``argv`` has, by default this process's; the exit status.

    See ``guarded`` for that and for ``hint``.
    """
    words = sys.argv[1:] if argv is None else argv
    return guarded(lambda words: run(parse_arguments(config, words, prog=prog)), words, hint)


@functools.cache
def _parser(config: type, prog: str, positional: str | None, of_runs: bool = False) -> ArgumentParser:
    """The parser of ``config``, made once: that takes tens of milliseconds, and a sweep parses each of its runs."""
    parser = ArgumentParser(
        prog=prog,
        description=docstring_of(config)[0],
        epilog=EPILOG_OF_RUNS if of_runs else EPILOG,
        exit_on_error=False,
        allow_abbrev=False,
    )
    names = "the options of the runs" if of_runs else "the options"
    parser.add_argument("--config", metavar="FILE", help=f"YAML file with the same names as {names}")
    if not of_runs:
        says = "print such a file with all options, run nothing"
        parser.add_argument("--print_config", action="store_true", help=says)
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
            if name == "print_config":
                raise InputError(f"option {word!r} is none of this command's; valid with rmadapter train")
            if kind is None and name != "config":
                known = (f"--{option}" for option in (*own_fields, *other_fields))
                raise InputError(f"unknown option {word!r}{nearest(f'--{name}', known)}")
        target.append(word)
        if not is_switch(kind) and not equals:
            following = next(words, None)
            if following is None:
                raise InputError(f"option {word} needs a value")
            target.append(following)
    return split


def _given(config: type, parser: ArgumentParser, found: _Rewritten) -> dict[str, Any]:
    """The values that a command line gives, those of a group in a mapping; InputError for one of another type."""
    try:
        # With its own defaults jsonargparse would look at every option again: 34 ms in place of 2.
        given: dict[str, Any] = parser.parse_args(found.options, env=False, defaults=False).as_dict()
    except argparse.ArgumentError as error:
        # Its words are of Python's types. It names the option, and last the value.
        told = re.search(r'Parser key "([\w.]+)":.*(?:Got|Given) value: ?(.*)', str(error), re.DOTALL)
        if told is None:
            raise InputError(" ".join(str(error).split())) from error
        name, value = told.groups()
        valid = type_words(option_fields(config)[name])
        raise InputError(f"{name} is {AS_WRITTEN.get(value, value)}; valid: {valid}") from error
    for name, value in found.texts.items():
        *groups, last = name.split(".")
        functools.reduce(lambda inner, group: inner.setdefault(group, {}), groups, given)[last] = value
    return given


@functools.cache
def option_fields(config: type, prefix: str = "") -> typing.Mapping[str, Any]:
    """Dotted option name -> type, for every field of ``config`` and of the dataclasses inside it."""
    hints = type_hints(config)
    found: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        kind = hints[item.name]
        found[prefix + item.name] = kind
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            found |= option_fields(kind, f"{prefix}{item.name}.")
    return found


def _completed(config: type, given: dict[str, Any], default: Any) -> dict[str, Any]:
    """Every option of ``config``: as ``given``, else as ``default`` has it, else by the field's own default."""
    found = {}
    hints = type_hints(config)
    for item in dataclasses.fields(config):
        if default is not None:
            value = getattr(default, item.name)
        elif item.default_factory is not dataclasses.MISSING:
            value = item.default_factory()
        else:
            value = item.default
        if dataclasses.is_dataclass(hints[item.name]):
            found[item.name] = _completed(hints[item.name], given.get(item.name, {}), value)
        else:
            found[item.name] = given.get(item.name, value)
    return found


def _print_config(config: type, values: dict[str, Any]) -> None:
    """YAML of the options in ``values``, escaped where the terminal would not take it as it is."""
    shown = {item.name: values[item.name] for item in dataclasses.fields(config)}
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if printable(text) != text or text.encode(encoding, errors="replace").decode(encoding) != text:
        text = yaml.safe_dump(shown, sort_keys=False)
    print(text, end="")


def _build(config: type[Config], values: dict[str, Any]) -> Config:
    hints, paths = type_hints(config), path_fields(config)
    arguments = {}
    for item in dataclasses.fields(config):
        value = values[item.name]
        if dataclasses.is_dataclass(hints[item.name]):
            value = _build(hints[item.name], value)
        elif item.name in paths and value is not None and value != item.default:
            value = expanded(item.name, value, paths[item.name])
        arguments[item.name] = value
    return config(**arguments)


@dataclass
class _Rewritten:
    """What a command line asks for.

    Attributes:
        options: in the one form that jsonargparse takes, ``--name=value``, without those of texts.
        texts: dotted name -> value of the options whose value is a text, None where a file says null; of those that may
            stand several times, all of them in a list.
        repeated: those of them that the command line names since the last config file, which they stand in place of.
        words: bare words, which a config file has as the option that they stand for.
        help: "--help", ``HELP_ALL`` or "".
        print_config: whether the configuration is asked for.
    """

    options: list[str] = field(default_factory=list)
    texts: dict[str, str | list[str] | None] = field(default_factory=dict)
    repeated: dict[str, list[str]] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    help: str = ""
    print_config: bool = False

    def add(self, name: str, kind: Any, value: str) -> None:
        """``value`` of the option ``name`` of type ``kind``, as a command line has it."""
        if _is_text(kind):
            self.texts[name] = value
        elif _is_texts(kind):
            self.repeated.setdefault(name, []).append(value)
            self.texts[name] = self.repeated[name]
        elif int in _members(kind):
            # YAML reads 010 as 8 and 1:30 as 90.
            if not re.fullmatch(r"[+-]?[0-9]+", value.strip()):
                raise InputError(f"{name} is {value!r}; valid: a whole number")
            if len(value.strip()) > MOST_DIGITS:
                raise InputError(f"{name} is {reprlib.repr(value)}; valid: a whole number of fewer digits")
            self.options.append(f"--{name}={int(value)}")
        else:
            self.options.append(f"--{name}={value}")

    def add_from_file(self, name: str, kind: Any, value: Any) -> None:
        """``value`` of the option ``name`` of type ``kind``, as a YAML file has it."""
        if _is_texts(kind):
            texts = [value] if isinstance(value, str) else value
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise InputError(f"{name} is {value!r} in the config; valid: a list of texts")
            self.repeated.pop(name, None)
            self.texts[name] = texts
        elif isinstance(value, str):
            self.add(name, kind, value)
        elif not _is_text(kind):
            self.options.append(f"--{name}={json.dumps(value)}")
        elif value is None and type(None) in _members(kind):
            self.texts[name] = value
        else:
            raise InputError(f"{name} is {value!r} in the config; valid: a text, in quotes where it looks like another")


def _members(kind: Any) -> tuple[Any, ...]:
    """The types that a union stands for, or the one type."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _is_text(kind: Any) -> bool:
    """Whether an option of this type takes any text."""
    return {str} <= set(_members(kind)) <= {str, type(None)}


def _is_texts(kind: Any) -> bool:
    """Whether an option of this type may stand several times, each time with any text."""
    return typing.get_origin(kind) is list and typing.get_args(kind) == (str,)


def _rewrite(argv: list[str], in_file: typing.Mapping[str, Any], positional: str | None = None) -> _Rewritten:
    """The words of a command line, told apart; of an option for one value that stands twice the last one counts.

    ``in_file`` are the options that a config file may have, ``positional`` the one that bare words stand for here.
    """
    found = _Rewritten()
    fields = {name: kind for name, kind in in_file.items() if name != positional}
    groups = {name for name, kind in fields.items() if dataclasses.is_dataclass(kind)}
    words = iter(argv)
    for word in words:
        if word == "--":
            found.words += words
            break
        if word in ("-h", "--help", HELP_ALL, "--help_all"):
            found.help = HELP_ALL if "all" in word else found.help or "--help"
            continue
        if not word.startswith("--"):
            if word.startswith("-"):
                raise InputError(f"argument {word!r} belongs to no option; options start with --")
            found.words.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if name == "print_config" and not equals:
            found.print_config = True
        elif name == "config":
            path = expand(_value(word, equals, value, words), "config")
            for key, said in read_config_file(path, in_file).items():
                found.add_from_file(key, in_file[key], said)
        elif name in groups:
            own = [f"--{option}" for option in fields if option.startswith(f"{name}.") and option not in groups]
            raise InputError(f"option --{name} is a group of options; valid: {', '.join(own)}")
        elif is_switch(fields.get(name)):
            found.options.append(f"--{name}={value if equals else 'true'}")
        elif name.startswith("no_") and is_switch(fields.get(name.removeprefix("no_"))) and not equals:
            found.options.append(f"--{name.removeprefix('no_')}=false")
        elif name in fields:
            found.add(name, fields[name], _value(word, equals, value, words))
        else:
            options = [
                *fields,
                "config",
                "print_config",
                "help",
                "help_all",
                *(f"no_{n}" for n, k in fields.items() if is_switch(k)),
            ]
            raise InputError(f"unknown option {word!r}{nearest('--' + name, ('--' + o for o in options))}")
    return found


def _value(word: str, equals: str, value: str, words: typing.Iterator[str]) -> str:
    """What follows an option: the part after ``=``, else the next word."""
    if equals:
        return value
    following = next(words, None)
    if following is None:
        raise InputError(f"option {word} needs a value")
    return following
