"""Whether the files of a folder say which tokenizer is in it, looked at before transformers takes one that fits them.

Of a vocabulary whose tokenizer it does not know transformers makes one of its own, which gives other ids: no token in
front of the text, special tokens as plain text. Code that a folder brings along is never run.
"""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedConfig
from transformers.models.auto.tokenization_auto import (
    REGISTERED_TOKENIZER_CLASSES,
    TOKENIZER_MAPPING_NAMES,
    tokenizer_class_from_name,
)

from keju.errors import UserError
from keju.models.checkpoint_files import named_code, read_object

SETTINGS = "tokenizer_config.json"
# Of tokenizers that are not in one file, tokenizer.json.
VOCABULARIES = ("*.model", "*.tiktoken", "vocab.*", "merges.txt", "spiece.*", "tekken.json")


def check_tokenizer_folder(folder: Path) -> None:
    """Raises UserError, in one line with what to do, where the tokenizer is code of the folder's own, or cannot be
    told from its files."""
    settings = folder / SETTINGS
    fields = read_object(settings) if settings.is_file() else {}
    name = fields.get("tokenizer_class")
    if (folder / "tokenizer.json").is_file():
        return
    found = sorted(path.name for pattern in VOCABULARIES for path in folder.glob(pattern))
    known = _class_of(name)
    if known is not None:
        if not found and known.vocab_files_names and known.__module__.startswith("transformers."):
            files = ", ".join(sorted(known.vocab_files_names.values()))
            raise UserError(f"it holds no vocabulary of a {name} ({files})")  # that class would go on without one
        return
    code = named_code(fields, "AutoTokenizer")
    if code is not None:
        raise UserError(own_code(folder, code))
    if TOKENIZER_MAPPING_NAMES.get(_model_type(folder), "TokenizersBackend") not in (None, "TokenizersBackend"):
        return
    if isinstance(name, str):
        raise UserError(f"{settings}: tokenizer_class {name!r} is not known, and there is no tokenizer.json")
    if not found:
        raise UserError(f"it holds no tokenizer (neither tokenizer.json nor {SETTINGS}); copy that of its model there")
    # One name of each class: the last one, which published folders use most.
    names = {own: kind for kind, own in REGISTERED_TOKENIZER_CLASSES.items() if _reads(own, found[0])}
    example = f'{{"tokenizer_class": "{next(iter(names.values())) if len(names) == 1 else "..."}"}}'
    choices = "" if len(names) == 1 else f" ({', '.join([*sorted(names.values()), 'or another'])})"
    raise UserError(
        f"it holds a vocabulary, {found[0]}, and does not say of which tokenizer; put a {SETTINGS} with {example} "
        f"beside it{choices}"
    )


def own_code(folder: Path | str, code: str) -> str:
    """What is said of a tokenizer that the Python code of its folder makes."""
    return (
        f"its tokenizer is Python code of the folder's own, {code}, which is never run; take a folder of this model "
        f"with a tokenizer.json; where {folder} has one that is enough by itself, take auto_map out of its {SETTINGS} "
        'and set tokenizer_class to "PreTrainedTokenizerFast"'
    )


def _class_of(name: object) -> type | None:
    kinds = (name, name.removesuffix("Fast"), f"{name}Fast") if isinstance(name, str) else ()
    return next((found for kind in kinds if (found := tokenizer_class_from_name(kind)) is not None), None)


def _reads(tokenizer: type, file: str) -> bool:
    return file in tokenizer.vocab_files_names.values()


def _model_type(folder: Path) -> str | None:
    """That of the model beside it, as transformers sees it."""
    if not (folder / "config.json").is_file():
        return None
    read_object(folder / "config.json")
    return PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
