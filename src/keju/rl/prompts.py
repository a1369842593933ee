"""The prompts that a policy answers."""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedTokenizerBase

from keju.encoding.dataset import EncodedRecords
from keju.encoding.encoder import Encoder
from keju.encoding.text_encoder import UNLIMITED
from keju.errors import UserError
from keju.rl.arguments import PromptArguments
from keju.stages.rlhf import STAGE
from keju.training.tree_reading import read_trees
from keju.trees.lazy_trees import Chosen, ChosenTrees, lengths_of


def read_prompts(
    data: PromptArguments,
    tokenizer: PreTrainedTokenizerBase,
    filename: str,
    *,
    option: str = "train_filename",
    max_samples: int | None = None,
) -> EncodedRecords:
    """Reads the prompts of a record file, in memory or from the tokens that `keju tokenize` has made.

    Args:
        option: the parameter that `filename` is the value of, for messages.
        max_samples: read so many records at most.

    Returns:
        Trees of one segment each. Prompts of more tokens than `data.max_prompt_length` are left out and counted.

    Raises:
        UserError: the file cannot be read, or all of its prompts are longer.
    """
    encoder = Encoder(tokenizer, UNLIMITED, chats=data.chat_settings())  # tokens that fit runs of any limit
    encoded = read_trees(data, filename, encoder, STAGE.form, option=option, max_samples=max_samples)
    limit = data.max_prompt_length
    kept = np.flatnonzero(lengths_of(encoded.trees) <= limit)
    if not len(kept):
        raise UserError(
            f"{limit}: all {len(encoded)} prompts are longer; first {encoded.where[0]}", option="max_prompt_length"
        )
    if len(kept) < len(encoded):
        print(f"left out {len(encoded) - len(kept)} of {len(encoded)} prompts, longer than --max_prompt_length {limit}")
    return EncodedRecords(ChosenTrees(encoded.trees, kept), Chosen(encoded.where, kept), digest=encoded.digest)
