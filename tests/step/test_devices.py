"""A step makes its tensors where the model is: a GPU's faults of place, found without one.

What is made without a device is made on ``meta`` here, and meets the model's tensors, which are on the CPU.
"""

from __future__ import annotations

import pytest
import torch
from step_cases import NoHost, assert_same, run
from tuned_cases import CASES, make_tuned

from rmadapter.config.shortcuts import StepConfig
from rmadapter.step.train_step import TrainStep

KINDS = {"": {}, "in chunks": {}, "recomputed": {"recompute": True}}
BYTES = dict.fromkeys(("per image", "per image, beside image adapters in the frozen stream"), 600_000)
# What differs most; the others in chunks and recomputed by make test-all.
MAIN = ("class specific words", "per image", "adapters, another view and sentences", "adapters and tokens")
EVERY = [
    pytest.param(case, kind, id=f"{case}, {kind}", marks=[pytest.mark.slow] * (kind != "" and case not in MAIN))
    for case in CASES
    for kind in KINDS
]


@pytest.mark.parametrize(("case", "kind"), EVERY)
def test_nothing_is_made_on_the_default_device(tokenizer, case, kind):
    settings = {"text_bytes": BYTES.get(case, 200_000)} if kind == "in chunks" else KINDS[kind]
    found = []
    for device in (None, "meta"):
        model = make_tuned(tokenizer, case)
        with torch.device(device or "cpu"):
            step = TrainStep(model, StepConfig(), images=4, **settings)
            step.prepare()
        found.append(run(step, model, device))
    assert_same(*found)


@pytest.mark.parametrize(("case", "kind"), EVERY)
def test_no_value_comes_to_the_host_in_a_step_that_may_be_recorded(tokenizer, case, kind):
    settings = {"text_bytes": BYTES.get(case, 200_000)} if kind == "in chunks" else KINDS[kind]
    model = make_tuned(tokenizer, case)
    step = TrainStep(model, StepConfig(), images=4, **settings)
    first = run(step, model)  # what is made once may
    with NoHost():
        again = run(step, model)
    assert_same(again, first)
