"""Files of weights as people have them, made into what open_clip loads, without running anything in them."""

from __future__ import annotations

import contextlib
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rmadapter.errors import InputError

# Where training programs keep the weights in what they save, the likeliest first.
NESTS = ("state_dict", "model", "model_state_dict", "module")
# What wrappers (DataParallel, torch.compile, Lightning) put before every name.
PREFIXES = ("module.", "_orig_mod.", "model.", "clip.")
# No weights: OpenAI's archives keep them among their buffers.
NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
PICKLED = (
    "holds Python objects beside tensors, which are not read, since they can run code; valid: the weights alone, in "
    "the program that wrote it: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
)


@contextlib.contextmanager
def readable_weights(path: Path) -> Iterator[Path]:
    """A file with the weights in ``path`` that open_clip reads: ``path`` itself, or a temporary one.

    Read are safetensors, PyTorch's own files and big_vision's arrays; weights inside a training's checkpoint are found
    in it, and wrappers' prefixes are taken off.

    Raises:
        InputError: an empty or damaged file, a TorchScript archive, Python objects; the message says the way round.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"weights file {path} cannot be read: {error.strerror}") from error
    if not size:
        raise InputError(f"weights file {path} is empty (0 bytes); valid: a whole one, download it again")
    if path.suffix in (".npz", ".npy"):
        yield path
        return
    found = _safetensors(path) if path.suffix == ".safetensors" else _pytorch(path)
    prefix = _prefix(found.names)
    if not (found.nested or prefix or set(found.names) & set(NO_WEIGHTS)):
        yield path
        return
    # Copies: what a file shares between names, or maps into memory, cannot be written as it is.
    state = {name.removeprefix(prefix): tensor.clone().contiguous() for name, tensor in found.read().items()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        save_file({name: tensor for name, tensor in state.items() if name not in NO_WEIGHTS}, file)
        yield file


class _Found(NamedTuple):
    """The names of the weights in a file, whether they lie in an entry of it, and what reads them."""

    names: list[str]
    nested: bool
    read: Callable[[], Mapping[str, Tensor]]


def _safetensors(path: Path) -> _Found:
    try:
        with safe_open(path, framework="pt") as file:
            return _Found(list(file.keys()), False, lambda: load_file(path))
    except (SafetensorError, OSError) as error:
        raise InputError(f"weights file {path} is damaged: {error}") from error


def _pytorch(path: Path) -> _Found:
    zipped = zipfile.is_zipfile(path)
    if zipped:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise InputError(_torchscript(path))
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # of the zip file, of the pickle in it, of torch's check of what the pickle asks for
        raise InputError(f"weights file {path} {_refusal(error)}") from None
    weights = _weights_in(held, path)
    return _Found(list(weights), weights is not held, lambda: weights)


def _refusal(error: Exception) -> str:
    """What is said of a file that torch does not load; torch's own message says how to switch its check off."""
    if unsupported := re.search(r"Unsupported \w+: (?:GLOBAL )?(\S+)", str(error)):
        return f"{PICKLED} (it holds {unsupported[1]})"
    reason = re.search(r"WeightsUnpickler error: (.*)", str(error))
    first = reason[1] if reason else (str(error) or type(error).__name__).splitlines()[0]
    return f"is damaged, or no file of weights: {first}"


def _torchscript(path: Path) -> str:
    return (
        f"weights file {path} is a TorchScript archive, as OpenAI published its CLIP; it is a program, and is not run. "
        "Valid: --pretrained openai, the same weights from open_clip; or, of an archive that you trust, its weights "
        f"alone: python -c \"import torch, safetensors.torch as s; s.save_file(torch.jit.load('{path.name}', 'cpu')"
        f".state_dict(), '{path.stem}.safetensors')\", then --model with the name that ends in -quickgelu, as OpenAI's "
        "weights need it"
    )


def _is_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def _weights_in(held: Any, path: Path) -> Mapping[str, Tensor]:
    """The weights in what a file holds: itself, or one of its entries."""
    if _is_weights(held):
        return held
    nests = {name: value for name, value in held.items() if _is_weights(value)} if isinstance(held, Mapping) else {}
    chosen = next((name for name in NESTS if name in nests), None) or (next(iter(nests)) if len(nests) == 1 else None)
    if chosen is None:
        holds = ", ".join(map(repr, list(held)[:5])) if isinstance(held, Mapping) else f"a {type(held).__name__}"
        raise InputError(
            f"weights file {path} holds {holds}; valid: tensors by name, or one entry with them, such as 'state_dict'"
        )
    return nests[chosen]


def _prefix(names: list[str]) -> str:
    """What wrappers have put before every one of ``names``."""
    found = ""
    while prefix := next((p for p in PREFIXES if all(name.startswith(found + p) for name in names)), ""):
        found += prefix
    return found
