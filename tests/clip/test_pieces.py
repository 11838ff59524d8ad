"""How many images go through a tower at once."""

from __future__ import annotations

import torch

from rmadapter.clip.pieces import PIECE_BYTES, in_cache


def test_images_go_in_equal_pieces_that_a_cpu_keeps_in_its_cache():
    cpu = torch.device("cpu")
    assert in_cache(16, PIECE_BYTES // 8, cpu) == 8
    assert in_cache(17, PIECE_BYTES // 8, cpu) == 6
    assert in_cache(3, 2 * PIECE_BYTES, cpu) == 1
    assert in_cache(16, 1, cpu) == 16
    assert in_cache(16, 2 * PIECE_BYTES, torch.device("cuda")) == 16
