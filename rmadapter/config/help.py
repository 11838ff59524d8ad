"""``--help`` of a command with many options: those that people set first, then what groups there are."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rmadapter.config.typed import type_hints

NAME_WIDTH = 30  # longer names stand on a line of their own
MAX_WIDTH = 110


@dataclass(frozen=True)
class HelpLayout:
    """How the options of a dataclass are shown.

    Attributes:
        first: names of the options that most people set, in order.
        groups: title -> names of the other options at the top level, in order. Dataclasses inside are groups of their
            own, titled by the first sentence of their docstring.
    """

    first: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Option:
    """One option as help shows it: dotted ``name``, ``values`` as written, what it ``says``, ``default`` or None."""

    name: str
    values: str
    says: str
    default: str | None = None

    @property
    def written(self) -> str:
        """As on the command line: ``--batch-size INT``, ``--fused, --no-fused``."""
        shown = self.name.replace("_", "-")
        return f"--{shown}, --no-{shown}" if self.values == "bool" else f"--{shown} {self.values}".rstrip()


def docstring_of(config: type) -> tuple[str, dict[str, str]]:
    """The first sentence of the class's docstring, and field name -> what its Args section says of it."""
    import docstring_parser

    parsed = docstring_parser.parse(config.__doc__ or "")
    return parsed.short_description or "", {p.arg_name: " ".join((p.description or "").split()) for p in parsed.params}


def options_of(config: type, prefix: str = "") -> dict[str, Option]:
    """Dotted name -> option, of the fields of ``config`` that are no dataclasses themselves."""
    hints = type_hints(config)
    says = docstring_of(config)[1]
    return {
        prefix + field.name: Option(prefix + field.name, _values(hints[field.name]), says[field.name], _default(field))
        for field in dataclasses.fields(config)
        if not dataclasses.is_dataclass(hints[field.name])
    }


def groups_of(config: type, prefix: str = "") -> dict[str, type]:
    """Dotted name -> class of every dataclass inside ``config``."""
    hints = type_hints(config)
    found: dict[str, type] = {}
    for field in dataclasses.fields(config):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            found[prefix + field.name] = kind
            found |= groups_of(kind, f"{prefix}{field.name}.")
    return found


def is_switch(kind: Any) -> bool:
    """Whether an option of this type is switched on and off by its name alone; None is for neither."""
    return kind in (bool, bool | None)


def _values(kind: Any) -> str:
    if is_switch(kind):
        return "bool"
    members = [member for member in typing.get_args(kind) or (kind,) if member is not type(None)]
    return "|".join(getattr(typing.get_origin(m) or m, "__name__", str(m)).upper() for m in members)


def _default(field: dataclasses.Field) -> str | None:
    value = field.default
    if value is dataclasses.MISSING or value is None or value == "":
        return None
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def help_text(
    config: type,
    layout: HelpLayout,
    *,
    prog: str,
    epilog: str,
    everything: bool = False,
    others: Mapping[str, str] | None = None,
) -> str:
    """The help of a command whose options are the fields of ``config``.

    Args:
        config: a dataclass; its docstring says what each option is.
        layout: which options come first, and the groups of the others.
        prog: how the command is called.
        epilog: what stands below.
        everything: list every option (``--help-all``), not only the first ones and the groups.
        others: options that are no fields: name -> what it says. They end the first ones.
    """
    width = min(MAX_WIDTH, shutil.get_terminal_size().columns)
    top = options_of(config)
    first = [top[name] for name in layout.first]
    first += [Option(name, name.upper(), says) for name, says in (others or {}).items()]
    blocks = [
        f"usage: {prog} [options]",
        _filled(docstring_of(config)[0], width),
        _listed("What people set", first, width),
    ]
    groups = {title: [top[name] for name in names] for title, names in layout.groups.items()}
    for name, kind in groups_of(config).items():
        title = f"--{name}.*: {docstring_of(kind)[0].rstrip('.')}"
        groups[title] = list(options_of(kind, f"{name}.").values())
    if everything:
        blocks += [_listed(title, options, width) for title, options in groups.items()]
    else:
        blocks += [_named(title, options, width) for title, options in groups.items()]
        blocks.append(f"{prog} --help-all says what each of them is.")
    blocks.append(_filled(epilog, width))
    return "\n\n".join(blocks) + "\n"


def _listed(title: str, options: Iterable[Option], width: int) -> str:
    """Every option with what it says and its default."""
    lines = [_filled(f"{title}:", width)]
    indent = " " * (NAME_WIDTH + 2)
    for option in options:
        says = option.says + (f" (default: {option.default})" if option.default is not None else "")
        name = f"  {option.written}"
        if len(name) >= len(indent):
            lines.append(name)
            name = ""
        lines.append(_filled(says, width, name.ljust(len(indent)), indent))
    return "\n".join(lines)


def _named(title: str, options: Iterable[Option], width: int) -> str:
    """The names of a group's options alone."""
    names = ", ".join(option.name.rpartition(".")[2].replace("_", "-") for option in options)
    return _filled(f"{title}:", width) + "\n" + _filled(names, width, "  ", "  ")


def _filled(text: str, width: int, first: str = "", later: str = "") -> str:
    """``text`` in lines; names with hyphens in them stay whole."""
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)
