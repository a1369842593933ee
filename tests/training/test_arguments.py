from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from keju.rl.arguments import PPOArguments, PPODataArguments, PPOModelArguments
from keju.training.arguments import DataArguments, ModelArguments, StageTrainingArguments, parse_arguments

REQUIRED = ["--model_name_or_path", "m", "--data_dir", "d", "--train_filename", "t.jsonl", "--output_dir", "out"]


def parse(*argv):
    return parse_arguments(ModelArguments, DataArguments, StageTrainingArguments, argv=list(argv))


def refusal(capsys, *argv) -> str:
    """What stderr says when these arguments are refused; always one line, always exit code 2."""
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def yaml(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_flags_fill_the_dataclasses_in_order():
    model, data, training = parse(*REQUIRED, "--lora_target_modules", "q", "v", "--learning_rate", "3e-4", "--use_peft")
    assert model.model_name_or_path == "m" and model.lora_target_modules == ["q", "v"] and model.use_peft
    assert data.train_filename == "t.jsonl" and data.eval_filename is None
    assert training.learning_rate == 3e-4 and training.output_dir == "out"


def test_our_defaults():
    _, _, training = parse(*REQUIRED)
    assert training.report_to == [] and training.disable_tqdm and not training.remove_unused_columns
    assert not training.logging_nan_inf_filter  # transformers' default would hide a NaN
    assert training.lr_scheduler_type == "cosine" and training.save_total_limit == 2 and not training.save_only_model


def test_unknown_flag_names_the_nearest(capsys):
    assert refusal(capsys, *REQUIRED, "--learning_rat", "1") == (
        "error: unknown flag --learning_rat; did you mean --learning_rate?"
    )
    assert "did you mean --train_filename?" in refusal(capsys, *REQUIRED, "--train-file_name=x")
    assert refusal(capsys, *REQUIRED, "--zzzzqqq") == "error: unknown flag --zzzzqqq; --help lists all"


def test_flags_are_not_guessed_from_their_beginning(capsys):
    assert "unknown flag --learning" in refusal(capsys, *REQUIRED, "--learning", "1")


def test_stray_argument(capsys):
    assert "unexpected argument stray" in refusal(capsys, *REQUIRED, "--bf16", "false", "stray")


def test_bad_value_names_the_flag(capsys):
    assert refusal(capsys, *REQUIRED, "--learning_rate", "fast").startswith("error: --learning_rate: invalid float")
    assert refusal(capsys, *REQUIRED, "--dtype", "int3").startswith("error: --dtype: invalid choice: 'int3'")
    assert refusal(capsys, *REQUIRED, "--max_length", "0") == "error: --max_length: must be at least 1, got 0"
    assert "--config_overrides: expected name=value" in refusal(capsys, *REQUIRED, "--config_overrides", "hidden")
    assert "--deepspeed: nowhere.json does not exist" in refusal(capsys, *REQUIRED, "--deepspeed", "nowhere.json")


def test_missing_flags_are_all_named(capsys):
    assert refusal(capsys, "--data_dir", "d").startswith(
        "error: --model_name_or_path, --train_filename, --output_dir must be given"
    )


def test_yaml_gives_values_and_flags_win(tmp_path):
    config = yaml(tmp_path, "learning_rate: 1e-5\nnum_train_epochs: 2\nuse_peft: true\nlora_target_modules: [q, v]\n")
    model, _, training = parse(config, *REQUIRED, "--num_train_epochs", "5")
    assert training.learning_rate == 1e-5  # a string to YAML 1.1
    assert training.num_train_epochs == 5.0
    assert model.lora_target_modules == ["q", "v"]
    assert parse("--config", config, *REQUIRED)[2].num_train_epochs == 2.0


def test_yaml_fills_required_settings_and_keeps_text(tmp_path):
    text = "model_name_or_path: m\ndata_dir: d\ntrain_filename: 007\noutput_dir: out\neval_strategy: no\n"
    _, data, training = parse(yaml(tmp_path, text))
    assert data.train_filename == "007"
    assert training.eval_strategy.value == "no"  # False to YAML 1.1


def test_yaml_null_and_mapping(tmp_path):
    config = yaml(tmp_path, "eval_filename: null\nlr_scheduler_kwargs: {num_cycles: 0.25}\n")
    _, data, training = parse(config, *REQUIRED)
    assert data.eval_filename is None and training.lr_scheduler_kwargs == {"num_cycles": 0.25}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nlearning_rat: 1\n", ":2: unknown key learning_rat; did you mean learning_rate?"),
        ("seed: 1\nseed: 2\n", ":2: seed is given twice (first at "),
        ("seed: one\n", ":1: seed: expected int, got 'one'"),
        ("max_steps: true\n", ":1: max_steps: expected int, got 'true'"),
        ("bf16: perhaps\n", ":1: bf16: expected true or false, got 'perhaps'"),
        ("\ndtype: int3\n", ":2: dtype: 'int3' is none of float32, bfloat16, float16"),
        ("seed: [1, 2]\n", ":1: seed takes one value, not a list"),
        ("seed:\n", ":1: seed needs a value"),
        ("seed: 1\n  x: [\n", ":2: not valid YAML"),
        ("- seed\n", ":1: expected `key: value` lines"),
        ("help: 1\n", ":1: unknown key help"),
    ],
)
def test_yaml_mistakes_name_file_and_line(tmp_path, capsys, text, expected):
    config = yaml(tmp_path, text)
    message = refusal(capsys, config, *REQUIRED)
    assert f"{config}{expected}" in message


def test_missing_config_file(capsys):
    assert refusal(capsys, "nowhere.yaml", *REQUIRED) == "error: config file nowhere.yaml does not exist"
    assert "more than one config file" in refusal(capsys, "a.yaml", "--config", "b.yaml", *REQUIRED)
    assert "--config: expected a YAML file" in refusal(capsys, *REQUIRED, "--config")


def test_the_launcher_may_put_local_rank_before_the_config(tmp_path):
    config = yaml(tmp_path, "learning_rate: 0.5\n")
    assert parse("--local_rank=0", config, *REQUIRED)[2].learning_rate == 0.5
    (model,) = parse_arguments(ModelArguments, argv=["--local_rank=0", "--model_name_or_path", "m"])
    assert model.model_name_or_path == "m"


def test_overwrite_and_resume_exclude_each_other(capsys):
    message = refusal(capsys, *REQUIRED, "--overwrite_output_dir", "--resume_from_checkpoint", "auto")
    assert "--overwrite_output_dir" in message and "--resume_from_checkpoint" in message


def test_a_setting_without_effect_warns(capsys):
    parse(*REQUIRED, "--lora_r", "4", "--max_steps", "3", "--num_train_epochs", "2")
    warnings = capsys.readouterr().err.splitlines()
    assert warnings[0].startswith("warning: --lora_r has no effect: adapters are only trained with --use_peft")
    assert warnings[1].startswith("warning: --num_train_epochs has no effect")
    parse(*REQUIRED, "--lora_r", "4", "--use_peft", "--num_train_epochs", "2")
    assert capsys.readouterr().err == ""


def test_settings_of_adapters_without_adapters_warn(capsys):
    flags = ["--use_rslora", "--use_dora", "--loraplus_lr_ratio", "4", "--init_lora_weights", "pissa"]
    parse(*REQUIRED, *flags)
    warnings = {line.split(" has no effect: adapters are only")[0] for line in capsys.readouterr().err.splitlines()}
    assert warnings == {f"warning: {flag}" for flag in flags if flag.startswith("--")}
    parse(*REQUIRED, *flags, "--use_peft")
    assert capsys.readouterr().err == ""
    assert "--load_in_4bit" in refusal(capsys, *REQUIRED, "--load_in_4bit")


@pytest.mark.parametrize(
    ("flags", "has_effect"),
    [([], False), (["--enable_joint_optimization"], True), (["--ptx_filename", "x.jsonl"], True)],
)
def test_the_size_of_auxiliary_minibatches(capsys, flags, has_effect):
    required = ["--model_name_or_path", "m", "--reward_model_path", "r", "--data_dir", "d", "--output_dir", "o"]
    parse_arguments(
        PPOModelArguments, PPODataArguments, PPOArguments, argv=[*required, "--ptx_batch_size", "3", *flags]
    )
    assert ("--ptx_batch_size has no effect" in capsys.readouterr().err) == (not has_effect)


def test_help_shows_our_flags_first_and_hides_the_hundred_others(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.index("--model_name_or_path") < text.index("--data_dir") < text.index("--output_dir")
    assert "--overwrite_output_dir" in text and "--no_" not in text.partition("Flags win")[0]
    assert "--adam_beta1" not in text and "--learning-rate" not in text
    with pytest.raises(SystemExit) as stop:
        parse("--help_all")
    assert stop.value.code == 0 and "--adam_beta1" in capsys.readouterr().out


def test_config_overrides():
    overrides = parse(*REQUIRED, "--config_overrides", "hidden_size=256,tie_word_embeddings=true,hidden_act=gelu")
    assert overrides[0].parsed_overrides() == {"hidden_size": 256, "tie_word_embeddings": True, "hidden_act": "gelu"}


@dataclass
class StageData(DataArguments):
    train_filename: str = field(default="ranked.jsonl", metadata={"help": "x"})
    on_shuffle: bool = field(default=True, metadata={"help": "x"})


def test_stages_may_give_defaults_and_add_flags():
    (data,) = parse_arguments(StageData, argv=["--data_dir", "d", "--no_on_shuffle"])
    assert data.train_filename == "ranked.jsonl" and data.on_shuffle is False
    assert str(data.path("x.jsonl")) == "d/x.jsonl" and str(data.path("/abs.jsonl")) == "/abs.jsonl"


def test_tensor_parallelism_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--tensor_parallel_size 2: .*ZeRO-3"):
        StageTrainingArguments(output_dir=str(tmp_path), tensor_parallel_size=2)
