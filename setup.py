"""Packaging of the two packages; every dependency with the lowest version that is tested or known to work."""

from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    "plot": ["matplotlib>=3.8"],
    "demo": ["matplotlib>=3.8", "scikit-learn>=1.4"],
    "test": [
        "hypothesis>=6.90",
        "matplotlib>=3.8",
        "pytest>=8.0",
        "pytest-benchmark>=4.0",
        "pytest-timeout>=2.2",
        "scikit-learn>=1.4",
    ],
    # Split files on Google Drive, for rmadapter datasets download.
    "download": ["gdown>=5.0"],
    "dev": ["ruff>=0.6"],
}

setup(
    name="rmadapter",
    version="0.1.0",
    description="RMAdapter: few-shot adaptation of CLIP with a reconstruction branch, as a fused operator",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=find_packages(include=["rmadapter", "rmadapter.*", "rmadapter_kernels", "rmadapter_kernels.*"]),
    install_requires=[
        "torch>=2.10",
        # torch for Linux brings the matching Triton; elsewhere there is none.
        "triton>=3.6; platform_system == 'Linux'",
        "torchvision>=0.25",
        "open_clip_torch>=2.32",
        "numpy>=1.26",
        "pillow>=10.3",
        "safetensors>=0.4.3",
        "jsonargparse[signatures]>=4.40",
        "PyYAML>=6.0",
        "tqdm>=4.66",
        # Claims of a sweep's runs; torch needs it too.
        "filelock>=3.12",
        # MATLAB annotation files of Stanford Cars and Flowers 102.
        "scipy>=1.11",
    ],
    extras_require=EXTRAS | {"all": sorted({name for names in EXTRAS.values() for name in names})},
    entry_points={"console_scripts": ["rmadapter = rmadapter.cli:main"]},
)
