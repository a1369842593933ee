"""What a stage makes of a folder of adapters that it starts from (--adapters).

continue: they are trained on. merge: a whole model is made of them and their base, as by keju.merge, and the stage
starts from that one. stack: they stay as they are, and new ones are trained beside them (keju.training.stacking).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import deepspeed as of_transformers

from keju.conversion.merging import FIGURES, merge_adapters
from keju.errors import UserError
from keju.models.adapter_folder import holds_adapters
from keju.models.backbone import unwrapped
from keju.models.checkpoint_files import read_object
from keju.training.old_files import START
from keju.training.processes import wait_for_all
from keju.training.run_folder import BESIDE, RunFolder


def check_adapters(adapters: str | None, name: str) -> None:
    """Raises UserError for --adapters where the start, `name`, has none. To be called before a model loads."""
    if adapters is None:
        return
    if not holds_adapters(name):
        raise UserError(
            f"--adapters {adapters}: --model_name_or_path {name} holds no adapters (no adapter_config.json)"
        )


def merged_start(
    folder: RunFolder, name: str, *, base: str | None, dtype: str, tokenizer: PreTrainedTokenizerBase
) -> Path:
    """Where the whole model is that the adapters in `name` and their base make: in the folder of the run.

    It is made once: a run that was killed finds it again. All processes must call, after RunFolder.identify; the first
    one makes it.
    """
    made_of = {"content": folder.made_with["inputs"]["model_name_or_path"], "dtype": dtype}
    # A run that replaces another one writes beside it until it begins; then its files move to where `name_start` says.
    own = folder.log_path.parent / START
    if folder.is_main and not _is_of(own, made_of):
        with _whole_weights(), torch.random.fork_rng(devices=[]):
            merged = merge_adapters(
                name, own, save_tokenizer=tokenizer.save_pretrained, base=base, dtype=dtype, known_as=made_of
            )
        print(
            f"{name}: merged into its base; {merged.what} differ by at most {merged.difference:.2g} at a scale of "
            f"{merged.scale:.2g}"
        )
    wait_for_all()
    places = [own, folder.path / BESIDE / START, folder.path / START]
    return next(place for place in places if _is_of(place, made_of))


def name_start(folder: RunFolder, *models: PreTrainedModel) -> None:
    """Adapters on a `merged_start`, those that the models have and those that they get, say that their base is where it
    stays."""
    now, then = str(folder.log_path.parent / START), str((folder.path / START).absolute())
    for model in models:
        for settings in getattr(model, "peft_config", {}).values():
            if settings.base_model_name_or_path == now:
                settings.base_model_name_or_path = then
        inner = unwrapped(model)
        if inner.name_or_path == now:
            inner.name_or_path = inner.config._name_or_path = then


def remove_start(folder: RunFolder) -> None:
    """Of a run that trains all weights: once they are loaded, or where none was to be made. All processes must call."""
    wait_for_all()
    own = folder.log_path.parent / START
    if folder.is_main and (own / FIGURES).is_file():
        shutil.rmtree(own)


def _is_of(place: Path, made_of: dict[str, str]) -> bool:
    return (place / FIGURES).is_file() and made_of.items() <= read_object(place / FIGURES).items()


@contextmanager
def _whole_weights() -> Iterator[None]:
    """Under ZeRO-3 transformers would cut up what it loads."""
    config = of_transformers.deepspeed_config() and of_transformers._hf_deepspeed_config_weak_ref()
    of_transformers.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            of_transformers.set_hf_deepspeed_config(config)
