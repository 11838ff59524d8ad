"""Prompts as options: a text with ``{}`` for a class name, or the name of those that are published."""

from __future__ import annotations

from rmadapter.errors import InputError, printable

PUBLISHED = "published"  # in the place of a template: the data set's own


def check_template(template: str, field: str = "template") -> None:
    """Raise InputError unless ``template`` holds exactly one ``{}``, and only what is text; ``field`` is its name."""
    if not isinstance(template, str):
        raise InputError(f"{field} is {template!r}; valid: one text with one {{}}, such as 'a photo of a {{}}.'")
    others = template.replace("{}", "", 1)
    if others == template or set(others) & {"{", "}"} or printable(template) != template:
        raise InputError(f"{field} is {template!r}; valid: a text with one {{}}, such as 'a photo of a {{}}.'")
