"""Learned tokens of CoOp, CoCoOp, MaPLe and PromptSRC: what they begin as, where they stand, and losses, by hand."""

from __future__ import annotations

import pytest
import torch
from conftest import small_clip
from torch import nn
from torch.nn import functional as F

from rmadapter import InputError, LossConfig, RMAdapterCLIP, RMAdapterConfig
from rmadapter.config import PromptConfig, TunerConfig
from rmadapter.data.templates import sixty_templates
from rmadapter.tuners.injection import inject

NAMES = ["cat", "a rather long name of a bird", "guinea pig"]
CROSS_ENTROPY = LossConfig(0, 0, 0, 0)
DEEP = PromptConfig(2, text_depth=3, vision_tokens=2, vision_depth=3)
COUPLED = PromptConfig(2, text_depth=3, vision_tokens=2, vision_depth=3, coupled=True)


def make(tokenizer, prompt, loss=CROSS_ENTROPY, **changes):
    config = TunerConfig(RMAdapterConfig(layers="none"), prompt=prompt)
    settings = {"tokenizer": tokenizer, "template": "a photo of a {}.", "class_names": NAMES}
    adapted = inject(small_clip(), config, seed=1, **settings)
    return RMAdapterCLIP(adapted, tokenizer, NAMES, "a photo of a {}.", loss=loss, **changes).train()


def weights_of(model):
    return {name: tensor.detach() for name, tensor in model.adapted.adapter_tensors().items()}


def ids_of(tokenizer, text):
    """The tokens of ``text`` without start- and end-of-text."""
    ids = tokenizer([text])[0]
    return ids[1 : ids.argmax()]


def text_by_hand(embedded, deeper=()):
    """Features of the embeddings [tokens, D] of one prompt, start-of-text in front and end-of-text behind.

    ``deeper`` are the tokens that take the place of those behind the first one before the second block, the third ...
    """
    clip = small_clip()
    x = (embedded + clip.positional_embedding[: len(embedded)])[None]
    mask = torch.full((len(embedded), len(embedded)), float("-inf")).triu(1)
    for number, block in enumerate(clip.transformer.resblocks):
        if 0 < number <= len(deeper):
            tokens = deeper[number - 1]
            x = torch.cat([x[:, :1], tokens[None], x[:, 1 + len(tokens) :]], 1)
        x = block(x, attn_mask=mask)
    return clip.ln_final(x)[0, -1] @ clip.text_projection


def image_by_hand(images, by_block):
    """Features of ``images`` with tokens behind the last patch, before the norm, and replaced before each block."""
    clip = small_clip().visual
    x = clip.conv1(images).flatten(2).mT
    x = torch.cat([clip.class_embedding.expand(len(x), 1, -1), x], 1) + clip.positional_embedding
    count = len(by_block[0])
    x = clip.ln_pre(torch.cat([x, by_block[0].expand(len(x), -1, -1)], 1))
    for number, block in enumerate(clip.transformer.resblocks):
        if 0 < number < len(by_block):
            x = torch.cat([x[:, :-count], by_block[number].expand(len(x), -1, -1)], 1)
        x = block(x)
    return clip.ln_post(x[:, 0]) @ clip.proj


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("prompt", "order"),
    [
        (PromptConfig(4), "tokens name end"),
        (PromptConfig(4, "random"), "tokens name end"),
        (PromptConfig(2), "tokens rest name end"),
        (PromptConfig(4, "random", place="front"), "name tokens end"),
        (PromptConfig(5, "random", place="middle"), "before name after end"),
        (PromptConfig(4, "random", class_specific=True), "tokens name end"),
    ],
    ids=["words", "random", "first two words", "front", "middle", "class specific"],
)
def test_where_coop_s_tokens_stand(tokenizer, prompt, order):
    """In the middle, the first two of five stand in front of the name; the full stop is never moved."""
    model = make(tokenizer, prompt)
    tokens, table = weights_of(model)["text.1.tokens"], small_clip().token_embedding
    start, end = tokenizer(["."])[0][[0, 2]]
    for number, name in enumerate(NAMES):
        own = tokens[number] if prompt.class_specific else tokens
        parts = {
            "tokens": own,
            "before": own[:2],
            "after": own[2:],
            "rest": table(ids_of(tokenizer, "of a")),
            "name": table(ids_of(tokenizer, name)),
            "end": table(ids_of(tokenizer, ".")),
        }
        embedded = [table(start)[None], *(parts[part] for part in order.split()), table(end)[None]]
        same(model.text_features()[number], text_by_hand(torch.cat(embedded)))


def test_tokens_of_each_class_are_not_mapped_into_the_image_tower():
    """With as many images as classes each image would have had the tokens of one class."""
    with pytest.raises(InputError, match=r"prompt\.class_specific and prompt\.coupled are both True"):
        PromptConfig(2, class_specific=True, vision_tokens=2, coupled=True)


def test_tokens_begin_as_words_or_random(tokenizer):
    table = small_clip().token_embedding.weight
    words = [int(tokenizer([word])[0, 1]) for word in ("a", "photo", "of", "a")]
    assert torch.equal(weights_of(make(tokenizer, PromptConfig(4)))["text.1.tokens"], table[words])
    deep = weights_of(make(tokenizer, DEEP))
    assert torch.equal(deep["text.1.tokens"], table[words[:2]])
    drawn = [tensor for name, tensor in deep.items() if name != "text.1.tokens"]
    assert len(drawn) == 2 + 3
    drawn += weights_of(make(tokenizer, PromptConfig(16, "random"))).values()
    together = torch.cat([tensor.flatten() for tensor in drawn])
    assert together.std().item() == pytest.approx(0.02, rel=0.08)
    assert together.mean().item() == pytest.approx(0, abs=0.002)
    assert len({tensor.flatten()[0].item() for tensor in drawn}) == len(drawn)


def test_maple_s_maps_begin_as_nn_linear_the_deep_ones_equal(tokenizer):
    weights = weights_of(make(tokenizer, COUPLED))
    for key in ("weight", "bias"):
        assert not torch.equal(weights[f"coupling.1.{key}"], weights[f"coupling.2.{key}"])
        assert torch.equal(weights[f"coupling.2.{key}"], weights[f"coupling.3.{key}"])
    drawn = torch.cat([weights["coupling.1.weight"], weights["coupling.2.weight"]])
    assert drawn.abs().max().item() <= 32**-0.5  # of the text tower's width
    assert drawn.std().item() == pytest.approx(32**-0.5 / 3**0.5, rel=0.05)
    assert {name for name in weights if name.startswith("vision")} == set()


@torch.no_grad()
@pytest.mark.parametrize("prompt", [DEEP, COUPLED], ids=["apart", "coupled"])
def test_where_deep_tokens_stand_in_both_towers(tokenizer, images, prompt):
    """IVLP's and PromptSRC's, and MaPLe's, whose image tokens are linear maps of the text tokens."""
    model = make(tokenizer, prompt)
    weights, table = weights_of(model), small_clip().token_embedding
    text = [weights[f"text.{block}.tokens"] for block in (1, 2, 3)]
    for number, name in enumerate(NAMES):
        ids = tokenizer([f"a photo of a {name}."])[0]
        embedded = table(ids[: ids.argmax() + 1])
        embedded[1:3] = text[0]
        same(model.text_features()[number], text_by_hand(embedded, text[1:]))
    if prompt.coupled:
        maps = [(weights[f"coupling.{block}.weight"], weights[f"coupling.{block}.bias"]) for block in (1, 2, 3)]
        vision = [tokens @ weight.T + bias for tokens, (weight, bias) in zip(text, maps, strict=True)]
    else:
        vision = [weights[f"vision.{block}.tokens"] for block in (1, 2, 3)]
    same(model.image_features(images), image_by_hand(images, vision))


@torch.no_grad()
def test_cocoop_s_words_move_with_the_image(tokenizer, images):
    """v + W2 relu(W1 z / |z| + b1) + b2, the classes encoded for each image."""
    model = make(tokenizer, PromptConfig(4, per_image=True, reduction=4))
    weights, clip = weights_of(model), small_clip()
    assert weights["network.0.weight"].shape == (8, 32)
    assert weights["network.0.weight"].abs().max().item() <= 32**-0.5
    assert weights["network.2.weight"].abs().max().item() <= 8**-0.5
    assert weights["network.2.weight"].abs().max().item() > 0.9 * 8**-0.5
    found = model(images, torch.zeros(4, dtype=torch.int64)).logits
    for row, z in enumerate(F.normalize(clip.encode_image(images), dim=-1)):
        hidden = (weights["network.0.weight"] @ z + weights["network.0.bias"]).clamp_min(0)
        words = weights["text.1.tokens"] + weights["network.2.weight"] @ hidden + weights["network.2.bias"]
        for column, name in enumerate(NAMES):
            ids = tokenizer([f"a photo of a {name}."])[0]
            embedded = clip.token_embedding(ids[: ids.argmax() + 1])
            embedded[1:5] = words
            expected = clip.logit_scale.exp() * z @ F.normalize(text_by_hand(embedded), dim=-1)
            same(found[row, column], expected)


def frozen(tokenizer, template):
    """Features of the untouched model, not normalised."""
    return small_clip().encode_text(tokenizer([template.format(name) for name in NAMES]))


@torch.no_grad()
def test_kgcoop_s_loss(tokenizer, images):
    """CE + 8 (1 - mean cos(t, p)) with p of the published prompt."""
    loss = LossConfig(0, 0, 0, 8, distance="cosine", target="published")
    model = make(tokenizer, PromptConfig(4), loss, target_templates=("a photo of a {}, a type of texture.",))
    model.adapted.tuners[0].tokens["text"][0].add_(0.3)  # else they still are the words
    labels = torch.tensor([0, 1, 2, 0])
    found = model(images, labels)
    t = F.normalize(model.text_features(), dim=-1)
    p = F.normalize(frozen(tokenizer, "a photo of a {}, a type of texture."), dim=-1)
    distance = 1 - sum(t[row] @ p[row] for row in range(3)) / 3
    assert distance > 0.001
    same(found.losses["total"], F.cross_entropy(found.logits, labels) + 8 * distance)


@torch.no_grad()
def test_promptsrc_s_loss(tokenizer, images):
    """CE + 25 |t - t0|_1 + 10 |z - z0|_1 + KL(p0 || p) / (B C), t0 the mean of 60 prompts before it is normalised."""
    loss = LossConfig(0, 0, 10, 25, target="templates", distillation=1)
    model = make(tokenizer, DEEP, loss, target_templates=sixty_templates())
    labels = torch.tensor([0, 1, 2, 0])
    found = model(images, labels)
    z, t = F.normalize(model.image_features(images), dim=-1), F.normalize(model.text_features(), dim=-1)
    t0 = F.normalize(sum(frozen(tokenizer, text) for text in sixty_templates()) / 60, dim=-1)
    clip = small_clip()
    z0 = F.normalize(clip.encode_image(images), dim=-1)
    p0, p = ((clip.logit_scale.exp() * a @ b.T).softmax(-1) for a, b in ((z0, t0), (z, t)))
    terms = {
        "cross_entropy": F.cross_entropy(clip.logit_scale.exp() * z @ t.T, labels),
        "consistency_text": (t - t0).abs().sum() / (3 * 32),
        "consistency_image": (z - z0).abs().sum() / (4 * 32),
        "distillation": sum(p0[b, c] * (p0[b, c] / p[b, c]).log() for b in range(4) for c in range(3)) / 12,
    }
    for name, value in terms.items():
        same(found.losses[name], value)
    total = terms["cross_entropy"] + 25 * terms["consistency_text"] + 10 * terms["consistency_image"]
    same(found.losses["total"], total + terms["distillation"])


def test_the_sixty_prompts():
    """Of OpenAI's 80; four of the 20 that PromptSRC leaves out are among those chosen for ImageNet."""
    texts = sixty_templates()
    assert len(set(texts)) == 60
    assert "a photo of a {}." not in {text for text in texts if "itap" in text}
    for left_out in ("itap of a {}.", "art of the {}.", "a toy {}.", "a good photo of a {}.", "the plushie {}."):
        assert left_out not in texts
    assert "a dark photo of a {}." not in texts
    for kept in (
        "a dark photo of the {}.",
        "a bad photo of a {}.",
        "a sculpture of a {}.",
        "a {} in a video game.",
        "a origami {}.",
    ):
        assert kept in texts


def test_gradients_of_maple_reach_the_text_tokens_through_both_towers(tokenizer, images):
    model = make(tokenizer, COUPLED)
    deep = model.adapted.tuners[0].tokens["text"][1]
    assert isinstance(deep, nn.Parameter)
    features = model.image_features(images).square().sum()
    (through_images,) = torch.autograd.grad(features, deep)
    (through_texts,) = torch.autograd.grad(model.text_features().square().sum(), deep)
    assert through_images.abs().max() > 0
    assert through_texts.abs().max() > 0


def test_padded_tokens_begin_as_zeros_and_the_words_behind_them(tokenizer):
    """ProGrad's: "X X a photo of a NAME." with the first two zero; features by hand."""
    model = make(tokenizer, PromptConfig(6, init="padded"))
    tokens = weights_of(model)["text.1.tokens"]
    table, words = small_clip().token_embedding.weight, ids_of(tokenizer, "a photo of a")
    assert torch.equal(tokens[:2], torch.zeros(2, 32))
    assert torch.equal(tokens[2:], table[words])
    rest = table[ids_of(tokenizer, "cat.")]
    start, end = table[tokenizer([""])[0, :2]]
    expected = text_by_hand(torch.cat([start[None], tokens, rest, end[None]]))
    torch.testing.assert_close(model.text_features()[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("prompt", "template", "message"),
    [
        (PromptConfig(3, init="padded"), "a photo of a {}.", "are 4 tokens; valid with prompt.init padded: 4 or more"),
        (PromptConfig(8), "a type of pet, a photo of a {}.", r"one of these but 8, since these 8 words are 9 tokens"),
        (PromptConfig(75, init="random"), "a photo of a {}.", r"with prompt\.text_tokens 75 in it; valid: fewer"),
        (PromptConfig(4, per_image=True, reduction=33), "a photo of a {}.", r"reduction is 33; valid: .* <= 32"),
    ],
)
def test_numbers_of_tokens_that_are_not_what_they_look_like(tokenizer, prompt, template, message):
    config = TunerConfig(RMAdapterConfig(layers="none"), prompt=prompt)
    with pytest.raises(InputError, match=message):
        RMAdapterCLIP(small_clip(), tokenizer, NAMES, template, config, loss=CROSS_ENTROPY)


@pytest.mark.parametrize(("template", "found"), [("{} texture.", 0), ("a photo of {}, a type of food.", 3)])
def test_a_prompt_whose_words_do_not_make_room_for_the_learned_ones_is_refused(tokenizer, template, found):
    """They would stand in the place of the name, and classes of short names would be one."""
    model = make(tokenizer, PromptConfig(4))
    before, places = model.prompts, model.adapted.installed.places
    with pytest.raises(InputError, match=f"are {found} tokens, but prompt.text_tokens 4 .* valid: 4 tokens or more"):
        model.set_classes(["other", "names"], template)
    assert (model.class_names, model.template) == (NAMES, "a photo of a {}.")  # it goes on as it was
    assert torch.equal(model.prompts.tokens, before.tokens)
    assert model.adapted.installed.places is places
    model.set_classes(NAMES, "a centered satellite photo of {}.")
    make(tokenizer, PromptConfig(4, "random")).set_classes(NAMES, template)  # which stand in front of the name alone
