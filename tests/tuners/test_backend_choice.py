"""Which backend adapters run on: what is chosen, what is refused, what is said."""

from __future__ import annotations

import pytest
import torch
from conftest import small_clip

from rmadapter import InputError, RMAdapterConfig, inject
from rmadapter.tuners.backend_choice import choose_backend
from rmadapter_kernels import available_backends, explain


def test_backends():
    model = inject(small_clip(), RMAdapterConfig(layers="3"))

    def used():
        return {a.adapter.branch.backend for a in model.adapters()}

    assert choose_backend(model, False, None) == ("eager", "adapters: backend eager (--no-fused)")
    assert used() == {"eager"}
    chosen, sentence = choose_backend(model, True, None)
    assert used() == {"auto"}
    expected = {explain(torch.zeros(1, width), bottleneck=32).backend for width in (64, 32)}
    assert chosen == "+".join(sorted(expected))
    assert all(name in sentence for name in expected)
    assert choose_backend(model, True, "eager") == ("eager", "adapters: backend eager (as asked for)")
    assert used() == {"eager"}
    with pytest.raises(InputError, match=r"backend is 'eagr'.*valid: auto.*did you mean 'eager'"):
        choose_backend(model, True, "eagr")


def test_a_named_backend_says_which_tower_it_does_not_take():
    fused = [n for n, status in available_backends().items() if status.available and n != "eager"]
    model = inject(small_clip(), RMAdapterConfig(layers="3"))  # the text tower is 32 wide
    for name in fused:
        with pytest.raises(InputError, match=f"adapters of the text tower: backend is '{name}'.*D=32"):
            choose_backend(model, True, name)
        assert {a.adapter.branch.backend for a in model.adapters()} == {"auto"}


def test_a_backend_that_is_not_here_is_answered_with_those_that_are():
    model = inject(small_clip(), RMAdapterConfig(layers="3"))
    for name in (name for name, status in available_backends().items() if not status.available):
        with pytest.raises(InputError, match=f"backend is '{name}', which is not available") as refused:
            choose_backend(model, True, name)
        valid = str(refused.value).partition("; valid: ")[2].split(", ")
        assert (valid[0], valid[-1]) == ("auto", "eager")
        assert name not in valid
        assert "did you mean" not in str(refused.value)


def test_variants_say_that_they_run_in_plain_pytorch():
    model = inject(small_clip(), RMAdapterConfig(layers="3", rec_layers=3))
    assert choose_backend(model, True, None) == (
        "eager",
        "adapters: plain PyTorch (this variant is outside the fused operator)",
    )
    with pytest.raises(InputError, match="does not cover this variant"):
        choose_backend(model, True, "triton")
