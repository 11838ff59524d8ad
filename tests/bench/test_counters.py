"""The table of hardware counters from what Nsight Compute prints."""

from __future__ import annotations

import pytest

from bench import counters

NAMES = [*counters.METRICS]
HEAD = '"ID","Kernel Name",' + ",".join(f'"{name}"' for name in NAMES)
UNITS = '"","",' + ",".join('"us"' if "time" in name else '"Mbyte"' if "bytes" in name else '""' for name in NAMES)


def printed(kernels: list[tuple[str, float]]) -> str:
    lines = [f'"{i}","{name}","{value}",' + ",".join(['"2"'] * (len(NAMES) - 1)) for i, (name, value) in
             enumerate(kernels)]  # fmt: skip
    return "\n".join(["==PROF== Connected to process 1", HEAD, UNITS, *lines])


def test_the_second_step_of_each_problem_counts():
    step = [("spin_kernel(long)", 1.0), ("rm_adapter_forward_kernel", 10.0), ("rm_adapter_backward_sum_kernel", 5.0)]
    again = [(name, value + 1) for name, value in step]
    rows = counters.rows_of(printed([*step, *again, *step, *step]), [(6304, True), (100, False)])
    assert [(row["tokens"], row["norm"], row["kernel"], row["us"]) for row in rows] == [
        (6304, True, "forward_kernel", 11.0),
        (6304, True, "backward_sum_kernel", 6.0),
        (100, False, "forward_kernel", 10.0),
        (100, False, "backward_sum_kernel", 5.0),
    ]
    assert rows[0]["memory_read"] == 2e6
    text = counters.table(rows)
    assert "364" in text.splitlines()[1]  # 4 MB in 11 us: GB/s
    with pytest.raises(ValueError, match="zip"):
        counters.rows_of(printed(step * 2), [(1, True), (2, True)])


def test_without_a_device_or_ncu_nothing_is_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(counters.torch.cuda, "is_available", lambda: False)
    assert counters.main(["--out", str(tmp_path)]) == 2
    assert "no CUDA device is here" in capsys.readouterr().out
    monkeypatch.setattr(counters.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(counters.shutil, "which", lambda name: None)
    assert counters.main(["--out", str(tmp_path)]) == 2
    assert "ncu is not here" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
