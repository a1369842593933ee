"""Run by test_gathering.py in two processes: generation under ZeRO-3, and how often weights were gathered for it.

deepspeed --num_gpus 2 zero3_generation.py OUTPUT_DIR
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deepspeed
import torch
from tiny_models import build_llama

from keju.models.decoding import decode
from keju.models.gathering import gathered

CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
}
PROMPTS = ([[1, 5, 6]], [[1, 7], [1, 8, 9, 10]])  # of the two ranks


def generate(model, rank: int) -> list[list[int]]:
    return decode(
        model,
        PROMPTS[rank],
        num_responses=1,
        max_new_tokens=4 + 8 * rank,  # one rank goes on for longer than the other
        stop_ids=[-1],
        pad_id=3,
        choose=lambda logits, rows, step: logits.argmax(-1),
    )


def counting(gather, numbers: list[int]):
    def counted(output, *args, **kwargs):
        numbers[0] += output.numel()
        return gather(output, *args, **kwargs)

    return counted


def main() -> None:
    rank = int(os.environ["RANK"])
    expected = generate(build_llama(seed=0).eval(), rank)
    engine, *_ = deepspeed.initialize(model=build_llama(seed=0), config=CONFIG)
    whole = sum(parameter.ds_numel for parameter in engine.parameters())
    held = sum(parameter.numel() for parameter in engine.parameters())

    numbers = [0]
    for name in ("allgather_fn", "all_gather_into_tensor"):  # what ZeRO-3 gathers weights with
        setattr(deepspeed.comm, name, counting(getattr(deepspeed.comm, name), numbers))
    engine.eval()
    with gathered(engine):
        found = generate(engine.module, rank)
    gathered_numbers = numbers[0]
    after = sum(parameter.numel() for parameter in engine.parameters())
    # and the engine trains on
    engine.train()
    loss = engine(input_ids=torch.tensor([[1, 5, 6, 7]]), labels=torch.tensor([[1, 5, 6, 7]])).loss
    engine.backward(loss)
    engine.step()
    again = engine(input_ids=torch.tensor([[1, 5, 6, 7]]), labels=torch.tensor([[1, 5, 6, 7]])).loss
    result = {
        "equal": found == expected,
        "whole": whole,
        "held_before": held,
        "held_after": after,
        "gathered": gathered_numbers,
        "loss": float(loss),
        "loss_after": float(again),
    }
    (Path(sys.argv[-1]) / f"{rank}.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
