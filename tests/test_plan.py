"""The plan: near to what real steps take, the same as DeepSpeed divides, and a command that is there to be typed."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from keju.plan import PlanArguments, WorkArguments, attempts, report
from keju.planning.allocations import ACTIVATIONS, CACHE, FROZEN, GRADIENTS, LOGITS, OPTIMIZER, PARAMETERS
from keju.planning.memory import memory
from keju.planning.rehearsal import rehearse
from keju.planning.settings import Settings, ladder
from keju.planning.step import Step, model_config
from keju.planning.workload import Workload
from keju.planning.zero import BUFFERS, ZeroConfig
from keju.training.arguments import parse_arguments

REPO = Path(__file__).resolve().parents[1]
BENCH = REPO / "tests/bench"
WORK = {"token_budget": 512, "max_length": 64, "max_prompt_length": 32, "max_new_tokens": 32, "rollout_batch_size": 4}


@pytest.mark.parametrize(
    "model, name",
    [
        ("pangu-tiny", "sft, checkpointing"),
        pytest.param("llama-tiny", "dpo", marks=pytest.mark.slow),
        pytest.param("pangu-tiny", "sft, LoRA", marks=pytest.mark.slow),
        pytest.param("llama-tiny", "rlhf", marks=pytest.mark.slow),
        pytest.param("llama-tiny", "sft, ZeRO-2", marks=pytest.mark.slow),
        pytest.param("llama-tiny", "sft, ZeRO-3", marks=pytest.mark.slow),
    ],
)
def test_plan_is_within_15_percent_of_measured_memory(monkeypatch, model, name):
    monkeypatch.syspath_prepend(str(BENCH))
    from measured_memory import measured
    from plan import case, planned

    chosen = case(model, name)
    assert planned(chosen) == pytest.approx(measured(chosen), rel=0.15)


def rehearsed(stage: str, **settings):
    return _rehearsed(stage, tuple(sorted(({"on_gpu": True} | settings).items())))


@functools.cache
def _rehearsed(stage: str, settings: tuple):
    return rehearse(Step(stage, model_config("llama-tiny", {"vocab_size": 512}), Workload(**WORK), **dict(settings)))


def peak(found, kind: str | None = None) -> int:
    index = (PARAMETERS, FROZEN, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOGITS, CACHE).index(kind) if kind else slice(None)
    return max(moment.sizes[index] if kind else sum(moment.sizes[index]) for moment in found.moments)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "dpo", "rlhf"])
def test_every_stage_is_rehearsed(stage, on_gpu):
    found = rehearsed(stage, on_gpu=on_gpu)
    assert peak(found, OPTIMIZER) == pytest.approx(8 * found.num_trained, rel=1e-3)
    assert peak(found, PARAMETERS) == pytest.approx(4 * found.num_trained, rel=0.02)
    assert peak(found, GRADIENTS) == pytest.approx(4 * found.num_trained, rel=1e-3)
    assert (peak(found, CACHE) > 0) == (stage == "rlhf") == (peak(found, FROZEN) > 0)


def test_what_saves_memory_does():
    whole = peak(rehearsed("sft"), ACTIVATIONS)
    assert peak(rehearsed("sft", activation_checkpointing=True), ACTIVATIONS) < whole / 2
    assert peak(rehearsed("sft", autocast=True), ACTIVATIONS) < whole
    assert peak(rehearsed("sft", use_peft=True), OPTIMIZER) < peak(rehearsed("sft"), OPTIMIZER) / 10
    shared = rehearsed("rlhf", share_base=True)
    assert shared.num_trained < rehearsed("rlhf").num_trained / 10
    # Attention over trees keeps no scores and no gathered keys on a GPU.
    assert peak(rehearsed("reward"), ACTIVATIONS) < peak(rehearsed("reward", on_gpu=False), ACTIVATIONS)


def test_rehearsals_of_fake_weights_leave_the_heap_as_it_was():
    """PEFT copies the head that it trains whole; as torch copies them, fake weights would write to where nothing is."""
    code = (
        "import gc\n"
        "from keju.planning.rehearsal import rehearse\n"
        "from keju.planning.step import Step, model_config\n"
        "for _ in range(3):\n"
        "    rehearse(Step('reward', model_config('pangu-tiny'), use_peft=True))\n"
        "    gc.collect()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], env=None).returncode == 0


@pytest.fixture
def sft():
    return rehearsed("sft", dtype="bfloat16")


@pytest.fixture
def policy():
    return rehearsed("rlhf", dtype="bfloat16", num_processes=8)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_divides(sft, stage):
    one, eight = (memory(sft, Settings(512, zero_stage=stage), number).device for number in (1, 8))
    assert one[OPTIMIZER] == 12 * sft.num_trained == pytest.approx(8 * eight[OPTIMIZER], abs=8 * 12)
    divided = {GRADIENTS: stage >= 2, PARAMETERS: stage == 3}
    for kind, is_divided in divided.items():
        assert one[kind] / eight[kind] == pytest.approx(8 if is_divided else 1, rel=1e-3)
    assert eight[BUFFERS] > 0 and eight[ACTIVATIONS] == one[ACTIVATIONS]
    if stage == 3:
        offloaded = memory(sft, Settings(512, zero_stage=3, offload=True), 8)
        assert not offloaded.device[PARAMETERS] and offloaded.cpu[OPTIMIZER] == eight[OPTIMIZER]


def test_zero_divides_actor_critic_and_frozen_models(policy):
    shares = {stage: memory(policy, Settings(512, zero_stage=stage), 8).device for stage in (2, 3)}
    frozen = sum(policy.frozen.values())
    assert shares[2][FROZEN] == frozen == pytest.approx(8 * shares[3][FROZEN], abs=16)
    assert shares[2][PARAMETERS] == 2 * policy.num_parameters == pytest.approx(8 * shares[3][PARAMETERS], abs=16)
    assert shares[3][OPTIMIZER] == 12 * sum(-(-engine.trained // 8) for engine in policy.engines)
    away = memory(policy, Settings(512, zero_stage=2, offload_reference=True, offload_reward=True), 8)
    assert away.cpu == policy.frozen and not away.device[FROZEN]
    shared = memory(policy, Settings(512, zero_stage=2, share_base=True), 8)
    assert shared.device[FROZEN] == policy.frozen["reward model"]


def test_a_rollout_under_zero3_has_the_whole_actor(policy, tmp_path):
    small = {"reduce_bucket_size": 1000, "stage3_prefetch_bucket_size": 1000, "stage3_max_reuse_distance": 1000}
    path = tmp_path / "small.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, **small}}))
    rollout = dataclasses.replace(policy, moments=[one for one in policy.moments if one.phase == "rollout"])
    found = memory(rollout, Settings(512, zero_stage=3, offload=True, config_file=str(path)), 8)
    assert found.phase == "rollout" and found.device[CACHE]
    assert found.device[BUFFERS] == 2 * (policy.engines[0].all + 2 * 1000)  # the actor, a bucket of either engine


def test_each_process_samples_its_share(policy):
    # One prompt of four, and half the bytes of a number.
    assert peak(rehearsed("rlhf"), CACHE) == pytest.approx(8 * peak(policy, CACHE))


def test_buckets_are_those_of_the_file():
    default, found = ZeroConfig(), ZeroConfig.read("deepspeed/zero2.json")
    assert found == dataclasses.replace(default, overlap_comm=True)


def test_offloaded_models_are_on_the_device_only_while_they_score(policy):
    here, away = (memory(policy, Settings(512, offload_reference=value), 1) for value in (False, True))
    assert away.total < here.total and away.cpu == {"reference": policy.frozen["reference"]}


def test_first_that_fits_is_recommended():
    plan, work = PlanArguments("llama-tiny", gpu_memory=80, num_gpus=4), WorkArguments(**WORK)
    tried = next(attempts(plan, work))
    assert tried.fits
    command = report(plan, work, [tried])["command"]
    assert "NUM_GPUS=4" in command and "--bf16" in command and "examples/train_sft.sh" in command
    none = PlanArguments("llama-tiny", gpu_memory=0.01, activation_checkpointing=True)
    tried = list(attempts(none, work))
    assert not any(one.fits for one in tried) and report(none, work, tried)["command"] is None
    assert tried[-1].settings.token_budget < 512 and tried[-1].settings.use_peft


@pytest.mark.parametrize("stage, num_gpus", [("sft", 1), ("sft", 4), ("dpo", 4), ("rlhf", 1), ("rlhf", 4)])
def test_commands_name_what_is_there(stage, num_gpus):
    for settings in ladder(stage, num_gpus, 4096):
        command = settings.command(stage, "llama-7B", num_gpus, Workload())
        config = settings.deepspeed_config
        assert (
            config is None or json.loads((REPO / "examples/configs" / config).read_text())["zero_optimization"]["stage"]
        )
        assert (REPO / command.split("bash ")[1].split()[0]).is_file()
        assert not (settings.share_base and settings.offload_reference)  # train_rlhf refuses both together


@pytest.mark.parametrize(
    "flags, named",
    [
        ({"num_gpus": 0}, "--num_gpus"),
        ({"num_gpus": 2, "use_cpu": True}, "--use_cpu"),
        ({"gpu_memory": 0}, "--gpu_memory"),
        ({"margin": 1}, "--margin"),
        ({"zero_stage": 4}, "--zero_stage"),
        ({"config_overrides": "vocab_size"}, "--config_overrides"),
    ],
)
def test_mistakes_name_their_flag(capsys, flags, named):
    argv = [f"--{name}={value}" for name, value in flags.items()]
    with pytest.raises(SystemExit) as stop:
        parse_arguments(PlanArguments, argv=["--model_name_or_path", "llama-tiny", *argv])
    assert stop.value.code == 2 and capsys.readouterr().err.startswith(f"error: {named}")


def test_a_record_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="^token_budget: 100 is too small: one record may have 512 tokens"):
        Workload(token_budget=100).check("sft")
    with pytest.raises(ValueError, match="^max_prompt_length: "):
        Workload(max_prompt_length=512).check("dpo")


def test_script_writes_json_and_a_picture(tmp_path):
    command = [sys.executable, "-m", "keju.plan", "--model_name_or_path", "llama-tiny", "--json"]
    command += ["--max_length", "64", "--max_prompt_length", "32", "--token_budget", "512"]
    run = subprocess.run([*command, "--output_dir", str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found == json.loads((tmp_path / "plan.json").read_text())
    assert found["tried"][-1]["fits"] and found["tried"][-1]["total"] == sum(found["tried"][-1]["device"].values())
    assert (tmp_path / "plan.png").stat().st_size > 5000
