"""The scoring loop: log-likelihoods of continuations, with everything that prompts share computed once.

Questions whose prompts begin alike (the same instruction and shots) become one token tree: the common beginning is the
root, the questions are its branches, and the choices are branches under each question. Prompts are tokenised whole and
share what they share, so that no boundary of the text can change a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import nn

from keju.errors import UserError
from keju.models.backbone import backbone_of, head_logprobs, tree_hidden_states
from keju.models.evaluating import evaluating
from keju.models.prefix_lm import PrefixLM
from keju.trees.packed_batch import PackedBatch
from keju.trees.packing import pack
from keju.trees.segment import Segment

# (index of each question that is done -> log-probabilities of its choices, tokens computed)
OnBatch = Callable[[dict[int, list[float]], int], None]


@dataclass(frozen=True)
class Question:
    """Token ids: `prompt` (at least one) and what may follow it, each choice at least one token.

    num_scored: so many of the last tokens of the prompt count as well, as if each choice began with them: what the
    choices of a filled template have in common is computed once.
    """

    prompt: Sequence[int]
    choices: Sequence[Sequence[int]]
    num_scored: int = 0

    @property
    def context(self) -> Sequence[int]:
        """The prompt without what is scored: that part alone is shared with other questions."""
        return self.prompt[: len(self.prompt) - self.num_scored] if self.num_scored else self.prompt

    def length_after(self, shared: int) -> int:
        """Tokens to compute beyond the first `shared` of its prompt; the last token of a choice is only predicted."""
        return len(self.prompt) - shared + sum(len(choice) - 1 for choice in self.choices)


@dataclass(frozen=True)
class Bundle:
    """Questions (their indices) that share the first `shared` tokens of their prompts: one token tree."""

    shared: int
    members: tuple[int, ...]


@torch.inference_mode()
def score_questions(
    model: nn.Module,
    questions: Sequence[Question],
    *,
    token_budget: int,
    on_batch: OnBatch = lambda scores, num_tokens: None,
) -> list[list[float]]:
    """Summed log-probability (natural) of each choice of each question, in their order.

    `token_budget`: tokens of a row, the bound of memory. `on_batch` is told the scores of each row by the questions'
    indices, as soon as all of its choices are there, and its tokens. Raises UserError when a question does not fit the
    budget with a single choice.
    """
    pieces: list[Question] = []
    owners: list[int] = []  # the question of each piece
    places: list[range] = []  # the pieces of each question
    for index, question in enumerate(questions):
        parts = split_choices(question, token_budget)
        places.append(range(len(pieces), len(pieces) + len(parts)))
        pieces += parts
        owners += [index] * len(parts)
    found: list[list[float]] = [[] for _ in pieces]
    scores: list[list[float]] = [[] for _ in questions]
    # Where the tokens of a prompt see each other in both directions, no two prompts begin alike.
    shares_prompts = not isinstance(backbone_of(model), PrefixLM)
    bundles = bundle(pieces, token_budget, shares_prompts=shares_prompts)
    with evaluating(model):
        for row in pack([_length(item, pieces) for item in bundles], token_budget):
            members = [place for number in row for place in bundles[number].members]
            batch = PackedBatch.from_trees([_tree(bundles[number], pieces) for number in row])
            last_tokens = [choice[-1] for place in members for choice in pieces[place].choices]
            sums = iter(_choice_logprobs(model, batch, last_tokens))
            for place in members:
                found[place] = [next(sums) for _ in pieces[place].choices]
            touched = dict.fromkeys(owners[place] for place in members)
            whole = [index for index in touched if all(found[place] for place in places[index])]
            done = {index: [value for place in places[index] for value in found[place]] for index in whole}
            for index, values in done.items():
                scores[index] = values
            on_batch(done, batch.num_tokens)
    return scores


def split_choices(question: Question, token_budget: int) -> list[Question]:
    """The question, or several with some of its choices each, so that each fits the budget if a single choice does."""
    if question.length_after(0) <= token_budget:
        return [question]
    groups: list[list[Sequence[int]]] = []
    length = 0
    for choice in question.choices:
        if not groups or length + len(choice) - 1 > token_budget:
            groups.append([])
            length = len(question.prompt)
        groups[-1].append(choice)
        length += len(choice) - 1
    return [replace(question, choices=choices) for choices in groups]


def bundle(questions: Sequence[Question], token_budget: int, *, shares_prompts: bool = True) -> list[Bundle]:
    """Groups questions by the beginning of their prompts, and cuts groups into trees of a good size; without
    `shares_prompts` every question is a tree by itself, whose prompt only its own choices share."""
    bundles: list[Bundle] = []
    order = sorted(range(len(questions)), key=lambda index: tuple(questions[index].context))
    alone = [(0, [index]) for index in order]
    for shared, members in _groups(questions, order)[1] if shares_prompts and order else alone:
        lengths = [questions[index].length_after(shared) for index in members]
        room = token_budget - shared
        if max(lengths) > room:
            raise UserError(
                f"{token_budget}: a question takes {shared + max(lengths)} tokens with a choice", option="token_budget"
            )
        bundles += [Bundle(shared, tuple(members[place] for place in part)) for part in pack(lengths, room)]
    return bundles


def _groups(questions: Sequence[Question], order: list[int]) -> tuple[int, list[tuple[int, list[int]]]]:
    """(tokens saved, [(length of the common beginning, indices), ...]) for questions in the sorted order of prompts.

    Walks the prefix tree of the prompts. What lies below a node stays in groups of its own if that saves more tokens
    than joining what else begins with the node's tokens.
    """
    first, last = (questions[index].context for index in (order[0], order[-1]))
    differing = (place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1])
    shared = next(differing, min(len(first), len(last)))
    # Prompts that end here: their last token stays with each of them, to predict the first token of its choices.
    ended = [index for index in order if len(questions[index].context) == shared]
    groups = [(shared - 1, ended)] if ended else []
    saved = (shared - 1) * (len(ended) - 1) if ended else 0
    joined: list[int] = []
    for _, below in groupby(order[len(ended) :], key=lambda index: questions[index].context[shared]):
        below = list(below)
        saved_below, groups_below = _groups(questions, below) if len(below) > 1 else (0, [])
        if saved_below > shared * len(below):
            groups += groups_below
            saved += saved_below
        else:
            joined += below
    if joined:
        groups.append((shared, joined))
        saved += shared * (len(joined) - 1)
    return saved, groups


def _length(item: Bundle, questions: Sequence[Question]) -> int:
    return item.shared + sum(questions[index].length_after(item.shared) for index in item.members)


def _tree(item: Bundle, questions: Sequence[Question]) -> Segment:
    branches = []
    for question in (questions[index] for index in item.members):
        own = question.prompt[item.shared :]
        flags = [False] * (len(own) - question.num_scored) + [True] * question.num_scored
        choices = [Segment(choice[:-1], trained=True) for choice in question.choices]
        branches.append(Segment(own, trained=flags, branches=choices))
    return Segment(questions[item.members[0]].prompt[: item.shared], branches=branches)


def _choice_logprobs(model: nn.Module, batch: PackedBatch, last_tokens: Sequence[int]) -> list[float]:
    """One sum for each choice of the row, in preorder. `last_tokens` are predicted, but stand nowhere in the row."""
    batch = batch.to(next(model.parameters()).device)
    parent = batch.segment_parent
    choices = ((parent >= 0) & (parent[parent.clamp(min=0)] >= 0)).nonzero().squeeze(1)
    # A choice of one token is an empty segment: the last token of its question predicts it.
    start, end, question_end = (
        batch.segment_start[choices],
        batch.segment_end[choices],
        batch.segment_end[parent[choices]],
    )
    source = torch.cat([batch.source, torch.where(end > start, end, question_end) - 1])
    target = torch.cat([batch.target, torch.tensor(last_tokens, device=source.device)])
    hidden = tree_hidden_states(model, batch)
    logprobs = head_logprobs(model, hidden[source], target).logprobs.double().cpu()
    owner = torch.cat([batch.target_segment, choices]).cpu()
    sums = torch.zeros(batch.num_segments, dtype=torch.float64).index_add_(0, owner, logprobs)
    choices = choices.cpu()
    return (sums[choices] + sums[batch.segment_parent.cpu()[choices]]).tolist()
