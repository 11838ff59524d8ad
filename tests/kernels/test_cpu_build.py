"""How the cpu backend is built: only the stable ABI, one wheel for all, and pure Python where it cannot be compiled."""

from __future__ import annotations

import os
import platform
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cpu_cases import instructions

from rmadapter_kernels import cpu

ROOT = Path(__file__).parents[2]
SOURCES = ("setup.py", "pyproject.toml", "README.md", "MANIFEST.in", "csrc", "rmadapter_kernels", "rmadapter")
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="tests apart from the source tree")

ASK = """
import torch
from rmadapter_kernels import FusedRMAdapter, available_backends, cpu, explain
print(available_backends()["cpu"].reason)
out, loss = FusedRMAdapter(64, bottleneck=8)(torch.zeros(2, 64))
assert out.shape == (2, 64) and loss.shape == (2,)
print(explain(torch.zeros(2, 64)).backend)
print(*cpu.instruction_sets())
"""


def copy_of_the_sources(folder: Path) -> Path:
    """What a build reads, without anything built before."""
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    found = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found


@pytest.mark.skipif(not cpu.AVAILABLE, reason=cpu.reason())
@pytest.mark.skipif(shutil.which("nm") is None, reason="no binutils here")
def test_the_extension_uses_the_stable_abi_alone():
    """No name of torch's C++ classes, and none of Python's, is left for the loader to find."""
    listed = subprocess.run(["nm", "-D", "--undefined-only", cpu.LIBRARY], capture_output=True, text=True, check=True)
    names = {line.split()[-1].split("@")[0] for line in listed.stdout.splitlines()}
    assert "torch_library_impl" in names
    for name in names:
        assert not name.startswith(("Py", "_Py")), name
        assert not any(part in name for part in ("2at", "3c10", "5torch")), name


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="another processor has no such kernels")
def test_a_compiler_without_tiles_leaves_their_kernels_out_and_says_so():
    def compiled(name: str) -> str:
        """What is left of a file after its conditions."""
        command = ["c++", "-std=c++17", "-E", "-P", "-DRMADAPTER_WITHOUT_TILES", str(ROOT / "csrc" / f"{name}.cpp")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    kernels, dispatch = compiled("kernels_amx_bf16"), compiled("dispatch")
    assert "the amx_bf16 kernels are left out: they need Linux and GCC 11 or Clang 12" in kernels
    assert "amx_bf16_kernels" not in kernels + dispatch
    assert 'return "amx_bf16, which needs Linux and GCC 11 or Clang 12"' in dispatch


def test_without_torch_there_is_no_extension(tmp_path):
    """As in an isolated build whose interpreter has none."""
    source = copy_of_the_sources(tmp_path)
    code = "import importlib.util, runpy, sys, sysconfig; importlib.util.find_spec = lambda name: None; "
    code += "sysconfig.get_path = lambda name: '/nonexistent'; "
    code += "sys.argv = ['setup.py', '--quiet', 'build', '--build-lib', 'built']; runpy.run_path('setup.py')"
    assert "torch is not installed" in python("-c", code, cwd=source).stderr
    assert (source / "built" / "rmadapter_kernels" / "backends.py").exists()
    assert not list((source / "built").rglob("*.so"))


def test_without_the_extension_everything_else_works(tmp_path):
    source = copy_of_the_sources(tmp_path)
    built = python("setup.py", "--quiet", "build", "--build-lib", "built", cwd=source, RMADAPTER_NO_EXT="1")
    assert "RMADAPTER_NO_EXT is set" in built.stderr
    assert not list((source / "built").rglob("*.so"))
    asked = python("-c", ASK, cwd=source / "built", PYTHONPATH=str(source / "built"))
    reason, backend, sets = asked.stdout.splitlines()
    assert "was not built" in reason
    assert "C++17 compiler" in reason
    assert backend == "eager"
    assert sets == ""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")
def test_a_compiler_that_fails_leaves_pure_python(tmp_path):
    source = copy_of_the_sources(tmp_path)
    (source / "csrc" / "dispatch.cpp").write_text("#error this compiler takes nothing\n")
    python("setup.py", "--quiet", "build", "--build-lib", "built", cwd=source, RMADAPTER_NO_EXT="0")
    assert not list((source / "built").rglob("*.so"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")
def test_the_wheel_is_for_every_python_and_holds_the_extension(tmp_path):
    source = copy_of_the_sources(tmp_path)
    python("setup.py", "--quiet", "bdist_wheel", "--dist-dir", "dist", cwd=source, RMADAPTER_NO_EXT="0")
    (wheel,) = (source / "dist").glob("*.whl")
    assert wheel.name.startswith("rmadapter-")
    assert "-py3-none-" in wheel.name
    assert "-any" not in wheel.name
    shutil.unpack_archive(wheel, source / "unpacked", "zip")
    where = {"cwd": source / "unpacked", "PYTHONPATH": str(source / "unpacked")}
    fastest = python("-c", ASK, **where).stdout.splitlines()[2].split()[0]
    # Vector kernels by name, which `auto` follows on every processor.
    backend = python("-c", ASK, **where, RMADAPTER_CPU=fastest).stdout.splitlines()[1]
    assert backend == ("eager" if fastest == "portable" else "cpu")


@pytest.mark.skipif(not cpu.AVAILABLE, reason=cpu.reason())
def test_the_environment_chooses_the_instruction_set(monkeypatch):
    """What the module does at its import, done again in this process."""
    with instructions(None):
        monkeypatch.setenv("RMADAPTER_CPU", "portable")
        assert runpy.run_path(cpu.__file__)["instruction_set"]() == "portable"
        monkeypatch.setenv("RMADAPTER_CPU", "sse9")
        wrong = runpy.run_path(cpu.__file__)
        valid = ", ".join(cpu.instruction_sets())
        assert wrong["refusal"](torch.zeros(2, 17), 4, 0).startswith("x has width D=17")
        with pytest.raises(ValueError, match="RMADAPTER_CPU: .* is 'sse9'; valid on this processor: " + valid):
            wrong["refusal"](torch.zeros(2, 64), 4, 0)
        wrong["use_instruction_set"]("portable")
        assert wrong["refusal"](torch.zeros(2, 64), 4, 0) is None


@pytest.mark.slow
@pytest.mark.skipif(not cpu.AVAILABLE, reason=cpu.reason())
def test_the_environment_chooses_the_instruction_set_of_a_process():
    ask = "from rmadapter_kernels import cpu; print(cpu.instruction_set())"
    environment = {"PYTHONPATH": str(cpu.LIBRARY.parents[1])}
    assert python("-c", ask, cwd=Path.home(), RMADAPTER_CPU="portable", **environment).stdout.strip() == "portable"
    # A wrong name breaks no import and no help, and is said where the backend would be used.
    wrong = python(
        "-c",
        "import torch, rmadapter_kernels as k, rmadapter.config.run\n"
        "print(k.explain(torch.zeros(1, 17)).backend)\n"
        "try: k.explain(torch.zeros(1, 64))\n"
        "except ValueError as error: print(error)",
        cwd=Path.home(),
        RMADAPTER_CPU="sse9",
        **environment,
    )
    assert wrong.stdout.startswith("eager\nRMADAPTER_CPU: the instruction set is 'sse9'; valid on this processor:")


def test_a_missing_or_broken_library_is_a_reason(tmp_path):
    library, reason = cpu._load(tmp_path / "_cpu.so")
    assert library is None
    assert "was not built" in reason
    (tmp_path / "_cpu.so").write_bytes(b"not a library")
    library, reason = cpu._load(tmp_path / "_cpu.so")
    assert library is None
    assert "does not load" in reason
