"""CLIP-LoRA's updates: what they begin as and what they add, by hand."""

from __future__ import annotations

import threading

import pytest
import torch
from conftest import small_clip

from rmadapter import RMAdapterConfig
from rmadapter.config import LoraConfig, TunerConfig
from rmadapter.tuners.injection import inject


def put_in(**lora):
    config = TunerConfig(RMAdapterConfig(layers="none"), lora=LoraConfig(**lora))
    return inject(small_clip(), config, seed=1)


def test_they_begin_as_published():
    """a uniform within 1/sqrt(D), which is Kaiming's with slope sqrt 5; b zero: nothing is changed yet."""
    weights = {name: tensor.detach() for name, tensor in put_in(rank=8).adapter_tensors().items()}
    assert len(weights) == 2 * 3 * 3 * 2  # towers, blocks, matrices, factors
    for tower, width in (("vision", 64), ("text", 32)):
        drawn = [tensor for name, tensor in weights.items() if name.startswith(tower) and name.endswith(".a")]
        together = torch.stack(drawn)
        assert together.shape == (9, 8, width)
        assert together.abs().max().item() <= width**-0.5
        assert together.std().item() == pytest.approx(width**-0.5 / 3**0.5, rel=0.05)
    assert not any(tensor.any() for name, tensor in weights.items() if name.endswith(".b"))


@torch.no_grad()
@pytest.mark.parametrize(("scale", "factor"), [(None, 2**-0.5), (0.3, 0.3)])
def test_what_they_add(tokenizer, scale, factor):
    """W + factor b a on queries, keys and values, in the rows of open_clip's joint projection; 1/sqrt(rank)."""
    model = put_in(rank=2, scale=scale)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.adapter_tensors().items():
        if name.endswith(".b"):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    expected, weights = small_clip(), model.adapter_tensors()
    for tower, transformer in (("vision", expected.visual.transformer), ("text", expected.transformer)):
        for number, block in enumerate(transformer.resblocks, start=1):
            width = block.attn.embed_dim
            for place, matrix in enumerate("qkv"):
                rows = block.attn.in_proj_weight[place * width : (place + 1) * width]
                rows += factor * weights[f"{tower}.{number}.{matrix}.b"] @ weights[f"{tower}.{number}.{matrix}.a"]
    images, texts = torch.randn(2, 3, 32, 32, generator=generator), tokenizer(["a cat", "a dog"])
    clip = model.clip
    torch.testing.assert_close(clip.encode_image(images), expected.encode_image(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clip.encode_text(texts), expected.encode_text(texts), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(clip.encode_text(texts), small_clip().encode_text(texts), atol=1e-3)


def test_each_matrix_drops_inputs_of_its_own():
    """In training, dropout on what a reads; none in eval mode."""
    model = put_in(rank=2, dropout=0.25)
    update = model.tuners[0].train().update("text", 0)
    torch.manual_seed(0)
    q, k, v = update[:3]
    with torch.no_grad():
        for low in (q, k, v):
            low.b.fill_(1)
            low.a.copy_(torch.eye(2, 32))
    x = torch.ones(4000, 32)
    found = [low(x) for low in (q, k, v)]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])
    # Each row is sum over two inputs, each kept with 3/4 and then 4/3: mean 2, times 1/sqrt 2.
    for each in found:
        assert each[:, 0].mean().item() == pytest.approx(2**0.5, rel=0.05)
        kept = (each[:, 0] * 2**0.5 * 0.75).round()
        assert set(kept.tolist()) == {0, 1, 2}
    evaluated = model.tuners[0].eval().update("text", 0)
    assert evaluated.q.dropout == 0


def test_a_pass_of_another_thread_in_the_middle_of_one_changes_neither():
    model = put_in(rank=2).requires_grad_(False)
    for tensor in model.adapter_tensors().values():
        tensor.normal_(std=0.3)
    images = torch.randn(2, 2, 3, 32, 32)
    expected = [model.encode_image(each) for each in images]
    found = {}

    def pass_of_another(*_):
        handle.remove()  # it is for the first pass alone
        thread = threading.Thread(target=lambda: found.update(other=model.encode_image(images[1])))
        thread.start()
        thread.join()

    attention = model.clip.visual.transformer.resblocks[0].attn
    handle = attention.register_forward_pre_hook(pass_of_another)  # behind that which keeps the attention's input
    torch.testing.assert_close(model.encode_image(images[0]), expected[0])
    torch.testing.assert_close(found["other"], expected[1])
