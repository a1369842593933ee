"""Folders from which transformers would make some other tokenizer than theirs, or asks to run their code."""

from __future__ import annotations

import json

import pytest
from char_tokenizer import build_char_tokenizer

from keju.models.loading import load_tokenizer


def write(folder, *files, **fields):
    folder.mkdir()
    for name in files:
        (folder / name).write_bytes(b"\n")
    if fields:
        (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return folder


def refusal(folder) -> str:
    with pytest.raises(ValueError) as caught:
        load_tokenizer(str(folder))
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"tokenizer_name: no tokenizer loads from {folder}: ")
    return line


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("qwen.tiktoken", 'put a tokenizer_config.json with {"tokenizer_class": "QWenTokenizer"} beside it'),
        ("vocab.model", 'put a tokenizer_config.json with {"tokenizer_class": "GPTPanguTokenizer"} beside it'),
        ("cog-pretrain.model", 'put a tokenizer_config.json with {"tokenizer_class": "GLMChineseTokenizer"} beside it'),
        ("ice_text.model", 'put a tokenizer_config.json with {"tokenizer_class": "ChatGLMTokenizer"} beside it'),
        ("tokenizer.model", "(BaiChuanTokenizer, ChatGLM2Tokenizer, ChatGLMTokenizer, LlamaTokenizer, or another)"),
        ("other.model", "it holds a vocabulary, other.model, and does not say of which tokenizer"),
        ("vocab.json", "it holds a vocabulary, vocab.json, and does not say of which tokenizer"),
    ],
)
def test_a_vocabulary_alone(tmp_path, file, said):
    assert said in refusal(write(tmp_path / "bare", file))


@pytest.mark.parametrize("name", ["qwen", "pangu", "glm-chinese", "baichuan2", "chatglm2-6b", "llama", "internlm2"])
def test_published_vocabularies_alone(shared, name):
    """Those that are called tokenizer.model became a tokenizer without any of its family's special tokens."""
    assert "does not say of which tokenizer" in refusal(shared / "data" / "tokenizers" / name)


@pytest.mark.parametrize("model_type", ["chatglm", "llama", "somebody"])
def test_a_vocabulary_beside_a_model(tmp_path, model_type):
    folder = write(tmp_path / "bare", "tokenizer.model")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert "it holds a vocabulary, tokenizer.model" in refusal(folder)


@pytest.mark.parametrize("kind", ["InternLM2", "Xverse", "MiniCPM", "Somebody"])
@pytest.mark.parametrize("vocabulary", ["tokenizer.model", "tokenizer.json"])
def test_code_of_the_folder(tmp_path, kind, vocabulary):
    code = f"tokenization_{kind.lower()}.{kind}Tokenizer"
    for reference in ([code, None], code):
        folder = tmp_path / f"{type(reference).__name__}"
        fields = {"tokenizer_class": f"{kind}Tokenizer", "auto_map": {"AutoTokenizer": reference}}
        write(folder, "tokenizer.model", **fields)
        (folder / f"tokenization_{kind.lower()}.py").write_text("raise RuntimeError('code from a checkpoint ran')\n")
        if vocabulary == "tokenizer.json":
            build_char_tokenizer().save_pretrained(tmp_path / "rust")
            (tmp_path / "rust" / vocabulary).rename(folder / vocabulary)
        line = refusal(folder)
        assert (
            f"Python code of the folder's own, {code}, which is never run" in line and "PreTrainedTokenizerFast" in line
        )


def test_the_way_out_of_code(tmp_path):
    """What the refusal says to do works."""
    build_char_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"})
    )
    assert load_tokenizer(str(tmp_path)).get_vocab() == build_char_tokenizer().get_vocab()


def test_classes_that_nobody_knows(tmp_path):
    line = refusal(write(tmp_path / "one", "tokenizer.model", tokenizer_class="SomebodysTokenizer"))
    assert "tokenizer_class 'SomebodysTokenizer' is not known" in line
    build_char_tokenizer().save_pretrained(tmp_path / "two")
    fields = json.loads((tmp_path / "two" / "tokenizer_config.json").read_text())
    fields["tokenizer_class"] = "SomebodysTokenizer"
    (tmp_path / "two" / "tokenizer_config.json").write_text(json.dumps(fields))
    assert load_tokenizer(str(tmp_path / "two")).get_vocab() == build_char_tokenizer().get_vocab()


def test_no_vocabulary(tmp_path):
    """Qwen2's class of transformers makes a tokenizer of one token then."""
    assert "it holds no vocabulary of a Qwen2Tokenizer" in refusal(
        write(tmp_path / "a", tokenizer_class="Qwen2Tokenizer")
    )
    assert "it holds no tokenizer (neither tokenizer.json nor" in refusal(write(tmp_path / "b"))
    assert "lacks tokenizer.model" in refusal(write(tmp_path / "c", tokenizer_class="LlamaTokenizer"))


def test_bytes_need_no_vocabulary(tmp_path):
    write(tmp_path / "bytes", tokenizer_class="ByT5Tokenizer", eos_token="</s>")
    assert load_tokenizer(str(tmp_path / "bytes")).encode("ab")
