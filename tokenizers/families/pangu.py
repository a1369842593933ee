"""The tokenizer of the PanGu-alpha models: jieba words, joined with spaces, through a SentencePiece model.

The published tokenizer needs a patched jieba: the released one always splits at `<` and `>`, so that no special token
inside a text survives. Here jieba stays as it is released and untouched, and the ids are those of the patched one;
jieba_segmenter.py has how, and how a batch of texts is cut an order of magnitude faster.

What differs from the published code, on purpose:
- `tokenize` returns SentencePiece pieces, one for each id, as transformers expects (`words` returns jieba's words), and
  `convert_ids_to_tokens` is their inverse.
- token_type_ids are returned on request only (the original returned too few of them, and the model would embed them).

A conversation is rendered as the original encodes a pair: `<s>` prompt `<sep>` answer `<eot>`. A system text stands
before the first prompt, with a blank line between them. The models know single exchanges only, so every further
exchange starts again with `<s>`, right after the `<eot>` of the last one.
"""

from __future__ import annotations

from itertools import groupby

from transformers import AddedToken

from keju.tokenizers.jieba_segmenter import PATCHED_BLOCK, RELEASED_BLOCK, join_words
from keju.tokenizers.sentencepiece_family import SentencePieceFamily

# SentencePiece swallows blanks; these two stand-ins are pieces of the vocabulary.
SPACE, NEWLINE = "\u2582", "\u2583"

CHAT_TEMPLATE = r"""
{%- set ns = namespace(system='', turns=messages, expected='user') -%}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set ns.system = messages[0]['content'] -%}
    {%- set ns.turns = messages[1:] -%}
{%- endif -%}
{%- for turn in ns.turns -%}
    {%- if turn['role'] != ns.expected -%}
        {{- raise_exception('turns must alternate between user and assistant, but turn ' ~ loop.index ~ ' is of '
                            ~ turn['role']) -}}
    {%- endif -%}
    {%- if turn['role'] == 'user' -%}
        {{- bos_token -}}
        {%- if ns.system -%}{{- ns.system ~ '\n\n' -}}{%- endif -%}
        {{- turn['content'] ~ sep_token -}}
        {%- set ns.system = '' -%}
        {%- set ns.expected = 'assistant' -%}
    {%- else -%}
        {%- generation -%}{{- turn['content'] ~ eos_token -}}{%- endgeneration -%}
        {%- set ns.expected = 'user' -%}
    {%- endif -%}
{%- endfor -%}
"""


class PanguTokenizer(SentencePieceFamily):
    """Loads published folders (vocab.model) and our own.

    patched_jieba: True keeps special tokens inside a text, and cuts text with angle brackets as the patched jieba does;
    False gives the ids of the jieba that is released, where `<sep>` in a text is text.
    """

    vocab_files_names = {"vocab_file": "vocab.model"}
    # Other values of "tokenizer_class" in published folders; keju.models.registration reads this.
    also_published_as = ("GPTPanguTokenizer",)

    def __init__(
        self,
        vocab_file: str | None = None,
        bos_token="<s>",
        eos_token="<eot>",
        unk_token="<unk>",
        sep_token="<sep>",
        pad_token="<pad>",
        patched_jieba: bool = True,
        **kwargs,
    ):
        if kwargs.get("chat_template") is None:
            kwargs["chat_template"] = CHAT_TEMPLATE.strip()
        self.patched_jieba = patched_jieba
        super().__init__(
            vocab_file=vocab_file,
            bos_token=bos_token,
            eos_token=eos_token,
            unk_token=unk_token,
            sep_token=sep_token,
            pad_token=pad_token,
            patched_jieba=patched_jieba,
            **kwargs,
        )

    def words(self, text: str) -> list[str]:
        """jieba's words, blanks replaced by their stand-ins and special tokens whole: what SentencePiece is given."""
        words = []
        for part in self._split(text):
            if isinstance(part, int):
                words.append(self._added_tokens_decoder[part].content)
            else:
                words += self._joined([part])[0].split(" ")
        return words

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """`<s>` a `<eot>`, and `<s>` a `<sep>` b `<eot>` for a pair."""
        pair = [] if token_ids_1 is None else [self.sep_token_id, *token_ids_1]
        return [self.bos_token_id, *token_ids_0, *pair, self.eos_token_id]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """0 up to the `<sep>`, which is the first 1, to the end; all 0 without a pair."""
        pair = 0 if token_ids_1 is None else 1 + len(token_ids_1) + 1
        return [0] * (1 + len(token_ids_0) + (0 if pair else 1)) + [1] * pair

    def _in_text(self, index: int, token: AddedToken) -> bool:
        # No word of the dictionary has a < or > in it, so that a special token is a word of its own to the patched
        # jieba wherever it occurs: splitting there first, as transformers does, cuts the rest no differently.
        return self.patched_jieba

    def _joined(self, texts: list[str]) -> list[str]:
        block = PATCHED_BLOCK if self.patched_jieba else RELEASED_BLOCK
        return join_words(texts, block, {" ": SPACE, "\n": NEWLINE})

    def _plain_ids(self, texts: list[str]) -> list[list[int]]:
        return super()._plain_ids(self._joined(texts))

    def _tokenize(self, text: str, **kwargs) -> list[str]:
        return super()._tokenize(self._joined([text])[0])

    def _text(self, ids: list[int]) -> str:
        """As the original: `<s>` decodes to nothing, `<unk>` to U+2047, a literal U+2581 is lost.

        The spaces between words vanish, those of the text come back.
        """
        text = []
        for in_vocabulary, group in groupby(ids, key=lambda index: index < self.vocab_size):
            if in_vocabulary:
                decoded = self.sp_model.decode(list(group))
                text.append(decoded.replace(" ", "").replace(SPACE, " ").replace(NEWLINE, "\n"))
            else:
                text.extend(self._added_tokens_decoder[index].content for index in group)
        return "".join(text)
