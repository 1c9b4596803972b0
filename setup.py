"""Installs utilgen_jax; `pip install -e .[test]` adds all that launch/test.sh runs."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = next(
    line.split('"')[1] for line in (ROOT / "utilgen_jax/__init__.py").read_text().splitlines() if "__version__" in line
)

# Ranges, for those who install the package beside their own; launch/constraints.txt pins one version within each.
INSTALL = [
    "absl-py>=2.1,<3",
    "array_record>=0.8,<0.9",  # prepared tfds folders are read through it, without TensorFlow
    "filelock>=3.16",  # JAX needs it to bound the size of its cache of programs
    "flax>=0.12,<0.13",
    "fsspec>=2026.1",  # workdirs and data in buckets
    "grain>=0.2.18,<0.3",  # reads images that memory does not hold
    "huggingface_hub>=1.0,<3",
    "importlib_resources>=6.4",  # tensorflow-datasets imports it and does not declare it
    "jax>=0.10,<0.12",
    "matplotlib>=3.9,<4",
    "ml_collections>=1.0,<2",
    "numpy>=2.0,<3",
    "optax>=0.2.6,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "pillow>=11",
    "safetensors>=0.5,<1",
    "scikit-learn>=1.5,<2",
    "scipy>=1.14,<2",
    "tensorboardX>=2.6.2,<3",
    "tensorflow-datasets>=4.9.9,<4.10",
    "tokenizers>=0.22,<1",
    "transformers>=5.0,<6",
]
HF = ["datasets>=4.0,<6"]  # from 4.0 on it runs no downloaded code
TEST = [
    *HF,
    "accelerate>=1.0,<2",  # peft and diffusers' LoRA loading need it
    "diffusers>=0.40,<0.43",  # diffusers and torch are the oracle of the tests; the package imports neither
    "ipykernel>=6.29",
    # The compiler for TPUs, which tests/plan/test_main.py runs without one; there is a wheel for this platform alone.
    'jax[tpu]>=0.10,<0.12; platform_system == "Linux" and platform_machine == "x86_64"',
    "mypy>=1.18,<3",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "packaging>=24",
    "peft>=0.20,<1",  # the oracle of LoRA
    "pytest>=8.4,<10",
    "pytest-xdist>=3.6,<4",
    "ruff>=0.14,<0.18",
    "torch==2.13.0",
    "transformers<5.24",  # 5.24 wants peft 0.22, which is not out; those from 5.18 on want 0.20
    "webdataset>=1.0,<2",
]

setup(
    name="utilgen_jax",
    version=VERSION,
    description="Synthetic training images, chosen and shaped by how much they help the task, in JAX.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # The configs of the checkout travel with the package, see `utilgen_jax.config.files`.
    packages=[*find_packages(include=["utilgen_jax", "utilgen_jax.*"]), "utilgen_jax.configs"],
    package_dir={"utilgen_jax.configs": "configs"},
    package_data={"utilgen_jax": ["assets/**/*"]},
    install_requires=INSTALL,
    extras_require={
        "tpu": ["jax[tpu]>=0.10,<0.12"],  # on a TPU; and elsewhere for `python -m utilgen_jax.plan`, which needs none
        "cuda": ["jax[cuda13]>=0.10,<0.12"],
        "tfds": ["tensorflow-cpu>=2.20,<3"],  # to prepare a tfds data set; reading a prepared one needs none of it
        "hf": HF,  # to read image data sets of the Hugging Face hub, or Parquet, Arrow and WebDataset folders
        "gs": ["gcsfs>=2026.1"],  # for gs://, by Application Default Credentials
        "s3": ["s3fs>=2026.1"],  # for s3://
        "caption": ["torch>=2.6", "transformers>=5.0,<6"],
        "test": TEST,
        "dev": [*TEST, "jupyterlab>=4.2"],
    },
    entry_points={"console_scripts": ["utilgen = utilgen_jax.main:main"]},
)
