"""Work is shared out among processes, equally many parts each, and summed up again."""

from __future__ import annotations

import torch
import torch.multiprocessing

from keju.training.processes import (
    is_main_process,
    num_launched,
    num_processes,
    own_parts,
    process_index,
    sum_over_processes,
)


def test_one_process_has_everything():
    assert (num_processes(), process_index()) == (1, 0)
    assert own_parts("abc") == [("a", True), ("b", True), ("c", True)]
    assert own_parts([]) == []
    assert sum_over_processes(torch.tensor([2.0])).item() == 2


def test_the_launcher_says_who_is_first_before_the_processes_meet(monkeypatch):
    assert is_main_process() and num_launched() == 1
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_main_process() and num_launched() == 2
    assert (num_processes(), process_index()) == (1, 0)  # nobody takes a part of this one's work


def share(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    parts = [own_parts(range(count)) for count in (0, 1, 2, 5)]
    total = sum_over_processes(torch.tensor([sum(part for part, counts in parts[-1] if counts)]))
    assert is_main_process() == (rank == 0)
    torch.save((parts, int(total)), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_equally_many(tmp_path):
    torch.multiprocessing.spawn(share, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first == ([[], [(0, True)], [(0, True)], [(0, True), (2, True), (4, True)]], 10)
    assert second == ([[], [(0, False)], [(1, True)], [(1, True), (3, True), (4, False)]], 10)
