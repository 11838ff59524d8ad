"""What commands that answer with something stored ask for, checked in one way."""

from __future__ import annotations

from rmadapter.errors import InputError


def check_model_choice(adapter: str | None, model: str | None) -> None:
    """Raise InputError where neither an adapter nor a base model is named."""
    if adapter is None and model is None:
        raise InputError("adapter and model are both None; valid: --adapter DIR, or --model NAME for one alone")


def check_class_choice(classes: str | None, classes_file: str | None) -> None:
    """Raise InputError where classes are given in two ways."""
    if classes is not None and classes_file is not None:
        raise InputError("classes and classes_file are both given; valid: one of them")
