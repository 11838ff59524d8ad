"""A training run ends where it ends on every backend of the operator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL_CONFIG, run_config, small_clip
from safetensors.torch import save_file

from bench import equivalence
from rmadapter import RMAdapterConfig
from rmadapter_kernels import available_backends

# Towers of a width that every backend takes.
CONFIG = SMALL_CONFIG | {
    "vision_cfg": SMALL_CONFIG["vision_cfg"] | {"layers": 1},
    "text_cfg": SMALL_CONFIG["text_cfg"] | {"width": 64, "layers": 1},
}


@pytest.fixture
def wide_clip(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    config = {"model_cfg": CONFIG, "preprocess_cfg": {"size": [32, 32]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(small_clip(**CONFIG).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def configured(animals, clip, tmp_path, **changes):
    values = {"epochs": 1, "adapter": RMAdapterConfig(layers="1-1", bottleneck=8, scale=0.1), "grad_norm_every": 0}
    return run_config(animals, clip, tmp_path / "run", **values | changes)


def test_every_backend_here_ends_within_the_seeds_spread(animals, wide_clip, tmp_path):
    config = configured(animals, wide_clip, tmp_path)
    backends = [name for name in ("eager", "cpu") if available_backends()[name].available]
    curves = {(b, s): equivalence.run(config, tmp_path, b, s) for b in backends for s in (1, 2)}
    for difference in equivalence.compare(curves):
        print(difference)
        assert difference.steps == 4
        assert difference.within
        assert difference.largest < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_triton_in_the_interpreter_ends_within_the_seeds_spread(animals, wide_clip, tmp_path):
    """Three steps on eager and on triton, in a process of its own."""
    kernels = Path(__file__).parents[1] / "kernels"
    program = (
        "import sys, mended_interpreter\nfrom bench import equivalence\n"
        "sys.exit(equivalence.main(sys.argv[1:]))\n"
    )  # fmt: skip
    command = ["--out", str(tmp_path / "runs"), "--data", str(animals), "--model", f"local-dir:{wide_clip}"]
    command += ["--backends", "eager,triton", "--seeds", "1,2", "--epochs", "1", "--shots", "2", "--precision", "fp32"]
    command += ["--layers", "1-1"]
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(kernels), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program, *command], env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "triton seed 2: largest difference" in done.stdout


def test_curves_are_compared_by_seed():
    curves = {
        ("eager", 1): [3.0, 2.0, 1.0], ("eager", 2): [3.0, 2.5, 1.25],
        ("cpu", 1): [3.0, 2.1, 1.0], ("cpu", 2): [3.0, 2.5, 1.75],
    }  # fmt: skip
    one, other = equivalence.compare(curves)
    assert (one.largest, one.last, one.spread, one.within) == (pytest.approx(0.1), 0.0, 0.25, True)
    assert not other.within
    assert str(other) == "cpu seed 2: largest difference 5.0e-01 over 3 steps, last 5.0e-01, OUTSIDE the seeds' 2.5e-01"
