"""The first Llama tokenizer, and that of the models derived from it: SentencePiece with `<s>` in front.

transformers 5 turns a folder that holds only a tokenizer.model into a tokenizer of its Rust library. That needs the
protobuf package, adds `<s>` only where the folder says add_bos_token, and gives other ids for texts that begin with a
blank, hold several in a row, or go on after a special token, whatever its arguments. This class gives the ids and texts
of the original, `legacy` as models were trained with it: what follows a special token starts with a blank again.

AutoTokenizer takes this class for folders whose tokenizer_config.json names LlamaTokenizer (or LLaMATokenizer, as the
first ones did, or the InternLMTokenizer of the first InternLM) and that hold no tokenizer.json. A folder with one, or
with `legacy` false, goes to transformers' class.

What differs from the published code, on purpose:
- Padding works without a pad token in the folder: `<unk>`.
- `single_word`, which published folders ask of special tokens and transformers 4 did not heed, is not heeded either.
"""

from __future__ import annotations

import json

from transformers import AddedToken, LlamaTokenizer
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils.hub import cached_file

from keju.tokenizers.sentencepiece_family import SentencePieceFamily

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class SentencePieceLlamaTokenizer(SentencePieceFamily):
    """Loads published folders (tokenizer.model) and our own."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}
    also_published_as = ("LLaMATokenizer", "InternLMTokenizer", "LlamaTokenizer")

    @classmethod
    def from_pretrained(cls, folder, *args, **kwargs):
        """The tokenizer of a folder or hub name: of this class, or of transformers' where that is meant (see above)."""
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        rust_file = cached_file(folder, "tokenizer.json", _raise_exceptions_for_missing_entries=False, **hub)
        if cls is SentencePieceLlamaTokenizer and (
            rust_file is not None or get_tokenizer_config(folder, **hub).get("legacy") is False
        ):
            return LlamaTokenizer.from_pretrained(folder, *args, **kwargs)
        return super().from_pretrained(folder, *args, **kwargs)

    def __init__(
        self,
        vocab_file: str | None = None,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token=None,
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        added_tokens_decoder: dict[int, AddedToken] | None = None,
        **kwargs,
    ):
        self.add_bos_token, self.add_eos_token = add_bos_token, add_eos_token
        super().__init__(
            vocab_file=vocab_file,
            bos_token=_anywhere(bos_token),
            eos_token=_anywhere(eos_token),
            unk_token=_anywhere(unk_token),
            pad_token=_anywhere(unk_token if pad_token is None else pad_token),
            add_bos_token=add_bos_token,
            add_eos_token=add_eos_token,
            added_tokens_decoder={index: _anywhere(token) for index, token in (added_tokens_decoder or {}).items()},
            **kwargs,
        )

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """<s> a </s>, and <s> a </s> <s> b </s> for a pair: each of the two only if add_bos_token, add_eos_token."""
        begin = [self.bos_token_id] if self.add_bos_token else []
        end = [self.eos_token_id] if self.add_eos_token else []
        pair = [] if token_ids_1 is None else [*begin, *token_ids_1, *end]
        return [*begin, *token_ids_0, *end, *pair]

    def _save_pretrained(self, save_directory, file_names: tuple[str, ...], *args, **kwargs) -> tuple[str, ...]:
        """transformers leaves these two out, which only its own tokenizers can do without."""
        with open(file_names[0], encoding="utf-8") as file:
            config = json.load(file)
        config.update(add_bos_token=self.add_bos_token, add_eos_token=self.add_eos_token)
        with open(file_names[0], "w", encoding="utf-8") as file:
            file.write(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        return super()._save_pretrained(save_directory, file_names, *args, **kwargs)

    def _text(self, ids: list[int]) -> str:
        """As the original: a blank before the text in front of a special token, unless another stands right there."""
        special = set(self.all_special_ids)
        text, pieces, after_special = "", [], True
        for index in ids:
            if index < self.vocab_size and index not in special:
                pieces.append(index)
                after_special = False
                continue
            text += " " if index in special and not after_special else ""
            text += self.sp_model.decode(pieces) + self._added_tokens_decoder[index].content
            pieces, after_special = [], True
        return text + self.sp_model.decode(pieces)


def _anywhere(token: str | AddedToken) -> AddedToken:
    """The token, recognised inside words as well."""
    if isinstance(token, str):
        return AddedToken(token, normalized=False, special=True)
    return AddedToken(
        token.content, lstrip=token.lstrip, rstrip=token.rstrip, normalized=token.normalized, special=token.special
    )
