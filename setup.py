"""Packaging of ds_rvqvae."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

EXTRAS = {
    "bvh": [],
    "hub": ["huggingface_hub>=0.26"],
    "render": ["imageio-ffmpeg>=0.6"],
}
TESTS = [
    "pytest>=8",
    "pytest-timeout",
    "pytest-xdist>=3.5",
    "hypothesis",
    "lmdb",
    "ruff",
    "mypy>=2",
    "types-psutil",
    "types-tqdm",
    "pre-commit>=4",
    "vector-quantize-pytorch>=1.31",
]

setup(
    name="ds_rvqvae",
    # Read, not imported: the package's dependencies are not there yet.
    version=re.search(r'^__version__ = "(.+)"$', (ROOT / "ds_rvqvae" / "__init__.py").read_text(), re.MULTILINE)[1],
    description="Residual vector-quantized VAEs of human motion, trained under DeepSpeed ZeRO-2",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.13",
    # The profiles live in ds_configs/ beside the package and are installed as ds_rvqvae/ds_configs.
    packages=[*find_packages(include=["ds_rvqvae", "ds_rvqvae.*"]), "ds_rvqvae.ds_configs"],
    package_dir={"ds_rvqvae": "ds_rvqvae", "ds_rvqvae.ds_configs": "ds_configs"},
    package_data={"ds_rvqvae": ["py.typed"], "ds_rvqvae.ds_configs": ["*.json"]},
    install_requires=[
        "torch>=2.6",
        "deepspeed>=0.19.2",
        "numpy>=1.26",
        "scipy>=1.11",
        "pydantic>=2.7",
        "nvidia-ml-py>=12.535.108",
        "tensorboard>=2.16",
        "matplotlib>=3.8",
        "safetensors>=0.4.3",
        "filelock>=3.13",
        "tqdm>=4.66",
        "psutil>=5.9",
        "rich>=13",
    ],
    extras_require={**EXTRAS, "dev": [*TESTS, *(requirement for extra in EXTRAS.values() for requirement in extra)]},
    entry_points={"console_scripts": ["ds-rvqvae = ds_rvqvae.cli:main"]},
)
