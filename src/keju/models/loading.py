"""Loading models and tokenizers: one place, one-line errors, nothing unpickled, no remote code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from keju.errors import UserError, renamed_options
from keju.models import attention
from keju.models.accelerate import with_kernels
from keju.models.adapter_folder import fit_embeddings
from keju.models.architecture import check_layers, check_modules, check_size, without_weights
from keju.models.backbone import num_embeddings, unwrapped
from keju.models.checkpoint_files import (
    SAFETENSORS,
    check_folder,
    named_code,
    num_numbers_in,
    read_object,
    weight_files,
)
from keju.models.configurations import (
    base_of,
    check_model,
    check_path,
    checked_config,
    first_line,
    load_config,
    named_sizes,
    size_config,
)
from keju.models.gathering import whole
from keju.models.quantization import check_4bit, nf4, trained_in_4bit
from keju.models.tokenizer_folder import check_tokenizer_folder, own_code
from keju.tokenizers import named_templates
from keju.tokenizers.family import answer_end_id

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Files of a tokenizer that are JSON objects.
TOKENIZER_JSON = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json")
# Heads of causal language models and of scalar models; each kind does without that of the other.
HEADS = frozenset({"lm_head", "embed_out", "output_layer", "score", "v_head", "classifier"})
# Masks and frequencies that older versions saved as buffers, and where PiSSA started.
CONSTANTS = re.compile(r"(\.|^)(inv_freq|masked_bias|attn\.bias|attention\.bias|position_ids|causal_mask|start_[AB])$")


def load_tokenizer(name: str, *, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder or hub name. Raises UserError when there is none, or one without an end token.

    A tokenizer without a pad token pads with its unknown token if it has one, else with its end token; padding is never
    trained on (losses list the positions that they train), so that this cannot teach a model to ignore its end token.
    chat_template: a named template or a Jinja file in the place of the tokenizer's own.
    """
    tokenizer = read_tokenizer(name)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {name} has no eos_token: answers could never end; set one", option="tokenizer_name"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if chat_template is not None:
        tokenizer.chat_template = named_templates.chat_template(chat_template)
    return tokenizer


def read_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer as its folder describes it. Raises UserError without one, naming the file if it is damaged."""
    with renamed_options(model_name_or_path="tokenizer_name"):
        check_path(name)
    try:
        for file in TOKENIZER_JSON:
            if (Path(name) / file).is_file():
                read_object(Path(name) / file)
        if Path(name).is_dir():
            check_tokenizer_folder(Path(name))
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises Exception itself
        reason = first_line(error)
        if "custom code" in reason:  # of transformers, which then advises to run it
            settings = get_tokenizer_config(name)
            reason = own_code(name, named_code(settings, "AutoTokenizer") or settings.get("tokenizer_class", "..."))
        raise UserError(f"no tokenizer loads from {name}: {reason}", option="tokenizer_name") from error


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError where a token of the tokenizer has no row in the model's embedding."""
    token, index = max(tokenizer.get_vocab().items(), key=itemgetter(1))
    num_rows = num_embeddings(model)
    if index >= num_rows:
        raise UserError(
            f"the token {token!r} has id {index}, but the embedding of this {type(model).__name__} has {num_rows} "
            "rows; the tokenizer is of another model, or its tokens were added without resizing",
            option="tokenizer_name",
        )


def load_causal_lm(
    name: str,
    *,
    dtype: str = "float32",
    tokenizer: PreTrainedTokenizerBase | None = None,
    from_scratch: bool = False,
    config_overrides: dict | None = None,
    quantization: BitsAndBytesConfig | None = None,
    trees: bool = True,
    base: str | None = None,
) -> PreTrainedModel:
    """A causal language model with attention over token trees.

    name: a checkpoint folder, a hub name, or one of `named_sizes()` (random weights, seeded by torch's generator, sized
    to `tokenizer`). `from_scratch` takes only the configuration of a folder. quantization: how linear layers are kept
    (keju.models.quantization); adapters that were trained over 4 bits get such a base in any case. trees: refuse kinds
    of layers that cannot compute token trees. base: the folder of the base, where `name` is a folder of adapters that
    names another one. Raises UserError, for a `tokenizer` that is too large for the model too.
    """
    if quantization is not None and (from_scratch or (name in named_sizes() and not Path(name).exists())):
        raise UserError("random weights are not worth keeping in 4 bits; it needs a checkpoint", option="load_in_4bit")
    if name in named_sizes() and not Path(name).exists():
        check_model(name, base=base)
        return _from_scratch(AutoModelForCausalLM, size_config(name, tokenizer), tokenizer, dtype, config_overrides)
    if from_scratch:
        config = load_config(name, base)
        return _from_scratch(AutoModelForCausalLM, config, tokenizer, dtype, config_overrides)
    model, _ = _from_pretrained(
        AutoModelForCausalLM, name, dtype, config_overrides, quantization=quantization, trees=trees, base=base
    )
    if tokenizer is not None:
        check_vocabulary(model, tokenizer)
    return model


def load_scalar_model(
    name: str,
    *,
    dtype: str = "float32",
    tokenizer: PreTrainedTokenizerBase | None = None,
    require_head: bool = False,
    config_overrides: dict | None = None,
    quantization: BitsAndBytesConfig | None = None,
    base: str | None = None,
) -> PreTrainedModel:
    """A reward model or critic: a backbone and `score`, a linear head to one number a token.

    From a reward checkpoint, or from a causal language model's folder, whose backbone then gets a fresh head of zeros
    (all rewards start equal: the first loss is log 2). `require_head` makes the missing head an error instead.
    config_overrides, quantization, base: as of load_causal_lm.
    """
    model, missing = _from_pretrained(
        AutoModelForSequenceClassification,
        name,
        dtype,
        {**(config_overrides or {}), "num_labels": 1},
        quantization=quantization,
        base=base,
    )
    fresh = any(key.endswith("score.weight") for key in missing)
    if fresh and require_head:
        raise UserError(
            f"{name} is not a reward model (its checkpoint has no score.weight)", option="model_name_or_path"
        )
    if fresh and hasattr(model, "peft_config"):
        raise UserError(
            f"{name} holds adapters of a model without a head, and a new one would not be trained and saved with them; "
            "make a whole model of them first: --adapters merge, or keju.merge",
            option="model_name_or_path",
        )
    if fresh:
        with whole([model.score.weight], write=True):
            torch.nn.init.zeros_(model.score.weight)
    if tokenizer is not None:
        check_vocabulary(model, tokenizer)
    return model


def _from_pretrained(
    auto_class, name, dtype, overrides, *, quantization=None, trees=True, base=None
) -> tuple[PreTrainedModel, set]:
    check = check_model if trees else checked_config
    config = check(name, overrides=overrides, base=base)
    source = base_of(name, base)
    try:
        if Path(source).is_dir():
            check_folder(Path(source))
        model = without_weights(auto_class, config)
        if trees:
            check_modules(model)
        if Path(source).is_dir():
            available = num_numbers_in(weight_files(Path(source), SAFETENSORS))
            check_size(model, available=available, element_size=_dtype(dtype).itemsize)
    except UserError as error:
        message = str(error) if str(source) in str(error) else f"{source}: {error}"
        raise UserError(message, option="model_name_or_path") from error
    in_4bit = trained_in_4bit(name)
    if quantization is not None and in_4bit is False:
        raise UserError(f"the adapters in {name} were trained on a base of whole weights", option="load_in_4bit")
    blamed = {"load_in_4bit": "model_name_or_path"} if in_4bit else {}  # adapters ask for it, and no option
    if quantization is None and in_4bit:
        with renamed_options(**blamed):
            quantization = nf4(_dtype(dtype))
    model, missing = load_checked(
        auto_class.from_pretrained,
        source,
        where=source,
        adapters=None if source == name else name,
        dtype=_dtype(dtype),
        use_safetensors=True,  # never a pickle
        **({} if quantization is None else {"quantization_config": quantization}),
        **(overrides or {}),
    )
    if quantization is not None:
        with renamed_options(**blamed):
            check_4bit(model)
    return model, missing


def load_checked(
    from_pretrained: Callable, name: str | None, *, where: str, adapters: str | None = None, **kwargs
) -> tuple[PreTrainedModel, set]:
    """Calls a from_pretrained of transformers -> (model, names of heads without weights in the checkpoint).

    where: how errors call the checkpoint. adapters: a folder of adapters for the model. Raises UserError, in one line,
    for weights that are missing, damaged or of another shape.
    """
    with _one_line_errors(where):
        model, info = from_pretrained(
            name,
            attn_implementation=attention.NAME,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with key and shapes
            **kwargs,
        )
    missing = _check_loaded(model, info, where)
    if adapters is not None:
        # By itself: from_pretrained would keep what is missing in the base to itself.
        where = adapters
        fit_embeddings(model, adapters)
        with _one_line_errors(where):
            info = model.load_adapter(
                adapters,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                dtype=kwargs.get("dtype"),
                hf_quantizer=getattr(model, "hf_quantizer", None),
            ).to_dict()
        for settings in model.peft_config.values():
            settings.base_model_name_or_path = name  # where they are saved, they go by this one again
        # A head that came with the adapters stands in another place than that of the base, which has none.
        missing &= dict(model.named_parameters()).keys()
        missing |= _check_loaded(model, info, where, adapters)
    model.config.pad_token_id = getattr(model.config, "pad_token_id", None)
    return with_kernels(model), missing


@contextmanager
def _one_line_errors(where: str) -> Iterator[None]:
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its report of missing weights: what matters is checked afterwards
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{where}: no model loads from it: {_reason(error)}", option="model_name_or_path") from error
    except SafetensorError as error:
        raise UserError(
            f"{where}: its weights are damaged: {first_line(error)}", option="model_name_or_path"
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)


def _check_loaded(model: PreTrainedModel, info: dict, where: str, adapters: str | None = None) -> set:
    """The names of heads without weights. info: of loading the model, or the `adapters` on it."""
    for key, found, expected in sorted(info["mismatched_keys"]):
        raise UserError(
            f"{where}: {key} has shape {list(found)}, {type(model).__name__} expects {list(expected)}",
            option="model_name_or_path",
        )
    lengths = {key for key in info["missing_keys"] if ".lora_magnitude_vector." in key}
    if lengths:
        _load_lengths(model, adapters)
    missing = sorted(key for key in info["missing_keys"] - lengths if not key.endswith("score.weight"))
    if missing:
        raise UserError(
            f"{where}: lacks {len(missing)} weights of {type(model).__name__}, first {missing[0]}",
            option="model_name_or_path",
        )
    loaded = {key for key in info["unexpected_keys"] if lengths and ".lora_magnitude_vector." in key}
    if adapters is not None:  # of embeddings of more tokens PEFT writes such layers twice, by two names
        loaded |= {key for key in info["unexpected_keys"] if ".modules_to_save." in key}
    check_unexpected(info["unexpected_keys"] - loaded, model, where=where)
    return info["missing_keys"]


def check_unexpected(names: Iterable[str], model: PreTrainedModel, *, where: str) -> None:
    """Raises UserError for weights of a checkpoint that the model has no place for; lists those that do no harm: the
    head of a model for another purpose, and constants that older files hold."""
    unexpected = sorted(names)
    heads = HEADS - {name for name, _ in unwrapped(model).named_children()}
    harmless = [key for key in unexpected if CONSTANTS.search(key) or key.split(".")[0] in heads]
    refused = [key for key in unexpected if key not in harmless]
    if refused:
        raise UserError(
            f"{where}: {type(model).__name__} has no place for {len(refused)} of its weights, first {refused[0]}: "
            "config.json is not that of the files",
            option="model_name_or_path",
        )
    if harmless:
        more = f" and {len(harmless) - 1} others" if len(harmless) > 1 else ""
        print(f"{where}: left out {harmless[0]}{more}, which {type(model).__name__} does without")


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyError) and error.args == (attention.NAME,):
        return "its attention layers are not open to other implementations of attention; it cannot compute token trees"
    return first_line(error)


def _load_lengths(model: PreTrainedModel, folder: str) -> None:
    """Those of DoRA, which transformers overlooks: in PEFT's files their names end in another way than in the model."""
    from peft import set_peft_model_state_dict

    state = load_file(Path(folder) / "adapter_model.safetensors")
    set_peft_model_state_dict(model, {key.removeprefix("base_model.model."): value for key, value in state.items()})


def _from_scratch(auto_class, config: PretrainedConfig, tokenizer, dtype, overrides) -> PreTrainedModel:
    if tokenizer is not None:
        # A multiple of 64 keeps matrix products fast; the spare rows are never predicted targets.
        config.vocab_size = (len(tokenizer) + 63) // 64 * 64
        for name in [name for name in vars(config) if name.endswith("_token_id")]:
            setattr(config, name, getattr(tokenizer, name, getattr(config, name)))
        config.eos_token_id = answer_end_id(tokenizer)
    for key, value in (overrides or {}).items():
        if not hasattr(config, key):
            raise UserError(f"{type(config).__name__} has no field {key!r}", option="config_overrides")
        setattr(config, key, value)
    try:
        check_layers(config)
        model = without_weights(auto_class, config)
        check_modules(model)
        if not is_deepspeed_zero3_enabled():  # which allocates pieces
            check_size(model, available=None, element_size=_dtype(dtype).itemsize)
        model = auto_class.from_config(config, dtype=_dtype(dtype), attn_implementation=attention.NAME)
    except (ValueError, KeyError) as error:
        raise UserError(f"{type(config).__name__}: {_reason(error)}", option="model_name_or_path") from error
    return with_kernels(model)


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise UserError(f"{name}: choose from {', '.join(DTYPES)}", option="dtype")
    return DTYPES[name]
