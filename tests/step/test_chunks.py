"""Chunks of classes: by length, by memory, and sizes as users write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmadapter.errors import InputError
from rmadapter.step.chunks import Chunk, by_length, by_memory


def tens(chunk: Chunk) -> int:
    return 10 * chunk.tokens


LENGTHS = st.lists(st.integers(3, 77), min_size=1, max_size=60).map(sorted)


@given(LENGTHS, st.integers(0, 100), st.integers(0, 2))
def test_every_class_is_in_one_chunk_that_is_long_enough(lengths, chunk_tokens, shared):
    chunks = by_length(lengths, chunk_tokens, shared)
    assert [c.start for c in chunks] == [0, *(c.stop for c in chunks[:-1])]
    assert chunks[-1].stop == len(lengths)
    assert all(c.length == lengths[c.stop - 1] for c in chunks)
    one = shared + len(lengths) * (lengths[-1] - shared) + chunk_tokens
    assert sum(c.tokens + chunk_tokens for c in chunks) <= one


def test_a_chunk_has_to_pay_for_itself():
    lengths = [8] * 10 + [20] * 10
    assert len(by_length(lengths, 119)) == 2
    assert len(by_length(lengths, 121)) == 1


@given(LENGTHS, st.integers(2 * 77 * 10, 40_000), st.integers(0, 2))
def test_kept_and_recomputed_activations_stay_within_the_budget(lengths, budget, shared):
    whole = by_length(lengths, 10, shared)
    chunks = by_memory(whole, tens, budget)
    assert [c.start for c in chunks] == [0, *(c.stop for c in chunks[:-1])]
    kept = sum(c.tokens for c in chunks if not c.recompute) * 10
    recomputed = max((c.tokens for c in chunks if c.recompute), default=0) * 10
    assert kept + recomputed <= budget
    assert any(c.recompute for c in chunks) == (sum(map(tens, whole)) > budget)
    assert all(c.shared == shared for c in chunks)


def test_what_fits_stays_whole_and_is_not_recomputed():
    chunks = [Chunk(0, 10, 8), Chunk(10, 12, 20)]
    assert by_memory(chunks, tens, 1200) == chunks


def test_what_exceeds_the_budget_is_kept_as_far_as_it_fits():
    chunks = by_memory([Chunk(0, 10, 10)], tens, 600)
    assert [(c.start, c.stop, c.recompute) for c in chunks] == [
        (0, 3, True),
        (3, 6, True),
        (6, 9, True),
        (9, 10, False),
    ]


def test_tokens_that_all_classes_share_are_counted_once():
    chunk = Chunk(0, 10, 8, shared=5)
    assert chunk.tokens == 5 + 10 * 3
    assert chunk.pairs == 5 * 5 + 10 * 3 * 8
    assert [c.rows for c in by_memory([chunk], tens, 260)] == [2, 2, 2, 2, 2]  # 130 bytes are 13 tokens: 5 and 2 * 3


def test_one_class_that_does_not_fit():
    with pytest.raises(InputError, match="text_memory is 100 bytes, but a class takes 200; valid: 200 or more"):
        by_memory([Chunk(0, 3, 10)], tens, 100)
