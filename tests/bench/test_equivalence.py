"""A training run ends where it ends on every backend of the operator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SMALL_CONFIG, run_config, small_clip
from safetensors.torch import save_file

from bench import equivalence
from rmadapter import RMAdapterConfig
from rmadapter_kernels import available_backends
from rmadapter_kernels.calls import BackendStatus

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


def test_every_backend_here_ends_within_the_seeds_spread(animals, wide_clip, tmp_path):
    values = {"epochs": 1, "adapter": RMAdapterConfig(layers="1-1", bottleneck=8, scale=0.1), "grad_norm_every": 0}
    config = run_config(animals, wide_clip, tmp_path / "run", **values)
    backends = [name for name in ("eager", "cpu") if available_backends()[name].available]
    runs = {
        (f"{b}/fp32", s): equivalence.run(config, tmp_path, (f"{b}/fp32", s)) for b in backends for s in (1, 2)
    }  # fmt: skip
    for difference in equivalence.compare(runs):
        print(difference)
        assert difference.steps == 4
        assert set(difference.ends) == {"last", "base", "new", "hm"}
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
    command += ["--variants", "eager/fp32,triton/fp32", "--seeds", "1,2", "--epochs", "1", "--shots", "2"]
    command += ["--layers", "1-1"]
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(kernels), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program, *command], env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "triton/fp32 seed 2: largest difference" in done.stdout


def test_runs_are_compared_by_seed_with_eager_s_of_their_precision_or_the_first():
    curves = {
        ("eager/bf16", 1): ([3.0, 2.0], 60.0), ("eager/bf16", 2): ([3.0, 2.5], 62.0),
        ("cpu/bf16", 1): ([3.0, 2.5], 61.5), ("cpu/bf16", 2): ([3.0, 3.5], 62.0),
        ("cpu/fp32", 1): ([3.0, 2.0], 63.0),
    }  # fmt: skip
    runs = {key: equivalence.Run(losses, {"base": base}) for key, (losses, base) in curves.items()}
    one, other, last = equivalence.compare(runs)
    assert (one.largest, one.ends, one.within) == (0.25, {"last": (0.25, 0.25), "base": (1.5, 2.0)}, True)
    assert (other.largest, other.ends["last"], other.within) == (0.5, (0.5, 0.25), False)
    assert (last.ends["last"], last.ends["base"], last.within) == ((0.0, 0.25), (3.0, 2.0), False)
    assert str(other) == (
        "cpu/bf16 seed 2: largest difference 5.0e-01 over 2 steps, last 0.5 OUTSIDE the seeds' 0.25, "
        "base 0 within the seeds' 2"
    )


def test_a_curve_is_smoothed_over_the_window():
    assert equivalence.Run([float(number) for number in range(60)], {}).smoothed == [24.5 + k for k in range(11)]


def test_a_variant_that_is_not_there_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        equivalence.main(["--out", str(tmp_path), "--variants", "eager/fp32,fast/fp32"])
    assert "--variants has 'fast/fp32'; valid: BACKEND/PRECISION" in capsys.readouterr().err


def test_on_a_gpu_the_cpu_backend_is_refused_before_anything_is_trained(tmp_path, capsys, monkeypatch):
    """Its tensors would be on the GPU: by default it is not among the variants."""
    monkeypatch.setattr(equivalence, "resolve_device", lambda name: torch.device("cuda"))
    there = {"triton": BackendStatus(True, ""), "cpu": BackendStatus(True, ""), "eager": BackendStatus(True, "")}
    monkeypatch.setattr(equivalence, "available_backends", lambda: there)
    assert equivalence.backends_here() == ["triton", "eager"]
    with pytest.raises(SystemExit):
        equivalence.main(["--out", str(tmp_path), "--variants", "eager/fp32,cpu/fp32"])
    said = capsys.readouterr().err
    assert "--variants has 'cpu/fp32'; valid: BACKEND/PRECISION, of the backends triton, eager" in said
