"""Chunks of classes: by length, by memory, and sizes as users write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmadapter.chunks import Chunk, by_length, by_memory
from rmadapter.errors import InputError

LENGTHS = st.lists(st.integers(3, 77), min_size=1, max_size=60).map(sorted)


@given(LENGTHS, st.integers(0, 100))
def test_every_class_is_in_one_chunk_that_is_long_enough(lengths, chunk_tokens):
    chunks = by_length(lengths, chunk_tokens)
    assert [c.start for c in chunks] == [0, *(c.stop for c in chunks[:-1])]
    assert chunks[-1].stop == len(lengths)
    assert all(c.length == lengths[c.stop - 1] for c in chunks)
    one = len(lengths) * lengths[-1] + chunk_tokens
    assert sum(c.tokens + chunk_tokens for c in chunks) <= one


def test_a_chunk_has_to_pay_for_itself():
    lengths = [8] * 10 + [20] * 10
    assert len(by_length(lengths, 119)) == 2
    assert len(by_length(lengths, 121)) == 1


@given(LENGTHS, st.integers(2 * 77 * 10, 40_000))
def test_kept_and_recomputed_activations_stay_within_the_budget(lengths, budget):
    chunks = by_memory(by_length(lengths, 10), 10, budget)
    assert [c.start for c in chunks] == [0, *(c.stop for c in chunks[:-1])]
    kept = sum(c.tokens for c in chunks if not c.recompute) * 10
    recomputed = max((c.tokens for c in chunks if c.recompute), default=0) * 10
    assert kept + recomputed <= budget
    if sum(lengths) * 10 > budget:
        assert any(c.recompute for c in chunks)


def test_what_fits_stays_whole_and_is_not_recomputed():
    chunks = [Chunk(0, 10, 8), Chunk(10, 12, 20)]
    assert by_memory(chunks, 10, 1200) == chunks


def test_what_exceeds_the_budget_is_kept_as_far_as_it_fits():
    chunks = by_memory([Chunk(0, 10, 10)], 10, 600)
    assert [(c.start, c.stop, c.recompute) for c in chunks] == [
        (0, 3, True),
        (3, 6, True),
        (6, 9, True),
        (9, 10, False),
    ]


def test_one_class_that_does_not_fit():
    with pytest.raises(InputError, match="text_memory is 100 bytes, but a class takes 200; valid: 200 or more"):
        by_memory([Chunk(0, 3, 10)], 10, 100)
