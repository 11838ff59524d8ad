"""Base models by name: open_clip's loading with errors that help, and the hash that identifies the weights."""

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
from open_clip.transformer import Attention, AttentionalPooler, LayerNorm, LayerNormFp32, LayerScale
from torch import Tensor, nn

from rmadapter.data import Preprocessing
from rmadapter.errors import InputError, check_choice, nearest
from rmadapter.injection import CHILD, ModelSource
from rmadapter.testbed import MODEL
from rmadapter.testbed.clip import load_bundled

# Random weights are drawn from this seed, so that a run without --pretrained can be evaluated by name too.
RANDOM_WEIGHTS_SEED = 0

# What a local-dir: folder holds.
CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"

# Parameters that are stored in the compute dtype, by the class of their module; what is not named stays fp32.
STORED = (
    ((nn.Linear, nn.Conv2d), ("weight", "bias")),
    (nn.MultiheadAttention, ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias")),
    (Attention, ("in_proj_weight", "in_proj_bias", "head_scale", "logit_scale")),
    (AttentionalPooler, ("query",)),
    (LayerScale, ("gamma",)),
)


@dataclass(frozen=True)
class Backbone:
    """A base model and what belongs to it."""

    clip: nn.Module
    tokenizer: Callable[..., Tensor]
    preprocessing: Preprocessing
    source: ModelSource


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
        for file in (CONFIG_FILE, WEIGHTS_FILE) if scheme == "local-dir" else ():
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
    config = json.loads((folder / CONFIG_FILE).read_text())
    architecture = config["model_cfg"]
    if architecture["text_cfg"].get("hf_tokenizer_name"):
        architecture["text_cfg"]["hf_tokenizer_name"] = str(folder)  # its files lie beside the weights
    text = json.dumps(architecture, sort_keys=True)
    name = f"local-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    with tempfile.TemporaryDirectory() as registered:
        (Path(registered) / f"{name}.json").write_text(text)
        open_clip.add_model_config(registered)
    clip = open_clip.create_model(
        name, pretrained=str(folder / WEIGHTS_FILE), force_preprocess_cfg=config.get("preprocess_cfg")
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


def store_backbone(clip: nn.Module, dtype: torch.dtype) -> None:
    """Keep the frozen weights in ``dtype`` from now on, in place: bf16, fp16 or fp32 (which changes nothing).

    As in open_clip's own precision modes the matrices are stored in it, while norms and embeddings stay fp32 and
    LayerNorms compute in fp32. Scales inside blocks go with the matrices, or they would make the stream fp32.
    Autocast in place of it casts every frozen weight again at each call: 16 images through ViT-B/16 took 5.6 s under
    it and 0.79 s with bf16 weights (2 cores with AVX512_BF16; fp32: 3.1 s).
    """
    if dtype == torch.float32:
        return
    clip.loaded_hash = base_hash(clip)
    clip.stored_dtype = dtype
    for module in clip.modules():
        names = next((names for kinds, names in STORED if isinstance(module, kinds)), ("text_projection", "proj"))
        for name in names:
            parameter = getattr(module, name, None)
            if isinstance(parameter, nn.Parameter):
                parameter.data = parameter.data.to(dtype)
        if type(module) is LayerNorm:
            module.__class__ = LayerNormFp32  # the same parameters; F.layer_norm on CUDA takes one dtype alone


def base_hash(clip: nn.Module) -> str:
    """SHA-256 over name, dtype, shape and bytes of the base model's state dict as loaded, adapters left out."""
    if (loaded := getattr(clip, "loaded_hash", None)) is not None:
        return loaded
    digest = hashlib.sha256()
    for name, tensor in sorted(clip.state_dict().items()):
        if f".{CHILD}." not in name:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def uses_quick_gelu(clip: nn.Module) -> bool:
    """Whether the model's activation is QuickGELU, as in OpenAI's weights; the same weights need the same one."""
    return any(type(module).__name__ == "QuickGELU" for module in clip.modules())
