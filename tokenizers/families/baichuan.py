"""The tokenizer of Baichuan-7B, Baichuan-13B and Baichuan2: SentencePiece with `<s>` in front, if the folder says so.

Its code is Llama's, and so is what differs from it on purpose (llama.py).

Conversations are those of the chat models: each turn opens with the id of its role's token, which is named in the
model's generation_config.json (user_token_id, assistant_token_id). Without these two there is no chat template.

    system <reserved_106> question <reserved_107> answer </s>
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from keju.errors import UserError
from keju.tokenizers.llama import SentencePieceLlamaTokenizer

CHAT_TEMPLATE = r"""
{%- for message in messages -%}
    {{- {'system': '', 'user': USER, 'assistant': ASSISTANT}[message['role']] ~ message['content'] -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- ASSISTANT -}}
{%- elif messages[-1]['role'] == 'assistant' -%}
    {{- eos_token -}}
{%- endif -%}
"""


class BaichuanTokenizer(SentencePieceLlamaTokenizer):
    """Loads published folders (tokenizer.model) and our own."""

    also_published_as = ("BaiChuanTokenizer",)
    vocab_files_names = {"vocab_file": "tokenizer.model", "generation_config_file": "generation_config.json"}

    def __init__(
        self,
        vocab_file: str | None = None,
        user_token_id: int | None = None,
        assistant_token_id: int | None = None,
        generation_config_file: str | None = None,
        **kwargs,
    ):
        if user_token_id is None and assistant_token_id is None and generation_config_file is not None:
            roles = json.loads(Path(generation_config_file).read_text(encoding="utf-8"))
            user_token_id, assistant_token_id = roles.get("user_token_id"), roles.get("assistant_token_id")
        if (user_token_id is None) != (assistant_token_id is None):
            raise UserError("user_token_id and assistant_token_id: give both or neither")
        self.user_token_id, self.assistant_token_id = user_token_id, assistant_token_id
        super().__init__(
            vocab_file=vocab_file, user_token_id=user_token_id, assistant_token_id=assistant_token_id, **kwargs
        )

    def _special_ids(self) -> set[int]:
        return super()._special_ids() | ({self.user_token_id, self.assistant_token_id} - {None})

    def _own_chat_template(self) -> str | None:
        if self.user_token_id is None:
            return None
        user, assistant = map(json.dumps, map(self.sp_model.id_to_piece, (self.user_token_id, self.assistant_token_id)))
        return CHAT_TEMPLATE.strip().replace("USER", user).replace("ASSISTANT", assistant)

    def _chat_ids(self, messages: Sequence[dict], add_generation_prompt: bool) -> list[int]:
        opening = {"user": [self.user_token_id], "assistant": [self.assistant_token_id]}
        ids = []
        for number, message in enumerate(messages):
            if message["role"] == "system" and number == 0:
                ids += self._message_ids(message["content"])
            elif message["role"] in opening:
                ids += opening[message["role"]] + self._message_ids(message["content"])
            else:
                raise UserError(f"role {message['role']}: Baichuan knows system (first), user and assistant")
        if add_generation_prompt:
            return ids + opening["assistant"]
        return [*ids, self.eos_token_id] if messages[-1]["role"] == "assistant" else ids
