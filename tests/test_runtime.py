"""Device and precision: what is chosen, what is refused."""

from __future__ import annotations

import subprocess

import pytest
import torch

from rmadapter import InputError, runtime
from rmadapter.runtime import (
    environment,
    residual_dtype,
    resolve_device,
    resolve_precision,
)
from rmadapter.training.arriving import Arriving

CPU = torch.device("cpu")


def test_devices():
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(InputError, match="device is 'gpu'; valid: auto, cpu, cuda"):
        resolve_device("gpu")
    with pytest.raises(InputError, match="device is 'cuda:99'"):
        resolve_device("cuda:99")
    with pytest.raises(InputError, match="device"):
        resolve_device("meta")


def test_precisions_on_the_cpu():
    assert resolve_precision("bf16", CPU) == "bf16"
    with pytest.raises(InputError, match=r"precision is 'fp16'.*valid on cpu: bf16, fp32"):
        resolve_precision("fp16", CPU)


def test_auto_is_bf16_where_the_cpu_has_it(monkeypatch):
    for has, chosen in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("rmadapter.runtime.cpu_has_bf16", lambda has=has: has)
        assert resolve_precision("auto", CPU) == chosen


def test_what_is_on_its_way_keeps_the_values_it_had():
    tensor = torch.tensor([1.0, float("inf")], requires_grad=True)
    arriving = Arriving(tensor)
    with torch.no_grad():
        tensor.zero_()
    assert arriving.wait().tolist() == [1.0, float("inf")]


def test_residual_stream():
    assert residual_dtype("auto", "bf16") == residual_dtype("fp32", "bf16") == torch.float32
    assert residual_dtype("compute", "bf16") == torch.bfloat16


def test_environment_names_versions_and_revision():
    found = environment(CPU)
    assert found["torch"] == torch.__version__
    assert {"python", "open_clip", "threads", "git", "command"} <= set(found)


def test_the_revision_is_not_that_of_a_checkout_around_the_environment(tmp_path, monkeypatch):
    """As where the package is installed in the environment of another project, which its git ignores."""

    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    git("init", "-q")
    git("commit", "-qm", "of the other project", "--allow-empty")
    (tmp_path / "runtime.py").touch()
    monkeypatch.setattr(runtime, "__file__", str(tmp_path / "runtime.py"))
    assert runtime.git_revision.__wrapped__() is None
    git("add", "runtime.py")
    git("commit", "-qm", "of this one")
    assert len(runtime.git_revision.__wrapped__()) == 40
