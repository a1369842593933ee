"""Where a conversion may write, and what it leaves alone there."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from keju.errors import UserError

# What folders of models hold, by name.
OF_MODELS = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*", "*.bin"),
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("*.model", "*.tiktoken", "*.jinja", "preprocessor_config.json", "processor_config.json", "merge.json"),
    *("convert.json", "configuration_*.py", "modeling_*.py", "tokenization_*.py"),
)


def own_files(folder: Path) -> list[Path]:
    """What is in the folder of a model and no part of it."""
    return [path for path in folder.iterdir() if not any(fnmatch.fnmatch(path.name, one) for one in OF_MODELS)]


def check_output(output: Path, source: Path, *, overwrite: bool) -> None:
    """Raises UserError where `output` is, holds or lies in `source`, or is there already.

    `overwrite` lets it replace the model in a folder that holds one (a config.json); `own_files` stay.
    """
    output, source = output.resolve(), source.resolve()
    if output == source or output in source.parents or source in output.parents:
        raise UserError(f"{output} must lie apart from the folder that is converted, {source}", option="output_dir")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not output.is_dir():
        raise UserError(f"{output} is a file, expected a folder", option="output_dir")
    if not overwrite:
        raise UserError(
            f"{output} is not empty; name another or replace it with --overwrite_output_dir", option="output_dir"
        )
    if not (output / "config.json").is_file():
        raise UserError(f"{output} holds no model (no config.json), so that it is not replaced", option="output_dir")
