"""Tells transformers' Auto classes about our model and tokenizer families.

The file name is the registry: every module in keju.models but the plumbing is a model family, every module in
keju.tokenizers but the plumbing a tokenizer family. A model family `FooConfig` brings what it has of `FooModel`,
`FooForCausalLM`, `FooForConditionalGeneration`, `FooForMultipleChoice` and `FooForSequenceClassification`, or says in
`AUTO_CLASSES` which class serves which Auto class. `LORA_TARGETS` names what PEFT adapts by default. Names that
published folders use for a config's model_type or a tokenizer's class are listed by the class itself, in
`also_published_as`.

One model_type may stand for several architectures ("chatglm" for two of ours, "glm" for one of ours and for GLM-4 of
transformers). Their config classes have a classmethod `describes(config: dict)`, which looks at the fields of a
config.json; see SharedModelType. A config.json without any model_type goes to the class that describes it.

Published folders carry an `auto_map` that asks transformers to download and run Python code. transformers prefers a
registered class from outside its own package and does not even ask. For tokenizers that holds only while their config
class is absent from TOKENIZER_MAPPING, hence they are registered by name alone (the "tokenizer_class" of
tokenizer_config.json), not through AutoTokenizer.register.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from types import ModuleType

import transformers
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import REGISTERED_TOKENIZER_CLASSES, TOKENIZER_MAPPING_NAMES
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from keju import models, tokenizers

# Not families. Listed so that registering does not import them; a test keeps the lists complete.
PLUMBING = frozenset(
    {
        *(
            "accelerate",
            "accelerated",
            "accelerated_layers",
            "adapter_folder",
            "architecture",
            "attention",
            "backbone",
            "causal_lm",
            "checkpoint_files",
            "configurations",
            "decoding",
            "evaluating",
            "gathering",
            "generation",
            "layers",
            "loading",
        ),
        *("padded_rows", "prefix_lm", "published_config", "quantization", "registration"),
        *("rotary", "sampling", "saved_weights", "tokenizer_folder"),
    }
)
TOKENIZER_PLUMBING = frozenset(
    {
        "blank_filling",
        "byte_pieces",
        "family",
        "jieba_segmenter",
        "named_templates",
        "sentencepiece_family",
        "texts_to_ids",
        "token_tree",
    }
)
# Auto class -> what its model is called after the prefix of the config's name, in the order of preference.
AUTO_CLASSES = {
    "AutoModel": ("Model",),
    "AutoModelForCausalLM": ("ForCausalLM", "ForConditionalGeneration"),
    "AutoModelForSeq2SeqLM": ("ForConditionalGeneration",),
    "AutoModelForMultipleChoice": ("ForMultipleChoice",),
    "AutoModelForSequenceClassification": ("ForSequenceClassification",),
}


class SharedModelType:
    """Stands in transformers' CONFIG_MAPPING for config classes of one model_type: the fields decide.

    `classes` have a classmethod `describes`, but for the last, which takes what no other describes.
    """

    def __init__(self, model_type: str, classes: list[type[PreTrainedConfig]]) -> None:
        self.model_type = self.__name__ = model_type
        self.classes = classes

    def choose(self, config: dict) -> type[PreTrainedConfig]:
        return next((choice for choice in self.classes[:-1] if choice.describes(config)), self.classes[-1])

    def __call__(self, **fields) -> PreTrainedConfig:
        return self.choose(fields)(**fields)

    def from_dict(self, config: dict, **kwargs):
        return self.choose(config).from_dict(config, **kwargs)


def register() -> None:
    """Registers every family. Calling it again changes nothing."""
    families = _families(models, skip=PLUMBING)
    shared: dict[str, list[type[PreTrainedConfig]]] = {}
    for family in families:
        for config in _own_classes(family, PreTrainedConfig):
            for model_type in (config.model_type, *vars(config).get("also_published_as", ())):
                shared.setdefault(model_type, []).append(config)
            for auto_class, model in _auto_classes(family, config).items():
                getattr(transformers, auto_class).register(config, model, exist_ok=True)
    for model_type, classes in shared.items():
        # Not its `get`: that of OrderedDict knows nothing of the lazily loaded classes.
        known = CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING else None  # noqa: SIM401
        if isinstance(known, SharedModelType):
            continue  # of an earlier call
        if known is not None and known not in classes:
            classes.append(known)  # the class of transformers takes what ours do not describe
            # AutoTokenizer would take the class that it has for GLM-4 and not look at the folder's own word.
            TOKENIZER_MAPPING_NAMES.pop(model_type, None)
        # AutoConfig.register refuses a model_type that is not the class's own.
        config = classes[0] if len(classes) == 1 else SharedModelType(model_type, classes)
        CONFIG_MAPPING.register(model_type, config, exist_ok=True)
    _describe_configs_without_model_type([config for classes in shared.values() for config in classes])
    for family in _families(tokenizers, skip=TOKENIZER_PLUMBING):
        _register_tokenizers(family)


def add_lora_targets(table: dict[str, list[str]]) -> None:
    """Adds the `LORA_TARGETS` of our families to PEFT's table of them, beside what it has for a shared model_type."""
    for family in _families(models, skip=PLUMBING):
        for config in _own_classes(family, PreTrainedConfig):
            table[config.model_type] = sorted({*table.get(config.model_type, ()), *family.LORA_TARGETS})


def _families(package: ModuleType, skip: frozenset[str]) -> list[ModuleType]:
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names if name not in skip]


def _own_classes(module: ModuleType, base: type) -> list[type]:
    """Classes derived from `base` that the module defines itself."""
    members = [value for _, value in inspect.getmembers(module, inspect.isclass)]
    return [value for value in members if issubclass(value, base) and value.__module__ == module.__name__]


def _auto_classes(family: ModuleType, config: type[PreTrainedConfig]) -> dict[str, type]:
    """Auto class -> model class, as the family says or by the names of its classes."""
    if "AUTO_CLASSES" in vars(family):
        return family.AUTO_CLASSES
    prefix = config.__name__.removesuffix("Config")
    found = {
        auto_class: next((vars(family)[prefix + head] for head in heads if prefix + head in vars(family)), None)
        for auto_class, heads in AUTO_CLASSES.items()
    }
    return {auto_class: model for auto_class, model in found.items() if model is not None}


def _describe_configs_without_model_type(configs: list[type[PreTrainedConfig]]) -> None:
    """Fills in the model_type that some published config.json lack, wherever transformers reads one."""
    read = PreTrainedConfig.get_config_dict.__func__
    if getattr(read, "fills_in_model_type", False):
        return
    describing = [config for config in configs if "describes" in vars(config)]

    @functools.wraps(read)
    def get_config_dict(cls, *args, **kwargs):
        fields, unused = read(cls, *args, **kwargs)
        if "model_type" not in fields:
            found = next((config for config in describing if config.describes(fields)), None)
            if found is not None:
                fields = {**fields, "model_type": found.model_type}
        return fields, unused

    get_config_dict.fills_in_model_type = True
    PreTrainedConfig.get_config_dict = classmethod(get_config_dict)


def _register_tokenizers(family: ModuleType) -> None:
    for tokenizer in _own_classes(family, PreTrainedTokenizerBase):
        for name in (tokenizer.__name__, *vars(tokenizer).get("also_published_as", ())):
            REGISTERED_TOKENIZER_CLASSES[name] = tokenizer
