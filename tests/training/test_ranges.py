"""Numbers that settings take: declared by every one of them, checked where they are parsed."""

from __future__ import annotations

import dataclasses
import importlib
import math
from typing import get_args, get_origin, get_type_hints

import pytest
from transformers import TrainingArguments

from keju.rl.arguments import PPOArguments, PPODataArguments, PPOModelArguments
from keju.stages.spec import stages
from keju.train_dpo import DPOArguments
from keju.train_grpo import GRPOArguments
from keju.training.arguments import DataArguments, ModelArguments, StageTrainingArguments, parse_arguments
from keju.training.flag_effects import INHERITED_RANGES
from keju.training.ranges import Range, above, at_least, between, range_of

STAGE = ["--model_name_or_path", "m", "--data_dir", "d", "--train_filename", "t.jsonl", "--output_dir", "out"]
PPO = ["--model_name_or_path", "m", "--reward_model_path", "r", "--data_dir", "d", "--output_dir", "out"]


def argument_classes() -> set[type]:
    """The dataclasses of flags of all commands."""
    modules = [importlib.import_module(f"keju.{stage.script}") for stage in stages().values()]
    return {
        value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and dataclasses.is_dataclass(value) and name.endswith("Arguments")
    }


def is_number(hint) -> bool:
    parts = get_args(hint) if get_origin(hint) is not dict else ()
    return hint in (int, float) or any(is_number(part) for part in parts)


def test_every_number_of_every_command_declares_its_range():
    classes = argument_classes()
    assert len(classes) > 20 and {DPOArguments, PPOArguments, GRPOArguments} <= classes
    missing = []
    for kind in classes - {TrainingArguments}:
        plain, annotated = get_type_hints(kind), get_type_hints(kind, include_extras=True)
        for item in dataclasses.fields(kind):
            if not item.init or not is_number(plain[item.name]):
                continue
            inherited = INHERITED_RANGES.get(item.name) if issubclass(kind, TrainingArguments) else None
            allowed = range_of(annotated[item.name]) or inherited
            if allowed is None:
                missing.append(f"{kind.__name__}.{item.name}")
            elif isinstance(item.default, (int, float)):
                assert item.default in allowed, f"{kind.__name__}.{item.name}: its default is out of its range"
    assert not missing


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "text"),
    [
        (at_least(1), (1, 2), (0, -1), "at least 1"),
        (above(0), (1e-9, 5), (0, -1), "above 0"),
        (between(0, 1), (0, 0.5, 1), (-0.1, 1.1), "at least 0 and at most 1"),
        (between(0, 1, open_low=True), (0.1, 1), (0,), "above 0 and at most 1"),
        (between(0, 0.5, open_high=True), (0, 0.4), (0.5,), "at least 0 and below 0.5"),
        (at_least(1, apart=(-1,)), (-1, 1), (0, -2), "at least 1, or -1"),
        (Range(), (-1e9, 0), (), "finite"),
    ],
)
def test_ranges(allowed, inside, outside, text):
    assert all(number in allowed for number in inside) and not any(number in allowed for number in outside)
    assert not any(number in allowed for number in (math.nan, math.inf, -math.inf))
    assert str(allowed) == text


def refusal(capsys, kinds, argv) -> str:
    with pytest.raises(SystemExit) as stop:
        parse_arguments(*kinds, argv=list(argv))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


STAGE_FLAGS = (
    *("--max_grad_norm=-1", "--learning_rate=-1e-5", "--learning_rate=nan", "--weight_decay=-0.1"),
    *("--per_device_train_batch_size=0", "--gradient_accumulation_steps=0", "--num_train_epochs=0"),
    *("--max_steps=0", "--adam_beta1=1", "--adam_beta2=1.5", "--warmup_steps=-1", "--logging_steps=0"),
    *("--save_steps=0", "--lora_r=0", "--lora_dropout=1", "--seed=-1", "--seed=4294967296"),
    *("--token_budget=0", "--dataloader_num_workers=-1"),
)
PPO_FLAGS = (
    *("--max_grad_norm=-1", "--clip_reward=-1", "--kl_coef=-1", "--cliprange=-0.2", "--cliprange_value=-0.2"),
    *("--ema_decay=1.5", "--ema_decay=1", "--gamma=2", "--gamma=0", "--lam=-1", "--lam=1.1", "--max_steps=0"),
    *("--rollout_batch_size=0", "--generation_batch_size=0", "--num_train_epochs=0", "--temperature=0"),
    *("--top_p=0", "--top_p=1.1", "--top_k=-1", "--kl_target=0", "--early_stop_kl=0", "--ptx_coef=-1"),
    *("--actor_learning_rate=-1", "--critic_learning_rate=inf", "--missing_eos_penalty=-1", "--save_steps=0"),
    *("--save_total_limit=0", "--vllm_gpu_memory=2", "--value_warmup_steps=-1", "--alarm_window=0"),
    *("--max_prompt_length=0", "--token_budget=-5", "--length_penalty=nan"),
)


@pytest.mark.parametrize(
    ("kinds", "required", "flag"),
    [
        *(((ModelArguments, DataArguments, StageTrainingArguments), STAGE, flag) for flag in STAGE_FLAGS),
        *(((PPOModelArguments, PPODataArguments, PPOArguments), PPO, flag) for flag in PPO_FLAGS),
    ],
)
def test_numbers_out_of_range_are_refused(capsys, kinds, required, flag):
    name, _, value = flag.partition("=")
    line = refusal(capsys, kinds, [*required, flag])
    assert line.startswith(f"error: {name}: must be ") and line.endswith(f", got {value}")


def test_numbers_of_a_yaml_file_and_of_lists(capsys, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("seed: 1\nlearning_rate: -1\n", encoding="utf-8")
    line = refusal(capsys, (ModelArguments, DataArguments, StageTrainingArguments), [str(config), *STAGE])
    assert line == f"error: {config}:2: learning_rate: must be at least 0, got -1"
    flags = [*STAGE, "--loss_type", "sigmoid", "sft", "--loss_weights", "1", "-1"]
    line = refusal(capsys, (ModelArguments, DataArguments, DPOArguments), flags)
    assert line == "error: --loss_weights: must be at least 0, got -1"


def test_help_says_the_range(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(PPOModelArguments, PPODataArguments, PPOArguments, argv=["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Discount [above 0 and at most 1] (default: 1.0)" in text
    assert "Prompts of a rollout [at least 1] (default: 16)" in text
