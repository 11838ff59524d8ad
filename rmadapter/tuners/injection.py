"""What is to be trained, put into a frozen open_clip model.

An adapter is a child module of its transformer block and one forward hook on the block adds its term:

    block(x) -> output          becomes          output + scale * base(ln_1(x))

``tuners.block_adapter`` has the module and the hook. Everything else is a ``Tuner`` and enters by the hooks of
``tuners.installed``. ``tuners.adapted_clip`` has what is done with all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmadapter.clip.finite import check_base_weights
from rmadapter.clip.handed import check_handed
from rmadapter.clip.identity import ModelSource
from rmadapter.clip.prompts import check_start, first_words, words_of
from rmadapter.clip.tower_kind import CHILD, Tower, at_path
from rmadapter.clip.towers import find_towers
from rmadapter.clip.types import ClipModel
from rmadapter.config import TOWERS, RMAdapterConfig, TunerConfig, layer_numbers
from rmadapter.errors import InputError
from rmadapter.tuners.adapted_clip import AdaptedCLIP
from rmadapter.tuners.adapter_file import read_info, stored_rows
from rmadapter.tuners.block_adapter import BlockAdapter, adapter_hook
from rmadapter.tuners.installed import is_entered
from rmadapter.tuners.making import make_tuners
from rmadapter.tuners.prompt_tokens import check_text_tokens
from rmadapter.tuners.stored_facts import check_facts
from rmadapter.tuners.variants import SharedLayer, VariantAdapter
from rmadapter_kernels import FusedRMAdapter

TRAINED = torch.float32  # of trained weights, whatever torch's default dtype and the model's are


def inject(
    clip: ClipModel,
    config: RMAdapterConfig | TunerConfig | None = None,
    *,
    source: ModelSource | None = None,
    weights_hash: str | None = None,
    seed: int | None = None,
    tokenizer: Callable[..., Tensor] | None = None,
    template: str | None = None,
    class_names: Sequence[str] | None = None,
    cached_images: int = 0,
) -> AdaptedCLIP:
    """Freeze ``clip`` and put into it what is to be trained, in place.

    Args:
        clip: an open_clip CLIP model with two transformer towers, any device and floating dtype.
        config: the adapters, or all that is trained; default ``RMAdapterConfig()``.
        source: name and pretrained tag of ``clip``, kept in adapter files so that they can be loaded by name.
        weights_hash: ``Backbone.weights_hash``, where ``clip`` was stored in another dtype than it was loaded in.
        seed: of the trained weights, see ``AdaptedCLIP.reset_adapters``; None: one from torch's global generator.
        tokenizer: for learned tokens that begin as words.
        template: the prompt that these words are the first of.
        class_names: those that it is to be trained on, for what each class has of its own.
        cached_images: how many images a cache is to keep.

    Trained weights are fp32 on the model's device.

    Raises:
        InputError: no CLIP model (what was handed over is said), a tower that is no transformer, weights that are not
            finite, a layer outside its tower, adapters there already, nothing to train, what a tuner needs and is not
            given.
    """
    check_handed(clip)
    tuned = config if isinstance(config, TunerConfig) else TunerConfig(adapter=config or RMAdapterConfig())
    words = None
    if tuned.prompt.text_tokens and tuned.prompt.init != "random":
        init, count = tuned.prompt.init, tuned.prompt.text_tokens
        if tokenizer is None or template is None:
            raise InputError(
                f"prompt.init is {init!r}, which needs tokenizer and template; valid: with both, or prompt.init random"
            )
        text = find_towers(clip)["text"]
        check_text_tokens("prompt.text_tokens", text)
        check_start(tokenizer)
        table = at_path(text.root, text.kind.words).weight.detach()
        if init == "words":
            words = table[first_words(clip, tokenizer, template, count).to(table.device)]
        else:
            last = table[words_of(clip, tokenizer, template, count).to(table.device)]
            words = torch.cat([last.new_zeros(count - len(last), last.shape[1]), last])
    seed = int(torch.randint(2**62, ())) if seed is None else seed
    model = _put_in(clip, tuned, source, weights_hash, words, class_names, cached_images)
    model.reset_adapters(seed)
    return model


def _put_in(
    clip: ClipModel,
    tuned: TunerConfig,
    source: ModelSource | None,
    weights_hash: str | None,
    words: Tensor | None,
    class_names: Sequence[str] | None,
    cached_images: int,
) -> AdaptedCLIP:
    """``inject`` before the weights are drawn."""
    config = tuned.adapter
    towers = find_towers(clip)
    if any(hasattr(block, CHILD) for tower in towers.values() for block in tower.blocks) or is_entered(clip):
        raise InputError("this model has adapters already; take them out with remove() first")
    layers = {
        name: layer_numbers(config.tower(name).layers, tower.depth, f"adapter layers of the {name} tower")
        for name, tower in towers.items()
    }
    if not any(layers.values()) and not tuned.others:
        raise InputError("adapter.layers leaves both towers without an adapter; valid: layers in at least one tower")
    for name, tower in towers.items():
        dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in tower.blocks.parameters() if p.dim() == 2})
        if len(dtypes) > 1:
            listed = " and ".join(dtypes)
            raise InputError(f"the {name} tower's blocks have matrices in {listed}; valid: all in one dtype")
    check_base_weights(clip)
    clip.requires_grad_(False)
    device = next(clip.parameters()).device
    with torch.random.fork_rng(devices=[]):  # what the modules draw when they are made is drawn anew
        tuners = make_tuners(clip, tuned, words, class_names, cached_images)
        # The towers' adapted blocks are paired from the last one; where one tower has more, its first have no partner.
        pairs = max(map(len, layers.values())) if config.shared_layer else 0
        shared = [SharedLayer(config.tower("vision").bottleneck) for _ in range(pairs)]
        for name in TOWERS:
            for index, layer in enumerate(layers[name]):
                pair = shared[index - len(layers[name])] if shared else None
                branch = _make_branch(towers[name], config, name, pair)
                norm_name = towers[name].kind.norm if config.adapter_input == "ln_1" else None
                block = towers[name].blocks[layer - 1]
                setattr(block, CHILD, BlockAdapter(branch, norm_name, config.rec_stream).to(device, TRAINED))
                block.register_forward_hook(adapter_hook)
    model = AdaptedCLIP(clip, tuned, [tuner.to(device, TRAINED) for tuner in tuners], source, weights_hash, class_names)
    model.installed.install(clip)
    return model


def _make_branch(
    tower: Tower, config: RMAdapterConfig, name: str, shared: SharedLayer | None
) -> FusedRMAdapter | VariantAdapter:
    settings = config.tower(name)
    arguments: dict[str, Any] = {
        "bottleneck": settings.bottleneck,
        "rec_hidden": settings.rec_hidden,
        "activation": config.activation,
        "objective": config.objective,
        "scale": settings.scale,
        "reconstruct": config.reconstruct,
        "local_reconstruction": config.local_reconstruction,
        "branch_grad_scale": settings.branch_grad_scale,
        "init": config.init,
    }
    if config.in_operator:
        return FusedRMAdapter(tower.width, **arguments)
    return VariantAdapter(
        tower.width, **arguments, rec_layers=config.rec_layers, separate_down=config.separate_down, shared=shared
    )


def load(
    clip: ClipModel,
    folder: str | Path,
    *,
    source: ModelSource | None = None,
    weights_hash: str | None = None,
    tokenizer: Callable[..., Tensor] | None = None,
) -> AdaptedCLIP:
    """Put the adapter in ``folder`` into ``clip``: ``inject`` with its configuration, then ``load_adapter``.

    Args:
        clip: the model that it was trained on, as it was loaded.
        folder: what ``save_adapter`` has written.
        source: as in ``inject``; default: the adapter's.
        weights_hash: as in ``inject``.
        tokenizer: where given it is compared with the one of the training now, and not when prompts are made.

    Raises:
        InputError: as ``load_adapter``, another tokenizer; ``clip`` is then without adapters, as it came.
    """
    check_handed(clip)
    folder = Path(folder)
    info = read_info(folder)
    check_facts(info, f"the adapter in {folder}", clip, loaded=weights_hash, tokenizer=tokenizer)
    kept = stored_rows(folder, "cache.keys") if info.config.head.cache != "none" else 0
    model = _put_in(clip, info.config, source or info.source, weights_hash, None, info.class_names, kept)
    try:
        model.take_weights(folder, info)
    except InputError:
        model.remove()
        raise
    return model
