"""Every stage on one process and on two under DeepSpeed (real, on the CPU, with gloo), all weights and adapters: the
curves of one process, folders that load, runs that go on where they were."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch
from char_tokenizer import CHARACTERS, build_char_tokenizer
from filelock import FileLock
from free_port import free_port
from safetensors.torch import load_file
from tiny_models import build_llama, build_pangu, build_scalar_model

from keju.models.loading import load_causal_lm, load_scalar_model
from keju.records.writing import write_json, write_jsonl
from keju.training.checkpoints import newest_whole

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[1]
CONFIGS = REPO / "examples" / "configs" / "deepspeed"
STEPS, SAVED = 4, 2
FAMILIES = ("llama", "pangu")
STAGES = ("pretrain", "sft", "reward", "dpo", "rlhf")
MATRIX = [(stage, family, peft) for stage in STAGES for family in FAMILIES for peft in (False, True)]
MATRIX.append(("kto", "llama", False))
JOINT = "rlhf-pangu-joint"  # with a language-model loss, too
OTHERS = ("zero0", "zero1", "zero2_offload", "zero3")  # configurations that are tried in fewer stages

EVERY = {
    "max_steps": STEPS,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "save_strategy": "steps",
    "save_steps": SAVED,
}
TRAINER = {"max_length": 64, "token_budget": 512, "learning_rate": 1e-3, "logging_steps": 1}
PPO = {
    "rollout_batch_size": 5,  # does not come out even
    "num_responses": 2,
    "num_mini_batches": 2,
    "max_new_tokens": 8,
    "token_budget": 96,
    "max_eval_samples": 5,
    "ema_decay": 0.9,
    "kl_target": 0.05,
    "early_stop_kl": 0.5,
    "actor_learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "allow_unfinished": "true",
}
GRPO = {
    "rollout_batch_size": 5,
    "num_responses": 3,
    "max_new_tokens": 8,
    "token_budget": 96,
    "max_eval_samples": 5,
    "learning_rate": 1e-3,
}


def write_inputs(folder: Path) -> None:
    tokenizer = build_char_tokenizer()
    models = {
        "llama": build_llama(vocab_size=len(tokenizer)),
        "pangu": build_pangu(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=3),
    }
    for name, model in models.items():
        for path, saved in ((folder / name, model), (folder / f"{name}_reward", build_scalar_model(model, seed=3))):
            saved.save_pretrained(path)
            tokenizer.save_pretrained(path)
    rng = random.Random(0)

    def text(longest: int) -> str:
        return "".join(rng.choices(CHARACTERS, k=rng.randint(1, longest)))

    for part in ("train", "dev"):
        rows = [
            {"prompt": text(20), "answers": [{"answer": text(15), "score": score} for score in (1, 0, -1)]}
            for _ in range(16)
        ]
        write_jsonl(folder / f"ranked_{part}.jsonl", rows)
        write_jsonl(folder / f"pretrain_{part}.jsonl", [{"text": text(60)} for _ in range(16)])
    write_jsonl(folder / "prompts_train.jsonl", rows)


def run_of(inputs: Path, output: Path, stage: str, family: str, peft: bool, processes: int, **more) -> list[str]:
    """Module and flags; the global batch is the same for every number of processes."""
    if stage == "grpo":
        settings = GRPO | {"reward_model_path": inputs / f"{family}_reward"}
    elif stage == "rlhf":
        settings = PPO | {"reward_model_path": inputs / f"{family}_reward"}
    else:
        settings = TRAINER | {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2 // processes}
    if stage in ("dpo", "kto"):
        settings["reference_cache_dir"] = output / "reference"
    if stage == "kto":
        settings["loss_type"] = "kto"
    settings |= {"model_name_or_path": inputs / family, "data_dir": inputs, "output_dir": output, **EVERY, **more}
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    adapters = ["--share_base" if stage == "rlhf" else "--use_peft"] if peft else []
    module = {"pretrain": "pretrain", "kto": "train_dpo"}.get(stage, f"train_{stage}")
    return [module, "--use_cpu", *adapters, *flags]


def run_all(folder: Path, name: str, runs: dict[str, list[str]], processes: int) -> None:
    """All runs in the processes of one launcher. Raises unless all exit with 0, on every process."""
    path = folder / f"{name}.json"
    write_json(path, runs)
    launcher = ["deepspeed", "--num_gpus", "2", "--master_port", free_port()] if processes > 1 else [sys.executable]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [*launcher, str(REPO / "tests" / "many_runs.py"), str(path)]
    done = subprocess.run(command, env=environment, timeout=900, capture_output=True, text=True)
    said = f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    assert done.returncode == 0, said  # no abort at exit
    for rank in range(processes):
        codes = json.loads(path.with_suffix(f".{rank}.json").read_text())
        assert codes == dict.fromkeys(runs, 0), said


def name_of(stage: str, family: str, peft: bool) -> str:
    return f"{stage}-{family}-{'adapters' if peft else 'full'}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Shared by the workers of the test run, so that each setup runs once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "distributed"
    folder.mkdir(exist_ok=True)
    with once(folder, "inputs") as is_first:
        if is_first:
            write_inputs(folder / "inputs")
    return folder


@contextmanager
def once(folder: Path, what: str) -> Iterator[bool]:
    """Whether this worker is the first to do it; others wait until it is done."""
    done = folder / f"{what}.done"
    with FileLock(folder / f"{what}.lock"):
        yield not done.exists()
        done.touch()


def matrix(folder: Path, setup: str, processes: int, **more) -> Path:
    runs = {
        name_of(*case): run_of(folder / "inputs", folder / setup / name_of(*case), *case, processes, **more)
        for case in MATRIX
    }
    joint = {"enable_joint_optimization": "true", "ptx_filename": "pretrain_train.jsonl", **more}
    runs[JOINT] = run_of(folder / "inputs", folder / setup / JOINT, "rlhf", "pangu", False, processes, **joint)
    with once(folder, setup) as is_first:
        if is_first:
            run_all(folder, setup, runs, processes)
    return folder / setup


@pytest.fixture(scope="module")
def one(folder) -> Path:
    return matrix(folder, "one", 1)


@pytest.fixture(scope="module")
def zero2(folder) -> Path:
    return matrix(folder, "zero2", 2, deepspeed=CONFIGS / "zero2.json")


@pytest.fixture(scope="module")
def zero3_offload(folder) -> Path:
    return matrix(folder, "zero3_offload", 2, deepspeed=CONFIGS / "zero3_offload.json", activation_checkpointing="true")


def curves(run: Path) -> dict[str, list[float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    names = ("loss", "accuracy", "reward", "kl", "value_loss", "num_updates", "eval_loss", "eval_accuracy")
    found = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: numbers for name, numbers in found.items() if numbers}


def logits(run: Path, stage: str) -> torch.Tensor:
    """Of the folder that was saved; ValueError where weights are missing."""
    model = load_scalar_model(str(run), require_head=True) if stage == "reward" else load_causal_lm(str(run))
    with torch.no_grad():
        return model(input_ids=torch.tensor([[1, 5, 9, 30, 44, 71, 2]])).logits


def same_run(ours: Path, theirs: Path, stage: str) -> None:
    expected, found = curves(theirs), curves(ours)
    assert found.keys() == expected.keys() and len(found["loss"]) == STEPS
    for name, numbers in expected.items():
        assert found[name] == pytest.approx(numbers, rel=1e-4, abs=2e-6), name
    torch.testing.assert_close(logits(ours, stage), logits(theirs, stage), rtol=1e-3, atol=1e-3)
    summary, other = (json.loads((run / "summary.json").read_text()) for run in (ours, theirs))
    assert summary.keys() == other.keys() and summary["tokens"] == other["tokens"]
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}


@pytest.mark.parametrize("case", MATRIX, ids=lambda case: name_of(*case))
@pytest.mark.parametrize("setup", ["zero2", "zero3_offload"])
def test_two_processes_give_the_curves_of_one(folder, one, request, setup, case):
    ours = request.getfixturevalue(setup) / name_of(*case)
    same_run(ours, one / name_of(*case), case[0])


@pytest.mark.parametrize("setup", ["zero2", "zero3_offload"])
def test_joint_optimisation(one, request, setup):
    same_run(request.getfixturevalue(setup) / JOINT, one / JOINT, "rlhf")


def test_other_configurations(folder, one):
    for setup in OTHERS:
        config = {"deepspeed": CONFIGS / f"{setup}.json"}
        runs = {
            name_of(stage, "llama", False): run_of(
                folder / "inputs", folder / setup / name_of(stage, "llama", False), stage, "llama", False, 2, **config
            )
            for stage in ("sft", "rlhf")
        }
        run_all(folder, setup, runs, 2)
        for name in runs:
            same_run(folder / setup / name, one / name, name.split("-")[0])


def test_tokens_on_disk_are_made_once_for_all_processes(folder, tmp_path):
    """One process makes them, the other waits; both train as on trees in memory, DPO with its reference, too."""
    cases = [("sft", "llama", False), ("dpo", "llama", False)]
    runs = {}
    for cache in ("off", "on"):
        more = {"deepspeed": CONFIGS / "zero2.json", "token_cache": cache, "token_cache_dir": tmp_path / "tokens"}
        for case in cases:
            output = tmp_path / cache / name_of(*case)
            runs[f"{cache}-{name_of(*case)}"] = run_of(folder / "inputs", output, *case, 2, **more)
    run_all(folder, "tokens", runs, 2)
    assert len(list(tmp_path.glob("tokens/*/manifest.json"))) == 2 * len(cases)  # for training and held out
    for case in cases:
        memory, disk = (tmp_path / cache / name_of(*case) for cache in ("off", "on"))
        assert curves(disk) == curves(memory) and len(curves(disk)["loss"]) == STEPS
        assert weight_bytes(disk) == weight_bytes(memory) and weight_bytes(disk)


def weight_bytes(run: Path) -> dict[str, bytes]:
    files = [path for path in sorted(run.rglob("*.safetensors")) if "checkpoint-" not in str(path)]
    return {
        f"{path.relative_to(run)}/{name}": tensor.numpy().tobytes()
        for path in files
        for name, tensor in load_file(path).items()
    }


@pytest.mark.parametrize("setup", ["zero2", "zero3_offload"])
def test_two_processes_go_on_bit_equal(folder, request, setup):
    """From the checkpoint in the middle, to the weights of the run that was not interrupted."""
    whole = request.getfixturevalue(setup)
    cases = [("sft", "llama", False), ("dpo", "llama", True), ("rlhf", "llama", False), ("rlhf", "pangu", True)]
    runs = {}
    for case in cases:
        copy = folder / f"{setup}-resumed" / name_of(*case)
        shutil.copytree(whole / name_of(*case), copy)
        more = {"deepspeed": CONFIGS / f"{setup}.json", "resume_from_checkpoint": copy / f"checkpoint-{SAVED}"}
        more |= {"activation_checkpointing": "true"} if setup == "zero3_offload" else {}
        runs[name_of(*case)] = run_of(folder / "inputs", copy, *case, 2, **more)
    run_all(folder, f"{setup}-resumed", runs, 2)
    for name in runs:
        expected, found = weight_bytes(whole / name), weight_bytes(folder / f"{setup}-resumed" / name)
        assert expected and found == expected, name


def test_bf16_learns(folder):
    runs = {
        stage: run_of(
            folder / "inputs", folder / "bf16" / stage, stage, "llama", False, 2,
            bf16="true", deepspeed=CONFIGS / "zero2.json",
        )
        for stage in ("sft", "rlhf", "dpo")
    }  # fmt: skip
    run_all(folder, "bf16", runs, 2)
    found = curves(folder / "bf16" / "sft")["loss"]
    assert found[-1] < found[0]
    # Reference and policy start as one model: rounded to bf16 both, their log-probs agree.
    assert curves(folder / "bf16" / "rlhf")["kl"][0] == pytest.approx(0, abs=1e-6)
    assert curves(folder / "bf16" / "dpo")["loss"][0] == pytest.approx(math.log(2), abs=1e-5)


def test_an_optimizer_of_deepspeed_decays_what_ours_decays(folder, tmp_path):
    config = json.loads((CONFIGS / "zero2.json").read_text())
    config["optimizer"] = {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto", "torch_adam": True}}
    write_json(tmp_path / "own.json", config)
    runs = {
        name: run_of(folder / "inputs", tmp_path / name, "sft", "llama", False, 2, deepspeed=file, weight_decay=100)
        for name, file in (("own", tmp_path / "own.json"), ("ours", CONFIGS / "zero2.json"))
    }
    run_all(tmp_path, "decay", runs, 2)
    folders = (folder / "inputs" / "llama", tmp_path / "own", tmp_path / "ours")
    start, own, ours = (load_file(at / "model.safetensors") for at in folders)
    for name, tensor in own.items():
        torch.testing.assert_close(tensor, ours[name], msg=name)
    shrunk = {name for name, tensor in own.items() if tensor.norm() < 0.9 * start[name].norm()}
    assert shrunk == {name for name in start if "proj" in name or "lm_head" in name}


def hear_interrupts() -> None:
    """A test run that a shell has put into the background ignores Ctrl-C, and hands that on to what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def started_shell(run: list[str], **more) -> Iterator[subprocess.Popen]:
    """run_stage of examples/_environment.sh, as the scripts call it; nothing of it runs on after the block."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUM_GPUS": "2", "MASTER_PORT": free_port()}
    script = 'source "$0/examples/_environment.sh"; run_stage "$@"'
    run = [part for part in run if part != "--use_cpu"]  # the shell adds it
    command = ["bash", "-c", script, str(REPO), *run]
    process = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=hear_interrupts, **more)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """The start of two processes takes a minute and more on a slow machine."""
    for _ in range(3000):
        if path.exists():
            return
        assert process.poll() is None, f"it ended before it wrote {path}"
        time.sleep(0.1)
    raise TimeoutError(f"{path} is not there after five minutes")


def test_the_shell_starts_the_launcher(folder, one, tmp_path):
    with started_shell(run_of(folder / "inputs", tmp_path / "run", "sft", "llama", False, 2)) as process:
        assert process.wait(timeout=600) == 0
    same_run(tmp_path / "run", one / name_of("sft", "llama", False), "sft")


def test_sigterm_reaches_the_processes_which_save_and_end(folder, tmp_path):
    run = run_of(folder / "inputs", tmp_path / "run", "rlhf", "llama", False, 2, max_steps=4000, save_steps=4000)
    with started_shell(run, stderr=subprocess.PIPE, text=True) as process:
        wait_for(tmp_path / "run" / "metrics.jsonl", process)
        process.terminate()
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    checkpoint = newest_whole(tmp_path / "run")
    assert checkpoint is not None and f"goes on from {checkpoint}" in said
    assert not (tmp_path / "run" / "summary.json").exists()


def test_ctrl_c_ends_all_processes(folder, tmp_path):
    """As the terminal sends it, in one line of each process and with the documented exit code."""
    run = run_of(folder / "inputs", tmp_path / "run", "sft", "llama", False, 2, max_steps=4000, save_steps=4000)
    with started_shell(run, stderr=subprocess.PIPE, text=True) as process:
        wait_for(tmp_path / "run" / "metrics.jsonl", process)
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    _, left = psutil.wait_procs(started, timeout=60)
    assert not left


def test_a_build_of_deepspeed_that_was_killed_does_not_stop_the_next_run(folder, tmp_path, monkeypatch):
    """Without a build of this machine's own: TORCH_EXTENSIONS_DIR is a new folder."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "ops"))
    run = run_of(folder / "inputs", tmp_path / "run", "sft", "llama", False, 2)
    lock = tmp_path / "ops" / "deepspeed_shm_comm" / "lock"
    with started_shell(run, stderr=subprocess.DEVNULL) as process:
        wait_for(lock, process)
        processes = psutil.Process(process.pid).children(recursive=True)
        for one in [process, *processes]:
            one.kill()
        psutil.wait_procs(processes, timeout=60)
    assert lock.exists()
    with started_shell(run, stderr=subprocess.PIPE, text=True) as process:
        _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said
    assert "left behind" in said and not lock.exists()
