"""What a model's own configuration, in a folder or a hub repository, may ask for: some of it would run code."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import open_clip

from rmadapter.errors import InputError, check_choice, nearest
from rmadapter.files import read_json

MOST_BYTES = 1 << 20
# Of the tokenizer's arguments those that open_clip's own models use; the others reach the tokenizer's library, where
# trust_remote_code is one of them.
TOKENIZER_KWARGS: dict[str, tuple[Any, ...]] = {
    "clean": ("lower", "whitespace", "canonicalize"),
    "strip_sep_token": (True, False),
}
TOKENIZER_MODES = (None, "", "clips")


def read_config(file: Path, own_tokenizer: str | None = None) -> dict[str, Any]:
    """``open_clip_config.json``, whose ``model_cfg`` asks for nothing but what is listed here.

    Args:
        file: the configuration.
        own_tokenizer: the repository's name, whose own tokenizer it may name; None: any name, which is not used.

    Raises:
        InputError: no configuration of a model, a setting that is not allowed; the message names the field.
    """
    config = read_json(file, "model configuration", limit=MOST_BYTES)
    model = config.get("model_cfg") if isinstance(config, dict) else None
    vision, text = (model.get(name) if isinstance(model, dict) else None for name in ("vision_cfg", "text_cfg"))
    if not (isinstance(vision, dict) and isinstance(text, dict)):
        raise InputError(f"{file} is no model's configuration; valid: 'model_cfg' with 'vision_cfg' and 'text_cfg'")
    try:
        _check(vision, text, own_tokenizer)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    return config


def _check(vision: dict[str, Any], text: dict[str, Any], own_tokenizer: str | None) -> None:
    arguments = text.get("tokenizer_kwargs") or {}
    if not isinstance(arguments, dict):
        raise InputError(f"text_cfg.tokenizer_kwargs is {arguments!r}; valid: an object")
    for name, value in arguments.items():
        check_choice("field of text_cfg.tokenizer_kwargs", name, TOKENIZER_KWARGS)
        check_choice(f"text_cfg.tokenizer_kwargs.{name}", value, TOKENIZER_KWARGS[name])
    check_choice("text_cfg.tokenizer_mode", text.get("tokenizer_mode"), TOKENIZER_MODES)
    if own_tokenizer is not None:
        _check_known("text_cfg.hf_tokenizer_name", text.get("hf_tokenizer_name"), own_tokenizer)
    _check_known("text_cfg.hf_model_name", text.get("hf_model_name"))
    _check_known("vision_cfg.timm_model_name", vision.get("timm_model_name"))


def _check_known(field: str, value: object, *others: str) -> None:
    """Raise InputError unless ``value`` is nothing, or what a model of open_clip's own has in ``field``."""
    known = [*_in_open_clip(field), *others]
    if value and value not in known:
        raise InputError(
            f"{field} is {value!r}; valid: a name that a model of open_clip's own has{nearest(value, known)}"
        )


@functools.cache
def _in_open_clip(field: str) -> tuple[str, ...]:
    """What open_clip's own models have in a dotted ``field`` of their configuration."""
    group, _, name = field.partition(".")
    configs = (open_clip.get_model_config(model) or {} for model in open_clip.list_models())
    return tuple(value for config in configs if (value := config.get(group, {}).get(name)))
