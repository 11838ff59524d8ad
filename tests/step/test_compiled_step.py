"""The fast step through torch.compile: the same numbers, and how many graphs they take."""

from __future__ import annotations

import pytest
import step_cases
import torch
from step_cases import assert_same, batch, make, plain, run, scarce

from rmadapter.config.shortcuts import StepConfig
from rmadapter.objectives.losses import gradient_norms
from rmadapter.step import train_step
from rmadapter.step.train_step import TrainStep
from rmadapter.tuners import encoder


@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiled_it_is_one_graph_a_tower_and_stays_so(tokenizer, recompute):
    """No graph break (fullgraph raises), no compilation after the first step, recomputation around compiled parts."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = make(tokenizer)
    step = TrainStep(model, text_bytes=scarce(model) if recompute else None)
    assert any(chunk.recompute for chunk in step.chunks) == recompute
    step.compile_parts(backend="aot_eager")
    run(step, model)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == 1 + len({(chunk.stop - chunk.start, chunk.length) for chunk in step.chunks})
    for _ in range(3):
        found = run(step, model)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert not torch._dynamo.utils.counters["graph_break"]
    assert_same(found, plain(tokenizer), 1e-4)


@pytest.mark.slow
def test_compiled_with_gradient_checkpointing_recomputation_is_around_each_block(tokenizer, monkeypatch):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = make(tokenizer)
    step = TrainStep(model, recompute=True)
    step.compile_parts(backend="aot_eager")
    around = []
    for module in (train_step, encoder):
        real = module.checkpoint

        def outside(*arguments, real=real, **settings):
            assert not torch.compiler.is_compiling()
            around.append(arguments[0])
            return real(*arguments, **settings)

        monkeypatch.setattr(module, "checkpoint", outside)
    run(step, model)
    found = run(step, model)
    blocks = step.image.depth - 1 - step.image.first
    assert len(around) == 2 * (blocks + len(step.chunks))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == blocks + len({(chunk.stop - chunk.start, chunk.length) for chunk in step.chunks})
    assert_same(found, plain(tokenizer), 1e-4)


@pytest.mark.slow
def test_compiled_gradient_norms_at_any_step(tokenizer):
    """A backward pass that was compiled for a step without them must leave the graph to a step with them."""
    torch._dynamo.reset()
    model = make(tokenizer)
    step = TrainStep(model)
    step.compile_parts(backend="aot_eager")
    run(step, model)
    w_down = [p for name, p in model.adapted.adapter_tensors().items() if name.endswith("w_down")]
    _, losses = step(*batch())
    norms = gradient_norms(losses, model.loss, w_down)
    losses["total"].backward()
    _, losses = model(*batch())
    for name, value in gradient_norms(losses, model.loss, w_down).items():
        torch.testing.assert_close(norms[name], value, rtol=1e-3, atol=1e-5)


# Each shape is a compilation, 3 s; dynamo's own limit is 8.
@pytest.mark.slow
@pytest.mark.parametrize(("shapes", "limit"), [(4, 2), (12, 8)])
def test_compiled_with_more_shapes_of_chunks_than_dynamo_s_own_limit(tokenizer, monkeypatch, shapes, limit):
    torch._dynamo.reset()
    monkeypatch.setattr("rmadapter.step.class_plan.CHUNK_TOKENS", {"cpu": 0})
    names = [" ".join("abcdefghijkl"[: count + 1]) for count in range(shapes)]
    monkeypatch.setattr(step_cases, "NAMES", names)
    # monkeypatch would leave the setting without a value, and the next compilation in this process without a limit.
    with torch._dynamo.config.patch(recompile_limit=limit):
        model = make(tokenizer)
        step = TrainStep(model, StepConfig(shared_start=False))
        assert len(step.chunks) == shapes
        step.compile_parts(backend="aot_eager")
        run(step, model)


@pytest.mark.slow
def test_compiled_to_machine_code(tokenizer):
    torch._dynamo.reset()
    model = make(tokenizer)
    step = TrainStep(model)
    step.compile_parts()
    assert_same(run(step, model), plain(tokenizer), 1e-4)
