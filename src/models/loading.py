"""Loading models and tokenizers: one place, one-line errors, nothing unpickled, no remote code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.tokenization_auto import REGISTERED_TOKENIZER_CLASSES

from keju.models import attention
from keju.tokenizers.family import answer_end_id

SIZES = Path(__file__).parent / "sizes"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
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
    """Raises ValueError where the size asks for tokens that `tokenizer` does not have."""
    fields = size_fields(name)
    needed = fields.pop("tokenizer", None)
    if needed is not None and tokenizer is not None:
        own = REGISTERED_TOKENIZER_CLASSES[needed["tokenizer_class"]]
        if not isinstance(tokenizer, own):
            raise ValueError(
                f"--tokenizer_name: {name} needs a {own.__name__}, this is a {type(tokenizer).__name__}; "
                f"keju.prepare_data makes one, in the folder tokenizer-{name} beside the records"
            )
    return AutoConfig.for_model(**fields)


def check_path(name: str, flag: str = "--model_name_or_path") -> None:
    """Raises ValueError for a local path that is not there, before transformers takes it for a repository of a hub."""
    path = Path(name).expanduser()
    if path.exists() or name in named_sizes():
        return
    if path.is_absolute() or name.startswith((".", "~")) or not HUB_NAME.fullmatch(name) or path.parent.is_dir():
        known = ", ".join(named_sizes())
        raise ValueError(f"{flag}: {name} does not exist (neither a folder nor one of the sizes {known})")


def load_tokenizer(name: str, *, flag: str = "--tokenizer_name") -> PreTrainedTokenizerBase:
    """A tokenizer from a folder or hub name. Raises ValueError when there is none, or one without an end token.

    A tokenizer without a pad token pads with its unknown token if it has one, else with its end token; padding is never
    trained on (losses list the positions that they train), so that this cannot teach a model to ignore its end token.
    """
    check_path(name, flag)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{flag}: no tokenizer loads from {name}: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{flag}: the tokenizer of {name} has no eos_token: answers could never end; set one")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def load_causal_lm(
    name: str,
    *,
    dtype: str = "float32",
    tokenizer: PreTrainedTokenizerBase | None = None,
    from_scratch: bool = False,
    config_overrides: dict | None = None,
) -> PreTrainedModel:
    """A causal language model with attention over token trees.

    name: a checkpoint folder, a hub name, or one of `named_sizes()` (random weights, seeded by torch's generator, sized
    to `tokenizer`). `from_scratch` takes only the configuration of a folder. Raises ValueError naming the flag.
    """
    if name in named_sizes() and not Path(name).exists():
        return _from_scratch(AutoModelForCausalLM, size_config(name, tokenizer), tokenizer, dtype, config_overrides)
    if from_scratch:
        config = _load_config(name)
        return _from_scratch(AutoModelForCausalLM, config, tokenizer, dtype, config_overrides)
    return _from_pretrained(AutoModelForCausalLM, name, dtype, config_overrides)


def load_scalar_model(
    name: str, *, dtype: str = "float32", flag: str = "--model_name_or_path", require_head: bool = False
) -> PreTrainedModel:
    """A reward model or critic: a backbone and `score`, a linear head to one number a token.

    From a reward checkpoint, or from a causal language model's folder, whose backbone then gets a fresh head of zeros
    (all rewards start equal: the first loss is log 2). `require_head` makes the missing head an error instead.
    """
    model, missing = _from_pretrained(
        AutoModelForSequenceClassification, name, dtype, {"num_labels": 1}, flag=flag, with_missing=True
    )
    fresh = any(key.endswith("score.weight") for key in missing)
    if fresh and require_head:
        raise ValueError(f"{flag}: {name} is not a reward model (its checkpoint has no score.weight)")
    if fresh:
        torch.nn.init.zeros_(model.score.weight)
    return model


def _from_pretrained(auto_class, name, dtype, overrides, *, flag="--model_name_or_path", with_missing=False):
    check_path(name, flag)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its report of missing weights: what matters is checked below
    try:
        model, info = auto_class.from_pretrained(
            name,
            dtype=_dtype(dtype),
            attn_implementation=attention.NAME,
            trust_remote_code=False,
            use_safetensors=True,  # never a pickle
            output_loading_info=True,
            **(overrides or {}),
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        raise ValueError(f"{flag}: no model loads from {name}: {_first_line(error)}") from error
    except Exception as error:  # safetensors raises a class of its own for truncated files
        if type(error).__name__ != "SafetensorError":
            raise
        raise ValueError(f"{flag}: the weights in {name} are damaged: {_first_line(error)}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    missing = [key for key in info["missing_keys"] if not key.endswith("score.weight")]
    if missing:
        raise ValueError(f"{flag}: {name} lacks {len(missing)} weights of {type(model).__name__}, first {missing[0]}")
    model.config.pad_token_id = getattr(model.config, "pad_token_id", None)
    return (model, info["missing_keys"]) if with_missing else model


def _from_scratch(auto_class, config: PretrainedConfig, tokenizer, dtype, overrides) -> PreTrainedModel:
    if tokenizer is not None:
        # A multiple of 64 keeps matrix products fast; the spare rows are never predicted targets.
        config.vocab_size = (len(tokenizer) + 63) // 64 * 64
        for name in [name for name in vars(config) if name.endswith("_token_id")]:
            setattr(config, name, getattr(tokenizer, name, getattr(config, name)))
        config.eos_token_id = answer_end_id(tokenizer)
    for key, value in (overrides or {}).items():
        if not hasattr(config, key):
            raise ValueError(f"--config_overrides: {type(config).__name__} has no field {key!r}")
        setattr(config, key, value)
    return auto_class.from_config(config, dtype=_dtype(dtype), attn_implementation=attention.NAME)


def _load_config(name: str) -> PretrainedConfig:
    check_path(name)
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"--model_name_or_path: no configuration loads from {name}: {_first_line(error)}") from error


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"--dtype {name}: choose from {', '.join(DTYPES)}")
    return DTYPES[name]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
