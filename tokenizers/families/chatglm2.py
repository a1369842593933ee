"""The tokenizer of ChatGLM2 and ChatGLM3: one SentencePiece model, special tokens behind it, two chat formats.

The published folders of both call their tokenizer ChatGLMTokenizer, as ChatGLM's first one; chatglm.py hands over here
when a folder holds a tokenizer.model.

What differs from the published code, on purpose:
- Padding works, on either side, with `<unk>` (id 0) as later folders have it. ChatGLM2 padded with `</s>`, so that an
  end could not be told from padding; ChatGLM3 with -100, which is no token, and only on the left.
- `eos_token_id` is that of `</s>` (None in ChatGLM2), and attention_mask is 0 exactly on padding. position_ids are not
  returned: models number the tokens by the attention mask.
- `skip_special_tokens` skips them (ChatGLM3 wrote their names), and `convert_ids_to_tokens` gives their names (ChatGLM2
  gave ""). Without skipping, `decode` does as the originals do: no names in ChatGLM2, names in ChatGLM3.
- Inside a conversation a piece that is spelled like a special token (`sop`, `eop`) is text; in other texts it is that
  token, as it was.

Names of special tokens in a text are text, so a chat template, which can but write a text, cannot render a
conversation: the chat format does, and a template in the folder is not followed.

    chatglm2:  [gMASK] sop  [Round 1] 问：question 答：  answer </s>
    chatglm3:  [gMASK] sop <|user|> metadata, line end, question <|assistant|> ... answer </s>

ChatGLM3 takes roles in any order, `metadata` with each message and `tools` with the system's, as published.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import AddedToken
from transformers.utils import logging

from keju.errors import UserError
from keju.tokenizers.family import exchanges
from keju.tokenizers.sentencepiece_family import SentencePieceFamily

logger = logging.get_logger(__name__)

SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
ROLES = ("system", "user", "assistant", "observation")
ROLE_TOKENS = tuple(f"<|{role}|>" for role in ROLES)

CHAT_TEMPLATES = {
    "chatglm2": r"""
{{- '[gMASK]sop' -}}
{%- set ns = namespace(turns=messages) -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set ns.turns = messages[1:] -%}
    {%- if messages[0]['content'] -%}{{- messages[0]['content'] ~ '\n\n' -}}{%- endif -%}
{%- endif -%}
{%- for turn in ns.turns -%}
    {%- if turn['role'] == 'user' -%}
        {{- '[Round ' ~ (loop.index0 // 2 + 1) ~ ']\n\n问：' ~ turn['content'] -}}
        {%- if not loop.last or add_generation_prompt -%}{{- '\n\n答：' -}}{%- endif -%}
    {%- else -%}
        {{- turn['content'] ~ (eos_token if loop.last else '\n\n') -}}
    {%- endif -%}
{%- endfor -%}
""",
    "chatglm3": r"""
{{- '[gMASK]sop' -}}
{%- for message in messages -%}
    {{- '<|' ~ message['role'] ~ '|>' ~ message.get('metadata', '') ~ '\n' ~ message['content'] -}}
    {%- if message['role'] == 'system' and message.get('tools') -%}
        {{- '\n' ~ message['tools'] | tojson(indent=4) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- elif messages[-1]['role'] == 'assistant' -%}
    {{- eos_token -}}
{%- endif -%}
""",
}


class ChatGLM2Tokenizer(SentencePieceFamily):
    """Loads published folders (tokenizer.model) and our own.

    chat_format: "chatglm2" or "chatglm3", which decides the special tokens too. Without it the folder does: role tokens
    in its tokenizer_config.json or in its published code, which is read and never run, mean "chatglm3".
    """

    vocab_files_names = {"vocab_file": "tokenizer.model", "published_code": "tokenization_chatglm.py"}

    def __init__(
        self,
        vocab_file: str | None = None,
        published_code: str | None = None,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        chat_format: str | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        extra_special_tokens: Sequence[str] = (),
        **kwargs,
    ):
        template = kwargs.pop("chat_template", None)
        if chat_format is None:
            chat_format = _format_of_folder(
                [extra_special_tokens, template, kwargs.get("added_tokens_decoder")], published_code
            )
        if chat_format not in CHAT_TEMPLATES:
            raise UserError(f"chat_format {chat_format}: choose from {', '.join(CHAT_TEMPLATES)}")
        self.chat_format = chat_format
        self.special_names = SPECIAL + (ROLE_TOKENS if chat_format == "chatglm3" else ())
        if template not in (None, self._own_chat_template()):
            logger.warning(f"the folder's chat template is not followed: conversations are rendered as {chat_format}")
        kwargs.pop("model_specific_special_tokens", None)
        super().__init__(
            vocab_file=vocab_file,
            eos_token=eos_token,
            unk_token=unk_token,
            pad_token=pad_token,
            chat_format=chat_format,
            clean_up_tokenization_spaces=(
                chat_format == "chatglm2" if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
            ),
            extra_special_tokens=list(dict.fromkeys([*self.special_names, *map(str, extra_special_tokens)])),
            **kwargs,
        )
        # Pieces with the name of a special token: their ids, and those of the special tokens.
        pieces = {name: self.sp_model.piece_to_id(name) for name in self.special_names}
        self._named_pieces = {
            piece: self._added_tokens_encoder[name]
            for name, piece in pieces.items()
            if self.sp_model.id_to_piece(piece) == name
        }

    @property
    def vocab_size(self) -> int:
        return self.sp_model.get_piece_size() + len(self.special_names)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """[gMASK] sop a, and [gMASK] sop a b with an end for a pair: eop in ChatGLM2, </s> in ChatGLM3."""
        ids = [*self._special("[gMASK]", "sop"), *token_ids_0]
        if token_ids_1 is None:
            return ids
        return [*ids, *token_ids_1, *self._special("eop" if self.chat_format == "chatglm2" else self.eos_token)]

    def _special(self, *names: str) -> list[int]:
        return [self._added_tokens_encoder[name] for name in names]

    # -- the vocabulary ----------------------------------------------------------------------------------------------

    def _own_tokens(self) -> dict[int, AddedToken]:
        size = self.sp_model.get_piece_size()
        return {
            size + number: AddedToken(name, normalized=False, special=True)
            for number, name in enumerate(self.special_names)
        }

    def _in_text(self, index: int, token: AddedToken) -> bool:
        return index >= self.vocab_size

    def _text_ids(self, texts: Sequence[str], split_special_tokens: bool = False) -> list[list[int]]:
        rows = super()._text_ids(texts, split_special_tokens)
        if split_special_tokens or not self._named_pieces:
            return rows
        return [[self._named_pieces.get(index, index) for index in row] for row in rows]

    def _text(self, ids: list[int]) -> str:
        named = self.chat_format == "chatglm3"
        text, pieces = [], []
        for index in ids:
            if index < self.sp_model.get_piece_size():
                pieces.append(self.sp_model.id_to_piece(index))
            elif index < self.vocab_size:
                pieces.append(self._added_tokens_decoder[index].content if named else "")
            else:
                text += [self.sp_model.decode(pieces), self._added_tokens_decoder[index].content]
                pieces = []
        return "".join([*text, self.sp_model.decode(pieces)])

    # -- conversations -----------------------------------------------------------------------------------------------

    def apply_chat_template(self, conversation, *args, chat_template: str | None = None, **kwargs):
        if chat_template is not None:
            raise UserError("no template can render a conversation for ChatGLM2 and 3: choose a chat_format instead")
        return super().apply_chat_template(conversation, *args, **kwargs)

    def _own_chat_template(self) -> str:
        return CHAT_TEMPLATES[self.chat_format].strip()

    def _chat_ids(self, messages: Sequence[dict], add_generation_prompt: bool) -> list[int]:
        ids = self._special("[gMASK]", "sop")
        if self.chat_format == "chatglm2":
            return ids + self._rounds_ids(messages, add_generation_prompt)
        for message in messages:
            ids += self._turn_ids(message)
        if add_generation_prompt:
            return ids + self._special("<|assistant|>")
        return [*ids, self.eos_token_id] if messages[-1]["role"] == "assistant" else ids

    def _rounds_ids(self, messages: Sequence[dict], add_generation_prompt: bool) -> list[int]:
        system, turns = exchanges(messages)
        question, answer = turns[-1]
        opened = add_generation_prompt or answer is not None
        text = system and system + "\n\n"
        for number, (asked, told) in enumerate(turns[:-1], start=1):
            text += f"[Round {number}]\n\n问：{asked}\n\n答：{told}\n\n"
        text += f"[Round {len(turns)}]\n\n问：{question}" + ("\n\n答：" if opened else "")
        ids = self._message_ids(text)
        return ids if answer is None else [*ids, *self._message_ids(answer), self.eos_token_id]

    def _turn_ids(self, message: dict) -> list[int]:
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise UserError(f"role {role}: ChatGLM3 knows {', '.join(ROLES)}")
        if role == "system" and message.get("tools"):
            content += "\n" + json.dumps(message["tools"], indent=4, ensure_ascii=False)
        head = message.get("metadata", "") + "\n"
        return [*self._special(f"<|{role}|>"), *self._message_ids(head), *self._message_ids(content)]


def _format_of_folder(configuration: list, published_code: str | None) -> str:
    """The format of which a folder speaks; `configuration`: what its tokenizer_config.json says of tokens."""
    if any(token in str(part) for part in configuration for token in ROLE_TOKENS):
        return "chatglm3"
    if published_code is not None:
        text = Path(published_code).read_text(encoding="utf-8", errors="replace")
        return "chatglm3" if "<|observation|>" in text else "chatglm2"
    logger.warning('nothing tells whether this is ChatGLM2 or 3: taken for 2, pass chat_format="chatglm3" for 3')
    return "chatglm2"
