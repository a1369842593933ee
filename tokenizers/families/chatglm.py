"""The tokenizer of ChatGLM-6B (the first), and the way to that of ChatGLM2 and 3, published under the same name.

The file ice_text.model holds the text pieces. Behind them stand, in this order, eight special tokens, a tab, runs of 2
to 80 blanks and 256 bytes; in front of them `num_image_tokens` ids that no text has (20000 as first published, 0 in
later folders). Line ends, tabs and runs of blanks are pieces of their own, so that code keeps its shape.

What differs from the published code, on purpose:
- attention_mask is returned (the original returned none).
- `decode([])` is "" (the original raised IndexError).
- `<eop>` and `[gMASK]` count as special tokens where those are asked for (all_special_ids, special_tokens_mask).
Kept as it was: `decode` without skip_special_tokens joins raw pieces (`▁`, `<0xE9>`); with it the text is clean. In a
text `<sop>`, `</s>`, `<pad>`, `<unk>` and `[MASK]` are special, `[gMASK]` and `<eop>` are not.

A conversation is rendered as the published `chat` does: a bare first question; with history, numbered rounds.

    context [gMASK] <sop> answer <eop>

A system text stands before the rounds, on a line of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from struct import pack

from sentencepiece import SentencePieceProcessor
from transformers import AddedToken

from keju.tokenizers.chatglm2 import ChatGLM2Tokenizer
from keju.tokenizers.family import PrefixTokenizer, exchanges
from keju.tokenizers.sentencepiece_family import SentencePieceFamily

SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
MOST_BLANKS = 80
LINE, TAB = "<n>", "<|tab|>"
BLANKS = re.compile(f" {{2,{MOST_BLANKS}}}")
BLANKS_TOKEN = re.compile(r"<\|blank_(\d+)\|>")
# Types of pieces in a SentencePiece model.
CONTROL, USER_DEFINED, BYTE = 3, 4, 6

CHAT_TEMPLATE = r"""
{%- set ns = namespace(system='', turns=messages) -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set ns.system = messages[0]['content'] -%}
    {%- set ns.turns = messages[1:] -%}
{%- endif -%}
{%- if ns.system -%}{{- ns.system ~ '\n' -}}{%- endif -%}
{%- for turn in ns.turns -%}
    {%- if turn['role'] == 'user' and ns.turns | length <= 2 -%}
        {{- turn['content'] -}}
    {%- elif turn['role'] == 'user' -%}
        {{- '[Round ' ~ (loop.index0 // 2) ~ ']\n问：' ~ turn['content'] ~ '\n答：' -}}
    {%- elif not loop.last -%}
        {{- turn['content'] ~ '\n' -}}
    {%- else -%}
        {{- '[gMASK]<sop>' ~ turn['content'] ~ '<eop>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '[gMASK]<sop>' -}}{%- endif -%}
"""


class ChatGLMTokenizer(PrefixTokenizer, SentencePieceFamily):
    """Loads published folders (ice_text.model) and our own; from_pretrained gives a ChatGLM2Tokenizer where the folder
    holds a tokenizer.model instead."""

    vocab_files_names = {
        "vocab_file": "ice_text.model",
        **{f"chatglm2_{name}": file for name, file in ChatGLM2Tokenizer.vocab_files_names.items()},
    }

    def __init__(
        self,
        vocab_file: str | None = None,
        bos_token="<sop>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="[MASK]",
        num_image_tokens: int = 20000,
        clean_up_tokenization_spaces: bool = True,
        extra_special_tokens: Sequence[str] = (),
        **kwargs,
    ):
        # Names in published folders of tokens that the vocabulary has in any case.
        for name in ("eop_token", "gmask_token", "end_token", "model_specific_special_tokens"):
            kwargs.pop(name, None)
        self.num_image_tokens = num_image_tokens
        named = dict(
            bos_token=bos_token, eos_token=eos_token, pad_token=pad_token, unk_token=unk_token, mask_token=mask_token
        )
        # transformers 4 took the white space beside a special token away unless told otherwise.
        named = {name: _stripping(token) if isinstance(token, str) else token for name, token in named.items()}
        super().__init__(
            vocab_file=vocab_file,
            num_image_tokens=num_image_tokens,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            extra_special_tokens=list(dict.fromkeys([*SPECIAL, *map(str, extra_special_tokens)])),
            **named,
            **kwargs,
        )
        self._mask_ids = (self._base_id("[MASK]"), self._base_id("[gMASK]"))
        self._start_id, self._context_end_id = self._base_id("<sop>"), self._base_id("</s>")

    @classmethod
    def _from_pretrained(cls, resolved_vocab_files, *args, **kwargs):
        files = dict(resolved_vocab_files)
        second = {name: files.pop(f"chatglm2_{name}", None) for name in ChatGLM2Tokenizer.vocab_files_names}
        # In a folder without tokenizer.json transformers takes a tokenizer.model for anybody's vocabulary.
        if second["vocab_file"] is not None and files.get("vocab_file") in (None, second["vocab_file"]):
            return ChatGLM2Tokenizer._from_pretrained({**files, **second}, *args, **kwargs)
        return super()._from_pretrained(files, *args, **kwargs)

    @property
    def vocab_size(self) -> int:
        return self.sp_model.get_piece_size()

    def opening_ids(self, ids: list[int]) -> list[int]:
        return self.build_inputs_with_special_tokens(ids)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """a [gMASK] <sop>, and a [gMASK] <sop> b <eop> for a pair.

        Where `a` has a [MASK] or [gMASK] already there is no further one; unless it comes last, `</s>` ends `a`.
        """
        mask, gmask = self._mask_ids
        ids = list(token_ids_0)
        if mask not in ids and gmask not in ids:
            ids.append(gmask)
        elif ids[-1] not in self._mask_ids:
            ids.append(self._context_end_id)
        ids.append(self._start_id)
        return ids if token_ids_1 is None else [*ids, *token_ids_1, self.answer_end_token_id]

    def _with_special_tokens(self, rows: list[list[int]]) -> list[list[int]]:
        return [self.build_inputs_with_special_tokens(row) for row in rows]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for the tokens that build_inputs_with_special_tokens adds; how many depends on a mask inside."""
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True)
        added = len(self.build_inputs_with_special_tokens(token_ids_0)) - len(token_ids_0)
        return [0] * len(token_ids_0) + [1] * added + ([] if token_ids_1 is None else [0] * len(token_ids_1) + [1])

    # -- the vocabulary ----------------------------------------------------------------------------------------------

    def _completed(self, proto: bytes) -> bytes:
        images = [(f"<image_{number}>", CONTROL) for number in range(self.num_image_tokens)]
        pieces = [(LINE, USER_DEFINED)] + [(name, CONTROL) for name in SPECIAL]
        pieces += [(name, USER_DEFINED) for name in (TAB, *(f"<|blank_{n}|>" for n in range(2, MOST_BLANKS + 1)))]
        pieces += [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
        # The published file has the line end alone; one trained with bytes has these, too, and one that we saved, all.
        there = SentencePieceProcessor(model_proto=proto)
        known = {there.id_to_piece(index) for index in range(there.get_piece_size())}
        front, back = (b"".join(_piece(*piece) for piece in some if piece[0] not in known) for some in (images, pieces))
        # trainer_spec (field 2) with byte_fallback (field 35) set; fields of an earlier trainer_spec stay.
        return front + proto + back + b"\x12\x03\x98\x02\x01"

    def _own_tokens(self) -> dict[int, AddedToken]:
        return {
            self.sp_model.piece_to_id(name): AddedToken(name, normalized=False, special=True)
            for name in SPECIAL
            if name not in ("[MASK]", "<sop>")  # attributes, unless a folder says otherwise
        }

    def _in_text(self, index: int, token: AddedToken) -> bool:
        return index >= self.vocab_size or token.content in self.special_tokens_map.values()

    # -- texts -------------------------------------------------------------------------------------------------------

    def _plain_ids(self, texts: list[str]) -> list[list[int]]:
        return super()._plain_ids([_shaped(text) for text in texts])

    def _tokenize(self, text: str, **kwargs) -> list[str]:
        return super()._tokenize(_shaped(text))

    def _text(self, ids: list[int]) -> str:
        return _unshaped("".join(self.convert_ids_to_tokens(ids)))

    def _decode(self, token_ids: int | list[int], skip_special_tokens: bool = False, **kwargs) -> str:
        if not skip_special_tokens:
            return super()._decode(token_ids, **kwargs)
        dropped = self._special_ids() - {self.unk_token_id}
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        parts = []
        for added, group in groupby((i for i in ids if i not in dropped), key=lambda index: index >= self.vocab_size):
            if added:
                parts += [self._added_tokens_decoder[index].content for index in group if index < len(self)]
            else:
                parts.append(self.sp_model.decode(list(group)))
        text = _unshaped("".join(parts))
        return self.clean_up_tokenization(text) if self.clean_up_tokenization_spaces else text

    # -- conversations -----------------------------------------------------------------------------------------------

    def _own_chat_template(self) -> str:
        return CHAT_TEMPLATE.strip()

    def _chat_ids(self, messages: Sequence[dict], add_generation_prompt: bool) -> list[int]:
        system, turns = exchanges(messages)
        question, answer = turns[-1]
        rounds = [f"[Round {n}]\n问：{asked}\n答：{told}\n" for n, (asked, told) in enumerate(turns[:-1])]
        if rounds:
            question = f"[Round {len(rounds)}]\n问：{question}\n答："
        ids = self._message_ids((system and system + "\n") + "".join(rounds) + question)
        if answer is None and not add_generation_prompt:
            return ids
        ids = self.opening_ids(ids)
        return ids if answer is None else [*ids, *self._message_ids(answer), self.answer_end_token_id]


def _stripping(token: str) -> AddedToken:
    return AddedToken(token, lstrip=True, rstrip=True, normalized=False, special=True)


def _piece(name: str, kind: int) -> bytes:
    """A serialized entry of a SentencePiece model (protobuf): field 1 of the model, with text, score 0 and type."""
    text = name.encode()
    entry = b"\x0a" + bytes([len(text)]) + text + b"\x15" + pack("<f", 0.0) + b"\x18" + bytes([kind])
    return b"\x0a" + bytes([len(entry)]) + entry


def _shaped(text: str) -> str:
    """Line ends, tabs and runs of blanks as their pieces are spelled."""
    text = text.replace("\n", LINE).replace("\t", TAB)
    return BLANKS.sub(lambda run: f"<|blank_{len(run[0])}|>", text)


def _unshaped(text: str) -> str:
    text = text.replace(LINE, "\n").replace(TAB, "\t")
    return BLANKS_TOKEN.sub(lambda token: " " * int(token[1]), text)
