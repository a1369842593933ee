"""What a pack must know of the others of its batch, where a loss is no sum of its items by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from keju.training.processes import num_processes, process_index, sum_over_processes


@dataclass(frozen=True)
class WholeBatch:
    """The facts about all packs of an optimizer step (or of an evaluation), over all processes.

    facts: float [all, columns], rows of one pack after the other (see Objective.facts), without gradient. own: the rows
    of the pack that this is for.
    """

    facts: Tensor
    own: slice


def whole_batches(facts: Sequence[Tensor]) -> list[WholeBatch]:
    """For each pack of this process what it must know.

    facts: of each of its packs, [rows, columns], on the device where the process group sums. Every process must call
    with equally many packs.
    """
    counts = torch.zeros(num_processes(), len(facts), dtype=torch.int64, device=facts[0].device)
    counts[process_index()] = torch.tensor([len(rows) for rows in facts], device=counts.device)
    ends = sum_over_processes(counts).flatten().cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    first = process_index() * len(facts)
    places = [slice(starts[first + number], ends[first + number]) for number in range(len(facts))]
    everything = facts[0].new_zeros(ends[-1], facts[0].shape[1])
    for place, rows in zip(places, facts, strict=True):
        everything[place] = rows
    everything = sum_over_processes(everything)
    return [WholeBatch(everything, place) for place in places]
