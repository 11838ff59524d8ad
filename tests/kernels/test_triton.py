"""The Triton backend without a GPU: the interpreter's tests in processes of their own, and what is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from interpreter_shards import part_of

import rmadapter_kernels
from rmadapter_kernels import available_backends, explain

pytest.importorskip("triton", reason="Triton is for Linux alone")
HERE = Path(__file__).parent
# A process needs 6 s of CPU time before its first test, so the usual tests, 40 s of it, share one.
SHARDS = ["1/1"]
SLOW_SHARDS = ["1/3", "2/3", "3/3"]


def environment(**changes: str) -> dict[str, str]:
    """This process's without what pytest left in it, with the packages under test and the tests' modules in front."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    root = str(Path(rmadapter_kernels.__file__).parents[1])
    path = [root, str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return own | {"PYTHONPATH": os.pathsep.join(path)} | changes


def run_under_the_interpreter(shard: str, marks: str) -> None:
    """A part of the tests with these marks; in a process of its own, since the variable counts at Triton's import."""
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-m", marks, "-p", "no:cacheprovider"]
    command += ["-p", "interpreter_shards", "--shard", shard, "--confcutdir", str(HERE), "--durations", "10"]
    done = subprocess.run(
        [*command, *map(str, sorted(HERE.glob("triton_interpreter*.py")))],
        env=environment(TRITON_INTERPRET="1", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"), cwd=HERE.parents[1],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    result = done.stdout.splitlines()[-1]
    assert " passed" in result, result
    assert "skipped" not in result, result


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("shard", SHARDS)
def test_under_the_interpreter(shard):
    run_under_the_interpreter(shard, "not slow")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("shard", SLOW_SHARDS)
def test_under_the_interpreter_at_length(shard):
    run_under_the_interpreter(shard, "slow")


@pytest.mark.parametrize("shards", [SHARDS, SLOW_SHARDS], ids=["usual", "slow"])
def test_every_test_is_in_one_shard(shards):
    tests = list(range(100))
    assert sorted(test for shard in shards for test in part_of(tests, shard)) == tests


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_data_parallel_under_the_interpreter(tmp_path):
    """Two processes over gloo: weights stay those of one process, also those that a loss leaves unused."""
    done = subprocess.run(
        [sys.executable, str(HERE / "triton_ddp.py"), str(tmp_path / "meeting")],
        env=environment(TRITON_INTERPRET="1"), capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    # Both write to one pipe, and a line's end may come behind the other's line.
    assert sorted(re.findall(r"rank \d done", done.stdout)) == ["rank 0 done", "rank 1 done"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is so without a CUDA device")
def test_without_a_device():
    status = available_backends()["triton"]
    assert not status.available
    assert status.reason == "there is no CUDA device"
    with pytest.raises(ValueError, match="backend is 'triton', which is not available here: there is no CUDA device"):
        explain(torch.zeros(2, 64), backend="triton")
