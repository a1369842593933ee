"""The configuration of a model, found and looked at before anything of the model is allocated."""

from __future__ import annotations

import json
import re
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import REGISTERED_TOKENIZER_CLASSES

from keju.errors import UserError
from keju.models.adapter_folder import check_kind
from keju.models.architecture import check_layers, check_quantization, check_row
from keju.models.checkpoint_files import check_config, read_object

SIZES = Path(__file__).parent / "sizes"
# Repository names on a hub: "name" or "owner/name".
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def named_sizes() -> list[str]:
    """Names that start a model from scratch: one JSON file each in `models/sizes/`."""
    return sorted(path.stem for path in SIZES.glob("*.json"))


def size_fields(name: str) -> dict:
    """The JSON of a named size: fields of its config, and perhaps `tokenizer`, the tokenizer_config.json that a
    vocabulary needs to be one for this model."""
    return json.loads((SIZES / f"{name}.json").read_text(encoding="utf-8"))


def size_config(name: str, tokenizer: PreTrainedTokenizerBase | None = None) -> PretrainedConfig:
    """Raises UserError where the size asks for tokens that `tokenizer` does not have."""
    fields = size_fields(name)
    needed = fields.pop("tokenizer", None)
    if needed is not None and tokenizer is not None:
        own = REGISTERED_TOKENIZER_CLASSES[needed["tokenizer_class"]]
        if not isinstance(tokenizer, own):
            raise UserError(
                f"{name} needs a {own.__name__}, this is a {type(tokenizer).__name__}; keju.prepare_data makes one, in "
                f"the folder tokenizer-{name} beside the records",
                option="tokenizer_name",
            )
    return AutoConfig.for_model(**fields)


def check_path(name: str) -> None:
    """Raises UserError for a local path that is not there, before transformers takes it for a repository of a hub."""
    path = Path(name).expanduser()
    if path.exists() or name in named_sizes():
        return
    if path.is_absolute() or name.startswith((".", "~")) or not HUB_NAME.fullmatch(name) or path.parent.is_dir():
        known = ", ".join(named_sizes())
        raise UserError(
            f"{name} does not exist (neither a folder nor one of the sizes {known})", option="model_name_or_path"
        )


def check_model(name: str, *, overrides: dict | None = None, base: str | None = None) -> PretrainedConfig:
    """The configuration of a model that is to compute token trees; of the base, for a folder of adapters.

    base: as of base_of.

    Raises UserError, before anything is allocated, for an architecture that cannot, for quantised weights and absurd
    sizes, and for folders whose files are not whole.
    """
    config = checked_config(name, overrides=overrides, base=base)
    try:
        check_layers(config)
    except UserError as error:
        raise UserError(f"{name}: {type(config).__name__}: {error}", option="model_name_or_path") from error
    return config


def check_rows(name: str, longest: int, *, overrides: dict | None = None, base: str | None = None) -> None:
    """Raises UserError (max_length) where rows of `longest` tokens are not those of token trees in this model."""
    check_row(checked_config(name, overrides=overrides, base=base), longest)


def check_positions(name: str, longest: int, *, what: str, base: str | None = None) -> None:
    """Raises UserError for rows (`what`) of `longest` tokens where the model has fewer positions."""
    positions = getattr(checked_config(name, base=base).get_text_config(), "max_position_embeddings", None)
    if positions is not None and longest > positions:
        raise UserError(
            f"{name} has {positions} positions; {what} come to {longest} tokens", option="model_name_or_path"
        )


def checked_config(name: str, *, overrides: dict | None = None, base: str | None = None) -> PretrainedConfig:
    check_path(name)
    if name in named_sizes() and not Path(name).exists():
        _refuse_base(name, base)
        config = size_config(name)
    else:
        source = base_of(name, base)
        try:
            if Path(source).is_dir():
                check_config(Path(source))
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            check_quantization(config)
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(
                f"no configuration loads from {source}: {first_line(error)}", option="model_name_or_path"
            ) from error
    for key, value in (overrides or {}).items():
        setattr(config, key, value)
    return config


def base_of(name: str, base: str | None = None) -> str:
    """Whose configuration and weights a model has: those of the base of a folder of adapters, else its own.

    base: the folder of the base, where it is not the one that the adapters name.
    Says so where the base that they name is no folder: the hub may take a while to answer. Raises UserError for
    adapters of a kind that is not supported, or that name no base, for a `base` that is no folder of whole weights, and
    for one of a model that needs none.
    """
    settings = Path(name) / "adapter_config.json"
    if not settings.is_file():
        _refuse_base(name, base)
        return name
    if any((Path(name) / file).is_file() for file in ("model.safetensors", "model.safetensors.index.json")):
        raise UserError(
            f"{name} holds whole weights and adapters, and which of them is the model cannot be told; leave one of the "
            "two in the folder",
            option="model_name_or_path",
        )
    described = read_object(settings)
    check_kind(described, name)
    if base is not None:
        if not Path(base).is_dir():
            raise UserError(f"{base} is not a folder", option="base_model")
        if (Path(base) / settings.name).is_file():
            raise UserError(f"{base} holds adapters, which need a base of their own", option="base_model")
        return base
    base = described.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(
            f"not given: base_model_name_or_path must name the base of the adapters in {settings}",
            option="base_model",
        )
    try:
        check_path(base)
    except UserError as error:
        raise UserError(
            f"not given, and {base}, the base_model_name_or_path in {settings}, does not exist", option="base_model"
        ) from error
    if not Path(base).is_dir():
        print(
            f"the base of the adapters in {name} is {base}, which is no folder here; asking the hub for it "
            "(base_model would name a folder)"
        )
    return base


def base_option(option: str) -> str:
    """The option that names the base of the adapters which `option` names."""
    return "base_model" if option == "model_name_or_path" else option.replace("_model_path", "_base_model")


def _refuse_base(name: str, base: str | None) -> None:
    if base is not None:
        raise UserError(f"{name} holds no adapters (no adapter_config.json) that need a base", option="base_model")


def load_config(name: str, base: str | None = None) -> PretrainedConfig:
    return checked_config(name, base=base)


def first_line(error: BaseException) -> str:
    """What an error says, in one line; a list that its first line announces comes with it."""
    first, *others = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join([first, *map(str.strip, others)]) if first.endswith(":") else first
