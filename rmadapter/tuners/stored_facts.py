"""What every kind of stored method records of its base model, its images and its training, and the one check of it.

Everything recorded is used by whoever loads it, or its difference from what is at hand is an error. The file is JSON,
its fields those of a dataclass; what is read has the types that the class declares.
"""

from __future__ import annotations

import dataclasses
import hashlib
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

import torch
from torch import Tensor

from rmadapter.clip.identity import BaseIdentity, ModelSource, difference, tokenizer_hash, weights_dtype, weights_hash
from rmadapter.clip.structure import structure_of
from rmadapter.clip.types import ClipModel
from rmadapter.config import STREAMS, check_template
from rmadapter.config.typed import from_plain
from rmadapter.data import Preprocessing
from rmadapter.errors import InputError, check_choice, check_range
from rmadapter.files import read_json, write_json

# Format 1 did not say what the base model computes with its weights, nor which tokenizer and precision it had.
FORMAT = 2
MOST_BYTES = 16 << 20
PRECISION_OF = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
INTERPOLATIONS, RESIZE_MODES = ("bicubic", "bilinear"), ("shortest", "longest", "squash")

# What is read of how something was trained.
TRAINING: dict[str, tuple[type, ...]] = {
    "method": (str,),
    "data": (str,),
    "style": (str,),
    "data_hash": (str,),
    "classes": (str,),
    "shots": (int,),
    "seed": (int,),
    "settings": (dict,),
}

Facts = TypeVar("Facts", bound="StoredFacts")


@dataclass(frozen=True, kw_only=True)
class StoredFacts:
    """The facts beside the weights of a stored method.

    Attributes:
        source: name and pretrained tag of the base model; None where it was not known when saving.
        base: what that model is; the one at hand has to be it.
        tokenizer: ``identity.tokenizer_hash``; None where no prompts were made before saving.
        preprocessing: what images go through, in prediction as in training.
        precision: what the frozen model was stored and computed in (bf16, fp16 or fp32), for evaluation where none is
            asked for; None for another dtype.
        class_names, template: what was trained on, or None.
        training: how it was trained (method, data, residual stream, ...), for evaluation; None where it was not said.
        weights_sha256: of the weights' file, so that the two files are known to belong together.
    """

    source: ModelSource | None
    base: BaseIdentity
    tokenizer: str | None
    preprocessing: Preprocessing
    precision: str | None
    class_names: list[str] | None
    template: str | None
    training: dict[str, Any] | None
    weights_sha256: str = ""

    def __post_init__(self) -> None:
        check_range("preprocessing.size", self.preprocessing.size, 1)
        check_choice("preprocessing.interpolation", self.preprocessing.interpolation, INTERPOLATIONS)
        check_choice("preprocessing.resize_mode", self.preprocessing.resize_mode, RESIZE_MODES)
        check_choice("precision", self.precision, (*PRECISION_OF.values(), None))
        check_choice("training.residual", (self.training or {}).get("residual"), (*STREAMS, None))
        if min(self.preprocessing.std) <= 0:
            raise InputError(f"preprocessing.std is {self.preprocessing.std}; valid: numbers above 0")
        for name, kinds in TRAINING.items():
            value = (self.training or {}).get(name)
            if not isinstance(value, (*kinds, NoneType)) or (isinstance(value, bool) and bool not in kinds):
                raise InputError(f"training.{name} is {reprlib.repr(value)}; valid: {kinds[0].__name__} or null")
        if self.template is not None:
            check_template(self.template)


def identity_as_loaded(clip: ClipModel, loaded: str | None) -> BaseIdentity:
    """What ``clip`` is, and was before it was stored in 16 bits where ``loaded``, its hash at that time, is given."""
    if loaded is not None:  # by ``load_backbone``, which loads in fp32
        return BaseIdentity(loaded, "float32", structure_of(clip))
    return BaseIdentity(weights_hash(clip), weights_dtype(clip), structure_of(clip))


def precision_of(clip: ClipModel) -> str | None:
    """The precision that ``clip`` is stored in, by its first matrix; None for another dtype."""
    dtype = next((p.dtype for name, p in clip.named_parameters() if name.endswith("weight") and p.dim() > 1), None)
    return None if dtype is None else PRECISION_OF.get(dtype)


def write_facts(file: Path, facts: StoredFacts, weights: Path) -> None:
    """``facts`` as JSON in ``file``, with the hash of the file of ``weights``."""
    values = dataclasses.asdict(dataclasses.replace(facts, weights_sha256=file_hash(weights)))
    write_json(file, {"format": FORMAT, **values})


def read_facts(
    kind: type[Facts], file: Path, what: str, as_now: Callable[[dict[str, Any]], dict[str, Any]] | None = None
) -> Facts:
    """The facts in ``file``; ``what`` names its role in messages, ``as_now`` makes today's fields of earlier ones.

    Raises:
        InputError: no such file, damaged JSON, another format, a field that is missing, unknown or of another type.
    """
    values: Any = read_json(file, f"{what} file", limit=MOST_BYTES)
    number = values.pop("format", None) if isinstance(values, dict) else None
    if not isinstance(number, int) or isinstance(number, bool):
        raise InputError(f"{file} is no {what} configuration: it has no format number")
    if number > FORMAT:
        raise InputError(
            f"{file} has format {number}, newer than {FORMAT}, the newest this version reads; update rmadapter"
        )
    if number < FORMAT:
        raise InputError(
            f"{file} has format {number}, which does not say all that {FORMAT} does of the base model; train it again"
        )
    try:
        return from_plain(kind, values if as_now is None else as_now(values), what)
    except InputError as error:
        raise InputError(f"{file} is damaged: {error}") from error


def check_weights_file(weights: Path, file: Path, facts: StoredFacts) -> None:
    """Raise InputError unless ``weights`` is the file that ``file``, which holds ``facts``, was written with."""
    if file_hash(weights) != facts.weights_sha256:
        raise InputError(f"{weights} is not the file that {file.name} was written with; save the adapter again")


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_facts(
    facts: StoredFacts,
    what: str,
    clip: ClipModel,
    *,
    loaded: str | None = None,
    tokenizer: Callable[..., Tensor] | None = None,
) -> None:
    """The one check that what is at hand is what was recorded.

    Args:
        facts: as recorded.
        what: whose they are, in messages: "the adapter in flowers".
        clip: the base model at hand.
        loaded: the hash of its weights as they were loaded, where they are stored otherwise by now.
        tokenizer: the one at hand; None where there is none yet.

    Raises:
        InputError: the base model differs in structure or weights, or the tokenizer; the message names the field, both
            values and the remedy.
    """
    remedy = f"valid: the base model that it was trained on, {facts.source or 'which was not named'}"
    found = difference(facts.base, identity_as_loaded(clip, loaded))
    if found is not None:
        name, was, now = found
        if name == "dtype of the weights":
            remedy = f"valid: the model in {was} as it was loaded; cast it (half(), bfloat16()) after the adapter is in"
        elif name == "hash of the weights":
            was, now = was[:12], now[:12]
        raise InputError(
            f"{what} belongs to another base model: {name} is {was!r} in its record, {now!r} in this model; {remedy}"
        )
    sides = getattr(clip.visual, "image_size", facts.preprocessing.size)
    if facts.preprocessing.size not in (sides if isinstance(sides, (tuple, list)) else (sides,)):
        raise InputError(f"{what} has preprocessing.size {facts.preprocessing.size}, its base model takes {sides}")
    if tokenizer is not None:
        check_tokenizer(facts.tokenizer, tokenizer, what)


def check_tokenizer(recorded: str | None, tokenizer: Callable[..., Tensor], what: str) -> None:
    """Raise InputError where ``tokenizer`` encodes otherwise than the one ``recorded``, if one is."""
    if recorded is not None and (found := tokenizer_hash(tokenizer)) != recorded:
        raise InputError(
            f"{what} was trained with another tokenizer: its hash is {recorded!r} in the record, {found!r} here; "
            "valid: open_clip.get_tokenizer of the base model's name"
        )
