"""The options of ``rmadapter train``, for the command itself and for the methods that are options of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from rmadapter.config import PUBLISHED, TRAIN_HELP, TrainConfig
from rmadapter.config.arguments import given_options, parse_arguments
from rmadapter.config.loss import SENTENCES
from rmadapter.data.catalog import record_of
from rmadapter.data.emoji import TRAIN_CONFIG, is_testbed
from rmadapter.data.named import find_folder
from rmadapter.errors import InputError
from rmadapter.methods import METHODS, Method, get_method
from rmadapter.methods.method import TUNED
from rmadapter.methods.naming import method_name
from rmadapter.methods.rmadapter import RMADAPTER

# Of what is trained: an option of one that a method does not have is refused.
GROUPS = ("adapter", "prompt", "space", "lora", "head")
# Options that one loss.target alone takes.
_OF_TARGETS = {"loss.sentences": SENTENCES, "loss.published": PUBLISHED}


def parse_train(
    argv: list[str],
    *,
    prog: str,
    taken_before: Mapping[str, str] | None = None,
    recipe: Sequence[str] = (),
    testbed: Sequence[str] = (),
) -> TrainConfig:
    """The configuration of a training run; on a bundled data set with the test bed's defaults below the options.

    Args:
        argv: the options.
        prog, taken_before: see ``parse_arguments``.
        recipe: options that come first.
        testbed: options that come between the test bed's defaults and ``argv``.
    """
    # Which defaults hold is seen from the data, before anything is printed.
    silent = _silent(argv)
    asked = parse_arguments(TrainConfig, [*recipe, *silent], prog=prog, layout=TRAIN_HELP, taken_before=taken_before)
    bundled = is_testbed(asked.data) and asked.data_root is None
    own = [*recipe, *(["--config", str(TRAIN_CONFIG), *testbed] if bundled else [])]
    if not own and silent == argv:
        return asked
    return parse_arguments(TrainConfig, [*own, *argv], prog=prog)


def _silent(argv: Sequence[str]) -> list[str]:
    """``argv`` without ``--print_config``."""
    return [word for word in argv if word.replace("-", "_") != "__print_config"]


def _method_help() -> dict[str, str]:
    """What ``--help`` says of ``--method``, which is taken out of the words before they are parsed."""
    listed = "; ".join(f"{method.name} ({method.summary})" for method in METHODS.values())
    return {
        "method": "in place of what the other options make, RMAdapter by default; what makes the method what it is "
        f"may not be given otherwise: {listed}"
    }


def configure(
    name: str,
    argv: list[str],
    *,
    prog: str = "rmadapter train",
    data: str | None = None,
    transfer: bool = False,
    few_shot: int | None = None,
    overrides: tuple[str, ...] | None = None,
) -> TrainConfig:
    """The configuration of method ``name`` from a training command's options ``argv``; the method's own come last.

    Args:
        name, argv, prog: the method, the options, and what messages call the command.
        data: the data set that the published overrides are for, where ``argv`` does not name it.
        transfer: whether what is trained is to be tested on other data sets.
        few_shot: the number of shots in the few-shot protocol; None elsewhere.
        overrides: ``overrides_of`` these three, where they are known.

    Raises:
        InputError: an option of a group that the method does not have, or a group of a config file.
    """
    method = get_method(name)
    own = ", ".join(f"--{group}.*" for group in method.groups)
    other = next((word for word in argv if _is_of_another(method, word)), None)
    if other is not None and method.kind == TUNED:
        raise InputError(f"option {other.partition('=')[0]!r} is none of method {name!r}; valid: {own}")
    if overrides is None:
        data = data or _data_of(given_options(TrainConfig, argv, prog=prog))
        overrides = overrides_of(name, data, transfer=transfer, few_shot=few_shot)
    recipe = (*method.recipe, *overrides)
    words = [*argv, *method.options]
    parse = partial(parse_train, prog=prog, taken_before=_method_help(), recipe=recipe, testbed=method.testbed)
    config = parse(_silent(words))
    # In a config file every group may stand; from the values it is seen which train something.
    given = [group for group in GROUPS if group != "adapter" and getattr(config, group).any]
    if method.kind == TUNED and (others := [group for group in given if group not in method.groups]):
        raise InputError(f"config trains something of {others[0]!r}, which method {name!r} does not have; valid: {own}")
    # It is called by the name that was given, whatever else the options make of it, and in what is printed too: a run
    # of that file tells by it what no options make.
    named = words if method_name(config) == name else [*words, "--label", name]
    return config if named == _silent(words) else parse(named)


def overrides_of(name: str, data: str | None, *, transfer: bool, few_shot: int | None) -> tuple[str, ...]:
    """What method ``name`` changes in its recipe for data set ``data`` in a protocol; arguments as of ``configure``."""
    record = record_of(data or "")
    name_of_data = record.name if record else data or ""
    return tuple(get_method(name).overriding(name_of_data, transfer=transfer, few_shot=few_shot))


def _is_of_another(method: Method, word: str) -> bool:
    """Whether ``word`` is an option of something that ``method`` does not train."""
    group, dot, _ = _option(word).partition(".")
    return word.startswith("--") and bool(dot) and group in GROUPS and group not in method.groups


def own_words(name: str, argv: Sequence[str]) -> list[str]:
    """``argv`` without the options of what method ``name`` does not train, where they are meant for other methods."""
    method, kept, words = get_method(name), list[str](), iter([*argv, ""])
    target = _value_of("loss.target", [*method.recipe, *argv, *method.options])
    word = next(words)
    while word:
        following = next(words, "")
        if not _is_of_another(method, word) and _OF_TARGETS.get(_option(word), target) == target:
            kept.append(word)
        elif "=" not in word and following and not following.startswith("--"):
            following = next(words, "")
        word = following
    return kept


def _data_of(given: Mapping[str, Any]) -> str | None:
    """The name of the data set that the options, a config file's too, mean; that of its folder for "." and a link."""
    data = given.get("data")
    if data is None or record_of(data) is not None:
        return data
    folder = find_folder(data, given.get("data_root"))
    return Path(data).name if folder is None else folder.resolve().name


def _value_of(name: str, argv: Sequence[str]) -> str | None:
    """The value that the option ``name`` has in the words ``argv``, the last one of several."""
    found = None
    for word, following in pairwise([*argv, ""]):
        if word.startswith("--") and _option(word) == name:
            found = word.partition("=")[2] if "=" in word else following
    return found


def parse_command(argv: list[str]) -> tuple[Method, TrainConfig]:
    """The method and the configuration that the words of ``rmadapter train`` ask for.

    Without ``--method NAME`` the options are taken as they are, and what they make is one of RMAdapter's variants.

    Raises:
        InputError: beside what ``configure`` raises, an option with another value than makes the method what it is.
    """
    name, rest = _take_method(argv)
    if name is None:
        config = parse_train(rest, prog="rmadapter train", taken_before=_method_help())
        # A run's own config.yaml tells a method that no options make, such as the linear probe, by its label alone.
        labelled = METHODS.get(config.label or "", RMADAPTER)
        return (RMADAPTER if labelled.kind == TUNED else labelled), config
    method = get_method(name)
    _check_overruled(method, rest)
    return method, configure(name, rest)


def _check_overruled(method: Method, words: list[str]) -> None:
    """Raise InputError where the command line gives what makes the method another value.

    Of a config file, which may have every option, such values are said not to be taken.
    """
    prog = "rmadapter train"
    own, given = (given_options(TrainConfig, argv, prog=prog) for argv in ([*method.options], words))
    others = [
        name
        for name, value in own.items()
        if given.get(name, value) != value and not _is_of_another(method, f"--{name}")
    ]
    named = {_option(word) for word in words if word.startswith("--")}
    if "label" in named and given["label"] != method.name:
        raise InputError(
            f"label is {given['label']!r}, but a run with --method is called {method.name!r}; valid: without --label, "
            "or what makes the method as options, without --method"
        )
    for option in others:
        if option in named:
            raise InputError(
                f"{option} is {given[option]!r}, but method {method.name!r} has {own[option]!r}; valid: "
                f"{own[option]!r}, or another --method"
            )
    if others:
        values = ", ".join(f"{option} {own[option]!r}" for option in others)
        warnings.warn(
            f"{values} is what makes method {method.name!r}; the config's other values are not taken", stacklevel=3
        )


def _option(word: str) -> str:
    """The name in a word such as ``--no-adapter.reconstruct`` or ``--lr=1``."""
    return word.partition("=")[0].removeprefix("--").replace("-", "_").removeprefix("no_")


def _take_method(argv: list[str]) -> tuple[str | None, list[str]]:
    """The value of ``--method`` in a training command's words, None without it, and the other words.

    Raises:
        InputError: ``--method`` without a value.
    """
    rest: list[str] = []
    name = None
    words = iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        if option == "--method":
            name = value if equals else next(words, None)
            if name is None:
                raise InputError(f"option --method needs a value; valid: {', '.join(METHODS)}")
        else:
            rest.append(word)
    return name, rest
