"""The stage from its command line: what it makes of which folder, and how it refuses."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from char_tokenizer import build_char_tokenizer
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from tiny_models import BUILDERS, FAMILIES, build, build_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from keju import convert
from keju.conversion.shards import write_shards
from keju.data_prepare.vocabulary import train_sentencepiece
from keju.models.loading import load_causal_lm, load_tokenizer
from keju.training.launch import run_guarded

IDS = torch.randint(90, (2, 20), generator=torch.Generator().manual_seed(1))


def run(monkeypatch, source, output, *flags) -> int:
    flags = ["--model_name_or_path", source, "--output_dir", output, *flags]
    monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, flags)])
    return run_guarded(convert.main)


def save_pickled(model, folder, num_shards: int = 1) -> None:
    """As folders were before safetensors."""
    folder.mkdir()
    model.config.save_pretrained(folder)
    build_char_tokenizer().save_pretrained(folder)
    state = model.state_dict()
    if num_shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return
    weight_map = {}
    for number in range(num_shards):
        part = dict(list(state.items())[number::num_shards])
        name = f"pytorch_model-{number + 1:05}-of-{num_shards:05}.bin"
        torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@torch.no_grad()
def logits_of(folder) -> torch.Tensor:
    return load_causal_lm(str(folder)).eval()(input_ids=IDS).logits


def last_line(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def assert_refused(code: int, capsys, tmp_path, *words: str) -> None:
    line = last_line(capsys)
    assert code == 2 and line.startswith("error: "), line
    for word in words:
        assert word in line, line
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("family", BUILDERS)
@torch.no_grad()
def test_pickles_become_safetensors(tmp_path, monkeypatch, capsys, family, num_shards):
    model = BUILDERS[family](vocab_size=97)
    save_pickled(model, tmp_path / "in", num_shards)
    assert run(monkeypatch, tmp_path / "in", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "equal, largest difference 0 " in printed and f"in {num_shards} file" in printed
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    torch.testing.assert_close(logits_of(tmp_path / "out"), model(input_ids=IDS).logits)
    assert load_tokenizer(str(tmp_path / "out")).get_vocab() == build_char_tokenizer().get_vocab()


def test_shards_are_split_and_merged(tmp_path, monkeypatch):
    build_llama().save_pretrained(tmp_path / "in")
    assert run(monkeypatch, tmp_path / "in", tmp_path / "split", "--max_shard_size", "20KB") == 0
    assert len(list((tmp_path / "split").glob("model-*-of-00007.safetensors"))) == 7
    assert run(monkeypatch, tmp_path / "split", tmp_path / "merged", "--max_shard_size", "1GB") == 0
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("in", "merged"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    ("family", "to", "class_name"),
    [
        ("baichuan-7B", "llama", "LlamaForCausalLM"),
        ("baichuan2-7B", "llama", "LlamaForCausalLM"),
        ("internlm", "llama", "LlamaForCausalLM"),
        ("qwen", "qwen2", "Qwen2ForCausalLM"),
        ("chatglm2", "glm", "GlmForCausalLM"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_architectures(tmp_path, monkeypatch, family, to, class_name, dtype):
    save_pickled(BUILDERS[family]().to(dtype), tmp_path / "in", num_shards=2)
    assert run(monkeypatch, tmp_path / "in", tmp_path / "out", "--to", to) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == to and config["architectures"] == [class_name]
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    # In transformers alone, as other programs read it.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert type(model).__name__ == class_name and type(model).__module__.startswith("transformers.")
    back = FAMILIES[family]["model_type"]
    assert run(monkeypatch, tmp_path / "out", tmp_path / "back", "--to", back) == 0
    assert json.loads((tmp_path / "back" / "config.json").read_text())["model_type"] == back


def test_dtype(tmp_path, monkeypatch):
    build_llama().save_pretrained(tmp_path / "in")
    assert run(monkeypatch, tmp_path / "in", tmp_path / "out", "--dtype", "bfloat16") == 0
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("in", "out"))
    assert all(torch.equal(before[key].bfloat16(), after[key]) for key in before)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights(tmp_path, monkeypatch, tied):
    """A pickle holds both names of one matrix; where the config ties them one is enough."""
    model = build_llama(tie_word_embeddings=True)
    model.config.tie_word_embeddings = tied
    save_pickled(model, tmp_path / "in")
    assert run(monkeypatch, tmp_path / "in", tmp_path / "out") == 0
    assert ("lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")) is not tied


@pytest.mark.parametrize("how", ["mean", "pieces"])
@pytest.mark.parametrize("family", BUILDERS)
def test_new_tokens(tmp_path, monkeypatch, family, how):
    tokenizer = build_char_tokenizer()
    size, ids = len(tokenizer), tokenizer.encode("成语解释", add_special_tokens=False)
    save_pickled(BUILDERS[family](vocab_size=size), tmp_path / "in")
    (tmp_path / "words.txt").write_text("成语\n解释\n", encoding="utf-8")
    flags = ["--add_tokens_file", tmp_path / "words.txt", "--add_special_tokens", "<turn>", "--new_embeddings", how]
    assert run(monkeypatch, tmp_path / "in", tmp_path / "out", *flags) == 0
    model, added = load_causal_lm(str(tmp_path / "out")), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert added.encode("成语解释<turn>", add_special_tokens=False) == [size, size + 1, size + 2]
    old = load_causal_lm(str(_as_safetensors(monkeypatch, tmp_path)))
    for matrix in ("get_input_embeddings", "get_output_embeddings"):
        before, after = (getattr(each, matrix)().weight for each in (old, model))
        assert len(after) == size + 3 and torch.equal(after[:size], before)
        expected = before[ids[:2]].mean(0) if how == "pieces" else before.mean(0)
        torch.testing.assert_close(after[size], expected)
    assert model.config.vocab_size == size + 3


def test_a_second_vocabulary(tmp_path, monkeypatch, capsys):
    """Llama with the pieces of another SentencePiece model behind its own, as Chinese-LLaMA was made."""
    own, other = (
        train_sentencepiece([text] * 20, 400)
        for text in ("守株待兔比喻不主动努力心存侥幸", "人工智能是计算机科学的一个分支")
    )
    source = tmp_path / "in"
    save_pickled(build_llama(vocab_size=SentencePieceProcessor(model_proto=own).get_piece_size()), source)
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.model").write_bytes(own)
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    (tmp_path / "other.model").write_bytes(other)
    flags = ["--add_pieces", tmp_path / "other.model", "--new_embeddings", "pieces"]
    assert run(monkeypatch, source, tmp_path / "out", *flags) == 0
    model, tokenizer = load_causal_lm(str(tmp_path / "out")), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) == model.config.vocab_size
    ids = tokenizer.encode("人工智能", add_special_tokens=False)
    assert max(ids) >= SentencePieceProcessor(model_proto=own).get_piece_size()
    assert tokenizer.decode(ids) == "人工智能"
    assert run(monkeypatch, source, tmp_path / "more", *flags, "--add_tokens", "新") == 2
    assert "--add_pieces and --add_tokens" in last_line(capsys)


def _as_safetensors(monkeypatch, tmp_path):
    assert run(monkeypatch, tmp_path / "in", tmp_path / "same") == 0
    return tmp_path / "same"


def test_new_tokens_in_spare_rows_of_another_architecture(tmp_path, monkeypatch):
    size = len(build_char_tokenizer())
    save_pickled(build("chatglm2", vocab_size=size + 5), tmp_path / "in")
    flags = ["--to", "glm", "--add_tokens", "成语", "解释"]
    assert run(monkeypatch, tmp_path / "in", tmp_path / "out", *flags) == 0
    weight = load_causal_lm(str(tmp_path / "out")).get_input_embeddings().weight
    assert len(weight) == size + 5
    torch.testing.assert_close(weight[size + 1], weight[:size].mean(0))


def test_a_wrong_conversion_leaves_nothing(tmp_path, monkeypatch, capsys):
    def wrong(tensors, folder, max_bytes):
        return write_shards(((name, tensor * 1.01) for name, tensor in tensors), folder, max_bytes)

    save_pickled(build_llama(), tmp_path / "in")
    monkeypatch.setattr(convert, "write_shards", wrong)
    assert_refused(run(monkeypatch, tmp_path / "in", tmp_path / "out"), capsys, tmp_path, "gives other logits")


def test_code_is_neither_run_nor_copied(tmp_path, monkeypatch):
    folder, mark = tmp_path / "in", tmp_path / "ran"
    save_pickled(build_llama(), folder)
    for name in ("modeling_evil.py", "tokenizer_evil.py"):
        (folder / name).write_text(f"open({str(mark)!r}, 'w')\nclass Model: pass\nConfig = Tokenizer = Model")
    for name, mapped in (
        ("config.json", {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["tokenizer_evil.Tokenizer", None]}),
    ):
        fields = json.loads((folder / name).read_text()) | {"auto_map": mapped}
        (folder / name).write_text(json.dumps(fields))
    assert run(monkeypatch, folder, tmp_path / "out") == 0
    assert not mark.exists() and not list((tmp_path / "out").glob("*.py"))
    assert "auto_map" not in (tmp_path / "out" / "config.json").read_text()
    assert "auto_map" not in (tmp_path / "out" / "tokenizer_config.json").read_text()


class Hostile:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (self.mark, "w")


def test_hostile_pickle(tmp_path, monkeypatch, capsys):
    save_pickled(build_llama(), tmp_path / "in")
    path = tmp_path / "in" / "pytorch_model.bin"
    torch.save({**torch.load(path, weights_only=True), "evil": Hostile(str(tmp_path / "ran"))}, path)
    assert_refused(run(monkeypatch, tmp_path / "in", tmp_path / "out"), capsys, tmp_path, str(path), "code")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: (folder / "pytorch_model-00002-of-00003.bin").unlink(), ["00002-of-00003.bin is missing"]),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "llama9"}'), ["config.json", "llama9"]),
        (lambda folder: (folder / "tokenizer.json").write_text('{"model":'), ["tokenizer.json:1", "damaged"]),
        (
            lambda folder: torch.save({"other": torch.ones(3)}, folder / "pytorch_model-00001-of-00003.bin"),
            ["00001-of-00003.bin", "lacks", "which the index names"],
        ),
    ],
)
def test_damaged_folders(tmp_path, monkeypatch, capsys, break_it, words):
    save_pickled(build_llama(), tmp_path / "in", num_shards=3)
    break_it(tmp_path / "in")
    assert_refused(run(monkeypatch, tmp_path / "in", tmp_path / "out"), capsys, tmp_path, *words)


def test_wrong_shapes_and_missing_weights(tmp_path, monkeypatch, capsys):
    save_pickled(build_llama(), tmp_path / "in")
    path = tmp_path / "in" / "pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    torch.save(state | {"model.norm.weight": torch.ones(3)}, path)
    words = "model.norm.weight has shape [3], LlamaForCausalLM expects [32]"
    assert_refused(run(monkeypatch, tmp_path / "in", tmp_path / "out"), capsys, tmp_path, str(tmp_path / "in"), words)
    torch.save({key: value for key, value in state.items() if key != "model.norm.weight"}, path)
    words = "lacks 1 weights of LlamaForCausalLM, first model.norm.weight"
    assert_refused(run(monkeypatch, tmp_path / "in", tmp_path / "out"), capsys, tmp_path, str(tmp_path / "in"), words)


def test_a_vocabulary_that_does_not_match(tmp_path, monkeypatch, capsys):
    save_pickled(build_llama(vocab_size=len(build_char_tokenizer()) - 2), tmp_path / "in")
    words = [f"has id {len(build_char_tokenizer()) - 1}", "rows"]
    assert_refused(run(monkeypatch, tmp_path / "in", tmp_path / "out"), capsys, tmp_path, *words)


def test_flags_that_cannot_be_followed(tmp_path, monkeypatch, capsys):
    source, output = tmp_path / "in", tmp_path / "out"
    save_pickled(build("baichuan-13B"), source)
    assert_refused(run(monkeypatch, tmp_path / "no", output), capsys, tmp_path, "no is not a folder")
    assert_refused(run(monkeypatch, source, output, "--to", "llama"), capsys, tmp_path, "ALiBi")
    assert_refused(run(monkeypatch, source, output, "--add_tokens", "一"), capsys, tmp_path, "'一' is a token")
    assert_refused(
        run(monkeypatch, source, output, "--max_shard_size", "5"),
        capsys,
        tmp_path,
        "--max_shard_size: give a number and a unit, such as 5GB, not 5",
    )
    for path in source.glob("tokenizer*"):
        path.unlink()
    assert_refused(run(monkeypatch, source, output, "--add_tokens", "新"), capsys, tmp_path, "holds no tokenizer")


def test_overwriting(tmp_path, monkeypatch, capsys):
    source, output = tmp_path / "in", tmp_path / "out"
    save_pickled(build_llama(), source)
    assert run(monkeypatch, source, output, "--max_shard_size", "20KB") == 0
    assert run(monkeypatch, source, output) == 2
    assert "--overwrite_output_dir" in last_line(capsys)
    assert run(monkeypatch, source, output, "--overwrite_output_dir") == 0
    assert [path.name for path in output.glob("model*")] == ["model.safetensors"]
