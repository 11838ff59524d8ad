"""Every configuration of open_clip, shrunk: adapted or refused by name, and the fast step the same as the plain one.

Configurations that shrink to the same model are tested once, under the name of the first.
"""

from __future__ import annotations

import copy
import json
import re
from collections import defaultdict

import open_clip
import pytest
import small_towers
import torch
from small_towers import SmallTokenizer, shrunk, small_model
from step_cases import assert_same
from torch.utils._python_dispatch import TorchDispatchMode

from rmadapter import InputError, LossConfig, RMAdapterCLIP, RMAdapterConfig, inject
from rmadapter.clip.model_table import model_rows
from rmadapter.clip.prompts import Prompts
from rmadapter.clip.storage import store_weights
from rmadapter.clip.towers import find_towers
from rmadapter.config import LoraConfig, TunerConfig
from rmadapter.config.shortcuts import StepConfig
from rmadapter.step.train_step import TrainStep
from rmadapter.tuners.encoders import Encoders

# Image towers without transformer blocks of one width, by what their configuration says.
WITHOUT_BLOCKS = ("convnext", "fastvit", "swin")
OF_EACH_FAMILY = ("RN50", "convnext_base", "MobileCLIP2-S0", "swin_base_patch4_window7_224")
NAMES = ["cat", "a rather long name of a bird", "dog", "guinea pig"]


def is_refused(name: str) -> bool:
    vision = open_clip.get_model_config(name)["vision_cfg"]
    return isinstance(vision.get("layers"), list) or vision.get("timm_model_name", "").startswith(WITHOUT_BLOCKS)


def groups() -> list[str]:
    """The first name of those that shrink to one model; those of one size alone differ in more than sizes."""
    found = defaultdict(list)
    for name in open_clip.list_models():
        config = shrunk(name)
        timm_name = config["vision_cfg"].get("timm_model_name", "")
        for size in ("_base_", "_large_", "_small_", "_tiny_", "_xlarge_", "_gigantic_", "_giantopt_", "_so400m_"):
            timm_name = timm_name.replace(size, "_")
        kind = timm_name.partition("_224")[0].partition("_256")[0].partition("_3")[0].partition("_5")[0]
        config["vision_cfg"] = {**config["vision_cfg"], "timm_model_name": kind.replace("patch14", "patch16")}
        found[json.dumps(config, sort_keys=True)].append(name)
    return [names[0] for names in found.values()]


GROUPS = groups()
ADAPTED = [name for name in GROUPS if not is_refused(name)]
# Their stems have widths of their own, and take half of the time of all kinds.
WIDE = ("ViTamin-B", "MobileCLIP-B")


def known(name: str, *values, slow: bool = False):
    """A parameter of a test; it is skipped where open_clip is of before its third version and has no such model."""
    absent = open_clip.__version__.startswith("2.") and name not in open_clip.list_models()
    marks = [pytest.mark.skipif(absent, reason=f"open_clip {open_clip.__version__} has no {name}")]
    return pytest.param(name, *values, marks=[*marks, pytest.mark.slow] if slow else marks)


# One of each kind of image and of text tower, for what takes longer.
KINDS = [
    "ViT-L-14-CLIPA", "ViT-B-16-SigLIP", "MobileCLIP-B", "MobileCLIP2-L-14", "EVA01-g-14", "EVA02-L-14", "EVA02-E-14",
    "PE-Core-B-16", "coca_ViT-B-32", "roberta-ViT-B-32", "mt5-base-ViT-B-32", "nllb-clip-base", "ViT-H-14-worldwide",
    "vit_medium_patch16_gap_256", "vit_relpos_medium_patch16_cls_224", "ViTamin-B",
]  # fmt: skip


# Every kind, and by make test-all also what shrinks to another model for its sizes alone.
KINDS_AND_SIZES = [known(name, slow=name not in KINDS) for name in dict.fromkeys((*KINDS, *ADAPTED))]
# Of them those whose towers differ most in what a shortcut has to know, for what takes longest.
TELLING = {
    "ViT-B-16-SigLIP", "MobileCLIP2-L-14", "EVA02-E-14", "coca_ViT-B-32", "mt5-base-ViT-B-32",
    "vit_relpos_medium_patch16_cls_224",
}  # fmt: skip


def side(model) -> int:
    size = model.visual.image_size
    return size if isinstance(size, int) else size[0]


def images_for(model, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, side(model), side(model), generator=generator)


def encoded(model, tokens) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        images = model.encode_image(images_for(model), normalize=False)
        return images, model.encode_text(tokens, normalize=False)


@pytest.mark.parametrize("name", KINDS_AND_SIZES)
def test_adapters_go_in_learn_and_come_out(name):
    # Frozen before too: torch takes another way through attention for it, which rounds otherwise on some processors.
    clip = small_model(name).requires_grad_(False)
    keys, tokens = list(clip.state_dict()), SmallTokenizer(clip)(NAMES)
    before = encoded(clip, tokens)
    model = inject(clip, RMAdapterConfig(layers="2-3", bottleneck=4, init="zero_up"), seed=0)
    assert [key for key in clip.state_dict() if ".rm_adapter." not in key] == keys
    for found, expected in zip(encoded(clip, tokens), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert model.remove() is clip
    assert list(clip.state_dict()) == keys
    for found, expected in zip(encoded(clip, tokens), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def made(name: str, *, trim: bool = True, vision=None, **loss) -> RMAdapterCLIP:
    clip = small_model(name, **(vision or {}))
    torch.manual_seed(0)
    config = RMAdapterConfig(layers="2-3", bottleneck=8, scale=0.5)
    weights = LossConfig(2, 3, 4, 5, **loss)
    tokenizer = SmallTokenizer(clip)
    model = RMAdapterCLIP(clip, tokenizer, NAMES, config=config, loss=weights, trim=trim, keep_targets=trim).train()
    with torch.no_grad():
        assert torch.pdist(model.text_features()).min() > 1e-4  # every prompt is read
    return model


def stepped(step, model) -> dict[str, torch.Tensor]:
    model.zero_grad()
    logits, losses = step(images_for(model.clip), torch.arange(3))
    losses["total"].backward()
    gradients = {f"d {name}": p.grad for name, p in model.adapted.adapter_tensors().items()}
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())
    return {"logits": logits.detach(), **{k: v.detach() for k, v in losses.items()}, **gradients}


@pytest.mark.parametrize("name", KINDS_AND_SIZES)
def test_fast_and_plain_step_agree(name):
    """Losses and gradients, which reach every trained weight, through the model's own forward passes and blocks."""
    plain = made(name, trim=False)
    expected = stepped(plain, plain)
    fast = made(name)
    step = TrainStep(fast)
    stepped(step, fast)  # what is kept is used by a second step
    assert_same(stepped(step, fast), expected, 3e-5)


@pytest.mark.parametrize(
    ("name", "vision"),
    [
        ("ViT-B-16", {"image_size": 48}),
        ("ViT-B-16-SigLIP", {"image_size": 64}),
        ("EVA02-L-14", {"image_size": 64}),
        known("MobileCLIP2-L-14", {"qk_norm": True}),
    ],
)
def test_other_sizes_of_image_and_norms_of_queries(name, vision):
    if "qk_norm" in vision:  # nothing that open_clip itself would set
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("small_towers.TIMM", {**small_towers.TIMM, **vision})
            models = made(name, trim=False), made(name)
        assert find_towers(models[0].clip)["vision"].parts[0].attention.q_norm is not None
    else:
        models = made(name, trim=False, vision=vision), made(name, vision=vision)
    plain, fast = models
    assert_same(stepped(TrainStep(fast), fast), stepped(plain, plain), 3e-5)


@pytest.mark.parametrize("name", [known(name, slow=name not in TELLING) for name in KINDS])
def test_each_shortcut_alone_and_left_out(name):
    plain = made(name, trim=False)
    expected = stepped(plain, plain)
    fields = list(vars(StepConfig()))
    for field in fields:
        for shortcuts in (StepConfig(**{other: other == field for other in fields}), StepConfig(**{field: False})):
            model = made(name, trim=shortcuts.trim)
            assert_same(stepped(TrainStep(model, shortcuts), model), expected, 3e-5)


class OneDtype(TorchDispatchMode):
    """Inside, products and norms of two dtypes are errors, as they are on CUDA."""

    STRICT = ("native_layer_norm.default", "addmm", "bmm", "mm.default", "rms_norm")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in str(function) for name in self.STRICT):
            dtypes = {arg.dtype for arg in args if isinstance(arg, torch.Tensor) and arg.is_floating_point()}
            assert len(dtypes) < 2, f"{function} of {dtypes}"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [known(name, slow=name in WIDE) for name in KINDS])
def test_16_bit_weights(name, monkeypatch):
    """Both steps run on weights stored in bf16, near those of fp32, without what a CPU alone computes of two dtypes."""
    monkeypatch.setattr("rmadapter.clip.parts._in_one_pass", lambda x, weight: False)
    exact = made(name, trim=False)
    expected = stepped(exact, exact)
    for fast in (False, True):
        model = made(name, trim=fast)
        store_weights(model.clip, torch.bfloat16)
        with OneDtype():
            found = stepped(TrainStep(model) if fast else model, model)
        assert_same({k: found[k] for k in found if k[0] != "d"}, {k: expected[k] for k in found if k[0] != "d"}, 0.2)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in OF_EACH_FAMILY else pytest.mark.slow)
        for name in GROUPS
        if is_refused(name)
    ],
)
def test_towers_without_transformer_blocks_are_refused_by_name(name):
    row = next(model_rows([name]))
    assert row.refused is not None
    assert re.search(r"the vision tower .* is a (ModifiedResNet|TimmModel around a \w+), which has", row.refused)


@pytest.mark.parametrize("name", ["ViT-L-14-CLIPA", "EVA01-g-14", "mt5-base-ViT-B-32", "coca_ViT-B-32"])
def test_kept_encoders_follow_the_weights_and_copies_have_their_own(name):
    model = inject(small_model(name), RMAdapterConfig(layers="2-3", bottleneck=4), seed=0)
    encoders, images = Encoders.of(model, packed=False), images_for(model.clip)
    copied_model, copied = copy.deepcopy((model, encoders))

    def assert_current(model, encoders):
        with torch.no_grad():
            found, expected = encoders.image.features(images), model.encode_image(images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    other = small_model(name, seed=1).state_dict()
    copied_model.clip.load_state_dict(other, strict=False)
    for pair in ((model, encoders), (copied_model, copied)):
        assert_current(*pair)
    assert encoders.image.fits
    model.clip.load_state_dict(other, strict=False, assign=True)
    assert not encoders.image.fits  # they are of tensors that the model no longer has


def test_low_rank_updates_of_prompts_with_masks_of_their_own():
    """CoCa hands its attention a mask for each prompt and head."""
    config = TunerConfig(RMAdapterConfig(layers="none"), lora=LoraConfig(2))
    adapted = inject(small_model("coca_ViT-B-32"), config, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in adapted.adapter_tensors().items():
            if name.endswith(".b"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        model = RMAdapterCLIP(adapted, SmallTokenizer(adapted.clip), NAMES, loss=LossConfig(0, 0, 0, 0)).eval()
        hooked = model.text_features()
        with adapted.adapters_disabled():
            assert not torch.allclose(model.text_features(), hooked, atol=1e-3)
        model.encoders = Encoders.of(adapted, packed=False)
        torch.testing.assert_close(model.text_features(), hooked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "tower"),
    [("coca_ViT-B-32", "text"), ("vit_relpos_medium_patch16_cls_224", "vision"), ("EVA02-E-14", "vision")],
)
def test_a_tower_is_exported_for_any_number_of_rows(name, tower):
    """What a kind's functions do with a number of rows must not make it a constant of the graph."""
    model = inject(small_model(name), RMAdapterConfig(layers="2-3", bottleneck=4), seed=0)
    encoders = Encoders.of(model, packed=False)
    rows = torch.export.Dim("rows", min=2, max=64)

    class Features(torch.nn.Module):
        def forward(self, x):
            if tower == "vision":
                return encoders.image.features(x)
            return encoders.text.features(Prompts(x, torch.ones_like(x, dtype=torch.bool)))

    def example(count):
        return images_for(model.clip, count) if tower == "vision" else SmallTokenizer(model.clip)(NAMES[:count])

    with torch.no_grad():
        exported = torch.export.export(Features(), (example(3),), dynamic_shapes=({0: rows},)).module()
        torch.testing.assert_close(exported(example(2)), Features()(example(2)), rtol=1e-4, atol=1e-5)


def test_sigmoid_loss_reads_the_bias():
    model = made("ViT-B-16-SigLIP", classification="sigmoid")
    with torch.no_grad():
        model.clip.logit_bias.fill_(-3.0)
    step = TrainStep(model)
    labels = torch.arange(3)
    with torch.no_grad():
        logits, losses = step(images_for(model.clip), labels)
    signs = 2 * torch.nn.functional.one_hot(labels, len(NAMES)) - 1
    expected = -torch.nn.functional.logsigmoid(signs * logits).sum(1).mean()
    torch.testing.assert_close(losses["cross_entropy"], expected)
    with pytest.raises(InputError, match=r"loss\.classification is 'sigmoid'.*no logit bias"):
        made("ViT-B-16", classification="sigmoid")
