"""Base models by name: open_clip's loading, with errors that help."""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg
from torch import Tensor, nn

from rmadapter.clip.emoji_clip import load_bundled
from rmadapter.clip.identity import ModelSource, base_hash
from rmadapter.clip.names import MODEL
from rmadapter.clip.types import ClipModel
from rmadapter.data import Preprocessing
from rmadapter.errors import InputError, check_choice, nearest

# Random weights are drawn from this seed, so that a run without --pretrained can be evaluated by name too.
RANDOM_WEIGHTS_SEED = 0

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
        weights_hash: ``identity.base_hash`` of the weights as loaded, where they are stored otherwise by now; None
            where they are still those.
    """

    clip: ClipModel
    tokenizer: Callable[..., Tensor]
    preprocessing: Preprocessing
    source: ModelSource
    weights_hash: str | None = None

    @property
    def base_hash(self) -> str:
        """The hash of the weights as they were loaded; hashing takes a second for a large model."""
        return self.weights_hash or base_hash(self.clip)


def load_backbone(name: str, pretrained: str | None = None, device: torch.device | str = "cpu") -> Backbone:
    """An open_clip model in fp32.

    Args:
        name: one of ``open_clip.list_models()``, ``local-dir:FOLDER`` / ``hf-hub:ORG/NAME``, or the bundled
            ``emoji-clip``.
        pretrained: tag of ``open_clip.list_pretrained_tags_by_model(name)`` or a weights file; None: random
            weights from a fixed seed, with a warning.

    Raises:
        InputError: unknown name or tag (with the nearest match), weights that cannot be had or read.
    """
    scheme = name.partition(":")[0] if ":" in name else None
    if name == MODEL:
        if pretrained is not None:
            raise InputError(f"pretrained is {pretrained!r}, but model {name!r} brings its own weights")
        clip, tokenizer = load_bundled()
        clip = clip.to(device).eval().requires_grad_(False)
        return Backbone(clip, tokenizer, Preprocessing.of(clip), ModelSource(name))
    if scheme is None:
        check_name(name, pretrained)
        if pretrained is None:
            tags = _tags(name)
            warnings.warn(
                f"{name} without --pretrained has random weights; it has {len(tags)} pretrained tags"
                + (f", such as {', '.join(tags[:3])}" if tags else ""),
                stacklevel=2,
            )
    else:
        check_choice("scheme of model", scheme, ("local-dir", "hf-hub"))
        if pretrained is not None:
            raise InputError(f"pretrained is {pretrained!r}, but model {name!r} brings its own weights")
        for file in (OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS) if scheme == "local-dir" else ():
            if not (Path(name.partition(":")[2]) / file).is_file():
                raise InputError(f"model is {name!r}, where there is no {file}")
    try:
        if scheme == "local-dir":
            clip, tokenizer = _from_folder(Path(name.partition(":")[2]))
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(RANDOM_WEIGHTS_SEED)
                clip = open_clip.create_model(
                    name,
                    pretrained=pretrained,
                    force_quick_gelu=_wants_quick_gelu(name, pretrained),
                    require_pretrained=scheme is not None,
                )
            tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # open_clip raises whatever its file and hub libraries raise
        raise InputError(f"model {name!r} with pretrained {pretrained!r} cannot be loaded: {error}") from error
    clip = clip.to(device).eval().requires_grad_(False)
    return Backbone(clip, tokenizer, Preprocessing.of(clip), ModelSource(name, pretrained))


def _wants_quick_gelu(name: str, pretrained: str | None) -> bool:
    """Whether weights of this tag were trained with QuickGELU, as OpenAI's were.

    open_clip builds "ViT-B-16" with GELU for every tag and only warns where the tag's weights want the other one.
    """
    return pretrained is not None and bool(get_pretrained_cfg(name.replace("/", "-"), pretrained).get("quick_gelu"))


def _tags(name: str) -> list[str]:
    """The pretrained tags of ``name``; of a name that ends in "-quickgelu" those alone whose weights want QuickGELU."""
    return open_clip.list_pretrained_tags_by_model(name.replace("/", "-"))


def _from_folder(folder: Path) -> tuple[nn.Module, Callable[..., Tensor]]:
    """Model and tokenizer of a folder in the layout of open_clip's ``local-dir:``, which open_clip has from 3.0 on.

    The folder's architecture is entered into open_clip's registry under a name of its own, which all versions have.
    """
    config = json.loads((folder / OPEN_CLIP_CONFIG).read_text())
    architecture = config["model_cfg"]
    if architecture["text_cfg"].get("hf_tokenizer_name"):
        architecture["text_cfg"]["hf_tokenizer_name"] = str(folder)  # its files lie beside the weights
    text = json.dumps(architecture, sort_keys=True)
    name = f"local-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    with tempfile.TemporaryDirectory() as registered:
        (Path(registered) / f"{name}.json").write_text(text)
        open_clip.add_model_config(registered)
    clip = open_clip.create_model(
        name, pretrained=str(folder / OPEN_CLIP_WEIGHTS), force_preprocess_cfg=config.get("preprocess_cfg")
    )
    return clip, open_clip.get_tokenizer(name)


def check_name(name: str, pretrained: str | None) -> None:
    """Raise InputError where open_clip knows no model ``name``, or ``pretrained`` is neither a tag of it nor a file."""
    models = [*open_clip.list_models(), MODEL]
    if name.replace("/", "-") not in models:
        raise InputError(
            f"model is {name!r}, which open_clip does not know{nearest(name, models)}; "
            f"valid: one of open_clip.list_models() ({len(models) - 1}), {MODEL}, local-dir:FOLDER or hf-hub:ORG/NAME"
        )
    tags = _tags(name)
    if pretrained is not None and pretrained not in tags and not Path(pretrained).is_file():
        raise InputError(
            f"pretrained is {pretrained!r}, neither a file nor a tag of {name}{nearest(pretrained, tags)}; "
            f"valid: {', '.join(tags) or 'no tags, a file'}"
        )
