"""Tells transformers' Auto classes about our model and tokenizer families.

The file name is the registry: every module in keju.models but the plumbing is a model family, every module in
keju.tokenizers a tokenizer family. A model family `FooConfig` brings what it has of `FooModel`, `FooForCausalLM` and
`FooForSequenceClassification`. Names that published folders use for a config's model_type or a tokenizer's class are
listed by the class itself, in `also_published_as`.

Published folders carry an `auto_map` that asks transformers to download and run Python code. transformers prefers a
registered class from outside its own package and does not even ask. For tokenizers that holds only while their config
class is absent from TOKENIZER_MAPPING, hence they are registered by name alone (the "tokenizer_class" of
tokenizer_config.json), not through AutoTokenizer.register.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType

from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import REGISTERED_TOKENIZER_CLASSES
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

import keju.models
import keju.tokenizers

# Not families. Listed so that `import keju` does not import them; a test keeps the list complete.
PLUMBING = frozenset({"attention", "backbone", "generation", "loading", "registration"})
AUTO_CLASSES = {
    "Model": AutoModel,
    "ForCausalLM": AutoModelForCausalLM,
    "ForSequenceClassification": AutoModelForSequenceClassification,
}


def register() -> None:
    """Registers every family. Calling it again changes nothing."""
    for family in _families(keju.models, skip=PLUMBING):
        _register_models(family)
    for family in _families(keju.tokenizers):
        _register_tokenizers(family)


def _families(package: ModuleType, skip: frozenset[str] = frozenset()) -> list[ModuleType]:
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names if name not in skip]


def _own_classes(module: ModuleType, base: type) -> list[type]:
    """Classes derived from `base` that the module defines itself."""
    members = [value for _, value in inspect.getmembers(module, inspect.isclass)]
    return [value for value in members if issubclass(value, base) and value.__module__ == module.__name__]


def _register_models(family: ModuleType) -> None:
    for config in _own_classes(family, PreTrainedConfig):
        for model_type in (config.model_type, *vars(config).get("also_published_as", ())):
            # AutoConfig.register refuses a model_type that is not the class's own.
            CONFIG_MAPPING.register(model_type, config)
        prefix = config.__name__.removesuffix("Config")
        for head, auto_class in AUTO_CLASSES.items():
            model = vars(family).get(prefix + head)
            if model is not None:
                auto_class.register(config, model, exist_ok=True)


def _register_tokenizers(family: ModuleType) -> None:
    for tokenizer in _own_classes(family, PreTrainedTokenizerBase):
        for name in (tokenizer.__name__, *vars(tokenizer).get("also_published_as", ())):
            REGISTERED_TOKENIZER_CLASSES[name] = tokenizer
