"""Packaging of the two packages; every dependency with the lowest version that is tested or known to work.

The cpu backend (csrc/) is compiled where there are a compiler and an installed torch with its headers; else, or with
RMADAPTER_NO_EXT=1, everything is pure Python. The extension uses torch's stable ABI and no Python API, so one wheel
serves every Python and every torch from 2.10 on.
"""

import importlib.util
import os
import re
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

# The ABI that the extension asks for, and the oldest torch that has it.
TORCH_TARGET_VERSION = "0x020a000000000000"
OLDEST_TORCH = (2, 10)


def find_torch() -> Path | None:
    """The folder of the installed torch. pip's isolated build hides it from imports, but keeps the interpreter."""
    spec = importlib.util.find_spec("torch")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    folders.append(Path(sysconfig.get_path("platlib")) / "torch")
    return next((folder for folder in folders if (folder / "version.py").exists()), None)


def extensions() -> list[Extension]:
    """The cpu backend, or nothing where it cannot be built."""

    def without(reason: str) -> list[Extension]:
        print(f"rmadapter: the cpu backend is not built: {reason}", file=sys.stderr)
        return []

    if os.environ.get("RMADAPTER_NO_EXT", "0") not in ("", "0"):
        return without("RMADAPTER_NO_EXT is set")
    if sys.platform == "win32":
        return without("it has not been ported to Windows")
    torch = find_torch()
    if torch is None:
        return without("torch is not installed; install it first")
    version = re.search(r"__version__ = '(\d+)\.(\d+)", (torch / "version.py").read_text(encoding="utf-8"))
    if version is None or tuple(map(int, version.groups())) < OLDEST_TORCH:
        return without("the installed torch is older than 2.10")
    sanitize = os.environ.get("RMADAPTER_SANITIZE", "0") not in ("", "0")
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g1", "-O1"] if sanitize else []
    sources = Path("csrc")
    return [
        Extension(
            "rmadapter_kernels._cpu",
            sources=sorted(str(source) for source in sources.glob("*.cpp")),
            depends=sorted(str(header) for pattern in ("*.h", "*.inc") for header in sources.glob(pattern)),
            include_dirs=[str(torch / "include")],
            library_dirs=[str(torch / "lib")],
            libraries=["torch_cpu"],
            define_macros=[
                ("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION),
                *([("RMADAPTER_POISON", "1")] if sanitize else []),
            ],
            extra_compile_args=["-std=c++17", "-O3", "-fvisibility=hidden", "-g0", *checks],
            extra_link_args=checks,
            language="c++",
            optional=not sanitize,
        )
    ]


class BuildExtension(build_ext):
    """Builds a library that torch loads, not a module that Python imports."""

    def get_ext_filename(self, fullname: str) -> str:
        """The same name for every Python."""
        return os.path.join(*fullname.split(".")) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """No PyInit function."""
        return []


class PlatformWheel(bdist_wheel):
    """A wheel for every Python of this platform, since nothing in it depends on Python's version."""

    def get_tag(self) -> tuple[str, str, str]:
        """py3-none-PLATFORM, or py3-none-any without the extension."""
        _, _, platform = super().get_tag()
        return "py3", "none", platform


# The documentation as a site, and the tests that build it.
DOCS = ["mkdocs>=1.6", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"]
# ONNX files, and running and quantising them: rmadapter export.
ONNX = ["onnx>=1.16", "onnxruntime>=1.20", "onnxscript>=0.5"]
# The page and the JSON endpoints: rmadapter serve.
SERVE = ["python-multipart>=0.0.18", "starlette>=0.45", "uvicorn>=0.30"]
# What draws the sources of the bundled pictures, to the last bit in this version: rmadapter.testbed.build and .corpus.
TESTBED = ["resvg-py==0.5.0"]
# Text towers and tokenizers of the Hugging Face hub.
TRANSFORMERS = ["transformers>=4.51", "sentencepiece>=0.2"]
EXTRAS = {
    "onnx": ONNX,
    "serve": SERVE,
    "testbed": TESTBED,
    "transformers": TRANSFORMERS,
    "plot": ["matplotlib>=3.8"],
    "test": [
        "hypothesis>=6.90",
        "matplotlib>=3.8",
        "optuna>=5.0",
        "pytest>=8.0",
        "pytest-benchmark>=4.0",
        "pytest-timeout>=2.2",
        "pytest-xdist>=3.5",
        "setuptools>=77",  # the tests of the build run setup.py
        "httpx2>=2.0",  # what starlette's test client asks with
        "playwright>=1.48",  # drives Chromium, where there is one
        *DOCS,
        *ONNX,
        *SERVE,
        *TESTBED,
        *TRANSFORMERS,
    ],
    "search": ["optuna>=5.0"],  # Trial.set_constraint
    # Split files on Google Drive, for rmadapter datasets download.
    "download": ["gdown>=5.0"],
    "dev": ["mypy>=1.14", "ruff>=0.6"],
    "docs": DOCS,
}

setup(
    name="rmadapter",
    version="0.1.0",
    description="RMAdapter: few-shot adaptation of CLIP with a reconstruction branch, as a fused operator",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=find_packages(include=["rmadapter", "rmadapter.*", "rmadapter_kernels", "rmadapter_kernels.*"]),
    package_data={
        "rmadapter": ["py.typed"],
        "rmadapter_kernels": ["py.typed", "cpu_measured.json"],
        "rmadapter_kernels.triton": ["compiled.json", "measured/*.json"],
        "rmadapter.data.emoji": ["train.yaml", "files/*", "files/licenses/*"],
        "rmadapter.serving": ["page/*"],
        "rmadapter.reports": ["details.html.jinja", "page.html.jinja"],
    },
    install_requires=[
        "torch>=2.10",
        # torch for Linux brings the matching Triton; elsewhere there is none.
        "triton>=3.6; platform_system == 'Linux'",
        "torchvision>=0.25",
        "open_clip_torch>=2.32",
        # Image towers of SigLIP, EVA and others; what rmadapter/clip/kinds takes apart is there since 1.0.17.
        "timm>=1.0.17",
        "numpy>=1.26",
        "pillow>=10.3",
        "safetensors>=0.4.3",
        "jsonargparse[signatures]>=4.40",
        "jinja2>=3.1",
        "PyYAML>=6.0",
        "tqdm>=4.66",
        # Locks of runs and sweeps; its lock files name their process and host since 3.21. torch needs it too.
        "filelock>=3.25",
        # MATLAB annotation files of Stanford Cars and Flowers 102.
        "scipy>=1.11",
        # Confusion matrix and ROC of evaluations; the tests compare the linear probe with its own.
        "scikit-learn>=1.4",
    ],
    extras_require=EXTRAS | {"all": sorted({name for names in EXTRAS.values() for name in names})},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtension, "bdist_wheel": PlatformWheel},
    entry_points={"console_scripts": ["rmadapter = rmadapter.cli:main"]},
)
