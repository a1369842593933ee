"""What a stage is about to learn, as a table, and the refusal of what is surely wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from keju.errors import UserError
from keju.tokenizers.family import answer_end_id
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment

CHECKED = 256  # trees looked at before a run


def example_table(
    tree: Segment, tokenizer: PreTrainedTokenizerBase, *, position_ids: torch.Tensor | None = None, max_rows: int = 80
) -> Table:
    """One rendered example: a row a token, with what is trained, its position, branch and special role.

    position_ids: [1, T], or [1, 2, T] of a model with pairs of positions; by default the places on the path.
    """
    batch = PackedBatch.from_trees([tree])
    positions = (batch.position_ids if position_ids is None else position_ids)[0].reshape(-1, batch.num_tokens).T
    trained = set(batch.token_index.tolist())
    segments = list(tree.preorder())
    table = Table(title="What is learned: one example", title_justify="left", show_lines=False)
    for name in ("#", "token", "id", "trained", "position", "branch", "role"):
        table.add_column(name, justify="right" if name in ("#", "id", "position") else "left", no_wrap=True)
    rows = []
    for number, segment in enumerate(segments):
        start = int(batch.segment_start[number])
        score = segment.values.get("score")
        branch = "root" if number == 0 else f"{number}" + (f" (score {score:g})" if score is not None else "")
        for offset, token in enumerate(segment.tokens):
            index = start + offset
            rows.append(
                (
                    str(index),
                    _shown(tokenizer, token),
                    str(token),
                    "yes" if index in trained else "",
                    " ".join(map(str, positions[index].tolist())),
                    branch,
                    special_role(tokenizer, token),
                )
            )
    hidden = len(rows) - max_rows
    for row in rows if hidden <= 0 else rows[: max_rows // 2] + rows[-(max_rows // 2) :]:
        # "[MASK]" is a token and no markup
        table.add_row(*map(Text, row), style="green" if row[3] else "dim")
    if hidden > 0:
        table.caption = f"{hidden} rows in the middle not shown"
    return table


def special_role(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    roles = [
        name
        for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask", "smask", "gmask", "sop", "eop")
        if getattr(tokenizer, f"{name}_token_id", None) == token
    ]
    return " ".join(roles) or ("special" if token in tokenizer.all_special_ids else "")


def check_trees(
    trees: Iterable[Segment],
    where: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    form: str,
    vocab_size: int | None = None,
    end_ids: Sequence[int] = (),
) -> None:
    """Raises UserError with the cause for what is surely wrong in the first trees of a data set.

    form: "text", "sft", "ranked", "kto" or "prompt" (nothing is trained). end_ids: further tokens that end an answer (a
    model's generation_config has them).
    """
    ends = {answer_end_id(tokenizer), *end_ids}
    checked = list(islice(zip(trees, where, strict=False), CHECKED))
    any_end = False
    for tree, place in checked:
        for segment in tree.preorder():
            ids = list(segment.tokens)
            flags = segment.trained
            flags = [flags] * len(ids) if isinstance(flags, bool) else list(flags)
            learned = [token for token, flag in zip(ids, flags, strict=True) if flag]
            any_end |= any(token in ends or _is_end(tokenizer, token) for token in learned)
            if vocab_size is not None and ids and max(ids) >= vocab_size:
                raise UserError(
                    f"{place}: token id {max(ids)} is outside the model's vocabulary of {vocab_size}; "
                    "--tokenizer_name does not belong to this model"
                )
            pad = tokenizer.pad_token_id
            if pad not in (*ends, tokenizer.unk_token_id) and pad in learned:
                raise UserError(f"{place}: the pad token ({tokenizer.pad_token}) is trained; take it out of the text")
            if form != "text" and segment is not tree and not [token for token in learned if token not in ends]:
                raise UserError(f"{place}: an empty answer")
        bos = tokenizer.bos_token_id
        if bos is not None and bos not in ends and list(tree.tokens[:2]) == [bos, bos]:
            raise UserError(
                f"{place}: two {tokenizer.bos_token} at the start: the chat template writes one and so does the "
                "tokenizer (or the text); remove one of them"
            )
        if form in ("ranked", "kto") and _any_trained(tree):
            raise UserError(f"{place}: tokens of the prompt are trained")
    if form != "prompt" and checked and not any_end:
        raise UserError(
            f"no end token ({tokenizer.eos_token}) is trained in the first {len(checked)} records: answers would never "
            "stop; check the tokenizer's eos_token and chat template, and --max_length"
        )


def _any_trained(segment: Segment) -> bool:
    return segment.trained if isinstance(segment.trained, bool) else any(segment.trained)


def _is_end(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Chat templates end turns with a special token that need not be the tokenizer's eos (<|im_end|>, <|eot_id|>)."""
    added = tokenizer.added_tokens_decoder.get(token)
    return added is not None and added.special and token not in (tokenizer.bos_token_id, tokenizer.pad_token_id)


def _shown(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    text = tokenizer.decode([token], skip_special_tokens=False)
    return repr(text)[1:-1] or repr(tokenizer.convert_ids_to_tokens(token))[1:-1]
