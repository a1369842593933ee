"""Why a run died, and which flags change that."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch


class NonFiniteLoss(RuntimeError):
    """A loss of NaN or Inf at `step`; `records` names the records of that batch, where known."""

    def __init__(self, step: int, records: str = "", name: str = "loss"):
        self.step = step
        self.records = records
        super().__init__(f"{name} is not finite at step {step}" + (f" (records: {records})" if records else ""))


def name_records(places: Iterable[str]) -> str:
    """`file:line` of the records of a batch, of which there may be many: each once, the first eight."""
    return ", ".join([*dict.fromkeys(places)][:8])


class MissingEos(RuntimeError):
    """No sampled response of a step ended by itself: `share` of them (0 to 1) hit the length limit."""

    def __init__(self, step: int, share: float):
        self.step = step
        self.share = share
        super().__init__(f"{share:.0%} of the responses at step {step} never produced the end token")


def explain(exception: BaseException, arguments: Mapping[str, Any] | None = None) -> list[str]:
    """What happened, in one line, then one line for each remedy, likeliest first. Empty for what we do not know.

    arguments: the run's settings by name; remedies name only flags that the run has, with their present values.
    """
    flags = _Flags(arguments or {})
    for cause in _chain(exception):
        for recognised, describe in KNOWN:
            if recognised(cause):
                return describe(cause, flags)
    return []


class _Flags:
    """Words remedies with the run's own settings; those about flags that the run lacks are left out."""

    def __init__(self, arguments: Mapping[str, Any]):
        self.arguments = arguments

    def now(self, name: str) -> Any:
        return self.arguments.get(name)

    def change(self, name: str, to: Any, why: str) -> list[str]:
        if self.arguments and name not in self.arguments:
            return []
        present = f" (now {self.now(name)})" if self.now(name) not in (None, "") else ""
        return [f"--{name} {to}{present}: {why}"]

    def smaller(self, name: str, why: str, factor: float = 2) -> list[str]:
        value = self.now(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
            return self.change(name, "<smaller>", why) if value is None else []
        if isinstance(value, int) and value == 1:
            return []
        return self.change(name, value // 2 if isinstance(value, int) else f"{value / factor:g}", why)


def _chain(exception: BaseException) -> Iterator[BaseException]:
    seen = set()
    while exception is not None and id(exception) not in seen:
        seen.add(id(exception))
        yield exception
        exception = exception.__cause__ or exception.__context__


def _says(*phrases: str) -> Callable[[BaseException], bool]:
    return lambda error: any(phrase.lower() in str(error).lower() for phrase in phrases)


def _is_gpu_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or _says("CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")(error)


def _is_cpu_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or _says("can't allocate memory", "Cannot allocate memory")(error)


def _is_disk_full(error: BaseException) -> bool:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    # The last two are how torch.save words it.
    phrases = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed", "inline_container.cc")
    return full or _says(*phrases)(error)


def _memory(flags: _Flags) -> list[str]:
    accumulation = flags.now("gradient_accumulation_steps")
    double = f"; --gradient_accumulation_steps {2 * accumulation} keeps the batch" if accumulation else ""
    lines = flags.smaller("token_budget", f"less at a time{double}")
    lines += flags.smaller("per_device_train_batch_size", f"fewer records at a time{double}")
    lines += flags.smaller("max_length", "the longest record decides the peak")
    if not flags.now("activation_checkpointing"):
        lines += flags.change("activation_checkpointing", "true", "recomputes activations instead of keeping them")
    if not flags.now("use_peft"):
        lines += flags.change("use_peft", "true", "trains adapters: no optimizer state for the full weights")
    return lines


def _gpu_memory(_: BaseException, flags: _Flags) -> list[str]:
    lines = ["The GPU ran out of memory."] + _memory(flags)
    if not flags.now("bf16") and flags.now("dtype") != "bfloat16":
        lines += flags.change("bf16", "true", "half the memory for activations")
    return lines + flags.change("deepspeed", "<ZeRO-3 config>", "spreads weights and optimizer over the GPUs")


def _cpu_memory(_: BaseException, flags: _Flags) -> list[str]:
    lines = ["The machine ran out of memory."] + _memory(flags)
    lines += flags.smaller("dataloader_num_workers", "each worker holds its own copy of what it reads")
    if "num_workers" in flags.arguments and flags.now("num_workers") != 1:
        lines += flags.change("num_workers", (flags.now("num_workers") or 2) // 2, "fewer processes at a time")
    return lines + (_again(flags, "goes on from the last checkpoint") if flags.arguments else [])


def _not_finite(error: BaseException, flags: _Flags) -> list[str]:
    lines = [f"Training diverged: {str(error).splitlines()[0]}."]
    for name in ("actor_learning_rate", "critic_learning_rate"):
        lines += flags.smaller(name, "the usual cause", factor=10) if flags.now(name) else []
    lines += flags.smaller("learning_rate", "the usual cause", factor=10)
    warmup = flags.now("warmup_steps")
    if isinstance(warmup, (int, float)) and warmup < 0.1:
        lines += flags.change("warmup_steps", 0.1, "a longer start at small rates")
    clip = flags.now("max_grad_norm")
    if isinstance(clip, (int, float)) and (clip == 0 or clip > 1):
        lines += flags.change("max_grad_norm", 1.0, "clips the step that broke it")
    if flags.now("fp16") or flags.now("dtype") == "float16":
        lines += flags.change("bf16", "true", "float16 overflows above 65504; bfloat16 does not")
    lines += ["look at the records named above"] if getattr(error, "records", "") else []
    why = "goes on from the last checkpoint, with the learning rates of that"  # its schedule is restored with it
    return lines + flags.change("resume_from_checkpoint", "auto", why)


def _disk_full(error: BaseException, flags: _Flags) -> list[str]:
    where = getattr(error, "filename", None) or flags.now("output_dir") or "the output folder"
    lines = [f"The disk is full: {where} could not be written."]
    cache = flags.now("token_cache_dir")
    if cache and Path(str(where)).is_relative_to(Path(cache).expanduser().absolute()):
        lines += flags.change("token_cache_dir", "<folder on another disk>", "more space")
        return lines + _again(flags, "goes on from the last checkpoint")
    limit = flags.now("save_total_limit")
    lines += flags.change("save_total_limit", 1, "keeps fewer checkpoints") if limit != 1 else []
    if not flags.now("save_only_model"):
        lines += flags.change("save_only_model", "true", "a third of the size; such a checkpoint cannot be resumed")
    lines += flags.change("output_dir", "<folder on another disk>", "more space")
    if flags.now("output_file"):
        lines += flags.change("output_file", "<file on another disk>", "more space")
    return lines + _again(flags, "then goes on from the last whole checkpoint")


def _again(flags: _Flags, why: str) -> list[str]:
    """How to go on where the run ended; stages without checkpoints keep what they have done."""
    if flags.arguments and "resume_from_checkpoint" not in flags.arguments:
        return ["the same command again goes on with what is done, or begins anew"]
    if flags.now("save_strategy") == "no":
        return ["there is no checkpoint to go on from (--save_strategy no)"]
    return flags.change("resume_from_checkpoint", "auto", why)


def _lost_loader(_: BaseException, flags: _Flags) -> list[str]:
    lines = ["A data loading worker was killed, mostly for memory or for a small /dev/shm."]
    return lines + flags.change("dataloader_num_workers", 0, "loads in the main process")


def _lost_peer(_: BaseException, flags: _Flags) -> list[str]:
    lines = ["Another process of this run died or stopped answering; its own last lines above tell why."]
    lines += flags.change("ddp_timeout", 7200, "if it was only slow (reading data, saving a large model)")
    return lines + [
        "out of memory kills without a word: `dmesg | tail` names the process; then --token_budget and the like help",
        "NCCL_DEBUG=INFO in the environment shows which connection failed",
    ]


def _no_end(error: BaseException, flags: _Flags) -> list[str]:
    lines = [f"The model does not end its answers: {str(error).splitlines()[0]}."]
    lines += ["start from a model whose SFT learned the end token (`bash examples/doctor.sh` shows it)"]
    for name in ("max_new_tokens", "max_response_length"):
        value = flags.now(name)
        lines += flags.change(name, 2 * value, "room to finish") if isinstance(value, int) else []
    return lines


def _device_assert(_: BaseException, flags: _Flags) -> list[str]:
    return [
        "A kernel on the GPU read outside of its bounds: mostly a token id beyond the model's vocabulary.",
        *flags.change("tokenizer_name", "<the model's own>", "ids must fit the embedding"),
        "CUDA_LAUNCH_BLOCKING=1 in the environment shows the line that failed",
    ]


def _interrupted(_: BaseException, flags: _Flags) -> list[str]:
    lines = ["Stopped from outside (Ctrl-C or a signal)."]
    return lines + _again(flags, "goes on from the last checkpoint")


def _lost_worker(error: BaseException, flags: _Flags) -> list[str]:
    return [str(error), *_again(flags, "goes on from the last checkpoint")]


Known = tuple[Callable[[BaseException], bool], Callable[[BaseException, _Flags], list[str]]]
# First match wins: a lost data worker also mentions memory, an NCCL error may quote CUDA.
KNOWN: list[Known] = [
    (lambda error: isinstance(error, KeyboardInterrupt), _interrupted),
    (lambda error: isinstance(error, NonFiniteLoss), _not_finite),
    (lambda error: isinstance(error, MissingEos), _no_end),
    (_is_disk_full, _disk_full),
    (lambda error: isinstance(error, ChildProcessError), _lost_worker),
    (_says("DataLoader worker"), _lost_loader),
    (_is_gpu_memory, _gpu_memory),
    (_is_cpu_memory, _cpu_memory),
    (_says("device-side assert"), _device_assert),
    (_says("NCCL", "gloo", "closed by peer", "reset by peer", "watchdog", "Broken pipe"), _lost_peer),
    (_says("probability tensor contains either `inf`, `nan`", "Current loss scale already at minimum"), _not_finite),
]
