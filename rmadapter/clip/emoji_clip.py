"""The bundled small CLIP, ``emoji-clip``: its architecture, its files, and a model with its weights.

The weights are kept in half precision and without the 47,800 rows of the token embedding that no class name, no
template and no word the model was pretrained on needs. Those rows come from a fixed seed and mean nothing:
``untrained_words`` says which words of a text they stand for.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable
from typing import Any

import open_clip
import torch
from safetensors.torch import load
from torch import Tensor, nn
from torchvision.transforms import functional

from rmadapter.clip.names import MODEL
from rmadapter.clip.undrawn import built
from rmadapter.data.emoji.atlas import SIDE, read_bundled

WEIGHTS, CONFIG = f"{MODEL}.safetensors", f"{MODEL}.json"
EMBEDDING = "token_embedding.weight"
ROWS, INDEX = "token_embedding.rows", "token_embedding.index"
UNTRAINED_SEED = 0
# With open_clip's 0.02 all captions have nearly the same features at first, and training stays on its plateau.
EMBEDDING_STD = 1.0

# 17 image tokens, so that a training run takes seconds; with patches of 8 pixels there are 37 and it takes twice that.
ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"layers": 4, "width": 160, "head_width": 32, "patch_size": 12, "image_size": SIDE},
    "text_cfg": {"layers": 4, "width": 96, "heads": 3, "context_length": 77, "vocab_size": 49408},
}
PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic", "resize_mode": "shortest"}


def tokenizer() -> open_clip.SimpleTokenizer:
    """open_clip's own."""
    return open_clip.SimpleTokenizer(context_length=ARCHITECTURE["text_cfg"]["context_length"])


def new_model(vocabulary: int) -> open_clip.CLIP:
    """Random weights from torch's global generator, for ``vocabulary`` tokens."""
    config = copy.deepcopy(ARCHITECTURE)
    config["text_cfg"]["vocab_size"] = vocabulary
    model = open_clip.CLIP(**config)
    nn.init.normal_(model.token_embedding.weight, std=EMBEDDING_STD)
    return model


def normalize(pictures: Tensor) -> Tensor:
    """What the image tower takes, of ``pictures`` [n, 3, side, side] from 0 to 1."""
    return functional.normalize(pictures, PREPROCESS["mean"], PREPROCESS["std"])


def pack(state: dict[str, Tensor], used: Tensor) -> dict[str, Tensor]:
    """The bundled file's tensors, of a model whose vocabulary is the sorted tokens ``used`` [n] alone."""
    packed = {name: tensor.half().contiguous() for name, tensor in state.items() if name != EMBEDDING}
    packed["logit_scale"] = state["logit_scale"].float()
    return {**packed, ROWS: state[EMBEDDING].half().contiguous(), INDEX: used.to(torch.int32)}


def unpack(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the whole model in fp32; rows of the token embedding that are not there from a fixed seed."""
    state = {name: tensor.float() for name, tensor in packed.items() if name not in (ROWS, INDEX)}
    generator = torch.Generator().manual_seed(UNTRAINED_SEED)
    shape = (ARCHITECTURE["text_cfg"]["vocab_size"], ARCHITECTURE["text_cfg"]["width"])
    rows = torch.randn(shape, generator=generator) * EMBEDDING_STD
    rows[packed[INDEX].long()] = packed[ROWS].float()
    return {**state, EMBEDDING: rows}


def load_bundled() -> tuple[nn.Module, Callable[..., Tensor]]:
    """The pretrained model in fp32 and its tokenizer.

    Raises:
        InputError: a file is missing or damaged, its hash named.
    """
    return build(json.loads(read_bundled(CONFIG)), load(read_bundled(WEIGHTS))), tokenizer()


def build(config: dict[str, Any], packed: dict[str, Tensor]) -> nn.Module:
    """The model of ``config``, in open_clip's own format, with the weights that ``pack`` made."""
    state = unpack(packed)

    def loaded() -> nn.Module:
        model = open_clip.CLIP(**config["model_cfg"])
        model.load_state_dict(state)
        return model

    with torch.random.fork_rng(devices=[]):
        model = built(loaded)
    open_clip.model.set_model_preprocess_cfg(model, {"size": SIDE, **config["preprocess_cfg"]})
    return model


def untrained_words(texts: Iterable[str]) -> list[str]:
    """The words of ``texts``, in order and once each, of which a token was not in the small CLIP's pretraining."""
    trained = set(load(read_bundled(WEIGHTS))[INDEX].tolist())
    encode = tokenizer().encode
    words = dict.fromkeys(word for text in texts for word in text.lower().split())
    return [word for word in words if not trained.issuperset(encode(word))]
