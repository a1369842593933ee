"""The tokenizer of the PanGu-alpha models: jieba words, joined with spaces, through a SentencePiece model.

The published tokenizer needs a patched jieba: the released one always splits at `<` and `>`, so that no special token
inside a text survives. Here jieba stays as it is released and untouched (we own an instance of its segmenter and split
the text into blocks ourselves), and the ids are those of the patched one.

What differs from the published code, on purpose:
- `tokenize` returns SentencePiece pieces, one for each id, as transformers expects (`words` returns jieba's words), and
  `convert_ids_to_tokens` is their inverse.
- token_type_ids are returned on request only (the original returned too few of them, and the model would embed them).

A conversation is rendered as the original encodes a pair: `<s>` prompt `<sep>` answer `<eot>`. A system text stands
before the first prompt, with a blank line between them. The models know single exchanges only, so every further
exchange starts again with `<s>`, right after the `<eot>` of the last one.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterator
from itertools import groupby

from transformers.tokenization_utils_base import TruncationStrategy
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend
from transformers.utils import logging

logger = logging.get_logger(__name__)

# jieba's `re_han_default`: what may stand in a word. The patch that the published code asks for adds < and >.
RELEASED_BLOCK = re.compile(r"([\u4E00-\u9FD5a-zA-Z0-9+#&\._%\-]+)")
PATCHED_BLOCK = re.compile(r"([\u4E00-\u9FD5a-zA-Z0-9+#&\._%\-<>]+)")
BLANK = re.compile(r"(\r\n|\s)")
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


@functools.cache
def _jieba():
    """Our own segmenter over jieba's own dictionary.

    Read from the package: jieba would cache it in a file in the shared temporary folder and unmarshal what it finds
    there. Its global segmenter, which users may have given words of their own, plays no part.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba's source has invalid escapes and imports pkg_resources
        import jieba
    segmenter = jieba.Tokenizer()
    segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
    # The original adds six special tokens as words, each counted once. We split at them before jieba sees the text,
    # but the total decides ties: it changes the rounding of log probabilities, so that 50 times 啊 is cut otherwise.
    segmenter.total += 6
    segmenter.initialized = True
    return segmenter


def cut(text: str, block: re.Pattern) -> Iterator[str]:
    """The words of jieba.cut(text), with `block` in the place of jieba's own pattern."""
    # jieba.Tokenizer.cut takes its pattern from a global of the module; one block is cut by this private method.
    cut_block = _jieba()._Tokenizer__cut_DAG
    for part in block.split(text):
        if not part:
            continue
        if block.match(part):
            yield from cut_block(part)
        else:
            for rest in BLANK.split(part):
                yield from [rest] if BLANK.match(rest) else rest


class PanguTokenizer(SentencePieceBackend):
    """Loads published folders (vocab.model) and our own.

    patched_jieba: True keeps special tokens inside a text, and cuts text with angle brackets as the patched jieba does;
    False gives the ids of the jieba that is released, where `<sep>` in a text is text.
    """

    vocab_files_names = {"vocab_file": "vocab.model"}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "right"
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
        if vocab_file is None:
            raise ValueError("the folder of a Pangu tokenizer lacks vocab.model, its SentencePiece model")
        kwargs.pop("auto_map", None)  # names code to download: neither followed nor passed on
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
        return [word for part in self._parts(text) for word in ([part] if self._is_added(part) else self._cut(part))]

    def tokenize(self, text: str, **kwargs) -> list[str]:
        if not self.patched_jieba:
            kwargs["split_special_tokens"] = True
        return super().tokenize(text, **kwargs)

    def _parts(self, text: str) -> list[str]:
        """Added tokens (the special ones are among them) and the text between them."""
        return [part for part in self.tokens_trie.split(text) if part] if self.patched_jieba else [text]

    def _is_added(self, part: str) -> bool:
        return self.patched_jieba and part in self._added_tokens_encoder

    def _cut(self, text: str) -> list[str]:
        # No word of the dictionary has a < or > in it, so that a special token is a word of its own to the patched
        # jieba wherever it occurs: splitting there first, as transformers does, cuts the rest no differently.
        block = PATCHED_BLOCK if self.patched_jieba else RELEASED_BLOCK
        return [word.replace(" ", SPACE).replace("\n", NEWLINE) for word in cut(text, block)]

    def _tokenize(self, text: str, **kwargs) -> list[str]:
        return self.sp_model.encode(" ".join(self._cut(text)), out_type=str)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of `tokens`; the spaces between words vanish, those of the text come back."""
        return self._decode(self.convert_tokens_to_ids(tokens))

    def _decode(self, token_ids: int | list[int], skip_special_tokens: bool = False, **kwargs) -> str:
        """As the original: `<s>` decodes to nothing, `<unk>` to U+2047, a literal U+2581 is lost."""
        ids = [token_ids] if isinstance(token_ids, int) else [int(index) for index in token_ids]
        if skip_special_tokens:
            special = set(self.all_special_ids)
            ids = [index for index in ids if index not in special]
        text = []
        for in_vocabulary, group in groupby(ids, key=lambda index: index < self.vocab_size):
            if in_vocabulary:
                decoded = self.sp_model.decode(list(group))
                text.append(decoded.replace(" ", "").replace(SPACE, " ").replace(NEWLINE, "\n"))
            else:
                text.extend(self._added_tokens_decoder[index].content for index in group)
        return "".join(text)

    def truncate_sequences(
        self, ids, pair_ids=None, num_tokens_to_remove=0, truncation_strategy="longest_first", stride=0
    ):
        """Leaves a pair as it is when the one text to shorten is too short to lose `num_tokens_to_remove`.

        transformers 4 did so for the original; 5 empties that text, and the pair is too long all the same.
        """
        strategy = TruncationStrategy(truncation_strategy)
        shortened = {TruncationStrategy.ONLY_FIRST: ids, TruncationStrategy.ONLY_SECOND: pair_ids}.get(strategy)
        if pair_ids is not None and shortened is not None and len(shortened) <= num_tokens_to_remove:
            logger.warning(f"{strategy.value}: {num_tokens_to_remove} tokens too many, but it has {len(shortened)}")
            return ids, pair_ids, []
        return super().truncate_sequences(ids, pair_ids, num_tokens_to_remove, strategy, stride)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """`<s>` a `<eot>`, and `<s>` a `<sep>` b `<eot>` for a pair."""
        pair = [] if token_ids_1 is None else [self.sep_token_id, *token_ids_1]
        return [self.bos_token_id, *token_ids_0, *pair, self.eos_token_id]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for the tokens that build_inputs_with_special_tokens adds."""
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True)
        pair = [] if token_ids_1 is None else [1, *[0] * len(token_ids_1)]
        return [1, *[0] * len(token_ids_0), *pair, 1]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """0 up to the `<sep>`, which is the first 1, to the end; all 0 without a pair."""
        pair = 0 if token_ids_1 is None else 1 + len(token_ids_1) + 1
        return [0] * (1 + len(token_ids_0) + (0 if pair else 1)) + [1] * pair
