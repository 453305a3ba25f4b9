"""Packaging of ds_rvqvae: what `pyproject.toml` cannot say."""

from setuptools import find_packages, setup

setup(
    # The profiles live in ds_configs/ beside the package and are installed as ds_rvqvae/ds_configs.
    packages=[*find_packages(include=["ds_rvqvae", "ds_rvqvae.*"]), "ds_rvqvae.ds_configs"],
    package_dir={"ds_rvqvae": "ds_rvqvae", "ds_rvqvae.ds_configs": "ds_configs"},
    package_data={"ds_rvqvae": ["py.typed"], "ds_rvqvae.ds_configs": ["*.json"]},
)
