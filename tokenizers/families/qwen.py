"""The tokenizer of the first Qwen models: byte-level BPE over qwen.tiktoken, and ChatML conversations.

What differs from the published code, on purpose:
- Padding works at once: the pad token is `<|endoftext|>` (the original has none and raises).
- token_type_ids are returned on request only (the original returned too few of them, and Qwen has no use for them).
- The special tokens are known to transformers as such, so that `added_tokens_decoder`, `skip_special_tokens` and saved
  folders agree about them. `vocab_size` counts them, as the original does.
- A conversation is tokenised as `make_context` of the published code does it, turn by turn, through
  `apply_chat_template`: a special token that somebody typed into a message stays text there.

Special tokens inside a text are text: `<|im_end|>` is six tokens. With `split_special_tokens=False` (to the constructor
or to a call) they are recognised, which is for text that `apply_chat_template(..., tokenize=False)` has rendered.
"""

from __future__ import annotations

import base64
import binascii
import math
import os
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import tiktoken
from transformers import AddedToken, PreTrainedTokenizer

from keju.errors import UserError
from keju.tokenizers.byte_pieces import PIECE, BytePieces
from keju.tokenizers.family import FamilyTokenizer
from keju.tokenizers.texts_to_ids import TextsToIds

END_OF_TEXT, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# In the order of their ids, which follow those of the file.
SPECIAL_TOKENS = (END_OF_TEXT, START_OF_TURN, END_OF_TURN, "<R>", "<S>", "<X>", "<mask>", "<sep>") + tuple(
    f"<extra_{number}>" for number in range(200)
)
# A noncharacter of Unicode. Put behind every < of a message, it keeps special tokens apart while a chat is rendered.
BREAK = "\ufdd0"
# Below this many characters, neither threads nor the tables of BytePieces are worth while.
MANY_CHARACTERS = 50_000
TEXTS_A_THREAD = 64

CHAT_TEMPLATE = r"""
{%- set ns = namespace(system='You are a helpful assistant.', turns=messages, expected='user') -%}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set ns.system = messages[0]['content'] -%}
    {%- set ns.turns = messages[1:] -%}
{%- endif -%}
{{- '<|im_start|>system\n' ~ ns.system ~ '<|im_end|>\n' -}}
{%- for turn in ns.turns -%}
    {%- if turn['role'] != ns.expected -%}
        {{- raise_exception('turns must alternate between user and assistant, but turn ' ~ loop.index ~ ' is of '
                            ~ turn['role']) -}}
    {%- endif -%}
    {{- '<|im_start|>' ~ turn['role'] ~ '\n' -}}
    {%- if turn['role'] == 'user' -%}
        {{- turn['content'] ~ '<|im_end|>' -}}
        {%- set ns.expected = 'assistant' -%}
    {%- else -%}
        {%- generation -%}{{- turn['content'] ~ '<|im_end|>' -}}{%- endgeneration -%}
        {%- set ns.expected = 'user' -%}
    {%- endif -%}
    {{- '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""


def read_ranks(path: str | os.PathLike) -> dict[bytes, int]:
    """Token -> id of a .tiktoken file: a line for each token, base64 and rank, ranks counted from 0.

    Raises UserError naming file:line when a line is not that, or when one of the 256 bytes is no token.
    """
    ranks: dict[bytes, int] = {}
    with open(path, "rb") as lines:
        for number, line in enumerate(lines):
            try:
                token, rank = line.split()
                token, rank = base64.b64decode(token, validate=True), int(rank)
            except (ValueError, binascii.Error):
                raise UserError(f"{path}:{number + 1}: not a base64 token and its rank: {line[:60]!r}") from None
            if rank != number or not token:
                raise UserError(f"{path}:{number + 1}: rank {rank} of {token!r}, expected a token of rank {number}")
            if token in ranks:
                raise UserError(f"{path}:{number + 1}: {token!r} is there already, with rank {ranks[token]}")
            ranks[token] = rank
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise UserError(f"{path}:{len(ranks)}: the file ends without a token for byte {missing[0]}; is it cut off?")
    return ranks


class QWenTokenizer(FamilyTokenizer, TextsToIds, PreTrainedTokenizer):
    """Loads published folders (qwen.tiktoken) and our own.

    Nothing is put around a text, as in the folders that Qwen published. With bos_token `<|im_start|>` and eos_token
    `<|im_end|>` both, as some folders configure it, each text becomes a turn: `<|im_start|>` text `<|im_end|>` newline.

    Tokens are bytes, not always whole characters; special tokens are strings.
    """

    vocab_files_names = {"vocab_file": "qwen.tiktoken"}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "right"

    def __init__(
        self,
        vocab_file: str | None = None,
        bos_token=None,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        split_special_tokens: bool = True,
        **kwargs,
    ):
        if vocab_file is None:
            raise UserError("the folder of a Qwen tokenizer lacks qwen.tiktoken, its vocabulary")
        kwargs.pop("auto_map", None)  # names code to download: neither followed nor passed on
        if kwargs.get("chat_template") is None:
            kwargs["chat_template"] = CHAT_TEMPLATE.strip()
        self._ranks = read_ranks(vocab_file)
        self._tokens = list(self._ranks)
        self._bpe = tiktoken.Encoding("qwen", pat_str=PIECE, mergeable_ranks=self._ranks, special_tokens={})
        self._pieces: BytePieces | None = None
        self._added_tokens_decoder = {
            index: AddedToken(token, special=True, normalized=False)
            for index, token in enumerate(SPECIAL_TOKENS, start=len(self._ranks))
        }
        for index, token in kwargs.get("added_tokens_decoder", {}).items():
            if index < len(self._ranks) or str(self._added_tokens_decoder.get(index, token)) != str(token):
                raise UserError(f"{vocab_file}: {len(self._ranks)} tokens, but {token} should have id {index}")
        self.eod_id, self.im_start_id, self.im_end_id = range(len(self._ranks), len(self._ranks) + 3)
        super().__init__(
            vocab_file=vocab_file,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            split_special_tokens=split_special_tokens,
            **kwargs,
        )

    @property
    def answer_end_token_id(self) -> int:
        return self.im_end_id

    @property
    def vocab_size(self) -> int:
        return len(self._ranks) + len(SPECIAL_TOKENS)

    def get_vocab(self) -> dict[bytes | str, int]:
        return {**self._ranks, **self._added_tokens_encoder}

    # -- text to ids -------------------------------------------------------------------------------------------------

    def _encode_plus(self, text, *args, rendered_chat: bool = False, **kwargs):
        """rendered_chat: the texts are what apply_chat_template has rendered."""
        if rendered_chat:
            text = self._chat_ids([text])[0] if isinstance(text, str) else self._chat_ids(text)
        return super()._encode_plus(text, *args, **kwargs)

    def _update_trie(self, unique_no_split_tokens: list[str] | None = None) -> None:
        super()._update_trie(unique_no_split_tokens)
        tokens = self._added_tokens_decoder.values()
        # What to look for in a text, by `split_special_tokens`: tokens that were added and are not special, or all.
        self._recognised = {
            True: [token.content for token in tokens if not token.special],
            False: [token.content for token in tokens],
        }

    def _text_ids(self, texts: Sequence[str], split_special_tokens: bool = False) -> list[list[int]]:
        looked_for = self._recognised[split_special_tokens]
        if any(token in text for token in looked_for for text in texts):
            return [self.convert_tokens_to_ids(self.tokenize(text, split_special_tokens)) for text in texts]
        return self._ordinary_ids(texts)

    def _ordinary_ids(self, texts: Sequence[str]) -> list[list[int]]:
        texts = [unicodedata.normalize("NFC", text) for text in texts]
        characters = sum(map(len, texts))
        if characters < MANY_CHARACTERS:
            return [self._bpe.encode_ordinary(text) for text in texts]
        # What BytePieces does takes the same time for any text. tiktoken is as quick with a word as with a character.
        if sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) >= 2 * characters:  # Chinese, say
            if self._pieces is None:
                self._pieces = BytePieces(self._bpe, self._ranks)
            portions = min(os.cpu_count() or 1, characters // MANY_CHARACTERS)
            return _in_threads(self._pieces.ids, texts, math.ceil(len(texts) / portions))
        # tiktoken's own batches hand over one text at a time, which takes long where texts are short.
        return _in_threads(lambda portion: [self._bpe.encode_ordinary(text) for text in portion], texts, TEXTS_A_THREAD)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_pieces": None}  # quicker made than copied

    def tokenize(self, text: str, split_special_tokens: bool | None = None, **kwargs) -> list[bytes | str]:
        """Bytes, and strings for the added tokens that are recognised."""
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        parts = [text]
        if any(token in text for token in self._recognised[split]):
            parts = [part for part in self.tokens_trie.split(text) if part]
        tokens: list[bytes | str] = []
        for part in parts:
            index = self._added_tokens_encoder.get(part)
            if index is not None and not (split and self._added_tokens_decoder[index].special):
                tokens.append(part)
            else:
                tokens += [self._tokens[index] for index in self._ordinary_ids([part])[0]]
        return tokens

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        return [index for ids in (token_ids_0, token_ids_1) if ids is not None for index in self._turn(ids)]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """0 for the first text and 1 for the second, with what stands around each."""
        first = [0] * len(self._turn(token_ids_0))
        return first if token_ids_1 is None else first + [1] * len(self._turn(token_ids_1))

    def _turn(self, ids: list[int]) -> list[int]:
        named = self._special_tokens_map  # asking for a bos_token that is not set would log an error
        if (str(named["bos_token"]), str(named["eos_token"])) != (START_OF_TURN, END_OF_TURN):
            return ids
        return [self.im_start_id, *ids, self.im_end_id, self._ranks[b"\n"]]

    # -- conversations -----------------------------------------------------------------------------------------------

    @property
    def renders_ids(self) -> bool:
        return True

    def apply_chat_template(self, conversation, *args, tokenize: bool = True, tokenizer_kwargs=None, **kwargs):
        """transformers' own; tokenised, a special token of the template is one id and one in a message is text."""
        if not tokenize:
            return super().apply_chat_template(conversation, *args, tokenize=False, **kwargs)
        kwargs["sanitize_control_tokens"] = False  # transformers' way cuts a message there; ours leaves it whole
        tokenizer_kwargs = {**(tokenizer_kwargs or {}), "rendered_chat": True}
        return super().apply_chat_template(
            _broken(conversation), *args, tokenize=True, tokenizer_kwargs=tokenizer_kwargs, **kwargs
        )

    def _chat_ids(self, chats: list[str]) -> list[list[int]]:
        rows = []
        for chat in chats:
            ids: list[int] = []
            for part in self.tokens_trie.split(chat):
                index = self._added_tokens_encoder.get(part)
                if index is not None:
                    ids.append(index)
                    continue
                # The line that names the role, its end, and the message are tokenised each by itself.
                opens = ids[-1:] == [self.im_start_id]
                for text in part.partition("\n") if opens else [part]:
                    ids += self._ordinary_ids([text.replace("<" + BREAK, "<")])[0]
            rows.append(ids)
        return rows

    # -- ids to text -------------------------------------------------------------------------------------------------

    def _convert_token_to_id(self, token: bytes | str) -> int | None:
        """The id of a token that is not an added one. A string stands for its UTF-8 bytes."""
        unknown = self._added_tokens_encoder.get(self.special_tokens_map.get("unk_token"))
        return self._ranks.get(token.encode() if isinstance(token, str) else token, unknown)

    def _convert_id_to_token(self, index: int) -> bytes:
        if not 0 <= index < len(self._tokens):
            raise ValueError(f"{index} is not the id of a token: there are {len(self)}")
        return self._tokens[index]

    def convert_tokens_to_string(self, tokens: list[bytes | str]) -> str:
        """Bytes that are no UTF-8 become U+FFFD."""
        joined = b"".join(token.encode() if isinstance(token, str) else token for token in tokens)
        return joined.decode("utf-8", errors="replace")

    def _decode(self, token_ids: int | list[int], skip_special_tokens: bool = False, **kwargs) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else [int(index) for index in token_ids]
        if skip_special_tokens:
            added = self._added_tokens_decoder
            ids = [index for index in ids if index not in added or not added[index].special]
        return self.convert_tokens_to_string(self.convert_ids_to_tokens(ids))

    # -- files -------------------------------------------------------------------------------------------------------

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        name = (filename_prefix + "-" if filename_prefix else "") + self.vocab_files_names["vocab_file"]
        path = os.path.join(save_directory, name)
        with open(path, "wb") as file:
            file.writelines(b"%b %d\n" % (base64.b64encode(token), rank) for token, rank in self._ranks.items())
        return (path,)


def _in_threads(encode: Callable[[list[str]], list[list[int]]], texts: list[str], size: int) -> list[list[int]]:
    """`encode` of all texts, `size` of them at a time on each core. numpy and tiktoken let other threads run."""
    portions = [texts[start : start + size] for start in range(0, len(texts), size)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return [ids for portion in threads.map(encode, portions) for ids in portion]


def _broken(value):
    """The conversation with a BREAK behind every < of its strings; `replace("<" + BREAK, "<")` is the inverse."""
    if isinstance(value, str):
        return value.replace("<", "<" + BREAK)
    if isinstance(value, dict):
        return {key: _broken(item) for key, item in value.items()}
    return [_broken(item) for item in value] if isinstance(value, (list, tuple)) else value
