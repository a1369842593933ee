"""Two processes with half of a rollout each see the statistics of the whole."""

import torch
import torch.multiprocessing
from torch import Tensor

from keju.rl.advantages import whiten
from keju.rl.rewards import RunningMoments


def rollout() -> tuple[Tensor, Tensor, Tensor]:
    """Advantages, mask and scores of four responses; NaN where nothing may look."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(6)[None] < torch.tensor([6, 1, 3, 4])[:, None]
    advantages = torch.randn(4, 6, generator=generator) * 3 + 1
    return torch.where(mask, advantages, torch.nan), mask, torch.randn(4, generator=generator) + 5


def half(rank: int, folder: str) -> None:
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    advantages, mask, scores = (part[:1] if rank == 0 else part[1:] for part in rollout())  # uneven halves
    moments = RunningMoments()
    moments.update(scores)
    torch.save((whiten(advantages, mask), moments.state_dict()), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_are_one(tmp_path):
    torch.multiprocessing.spawn(half, args=(str(tmp_path),), nprocs=2)
    parts, moments = zip(*(torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)), strict=True)
    advantages, mask, scores = rollout()
    torch.testing.assert_close(torch.cat(parts), whiten(advantages, mask))
    whole = RunningMoments()
    whole.update(scores)
    for found in moments:
        assert found["count"] == 4
        torch.testing.assert_close(torch.tensor(list(found.values())), torch.tensor(list(whole.state_dict().values())))
