"""What our tokenizers know beyond those of transformers: how an answer ends, and how a generation is opened."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from keju.errors import UserError


class FamilyTokenizer:
    """Mixed into a tokenizer of transformers, in front of it."""

    @property
    def answer_end_token_id(self) -> int | None:
        """The id that a model writes after its answer."""
        return self.eos_token_id

    @property
    def renders_ids(self) -> bool:
        """Whether apply_chat_template makes ids that are not those of the text it renders: in a text nothing tells the
        special tokens of the format from those that somebody typed."""
        return False


class PrefixTokenizer(FamilyTokenizer):
    """For models that read a context in both directions and write what a mask token in it stands for.

    sop_token, eop_token: start and end of what is written. gmask_token: stands for a long, free text; smask_token: for
    sentences. The models' configs have ids of the same names.
    """

    sop_token = "<sop>"
    eop_token = "<eop>"
    gmask_token = "[gMASK]"
    smask_token = "[sMASK]"

    @property
    def sop_token_id(self) -> int:
        return self.convert_tokens_to_ids(self.sop_token)

    @property
    def eop_token_id(self) -> int:
        return self.convert_tokens_to_ids(self.eop_token)

    @property
    def gmask_token_id(self) -> int:
        return self.convert_tokens_to_ids(self.gmask_token)

    @property
    def smask_token_id(self) -> int:
        return self.convert_tokens_to_ids(self.smask_token)

    @property
    def answer_end_token_id(self) -> int:
        return self.eop_token_id

    def opening_ids(self, ids: list[int]) -> list[int]:
        """What stands before a generated continuation. `ids`: the context's tokens, without special tokens around it.

        A mask token among `ids` is what the model fills in; without one the continuation is long and free ([gMASK]).
        """
        raise NotImplementedError


def answer_end_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id that ends an answer, for any tokenizer."""
    return tokenizer.answer_end_token_id if isinstance(tokenizer, FamilyTokenizer) else tokenizer.eos_token_id


def renders_ids(tokenizer: PreTrainedTokenizerBase) -> bool:
    """See FamilyTokenizer.renders_ids, for any tokenizer."""
    return isinstance(tokenizer, FamilyTokenizer) and tokenizer.renders_ids


def exchanges(messages: Sequence[dict[str, str]]) -> tuple[str, list[tuple[str, str | None]]]:
    """The system text ("" without one) and the (question, answer) pairs of a conversation.

    The last answer is None where the user spoke last. Raises UserError unless user and assistant take turns.
    """
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else ""
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    for number, turn in enumerate(turns):
        if turn["role"] != ("user", "assistant")[number % 2]:
            raise UserError(
                f"turns must alternate between user and assistant, but turn {number + 1} is of {turn['role']}"
            )
    if not turns:
        raise UserError("a conversation needs a turn of the user")
    contents = [turn["content"] for turn in turns]
    answers = contents[1::2] + [None] * (len(contents) % 2)
    return system, list(zip(contents[::2], answers, strict=True))
