"""From texts straight to ids, for tokenizers that transformers would take through tokens as strings.

transformers' Python tokenizers go from a text to tokens as strings and from each of those to an id, one text at a time.
Here texts without pairs, offsets and the like become ids at once, a batch of them together.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import BatchEncoding
from transformers.tokenization_utils_base import PaddingStrategy, TruncationStrategy
from transformers.utils import logging

logger = logging.get_logger(__name__)

TRUNCATES_ONE_TEXT = (TruncationStrategy.LONGEST_FIRST, TruncationStrategy.ONLY_FIRST)


class TextsToIds:
    """Mixed into a Python tokenizer of transformers, in front of it."""

    def _text_ids(self, texts: Sequence[str], split_special_tokens: bool = False) -> list[list[int]]:
        """The ids of texts, nothing put around them. split_special_tokens: added tokens in them are text."""
        raise NotImplementedError

    def _with_special_tokens(self, rows: list[list[int]]) -> list[list[int]]:
        """build_inputs_with_special_tokens of each row, where what it adds does not depend on the row."""
        built = self.build_inputs_with_special_tokens([-1])
        at = built.index(-1)
        before, after = built[:at], built[at + 1 :]
        return [[*before, *row, *after] for row in rows] if before or after else rows

    def _encode_plus(
        self,
        text,
        text_pair=None,
        add_special_tokens: bool = True,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors=None,
        return_attention_mask: bool | None = None,
        verbose: bool = True,
        split_special_tokens: bool | None = None,
        **kwargs,
    ) -> BatchEncoding:
        single = isinstance(text, str)
        texts = [text] if single else text
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        plain = (
            isinstance(texts, (list, tuple))
            and text_pair is None
            and not any(kwargs.values())  # stride, is_split_into_words, return_overflowing_tokens, ...
            and all(isinstance(each, str) for each in texts)
        )
        if not plain:
            return super()._encode_plus(
                text,
                text_pair,
                add_special_tokens,
                padding_strategy,
                truncation_strategy,
                max_length,
                pad_to_multiple_of=pad_to_multiple_of,
                padding_side=padding_side,
                return_tensors=return_tensors,
                return_attention_mask=return_attention_mask,
                verbose=verbose,
                split_special_tokens=split,
                **kwargs,
            )
        rows = self._text_ids(texts, split)
        if max_length and truncation_strategy in TRUNCATES_ONE_TEXT:
            num_special = self.num_special_tokens_to_add() if add_special_tokens else 0
            rows = [self._shortened(row, max(max_length - num_special, 0)) for row in rows]
        if add_special_tokens:
            rows = self._with_special_tokens(rows)
        self._eventual_warn_about_too_long_sequence(max(rows, key=len, default=[]), max_length, verbose)
        encoded = {"input_ids": rows[0] if single else rows}
        if return_attention_mask is None:
            return_attention_mask = "attention_mask" in self.model_input_names
        if padding_strategy != PaddingStrategy.DO_NOT_PAD:
            encoded = self.pad(
                encoded,
                padding=padding_strategy.value,
                max_length=max_length,
                pad_to_multiple_of=pad_to_multiple_of,
                padding_side=padding_side,
                return_attention_mask=return_attention_mask,
            )
        elif return_attention_mask:
            encoded["attention_mask"] = [1] * len(rows[0]) if single else [[1] * len(row) for row in rows]
        return BatchEncoding(encoded, tensor_type=return_tensors, prepend_batch_axis=single)

    def _shortened(self, ids: list[int], length: int) -> list[int]:
        return ids[max(len(ids) - length, 0) :] if self.truncation_side == "left" else ids[:length]

    def truncate_sequences(
        self, ids, pair_ids=None, num_tokens_to_remove=0, truncation_strategy="longest_first", stride=0
    ):
        """Leaves a pair as it is when the one text to shorten is too short to lose `num_tokens_to_remove`.

        transformers 4 did so for the originals; 5 empties that text, and the pair is too long all the same.
        """
        strategy = TruncationStrategy(truncation_strategy)
        shortened = {TruncationStrategy.ONLY_FIRST: ids, TruncationStrategy.ONLY_SECOND: pair_ids}.get(strategy)
        if pair_ids is not None and shortened is not None and len(shortened) <= num_tokens_to_remove:
            logger.warning(f"{strategy.value}: {num_tokens_to_remove} tokens too many, but it has {len(shortened)}")
            return ids, pair_ids, []
        return super().truncate_sequences(ids, pair_ids, num_tokens_to_remove, strategy, stride)

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for the tokens that build_inputs_with_special_tokens adds."""
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True)
        text = [-1] * len(token_ids_0), None if token_ids_1 is None else [-1] * len(token_ids_1)
        return [int(index != -1) for index in self.build_inputs_with_special_tokens(*text)]
