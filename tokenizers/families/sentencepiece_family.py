"""What the tokenizers on a SentencePiece model share: a fast way from texts to ids, and conversations in exact ids.

A batch of texts goes through SentencePiece straight to ids, without a detour by tokens as strings.

A conversation is rendered to ids by the family itself, not by way of a text: special tokens are put in by id, and
whatever a user types stays text. `chat_template` renders the same conversation as a text for people and for other
programs; a template of the user's own goes the way of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from transformers import AddedToken
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from keju.errors import UserError
from keju.tokenizers.family import FamilyTokenizer
from keju.tokenizers.texts_to_ids import TextsToIds

# Below this many characters in a batch, starting threads costs more than they save.
CHARACTERS_FOR_THREADS = 20_000


class SentencePieceFamily(FamilyTokenizer, TextsToIds, SentencePieceBackend):
    """A family overrides build_inputs_with_special_tokens and, where it has them, the hooks below."""

    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "right"

    def __init__(self, vocab_file: str | None = None, added_tokens_decoder=None, **kwargs):
        kwargs.pop("auto_map", None)  # names code to download: neither followed nor passed on
        kwargs.pop("sp_model_kwargs", None)  # asks for random segmentations at most
        self.vocab_file = vocab_file
        self.sp_model = self._load(vocab_file)
        self._pattern: re.Pattern | None = None
        if kwargs.get("chat_template") is None:
            kwargs["chat_template"] = self._own_chat_template()
        given = added_tokens_decoder or {}
        known = {token.content for token in given.values()}
        own = {index: token for index, token in self._own_tokens().items() if token.content not in known}
        # Past SentencePieceBackend's own __init__, which reads the file itself.
        kwargs |= {"vocab_file": vocab_file, "added_tokens_decoder": {**own, **given}, "backend": "sentencepiece"}
        super(SentencePieceBackend, self).__init__(**kwargs)
        self._update_total_vocab_size()

    # -- what a family may override ----------------------------------------------------------------------------------

    def _load(self, path: str | None) -> SentencePieceProcessor:
        """The model in the file `path`; UserError if it is absent or broken."""
        if path is None or not Path(path).is_file():
            missing = path or self.vocab_files_names["vocab_file"]
            raise UserError(f"the folder of a {type(self).__name__} lacks {missing}, its SentencePiece model")
        model = SentencePieceProcessor()
        broken = f"{path} is not a SentencePiece model, or not all of one"
        try:
            model.LoadFromSerializedProto(self._completed(Path(path).read_bytes()))
        except RuntimeError as error:
            raise UserError(broken) from error
        if model.unk_id() < 0:
            raise UserError(broken)
        return model

    def _completed(self, proto: bytes) -> bytes:
        """The serialized model of a file. (Fields are added to one by putting them in front of it or behind it.)"""
        return proto

    def _own_tokens(self) -> dict[int, AddedToken]:
        """Special tokens that every tokenizer of the family has, in the folder or not."""
        return {}

    def _in_text(self, index: int, token: AddedToken) -> bool:
        """Whether an added token is recognised inside a text."""
        return True

    def _base_id(self, token: str) -> int | None:
        """The id of a token of the SentencePiece model, None if it has no such token."""
        if token == self.unk_token:
            return self.sp_model.unk_id()
        index = self.sp_model.piece_to_id(token)
        return index if self.sp_model.id_to_piece(index) == token else None

    def _plain_ids(self, texts: list[str]) -> list[list[int]]:
        """The ids of texts in which nothing is special."""
        if len(texts) == 1:
            return [self.sp_model.encode(texts[0])]
        threads = -1 if sum(map(len, texts)) >= CHARACTERS_FOR_THREADS else 1
        return self.sp_model.encode(texts, num_threads=threads)

    def _text(self, ids: list[int]) -> str:
        """The text of ids that are all below len(self)."""
        parts = []
        for added, group in groupby(ids, key=lambda index: index >= self.vocab_size):
            if added:
                parts += [self._added_tokens_decoder[index].content for index in group]
            else:
                parts.append(self.sp_model.decode(list(group)))
        return "".join(parts)

    def _own_chat_template(self) -> str | None:
        """Renders, as a text, what `_chat_ids` renders as ids. None: no conversations."""
        return None

    def _chat_ids(self, messages: Sequence[dict], add_generation_prompt: bool) -> list[int]:
        """A conversation. An answer at its end is followed by answer_end_token_id unless a prompt is asked for.

        Raises UserError for roles that the format has no place for.
        """
        raise NotImplementedError

    # -- texts to ids ------------------------------------------------------------------------------------------------

    def _text_ids(self, texts: Sequence[str], split_special_tokens: bool = False) -> list[list[int]]:
        pattern = None if split_special_tokens else self._added_pattern()
        if pattern is None or not any(pattern.search(text) for text in texts):
            return self._plain_ids(list(texts))
        parts = [self._split(text) for text in texts]
        encoded = iter(self._plain_ids([part for row in parts for part in row if isinstance(part, str)]))
        return [[i for part in row for i in (next(encoded) if isinstance(part, str) else (part,))] for row in parts]

    def _added_pattern(self) -> re.Pattern | None:
        """Finds the added tokens that are recognised in a text, longer ones first; None if there are none."""
        if self._pattern is None:
            tokens = [token for index, token in self._added_tokens_decoder.items() if self._in_text(index, token)]
            words = [
                rf"(?<![^ ]){re.escape(token.content)}(?![^ ])" if token.single_word else re.escape(token.content)
                for token in sorted(tokens, key=lambda token: len(token.content), reverse=True)
            ]
            self._pattern = re.compile("(" + "|".join(words) + ")" if words else r"(?!)")
        return self._pattern if self._pattern.groups else None

    def _split(self, text: str) -> list[str | int]:
        """Added tokens as ids, and what stands between them as text."""
        pattern = self._added_pattern()
        parts: list[str | int] = pattern.split(text) if pattern else [text]
        for at in range(1, len(parts), 2):
            index = self._added_tokens_encoder[parts[at]]
            token = self._added_tokens_decoder[index]
            if token.lstrip:
                parts[at - 1] = parts[at - 1].rstrip()
            if token.rstrip:
                parts[at + 1] = parts[at + 1].lstrip()
            parts[at] = index
        return [part for part in parts if part != ""]

    # -- texts to tokens, tokens to ids ------------------------------------------------------------------------------

    def tokenize(self, text: str, split_special_tokens: bool | None = None, **kwargs) -> list[str]:
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        tokens = []
        for part in [text] if split else self._split(text):
            tokens += self._tokenize(part) if isinstance(part, str) else [self._added_tokens_decoder[part].content]
        return tokens

    def _tokenize(self, text: str, **kwargs) -> list[str]:
        return self.sp_model.encode(text, out_type=str)

    def _convert_id_to_token(self, index: int) -> str:
        """Models have a few more rows than there are tokens; those are unknown."""
        return self.sp_model.id_to_piece(index) if 0 <= index < self.sp_model.get_piece_size() else self.unk_token

    def _add_tokens(self, new_tokens: Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        """Makes tokens added ones; those that the vocabulary lacks get the next ids. Returns how many those are."""
        num_new = 0
        # transformers asks for the named special tokens by their content, without the flags they were given.
        named = {str(token): token for token in self._special_tokens_map.values() if isinstance(token, AddedToken)}
        for token in new_tokens:
            if not isinstance(token, (str, AddedToken)):
                raise TypeError(f"a token must be a str or an AddedToken, but {token!r} is a {type(token).__name__}")
            content = str(token)
            if not content or (isinstance(token, str) and content in self._added_tokens_encoder):
                continue
            special = special_tokens or content in self.all_special_tokens
            if isinstance(token, str):
                token = named.get(content, AddedToken(content, normalized=not special, special=special))
            if special:
                token.__setstate__({"special": True, "normalized": token.normalized})
            index = self._added_tokens_encoder.get(content, self._base_id(content))
            if index is None:
                index = len(self)
                num_new += 1
            if token.special and content not in self.all_special_tokens:
                self._extra_special_tokens.append(token)
            self._added_tokens_decoder[index] = token
            self._added_tokens_encoder[content] = index
            self._update_total_vocab_size()
        self._update_trie()
        return num_new

    def _update_trie(self, unique_no_split_tokens=None) -> None:
        self._pattern = None

    def _update_total_vocab_size(self) -> None:
        self.total_vocab_size = max([self.vocab_size, *(index + 1 for index in self._added_tokens_decoder)])

    # -- ids to texts ------------------------------------------------------------------------------------------------

    def _special_ids(self) -> set[int]:
        return {*self.all_special_ids, *(i for i, token in self._added_tokens_decoder.items() if token.special)}

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else [int(index) for index in token_ids]
        size, unknown = len(self), self.unk_token_id
        ids = [index if 0 <= index < size else unknown for index in ids]
        if skip_special_tokens:
            special = self._special_ids()
            ids = [index for index in ids if index not in special]
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        text = self._text(ids)
        return self.clean_up_tokenization(text) if clean_up_tokenization_spaces else text

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self._text(self.convert_tokens_to_ids(tokens))

    # -- conversations -----------------------------------------------------------------------------------------------

    @property
    def renders_ids(self) -> bool:
        return self.chat_template is not None and self.chat_template == self._own_chat_template()

    def apply_chat_template(
        self,
        conversation,
        tools=None,
        documents=None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        sanitize_control_tokens: bool = False,
        padding=False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors=None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: dict | None = None,
        **kwargs,
    ):
        """As transformers does it, with ids that are exact and in which no text of a user becomes special."""
        if chat_template is not None or not self.renders_ids:
            return super().apply_chat_template(
                conversation,
                tools=tools,
                documents=documents,
                chat_template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tokenize=tokenize,
                sanitize_control_tokens=sanitize_control_tokens,
                padding=padding,
                truncation=truncation,
                max_length=max_length,
                return_tensors=return_tensors,
                return_dict=return_dict,
                return_assistant_tokens_mask=return_assistant_tokens_mask,
                tokenizer_kwargs=tokenizer_kwargs,
                **kwargs,
            )
        if tools or documents or return_assistant_tokens_mask:
            raise ValueError(f"{type(self).__name__}: tools, documents and assistant masks are not supported")
        if not conversation:
            raise ValueError("an empty conversation cannot be rendered")
        batched = isinstance(conversation[0], (list, tuple))
        rows = [
            self._rendered(messages, add_generation_prompt, continue_final_message)
            for messages in (conversation if batched else [conversation])
        ]
        if not tokenize:
            return super().apply_chat_template(
                conversation,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tokenize=False,
                **kwargs,
            )
        encoded = self(
            rows if batched else rows[0],
            add_special_tokens=False,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
            tokenizer_kwargs=tokenizer_kwargs,
        )
        return encoded if return_dict else encoded["input_ids"]

    def _rendered(
        self, messages: Sequence[dict], add_generation_prompt: bool, continue_final_message: bool
    ) -> list[int]:
        for message in messages:
            if not isinstance(message.get("content"), str):
                raise UserError(f"the content of a {message.get('role')} message must be a text")
        if messages[-1]["role"] == "assistant" and add_generation_prompt:
            raise ValueError("a generation prompt follows a user, but the last message is the assistant's")
        ids = self._chat_ids(messages, add_generation_prompt)
        if not continue_final_message:
            return ids
        if messages[-1]["role"] != "assistant":
            raise ValueError(f"only an assistant's message is continued, but the last one is of {messages[-1]['role']}")
        return ids[:-1]

    def _message_ids(self, text: str) -> list[int]:
        """The ids of what somebody says: special tokens in it are text.

        A few models make pieces of such names by themselves; those names are cut after their first character. What is
        left of them then comes from other spellings, which the model takes for the same, and is dropped.
        """
        ids = self._text_ids([text], split_special_tokens=True)[0]
        special = self._special_ids() - {self.unk_token_id}
        found = special.intersection(ids)
        if not found:
            return ids
        names = self.convert_ids_to_tokens(list(found))
        cut = "|".join(f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in names)
        parts = self._text_ids(re.split(cut, text), split_special_tokens=True)
        return [index for part in parts for index in part if index not in special]
