"""bench.predict on a small model: that its three contenders run."""

from __future__ import annotations

import re

from bench import predict as bench


def test_the_table_has_every_contender(clip_folder, capsys):
    small = ["--images", "5", "--width", "40", "--height", "36", "--classes", "3", "--batch-size", "2"]
    given = ["--model", f"local-dir:{clip_folder}", "--layers", "2-3", "--precision", "fp32", "--workers", "0"]
    assert bench.main([*small, *given]) == 0
    out, err = capsys.readouterr()
    rows = re.findall(r"^\| (\S.*?) +\| +(\d+\.\d) \| +(\d+\.\d\d) \|$", out, re.MULTILINE)
    names = ["open_clip and a DataLoader", "predict, without an adapter", "predict, with an adapter"]
    assert [name for name, _, _ in rows] == names
    assert rows[0][2] == "1.00"
    assert err.count("5 images in ") == 2
    assert "5 JPEG files of 40 x 36, 3 classes, batches of 2, 0 processes that decode" in out
