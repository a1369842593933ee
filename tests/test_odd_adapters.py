"""Adapters of other kinds than ours, and over other vocabularies: merged, loaded and evaluated right, or refused."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from char_tokenizer import build_char_tokenizer
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import BUILDERS, build_llama
from transformers import AutoModelForCausalLM

from keju import merge, pred_pretrain, train_dpo, train_sft
from keju.models.loading import load_causal_lm
from keju.records.writing import write_jsonl
from keju.training.launch import run_guarded

IDS = torch.tensor([[1, 5, 6, 7, 8]])
MORE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    tokenizer = build_char_tokenizer()
    for name, fields in (("base", {}), ("tied", {"tie_word_embeddings": True})):
        model = build_llama(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, **fields)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = [
        {"prompt": text, "answers": [{"answer": "ab", "score": 1}, {"answer": "ba", "score": 0}]} for text in "abcd"
    ]
    write_jsonl(folder / "ranked_train.jsonl", rows)
    return folder


def adapt(folder, output, config, *, base="base", more=0):
    """Trained adapters as PEFT saves them, and what they give."""
    model = load_causal_lm(str(folder / base)).requires_grad_(False)
    if more:
        model.resize_token_embeddings(model.config.vocab_size + more, mean_resizing=False)
    adapted = get_peft_model(model, config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(output)
    build_char_tokenizer().save_pretrained(output)
    return adapted


def run(monkeypatch, stage, source, output, *flags, folder) -> int:
    argv = [f"{stage.__name__}.py", "--model_name_or_path", source, "--output_dir", output, *flags]
    if stage is not merge:
        argv += ["--data_dir", folder, "--use_cpu"] if stage is not pred_pretrain else ["--data_dir", folder]
    if stage in (train_sft, train_dpo):
        argv += ["--max_steps", 1, "--learning_rate", 1e-9, "--eval_filename", "", "--save_strategy", "no"]
    monkeypatch.setattr(sys, "argv", [str(part) for part in argv])
    return run_guarded(stage.main)


def logits(path, ids=IDS) -> torch.Tensor:
    with torch.no_grad():
        return load_causal_lm(str(path)).eval()(ids, use_cache=False).logits


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected.detach(), atol=3e-4, rtol=3e-4)


LORA = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6}
BOTH = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}


@pytest.mark.parametrize(
    ("base", "settings", "more"),
    [
        ("base", BOTH, MORE),
        ("tied", BOTH, MORE),
        ("tied", BOTH, 0),
        ("tied", {"target_modules": ["embed_tokens", "q_proj"]}, 0),
        ("tied", {"target_modules": ["lm_head", "q_proj"]}, 0),
        ("tied", {"target_modules": ["lm_head", "embed_tokens"], "use_rslora": True}, 0),
        ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, 0),
        ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, 0),
        ("base", {"target_modules": ["embed_tokens", "q_proj"]}, 0),
        ("base", {"target_modules": ["q_proj", "lm_head"], "rank_pattern": {"lm_head": 2}}, 0),
    ],
    ids=str,
)
def test_embeddings_and_heads(monkeypatch, folder, tmp_path, base, settings, more):
    """Loaded, merged, and the start of a stage: each gives what PEFT gives; where embedding and head were one and the
    adapters are on one of the two, they are two afterwards."""
    adapted = adapt(folder, tmp_path / "adapters", LoraConfig(**LORA, **settings), base=base, more=more)
    ids = torch.tensor([[1, 5, adapted.config.vocab_size - 1, 7, 8]])
    expected = adapted(ids, use_cache=False).logits
    assert_near(logits(tmp_path / "adapters", ids), expected)
    assert run(monkeypatch, merge, tmp_path / "adapters", tmp_path / "merged", folder=folder) == 0
    assert_near(logits(tmp_path / "merged", ids), expected)
    assert_near(AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()(ids).logits, expected)
    for number, flags in enumerate(([], ["--adapters", "merge"])):
        run_folder = tmp_path / f"run{number}"
        names = ["--train_filename", "ranked_train.jsonl"]
        assert run(monkeypatch, train_sft, tmp_path / "adapters", run_folder, *names, *flags, folder=folder) == 0
        assert_near(logits(run_folder, ids), expected)


def test_a_computed_head_stays_one(monkeypatch, tmp_path, folder):
    """transformers makes a plain head where it resizes, which this family has not."""
    BUILDERS["baichuan2-7B"](bos_token_id=1, eos_token_id=2).save_pretrained(tmp_path / "base")
    settings = {"target_modules": ["o_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    model = load_causal_lm(str(tmp_path / "base"))
    kind = type(model.lm_head)
    model.resize_token_embeddings(113, mean_resizing=False)
    model.lm_head.__class__ = kind
    adapted = get_peft_model(model.requires_grad_(False), LoraConfig(**LORA, **settings)).eval()
    adapted.base_model.model.lm_head.modules_to_save["default"].weight.data *= 2  # which changes nothing
    adapted.save_pretrained(tmp_path / "adapters")
    assert_near(logits(tmp_path / "adapters"), adapted(IDS, use_cache=False).logits)


def test_an_embedding_of_more_tokens_without_its_head(monkeypatch, folder, tmp_path, capsys):
    config = LoraConfig(**LORA, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    adapt(folder, tmp_path / "adapters", config, base="tied", more=MORE)
    path = tmp_path / "adapters" / "adapter_model.safetensors"
    state = {name: tensor for name, tensor in load_file(path).items() if "lm_head" not in name}
    save_file(state, path, metadata={"format": "pt"})
    for stage in (merge, train_sft, pred_pretrain):
        assert run(monkeypatch, stage, tmp_path / "adapters", tmp_path / "out", folder=folder) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        if stage is not train_sft:  # which looks for its records first
            assert "not both embedding and head of that size are saved with them" in line


PROMPT = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
KINDS = {
    "prompt": (PromptTuningConfig(**PROMPT), "adapters of the kind PROMPT_TUNING are not supported"),
    "prefix": (PrefixTuningConfig(**PROMPT), "adapters of the kind PREFIX_TUNING are not supported"),
    "ia3": (
        IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        "adapters of the kind IA3 are not supported; LoRA, rsLoRA and DoRA are",
    ),
    "tokens": (
        LoraConfig(**LORA, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [3, 4]}),
        "adapters with trainable_token_indices are not supported",
    ),
    "biases": (LoraConfig(**LORA, target_modules=["q_proj"], bias="all"), 'trained biases of the base ("bias": "all")'),
    "pissa": (
        LoraConfig(**LORA, target_modules=["q_proj"], init_lora_weights="pissa"),
        "a base that pissa has changed",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_are_refused_everywhere(monkeypatch, folder, tmp_path, capsys, kind):
    config, said = KINDS[kind]
    adapt(folder, tmp_path / "adapters", config)
    for stage in (merge, train_sft, train_dpo, pred_pretrain):
        capsys.readouterr()
        flags = ["--adapters", "merge"] if stage is train_dpo else []
        assert run(monkeypatch, stage, tmp_path / "adapters", tmp_path / "out", *flags, folder=folder) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("error: --model_name_or_path: ") and said in line
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", [merge, train_sft, pred_pretrain])
def test_a_base_that_is_null(monkeypatch, folder, tmp_path, capsys, stage):
    adapt(folder, tmp_path / "adapters", LoraConfig(**LORA, target_modules=["q_proj"]))
    path = tmp_path / "adapters" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
    assert run(monkeypatch, stage, tmp_path / "adapters", tmp_path / "out", folder=folder) == 2
    assert "base_model_name_or_path must name the base" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("damage", ["missing", "left over", "cut short", "no file"])
def test_weights_that_are_not_those_of_the_adapters(monkeypatch, folder, tmp_path, capsys, damage):
    """PEFT loads what fits, and says nothing where merging needs the rest."""
    adapt(folder, tmp_path / "adapters", LoraConfig(**LORA, target_modules=["q_proj"]))
    path = tmp_path / "adapters" / "adapter_model.safetensors"
    state = load_file(path)
    name = next(name for name in state if "lora_B" in name)
    if damage == "missing":
        del state[name]
    elif damage == "left over":
        state[name.replace("q_proj", "k_proj")] = state[name].clone()
    save_file(state, path, metadata={"format": "pt"})
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "no file":
        path.unlink()
    assert run(monkeypatch, merge, tmp_path / "adapters", tmp_path / "out", folder=folder) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: --model_name_or_path: ") and str(tmp_path / "adapters") in line
    with pytest.raises(ValueError, match="^model_name_or_path: "):
        load_causal_lm(str(tmp_path / "adapters"))


def test_an_embedding_that_is_the_head(monkeypatch, folder, tmp_path, capsys):
    """GLM reads and writes with one matrix: adapters change what is read alone."""
    BUILDERS["glm"]().save_pretrained(tmp_path / "glm")
    shutil.copytree(tmp_path / "glm", folder / "glm", dirs_exist_ok=True)
    config = LoraConfig(**LORA, target_modules=["word_embeddings", "query_key_value"])
    adapt(folder, tmp_path / "adapters", config, base="glm")
    assert run(monkeypatch, merge, tmp_path / "adapters", tmp_path / "out", folder=folder) == 2
    assert "which is the same layer; they cannot be merged" in capsys.readouterr().err.strip().splitlines()[-1]
    plain = PeftModel.from_pretrained(load_causal_lm(str(folder / "glm")), tmp_path / "adapters").eval()
    ids = torch.tensor([[4, 9, 12, 7, 20, 21]])
    assert plain(ids, use_cache=False).logits.isfinite().all()
