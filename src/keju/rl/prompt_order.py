"""Which prompts a step of PPO answers."""

import torch


def step_indices(num_prompts: int, batch_size: int, step: int, seed: int) -> list[int]:
    """The prompts of a step (from 1): one shuffled epoch after the other, without a gap."""
    start = (step - 1) * batch_size
    places = [divmod(position, num_prompts) for position in range(start, start + batch_size)]
    orders = {
        epoch: torch.randperm(num_prompts, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        for epoch in {epoch for epoch, _ in places}
    }
    return [int(orders[epoch][offset]) for epoch, offset in places]
