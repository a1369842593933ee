"""Published tokenizer folders through AutoTokenizer: our class, no code of theirs, no question asked."""

from __future__ import annotations

import builtins
import json
import shutil

import pytest
from transformers import AutoTokenizer

from keju.tokenizers.family import answer_end_id

# family -> (class, folder of tokenizer files under golden/, SentencePiece or tiktoken file under data/tokenizers/)
FOLDERS = {
    "pangu": ("PanguTokenizer", None, "pangu/vocab.model", "GPTPanguTokenizer"),
    "glm": ("GLMChineseTokenizer", None, "glm-chinese/cog-pretrain.model", "GLMChineseTokenizer"),
    "chatglm": ("ChatGLMTokenizer", "chatglm/tokenizer_tinyvocab", None, None),
    "chatglm2": ("ChatGLM2Tokenizer", "chatglm2/tokenizer_tinyvocab", None, None),
    "chatglm3": ("ChatGLM2Tokenizer", "chatglm3/tokenizer_tinyvocab", None, None),
    "baichuan-7B": ("BaichuanTokenizer", "baichuan-7B/tokenizer_tinyvocab", None, None),
    "baichuan-13B": ("BaichuanTokenizer", "baichuan-13B/tokenizer_tinyvocab", None, None),
    "qwen": ("QWenTokenizer", None, "qwen/qwen.tiktoken", "QWenTokenizer"),
    "llama": ("SentencePieceLlamaTokenizer", None, "llama/tokenizer.model", "LlamaTokenizer"),
}
MODELS = {"pangu": "gptpangu"}


@pytest.fixture(params=FOLDERS)
def published(request, shared, tmp_path):
    """(name of our class, folder) with config.json, tokenizer files and Python code that must not run."""
    name, folder, vocabulary, class_name = FOLDERS[request.param]
    if folder is not None:
        # Without what the originals gave: of a tokenizer.jsonl transformers takes the folder to have a tokenizer.json.
        ignored = shutil.ignore_patterns("*.jsonl", "tokenizer_info.json", "chat_inputs.json")
        shutil.copytree(shared / "golden" / folder, tmp_path, dirs_exist_ok=True, ignore=ignored)
    else:
        shutil.copy(shared / "data" / "tokenizers" / vocabulary, tmp_path)
        reference = [f"tokenization_{request.param}.{class_name}", None]
        auto_map = {} if request.param == "llama" else {"auto_map": {"AutoTokenizer": reference}}
        config = {"tokenizer_class": class_name, **auto_map}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    shutil.copy(shared / "golden" / MODELS.get(request.param, request.param) / "config.json", tmp_path)
    for file in ("tokenization_chatglm", "tokenization_baichuan", f"tokenization_{request.param}", "configuration_x"):
        (tmp_path / f"{file}.py").write_text("raise RuntimeError('code from a checkpoint ran')\n")
    return name, tmp_path


@pytest.mark.parametrize("trust_remote_code", [None, False, True])
def test_a_published_folder_loads_as_ours(published, trust_remote_code, monkeypatch):
    name, folder = published
    monkeypatch.setattr(builtins, "input", lambda *args: pytest.fail("asked whether to run code"))
    settings = {} if trust_remote_code is None else {"trust_remote_code": trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(folder, **settings)
    assert type(tokenizer).__name__ == name
    assert type(tokenizer).__module__.startswith("keju.")
    assert tokenizer.pad_token_id is not None and answer_end_id(tokenizer) is not None


def test_what_we_save_loads_as_ours(published, tmp_path):
    """Beside the config.json of the model, as the stages save it."""
    name, folder = published
    tokenizer = AutoTokenizer.from_pretrained(folder)
    saved = tmp_path / "saved"
    tokenizer.save_pretrained(saved)
    shutil.copy(folder / "config.json", saved)
    again = AutoTokenizer.from_pretrained(saved)
    assert type(again).__name__ == name
    for text in ("今天天气不错。", " a  b\n<sep>[gMASK]", "def f(x):\n    return x  # 😀"):
        assert again.encode(text) == tokenizer.encode(text)
    assert again.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(published, side):
    tokenizer = AutoTokenizer.from_pretrained(published[1])
    texts = ["今天天气不错。", "好", "我们一起去北京。"]
    rows = [tokenizer.encode(text) for text in texts]
    batch = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
    width = max(map(len, rows))
    for row, ids, mask in zip(rows, batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True):
        pads = [tokenizer.pad_token_id] * (width - len(row))
        assert ids == (pads + row if side == "left" else row + pads)
        assert mask == ([0] * len(pads) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(pads))
    padded = tokenizer.pad({"input_ids": rows}, padding="max_length", max_length=width + 3, padding_side=side)
    assert {len(row) for row in padded["input_ids"]} == {width + 3}
    tokenizer.padding_side = side
    assert tokenizer(texts, padding=True)["input_ids"] == batch["input_ids"].tolist()
