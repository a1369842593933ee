"""The tokenizer of the Chinese GLM models: SentencePiece and ten tokens behind it.

What differs from the published code, on purpose:
- token_type_ids are returned on request only, and there are as many of them as ids (the original returned too few).
- `[UNK]` is a name for SentencePiece's own unknown token, so that `convert_ids_to_tokens(0)` gives `[UNK]`.

A conversation is one context and one answer, as the model was trained:

    [CLS] context [gMASK] <|endoftext|> <|startofpiece|> answer <|endofpiece|>

The context is the system text, the earlier turns and the question, a line each.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import AddedToken

from keju.tokenizers.blank_filling import BlankFilling
from keju.tokenizers.family import exchanges
from keju.tokenizers.sentencepiece_family import SentencePieceFamily

# In the order of their ids, from the size of the SentencePiece model on.
ADDED = (
    "<|endoftext|>",
    "[SEP]",
    "[CLS]",
    "[MASK]",
    "[UNUSED1]",
    "[UNUSED2]",
    "<|startofpiece|>",
    "<|endofpiece|>",
    "[sMASK]",
    "[gMASK]",
)
EXTRA_SPECIAL = ("<|startofpiece|>", "<|endofpiece|>", "[gMASK]", "[sMASK]")

CHAT_TEMPLATE = r"""
{{- cls_token -}}
{%- set answered = messages[-1]['role'] == 'assistant' -%}
{%- set context = messages[:-1] if answered else messages -%}
{{- context | map(attribute='content') | join('\n') -}}
{%- if answered or add_generation_prompt -%}{{- '[gMASK]' ~ eos_token ~ '<|startofpiece|>' -}}{%- endif -%}
{%- if answered -%}{{- messages[-1]['content'] ~ '<|endofpiece|>' -}}{%- endif -%}
"""


class GLMChineseTokenizer(BlankFilling, SentencePieceFamily):
    """Loads published folders (cog-pretrain.model, added_tokens.json) and our own."""

    vocab_files_names = {"vocab_file": "cog-pretrain.model"}
    truncation_side = "left"
    sop_token = "<|startofpiece|>"
    eop_token = "<|endofpiece|>"

    def __init__(
        self,
        vocab_file: str | None = None,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="[UNK]",
        sep_token="[SEP]",
        cls_token="[CLS]",
        mask_token="[MASK]",
        extra_special_tokens=EXTRA_SPECIAL,
        clean_up_tokenization_spaces: bool = True,
        **kwargs,
    ):
        super().__init__(
            vocab_file=vocab_file,
            eos_token=eos_token,
            pad_token=pad_token,
            unk_token=unk_token,
            sep_token=sep_token,
            cls_token=cls_token,
            mask_token=mask_token,
            extra_special_tokens=list(extra_special_tokens),
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            **kwargs,
        )

    def opening_ids(self, ids: list[int]) -> list[int]:
        masks = {self.mask_token_id, self.smask_token_id, self.gmask_token_id}
        mask = [] if masks.intersection(ids) else [self.gmask_token_id]
        return [*self.build_inputs_with_special_tokens([*ids, *mask]), self.sop_token_id]

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """[CLS] a <|endoftext|>, and [CLS] a [SEP] b <|endoftext|> for a pair."""
        pair = [] if token_ids_1 is None else [self.sep_token_id, *token_ids_1]
        return [self.cls_token_id, *token_ids_0, *pair, self.eos_token_id]

    def _own_tokens(self) -> dict[int, AddedToken]:
        size = self.sp_model.get_piece_size()
        return {
            size + number: AddedToken(name, normalized=False, special=not name.startswith("[UNUSED"))
            for number, name in enumerate(ADDED)
        }

    def _text(self, ids: list[int]) -> str:
        """A space stands on either side of an added token."""
        parts, pieces = [], []
        for index in ids:
            if index < self.vocab_size:
                pieces.append(index)
                continue
            parts += [self.sp_model.decode(pieces)] if pieces else []
            parts.append(self._added_tokens_decoder[index].content)
            pieces = []
        return " ".join([*parts, self.sp_model.decode(pieces)] if pieces else parts)

    def _own_chat_template(self) -> str:
        return CHAT_TEMPLATE.strip()

    def _chat_ids(self, messages: Sequence[dict], add_generation_prompt: bool) -> list[int]:
        answer = exchanges(messages)[1][-1][1]
        context = messages if answer is None else messages[:-1]
        ids = self._message_ids("\n".join(message["content"] for message in context))
        if answer is None and not add_generation_prompt:
            return [self.cls_token_id, *ids]
        ids = self.opening_ids(ids)
        return ids if answer is None else [*ids, *self._message_ids(answer), self.answer_end_token_id]
