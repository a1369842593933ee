"""Merging adapters: the same outputs, whole folders, and nothing where something is wrong."""

import json
import sys

import pytest
import torch
from char_tokenizer import build_char_tokenizer
from peft import LoraModel, PeftModel
from safetensors.torch import load_file, save_file
from tiny_models import build_llama, build_pangu
from transformers import AutoTokenizer

from keju import merge
from keju.models.loading import load_causal_lm, load_scalar_model
from keju.training.adapters import add_lora
from keju.training.launch import run_guarded

IDS = torch.tensor([[1, 5, 6, 7, 8]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Adapters of a causal model and of a reward model over a Llama, and over a PanGu."""
    folder = tmp_path_factory.mktemp("merge")
    tokenizer = build_char_tokenizer()
    for family, build in (("llama", build_llama), ("pangu", build_pangu)):
        build(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2).save_pretrained(folder / family)
        for kind, load in (("CAUSAL_LM", load_causal_lm), ("SEQ_CLS", load_scalar_model)):
            model = add_lora(load(str(folder / family)).requires_grad_(False), task_type=kind, r=4, alpha=8)
            torch.manual_seed(0)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    torch.nn.init.normal_(parameter, std=0.2)
            model.save_pretrained(folder / f"{family}-{kind}")
            tokenizer.save_pretrained(folder / f"{family}-{kind}")
    return folder


def run(monkeypatch, source, output, *flags) -> int:
    argv = ["merge.py", "--model_name_or_path", str(source), "--output_dir", str(output), *flags]
    monkeypatch.setattr(sys, "argv", argv)
    return run_guarded(merge.main)


@pytest.mark.parametrize("family", ["llama", "pangu"])
@pytest.mark.parametrize("kind", ["CAUSAL_LM", "SEQ_CLS"])
def test_merged_outputs_are_those_of_the_adapters(monkeypatch, folder, tmp_path, capsys, family, kind):
    load = load_causal_lm if kind == "CAUSAL_LM" else load_scalar_model
    assert run(monkeypatch, folder / f"{family}-{kind}", tmp_path / "out") == 0
    merged, plain = load(str(tmp_path / "out")), load(str(folder / family))
    adapted = PeftModel.from_pretrained(load(str(folder / family)), folder / f"{family}-{kind}").eval()
    torch.testing.assert_close(merged(IDS).logits, adapted(IDS).logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(merged(IDS).logits, plain(IDS).logits, atol=1e-2)
    assert not any("lora" in name for name in load_file(tmp_path / "out" / "model.safetensors"))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == build_char_tokenizer().get_vocab()
    figures = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert figures["largest_difference"] < 1e-4 * figures["scale"]
    assert "differ by at most" in capsys.readouterr().out


def test_half_precision_tells_its_difference(monkeypatch, folder, tmp_path):
    assert run(monkeypatch, folder / "llama-CAUSAL_LM", tmp_path / "out", "--dtype", "bfloat16") == 0
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["largest_difference"] > 1e-4


def test_a_wrong_scale_leaves_nothing_behind(monkeypatch, folder, tmp_path, capsys):
    merge_and_unload = LoraModel.merge_and_unload

    def wrong(model, **settings):
        for module in model.modules():
            if isinstance(getattr(module, "scaling", None), dict):
                module.scaling["default"] *= 1.01
        return merge_and_unload(model, **settings)

    monkeypatch.setattr(LoraModel, "merge_and_unload", wrong)
    assert run(monkeypatch, folder / "llama-CAUSAL_LM", tmp_path / "out") == 2
    assert "gives other logits" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_weights_that_change_on_disk_leave_nothing_behind(monkeypatch, folder, tmp_path):
    merge_and_unload = LoraModel.merge_and_unload

    def damaged(model, **settings):
        merged = merge_and_unload(model, **settings)
        write = merged.save_pretrained

        def spoil(target):
            write(target)
            weights = load_file(target / "model.safetensors")
            weights["model.norm.weight"] *= 1.1
            save_file(weights, target / "model.safetensors", metadata={"format": "pt"})

        merged.save_pretrained = spoil
        return merged

    monkeypatch.setattr(LoraModel, "merge_and_unload", damaged)
    assert run(monkeypatch, folder / "llama-CAUSAL_LM", tmp_path / "out") == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("source", "said"), [("llama", "holds no adapters"), ("nowhere", "holds no adapters"), ("lost", "does not exist")]
)
def test_mistakes_are_one_line(monkeypatch, folder, tmp_path, capsys, source, said):
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "adapter_config.json").write_text('{"base_model_name_or_path": "/nowhere/base"}')
    where = tmp_path / source if source == "lost" else folder / source
    assert run(monkeypatch, where, tmp_path / "out") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and said in line and not (tmp_path / "out").exists()
