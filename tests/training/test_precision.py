"""The reference is computed in the precision in which the policy is trained: DPO starts at ln 2 in each."""

from __future__ import annotations

import json
import random
import sys

import pytest
import torch
from char_tokenizer import CHARACTERS, build_char_tokenizer
from tiny_models import build_llama
from transformers import TrainingArguments

from keju import train_dpo
from keju.records.writing import write_jsonl
from keju.training.engines import cast, readable
from keju.training.launch import run_guarded
from keju.training.objectives.kto import KTOObjective, MismatchedAnswers
from keju.training.objectives.preference import PreferenceObjective
from keju.training.reference_cache import reference_trees
from keju.training.stage_model import StageModel
from keju.training.tree_guard import verify_trees
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment

LN2 = 0.69314718
NUM_PAIRS, LENGTH = 24, 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of sharp opinions, and pairs whose better answer is always by far the longer one: a reference of another
    precision would be seen to lean to one side."""
    folder = tmp_path_factory.mktemp("precision")
    tokenizer = build_char_tokenizer()
    build_llama(vocab_size=len(tokenizer)).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    rng = random.Random(0)

    def text(length: int) -> str:
        return "".join(rng.choices(CHARACTERS, k=length))

    for part in ("train", "dev"):
        rows = [
            {"prompt": text(5), "answers": [{"answer": text(LENGTH), "score": 1}, {"answer": text(9), "score": 0}]}
            for _ in range(NUM_PAIRS)
        ]
        write_jsonl(folder / f"ranked_{part}.jsonl", rows)
    return folder


def first_row(monkeypatch, folder, output, *flags) -> dict:
    settings = ["--model_name_or_path", folder / "llama", "--data_dir", folder, "--output_dir", output, "--use_cpu"]
    settings += ["--max_steps", 1, "--logging_steps", 1, "--per_device_train_batch_size", NUM_PAIRS, "--beta", 1.0]
    settings += ["--reference_cache_dir", folder / "cache", "--learning_rate", 0.0, "--token_budget", 1024]
    settings += ["--gradient_accumulation_steps", 8]
    monkeypatch.setattr(sys, "argv", ["stage.py", *map(str, [*settings, *flags])])
    assert run_guarded(train_dpo.main) == 0
    found = json.loads((output / "metrics.jsonl").read_text().splitlines()[0])
    return found | json.loads((output / "summary.json").read_text())


@pytest.mark.parametrize(
    ("flags", "off"),
    [([], 1e-5), (["--bf16"], 4e-3), (["--bf16", "--use_peft"], 4e-3), (["--dtype", "bfloat16"], 4e-3)],
)
def test_an_untouched_policy_starts_at_chance(monkeypatch, folder, tmp_path, flags, off):
    """A beta of 1, ten times the usual one, and packs of other trees than those of the reference: rounding shows."""
    found = first_row(monkeypatch, folder, tmp_path, *flags)
    for name in ("loss", "eval_loss"):
        assert found[name] == pytest.approx(LN2, abs=off)
    for name in ("accuracy", "heldout_accuracy"):
        assert 0.25 <= found[name] <= 0.75


def long_trees() -> list[Segment]:
    rng = random.Random(1)

    def ids(count: int) -> list[int]:
        return [rng.randrange(7, 97) for _ in range(count)]

    return [
        Segment(ids(5), branches=[Segment(ids(n), True, values={"score": float(n)}) for n in (60, 9)]) for _ in range(6)
    ]


@pytest.mark.parametrize("kto", [False, True])
def test_in_one_pack_policy_and_reference_are_equal_to_the_last_bit(tmp_path, kto):
    model, logprobs = build_llama(), {}
    for dtype in (None, torch.bfloat16, torch.float16):
        objective = KTOObjective() if kto else PreferenceObjective()
        trees = MismatchedAnswers(long_trees(), 4096) if kto else long_trees()
        reader = StageModel(model, autocast=dtype)
        (trees,) = reference_trees(reader, [trees], token_budget=4096, cache_dir=tmp_path)
        assert trees.num_computed == 6  # nothing that another precision has left in the cache
        batch = PackedBatch.from_trees(list(trees))
        output = StageModel(model, objective, dropout="none", autocast=dtype).train()(batch)
        assert output.loss_sum.item() == pytest.approx((6 if kto else LN2 * 6), rel=1e-6)
        assert output.metrics["margin"][0] == 0 and output.metrics["accuracy"][0] == 3
        assert reader(batch, objective.margins).tolist() == [0.0] * 6
        logprobs[dtype] = batch.values["ref_logprob"]
    assert (logprobs[None] - logprobs[torch.bfloat16]).nan_to_num().abs().max() > 0.05  # another one would be seen
    assert len(list(tmp_path.iterdir())) == 3


def test_models_are_proven_in_the_precision_of_training():
    for dtype in (torch.bfloat16, torch.float16):
        verify_trees(StageModel(build_llama(), autocast=dtype), gradients=True)
    model = build_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
    verify_trees(model)
    with pytest.raises(ValueError, match="not finite in float16; try another precision"):
        verify_trees(StageModel(model, autocast=torch.float16))


@pytest.mark.parametrize(("flag", "dtype"), [("bf16", torch.bfloat16), (None, None)])
def test_a_model_is_read_as_it_is_trained(tmp_path, flag, dtype):
    training = TrainingArguments(str(tmp_path), use_cpu=True, **({flag: True} if flag else {}))
    model = build_llama()
    with readable(model, training) as passes:
        assert passes.autocast is dtype and passes.model is model


def test_weights_that_deepspeed_will_cast_are_cast_while_they_are_read():
    model = build_llama(tie_word_embeddings=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    buffers = {name: tensor.dtype for name, tensor in model.named_buffers()}
    with cast(model, torch.bfloat16):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert {name: tensor.dtype for name, tensor in model.named_buffers()} == buffers
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with cast(model, None):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
