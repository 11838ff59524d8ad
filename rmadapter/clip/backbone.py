"""Base models by name: open_clip's loading, with errors that help."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import download_pretrained_from_hf, get_pretrained_cfg
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH
from torch import Tensor, nn

from rmadapter.clip.emoji_clip import load_bundled
from rmadapter.clip.finite import check_base_weights
from rmadapter.clip.identity import ModelSource, base_hash
from rmadapter.clip.known_bases import remember
from rmadapter.clip.names import HUB, LOCAL, MODEL, RANDOM, brings_weights
from rmadapter.clip.own_config import read_config
from rmadapter.clip.stand_in_tokenizer import StandInTokenizer
from rmadapter.clip.types import ClipModel
from rmadapter.clip.undrawn import built
from rmadapter.clip.weights_file import PICKLED, readable_weights
from rmadapter.data import Preprocessing
from rmadapter.errors import InputError, check_choice, nearest

# Random weights are drawn from this seed, so that a run on them can be evaluated by name too.
RANDOM_WEIGHTS_SEED = 0

# Of an error of open_clip's libraries, some of which list every tensor.
MOST_SAID = 500

# What a local-dir: folder holds.
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"


@dataclass(frozen=True)
class Backbone:
    """A base model and what belongs to it.

    Attributes:
        clip: the open_clip model, frozen.
        tokenizer: open_clip's for it.
        preprocessing: what its images go through.
        source: what it was made from.
        weights_hash: ``identity.weights_hash`` of the weights as loaded, where they are stored otherwise by now; None
            where they are still those.
    """

    clip: ClipModel
    tokenizer: Callable[..., Tensor]
    preprocessing: Preprocessing
    source: ModelSource
    weights_hash: str | None = None

    @property
    def base_hash(self) -> str:
        """One hash of the weights as they were loaded and of the structure; it takes a second for a large model."""
        return base_hash(self.clip, self.weights_hash)


def load_backbone(name: str, pretrained: str | None = None, device: torch.device | str = "cpu") -> Backbone:
    """An open_clip model in fp32.

    Args:
        name: one of ``open_clip.list_models()``, ``local-dir:FOLDER`` / ``hf-hub:ORG/NAME``, or the bundled
            ``emoji-clip``.
        pretrained: tag of ``open_clip.list_pretrained_tags_by_model(name)`` or a weights file; "none": random weights
            from a fixed seed, with a warning; None for models that bring their weights.

    Raises:
        InputError: unknown name or tag (with the nearest match), no weights named, weights that cannot be had or read
            or that are not finite, a configuration that asks for what it may not (``own_config``).
    """
    check_source(name, pretrained)
    if pretrained == RANDOM:
        warnings.warn(f"{name} with --pretrained {RANDOM} has random weights", stacklevel=2)
    try:
        if name == MODEL:
            clip, tokenizer = load_bundled()
        elif name.startswith(LOCAL):
            clip, tokenizer = _from_folder(Path(name.removeprefix(LOCAL)))
        elif name.startswith(HUB):
            clip, tokenizer = _from_hub(name)
        else:
            clip, tokenizer = _by_name(name, pretrained)
    except InputError:
        raise
    except Exception as error:  # open_clip raises whatever its file and hub libraries raise
        said = " ".join(str(error).split())[:MOST_SAID] or type(error).__name__
        if "weights_only" in str(error):  # torch's advice is to switch its check off
            said = f"its weights file {PICKLED}"
        elif isinstance(error, EOFError):
            said = "its weights file is empty or cut off; valid: a whole one, download it again"
        raise InputError(f"model {name!r} with pretrained {pretrained!r} cannot be loaded: {said}") from error
    clip = clip.to(device).eval().requires_grad_(False)
    check_base_weights(clip)
    source = ModelSource(name, pretrained)
    remember(source)
    return Backbone(clip, tokenizer, Preprocessing.of(clip), source)


def check_source(name: str, pretrained: str | None) -> None:
    """What can be known of a model's name and weights without loading them.

    Raises:
        InputError: a name that open_clip does not know, weights that are neither a tag of it nor a file, none named
            where the model does not bring its own; the message names the nearest, or the valid ones.
    """
    scheme, colon, place = name.partition(":")
    if colon:
        check_choice("scheme of model", scheme, (LOCAL[:-1], HUB[:-1]))
    elif name.replace("/", "-") not in (models := [*open_clip.list_models(), MODEL]):
        raise InputError(
            f"model is {name!r}, which open_clip does not know{nearest(name, models)}; "
            f"valid: one of open_clip.list_models() ({len(models) - 1}), {MODEL}, {LOCAL}FOLDER or {HUB}ORG/NAME"
        )
    if brings_weights(name):
        if pretrained is not None:
            raise InputError(f"pretrained is {pretrained!r}, but model {name!r} brings its own weights")
        for file in (OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS) if name.startswith(LOCAL) else ():
            if not (Path(place) / file).is_file():
                raise InputError(f"model is {name!r}, where there is no {file}")
        return
    tags = open_clip.list_pretrained_tags_by_model(name.replace("/", "-"))
    if pretrained is None:
        some = f"one of its {len(tags)} tags, such as {', '.join(tags[:3])}, " if tags else ""
        raise InputError(
            f"pretrained is None, which is random weights for {name}; valid: --pretrained {some}a weights file, or "
            f"{RANDOM}, which insists on random ones"
        )
    # Of a name that ends in "-quickgelu" the tags are those alone whose weights want QuickGELU.
    if pretrained != RANDOM and pretrained not in tags and not Path(pretrained).is_file():
        raise InputError(
            f"pretrained is {pretrained!r}, neither a file nor a tag of {name}{nearest(pretrained, tags)}; "
            f"valid: {', '.join(tags) or 'no tags'}, a file, {RANDOM}"
        )


def _by_name(name: str, pretrained: str | None) -> tuple[nn.Module, Callable[..., Tensor]]:
    """A model that open_clip knows, with the weights of a tag, of a file or of the seed."""
    name = name.replace("/", "-")
    tag = get_pretrained_cfg(name, pretrained) if pretrained else {}
    with contextlib.ExitStack() as files:
        files.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(RANDOM_WEIGHTS_SEED)
        if pretrained not in (None, RANDOM) and not tag:
            _warn_of_activation(name, pretrained)
            pretrained = str(files.enter_context(readable_weights(Path(pretrained))))
        # open_clip builds "ViT-B-16" with GELU for every tag and only warns where the tag's weights, as OpenAI's, were
        # trained with the other one.
        options = {
            "pretrained": None if pretrained == RANDOM else pretrained,
            "force_quick_gelu": bool(tag.get("quick_gelu")),
        }
        make = functools.partial(open_clip.create_model, name, **options)
        clip = make() if options["pretrained"] is None else built(make)
    text = (open_clip.get_model_config(name) or {})["text_cfg"]
    try:
        return clip, _tokenizer(name, text)
    except Exception as error:
        if pretrained != RANDOM or not text.get("hf_tokenizer_name"):
            raise
        warnings.warn(
            f"the tokenizer of {name} cannot be had ({type(error).__name__}); random weights take a stand-in",
            stacklevel=3,
        )
        text_tower: Any = getattr(clip, "text", clip)
        pad = getattr(getattr(text_tower, "config", text_tower), "pad_token_id", getattr(text_tower, "pad_id", 0))
        return clip, StandInTokenizer(text, pad, text.get("context_length") or DEFAULT_CONTEXT_LENGTH)


def _warn_of_activation(name: str, file: str | None) -> None:
    """A file does not say which activation its weights were trained with, and some models have both."""
    twin = f"{name}-quickgelu"
    if twin in open_clip.list_models():
        warnings.warn(
            f"{file} does not say whether its weights were trained with GELU, which {name} runs them with, or with "
            f"QuickGELU, as OpenAI's were: --model {twin}",
            stacklevel=3,
        )


def _from_folder(folder: Path) -> tuple[nn.Module, Callable[..., Tensor]]:
    """Model and tokenizer of a folder in the layout of open_clip's ``local-dir:``, which open_clip has from 3.0 on.

    The folder's architecture is entered into open_clip's registry under a name of its own, which all versions have.
    """
    config = read_config(folder / OPEN_CLIP_CONFIG)
    architecture = config["model_cfg"]
    if architecture["text_cfg"].get("hf_tokenizer_name"):
        architecture["text_cfg"]["hf_tokenizer_name"] = str(folder)  # its files lie beside the weights
    text = json.dumps(architecture, sort_keys=True)
    name = f"local-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    with tempfile.TemporaryDirectory() as registered:
        (Path(registered) / f"{name}.json").write_text(text)
        open_clip.add_model_config(registered)
    with readable_weights(folder / OPEN_CLIP_WEIGHTS) as weights:
        options = {"pretrained": str(weights), "force_preprocess_cfg": config.get("preprocess_cfg")}
        clip = built(functools.partial(open_clip.create_model, name, **options))
    return clip, _tokenizer(name, architecture["text_cfg"])


def _from_hub(name: str) -> tuple[nn.Module, Callable[..., Tensor]]:
    """Model and tokenizer of a repository of the Hugging Face hub."""
    repository = name.removeprefix(HUB)
    config = read_config(Path(download_pretrained_from_hf(repository, filename=OPEN_CLIP_CONFIG)), repository)
    clip = built(functools.partial(open_clip.create_model, name, require_pretrained=True))
    return clip, _tokenizer(name, config["model_cfg"]["text_cfg"])


def _tokenizer(name: str, text: dict[str, Any]) -> Callable[..., Tensor]:
    """open_clip's for ``name``, whose text tower is ``text``; no tokenizer brings code of its own."""
    # Without it, transformers asks at the terminal whether to run a repository's code.
    refused = {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}
    return open_clip.get_tokenizer(name, **refused)
