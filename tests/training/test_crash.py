from __future__ import annotations

import errno

import pytest
import torch

from keju.training.crash import MissingEos, NonFiniteLoss, explain

ARGUMENTS = {
    "token_budget": 4096,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "max_length": 512,
    "activation_checkpointing": False,
    "use_peft": False,
    "bf16": False,
    "deepspeed": None,
    "learning_rate": 1e-3,
    "warmup_steps": 0.0,
    "max_grad_norm": 1.0,
    "dataloader_num_workers": 4,
    "ddp_timeout": 1800,
    "save_total_limit": 2,
    "save_only_model": False,
    "output_dir": "runs/x",
    "resume_from_checkpoint": None,
    "max_new_tokens": 64,
}


@pytest.mark.parametrize(
    ("error", "happened", "flags"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            "GPU ran out of memory",
            ["--token_budget 2048", "--bf16 true"],
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "machine ran out", ["--token_budget 2048"]),
        (MemoryError(), "machine ran out", ["--per_device_train_batch_size 4", "--use_peft true"]),
        (NonFiniteLoss(7, "a.jsonl:3"), "at step 7 (records: a.jsonl:3)", ["--learning_rate 0.0001", "--warmup_steps"]),
        (OSError(errno.ENOSPC, "No space left", "runs/x/m"), "disk is full: runs/x/m", ["--save_total_limit 1"]),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 8 vs 7"), "disk is full", []),
        (
            RuntimeError("I/O error: No space left on device (os error 28)"),
            "disk is full: runs/x",
            ["--save_only_model"],
        ),
        (
            RuntimeError("DataLoader worker (pid 3) is killed by signal: Bus error"),
            "worker",
            ["--dataloader_num_workers 0"],
        ),
        (RuntimeError("[gloo] Connection closed by peer [127.0.0.1]"), "Another process", ["--ddp_timeout 7200"]),
        (RuntimeError("NCCL error: unhandled system error"), "Another process", ["NCCL_DEBUG"]),
        (MissingEos(3, 1.0), "does not end", ["--max_new_tokens 128"]),
        (RuntimeError("CUDA error: device-side assert triggered"), "token id", []),
        (KeyboardInterrupt(), "Ctrl-C", ["--resume_from_checkpoint auto"]),
        (
            ChildProcessError("a process was killed; give fewer --num_workers"),
            "was killed",
            ["--resume_from_checkpoint"],
        ),
    ],
)
def test_says_what_happened_and_which_flags(error, happened, flags):
    what, *remedies = explain(error, ARGUMENTS)
    assert happened in what
    for flag in flags:
        assert any(remedy.startswith(flag) for remedy in remedies), (flag, remedies)


def test_present_values_are_named():
    assert "--learning_rate 0.0001 (now 0.001): the usual cause" in explain(NonFiniteLoss(1), ARGUMENTS)


def test_only_flags_that_the_run_has():
    remedies = explain(torch.OutOfMemoryError("x"), {"token_budget": 100})[1:]
    assert remedies and all("token_budget" in remedy for remedy in remedies)


ENDED = [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt(), ChildProcessError(""), MemoryError()]


@pytest.mark.parametrize("error", ENDED)
def test_stages_without_checkpoints(error):
    _, *remedies = explain(error, {"output_dir": "runs/data", "num_workers": 2})
    assert remedies[-1].startswith("the same command again")
    assert not any(name in remedy for remedy in remedies for name in ("checkpoint", "save_"))


@pytest.mark.parametrize(("given", "proposed"), [(8, 4), (0, 1), (None, 1), (1, None)])
def test_fewer_processes_take_less_memory(given, proposed):
    remedies = explain(MemoryError(), {"output_dir": "runs/data", "num_workers": given})[1:]
    found = [remedy for remedy in remedies if remedy.startswith("--num_workers")]
    assert [remedy.split()[1].strip(":") for remedy in found] == ([] if proposed is None else [str(proposed)])


def test_a_full_disk_of_tokens_is_not_that_of_the_run(tmp_path):
    given = {"output_dir": "runs/x", "token_cache_dir": str(tmp_path / "tokens"), "save_total_limit": 2}
    what, *remedies = explain(OSError(errno.ENOSPC, "No space left", str(tmp_path / "tokens" / "0ab")), given)
    assert what == f"The disk is full: {tmp_path}/tokens/0ab could not be written."
    assert remedies[0].startswith("--token_cache_dir <folder on another disk>")
    assert not any(remedy.startswith(("--output_dir", "--save_total_limit")) for remedy in remedies)


def test_a_full_disk_of_an_exported_file():
    what, *remedies = explain(OSError(errno.ENOSPC, "No space left", "a.csv"), {"output_file": "a.csv"})
    assert "a.csv could not be written" in what and remedies[0].startswith("--output_file <file on another disk>")


def test_nothing_that_is_set_already_is_proposed():
    remedies = explain(torch.OutOfMemoryError("x"), ARGUMENTS | {"use_peft": True, "per_device_train_batch_size": 1})
    assert not any("use_peft" in remedy or "train_batch_size" in remedy for remedy in remedies)


def test_the_cause_behind_an_exception_counts():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("could not save") from error
    except RuntimeError as error:
        assert "disk is full" in explain(error, ARGUMENTS)[0]


def test_an_unknown_error_is_not_explained():
    assert explain(ZeroDivisionError("division by zero"), ARGUMENTS) == []
