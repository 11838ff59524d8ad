"""Predicted operations of steps: against numbers made here by hand, and against what PyTorch counts."""

from __future__ import annotations

import pytest
import torch
from step_cases import COUNTED, NAMES, run
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tuned_cases import CASES, CROSS_ENTROPY, make_tuned

from rmadapter.config import LoraConfig
from rmadapter.step.plan import Plan
from rmadapter.step.train_step import TrainStep

IMAGES, CLASSES, EMBED = 4, len(NAMES), 32
# Of the small model: 3 blocks a tower, an MLP of four times the width, and 4 patches of 16 x 16 pixels of 3 channels.
PATCHES = 2 * (16 * 16 * 3) * 64
# Prompts "a photo of a NAME." with their two ends: the shared start-of-text and four words, then the name's own.
LENGTHS = [8, 14, 8, 9, 8]
LONGEST, SHARED = 14, 5


def block(width: int, tokens: int, pairs: int, products: int = 2) -> int:
    """Eight squares of the width in four projections, 16 in the MLP, and attention's products over pairs of tokens."""
    return tokens * 24 * width**2 + pairs * products * 2 * width


def prompts(tokens: int, more: int = 0, shared: bool = False) -> tuple[int, int]:
    """Tokens of all prompts and pairs of a query and a key, for one chunk of prompts of so many tokens."""
    if not shared:
        return CLASSES * (tokens + more), CLASSES * (tokens + more) ** 2
    start, own = SHARED + more, CLASSES * (tokens - SHARED)
    return start + own, start**2 + own * (tokens + more)


def planned(tokenizer, case: str, fast: bool, **changes) -> Plan:
    model = make_tuned(tokenizer, case, trim=fast, **changes)
    return Plan.of(TrainStep(model, images=IMAGES) if fast else model, IMAGES)


def test_the_prompts_are_as_counted_here(tokenizer):
    model = make_tuned(tokenizer, "image adapter")
    assert model.prompts.valid.sum(1).tolist() == LENGTHS


def test_low_rank_updates_by_hand(tokenizer):
    """Rank 2, q, k and v of all blocks: each 2 (D r + r D) operations a token, forward; twice that backward."""
    logits = 3 * 2 * IMAGES * CLASSES * EMBED
    low = {width: 3 * 8 * width for width in (64, 32)}

    def plain(width, tokens, pairs):
        forward = 3 * (block(width, tokens, pairs) + tokens * low[width])
        backward = 3 * (block(width, tokens, pairs, 5) + 2 * tokens * low[width])
        # In the first block the updates' input, that of three projections, gets no gradient.
        return forward + backward - tokens * (6 * width**2 + low[width])

    images = 5 * IMAGES, 25 * IMAGES
    expected = plain(64, *images) + plain(32, *prompts(77)) + 4 * IMAGES * PATCHES + IMAGES * PATCHES + logits
    assert planned(tokenizer, "low rank", fast=False).plain.flop == pytest.approx(expected, rel=1e-9)

    def fast(width, heads, rows, length, tokens, pairs):
        forward = 2 * (block(width, tokens, pairs) + tokens * low[width])
        backward = 2 * (block(width, tokens, pairs, 5) + 2 * tokens * low[width])
        first = tokens * (6 * width**2 + low[width])
        # The last block at one token a row: each head reads the tokens as they are, once forward and five halves of
        # it backward; q, k and v are matrices with their updates, formed once and with gradients of their own.
        last = rows * (2 * 24 * width**2 + heads * length * (2 + 5) * 2 * width)
        formed = 3 * 2 * 2 * width**2
        return forward + backward - first + last + 3 * formed + rows * 3 * 2 * width**2

    expected = fast(64, 4, IMAGES, 5, *images) + fast(32, 2, CLASSES, LONGEST, *prompts(LONGEST, shared=True))
    expected += 5 * IMAGES * PATCHES + logits
    assert planned(tokenizer, "low rank", fast=True).cost.flop == pytest.approx(expected, rel=1e-9)


def test_an_adapter_after_an_untouched_tower_by_hand(tokenizer):
    """32 to 8 to 32 values; the plain step runs both towers forward, the fast one the images' alone."""
    adapter = IMAGES * (4 + 6) * 32 * 8
    logits = 2 * 2 * IMAGES * CLASSES * EMBED  # the prompts' features get no gradient
    image = 3 * block(64, 5 * IMAGES, 25 * IMAGES) + 5 * IMAGES * PATCHES
    plain = planned(tokenizer, "image adapter", fast=False).plain
    assert plain.flop == pytest.approx(image + 3 * block(32, *prompts(77)) + adapter + logits, rel=1e-9)
    last = IMAGES * (24 * 64**2 + 4 * 5 * 2 * 2 * 64)
    image = 2 * block(64, 5 * IMAGES, 25 * IMAGES) + last + 5 * IMAGES * PATCHES
    found = planned(tokenizer, "image adapter", fast=True)
    assert found.cost.flop == pytest.approx(image + adapter + logits, rel=1e-9)
    assert "times fewer operations than the plain step" in str(found)


def test_inserted_tokens_by_hand(tokenizer):
    """Two tokens of 16 values, mapped into blocks 2 and 3 of each tower; block 1 is frozen, and the frozen pass short.

    The last block of the image tower is computed at three tokens, and a second projection reads two of them.
    """
    maps = 2 * 2 * 6 * 16 * (64 + 32)
    second = 6 * IMAGES * (64 * EMBED + CLASSES * EMBED)
    outside = maps + second + 3 * 2 * IMAGES * CLASSES * EMBED
    patches = 5 * IMAGES * PATCHES
    images, longer = (5 * IMAGES, 25 * IMAGES), (7 * IMAGES, 49 * IMAGES)

    def trained(width, tokens, pairs):
        return block(width, tokens, pairs) + block(width, tokens, pairs, 5)

    image = block(64, *images) + 2 * trained(64, *longer) + 3 * block(64, *images) + 2 * patches
    text = block(32, *prompts(77)) + 2 * trained(32, *prompts(77, more=2)) + 3 * block(32, *prompts(77))
    plain = planned(tokenizer, "space", fast=False).plain
    assert plain.flop == pytest.approx(image + text + outside, rel=1e-9)

    def at(rows, taken, width, heads, length, products):
        return rows * taken * (24 * width**2 + heads * length * products * 2 * width)

    last = at(IMAGES, 3, 64, 4, 7, 2) + at(IMAGES, 3, 64, 4, 7, 5)
    frozen = block(64, *images) + at(IMAGES, 1, 64, 4, 5, 2)
    image = block(64, *images) + patches + trained(64, *longer) + last + frozen
    text = trained(32, *prompts(LONGEST, more=2, shared=True))
    text += at(CLASSES, 1, 32, 2, LONGEST + 2, 2) + at(CLASSES, 1, 32, 2, LONGEST + 2, 5)
    found = planned(tokenizer, "space", fast=True).cost
    assert found.flop == pytest.approx(image + text + outside, rel=1e-9)


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize(
    "case",
    [
        "words",
        "class specific words",
        "per image",
        "both towers",
        "coupled",
        "low rank, some",
        "space",
        "space in the last block",
        "feature adapters",
        "offsets",
        "cache",
        "adapters and low rank",
        "adapters and tokens",
        "another view and sentences",
    ],
)
def test_predicted_operations_are_those_that_pytorch_counts(tokenizer, case, fast, monkeypatch):
    # PyTorch's fused kernels for frozen attention are not counted.
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)
    model = make_tuned(tokenizer, case, trim=fast)
    step = TrainStep(model, COUNTED, images=IMAGES) if fast else model
    run(step, model)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run(step, model)
    plan = Plan.of(step, IMAGES)
    cost, work = (plan.cost, plan.work) if fast else (plan.plain, plan.work.plain())
    # The adapters are an operator of their own.
    adapters = work.image.adapters_flop(5 * IMAGES) + work.text.adapters_flop(sum(c.tokens for c in work.chunks))
    assert counter.get_total_flops() == pytest.approx(cost.flop - adapters, rel=0.07)


def test_dropout_switches_off_what_it_makes_inexact(tokenizer, monkeypatch):
    monkeypatch.setitem(CASES, "dropout", ({"lora": LoraConfig(2, dropout=0.25)}, CROSS_ENTROPY))
    plan = planned(tokenizer, "dropout", fast=True)
    assert plan.by_token == (False, False)
    text = str(plan)
    assert "dropout draws for every prompt" in text
    assert "dropout draws for every token" in text
    assert plan.cost.flop > planned(tokenizer, "low rank", fast=True).cost.flop
