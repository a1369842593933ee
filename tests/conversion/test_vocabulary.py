"""New tokens and their rows."""

from __future__ import annotations

import json

import pytest
import torch
from char_tokenizer import build_char_tokenizer
from tiny_models import BUILDERS

from keju.conversion.vocabulary import (
    Extension,
    add_pieces,
    add_tokens,
    check_pieces,
    check_saved,
    extend,
    read_tokens,
    vocabulary_weights,
)
from keju.models.loading import read_tokenizer


def rows(weight: torch.Tensor, extension: Extension, how: str) -> torch.Tensor:
    return dict(extend([("w", weight)], {"w"}, extension, how))["w"]


def test_rows_of_new_tokens():
    weight = torch.arange(8.0).view(4, 2)
    extension = Extension(("xy",), ("<z>",), 4, ((0, 2), (1,)))
    assert rows(weight, extension, "mean").tolist() == [*weight.tolist(), [3, 4], [3, 4]]
    assert rows(weight, extension, "pieces").tolist() == [*weight.tolist(), [2, 3], [2, 3]]
    assert rows(weight[:, 0], extension, "mean").tolist() == [0, 2, 4, 6, 3, 3]  # the bias of a head
    assert rows(weight.half(), extension, "mean").dtype == torch.float16


def test_spare_rows_are_used_first():
    weight = torch.cat([torch.arange(8.0).view(4, 2), torch.full((3, 2), 99.0)])
    extension = Extension(("xy",), ("<z>",), 4, ((0, 2), (1,)))
    assert rows(weight, extension, "mean").tolist() == [*weight[:4].tolist(), [3, 4], [3, 4], [99, 99]]


def test_other_tensors_stay():
    weight = torch.ones(4, 2)
    assert dict(extend([("other", weight)], {"w"}, Extension(("x",), (), 4, ((0,),)), "mean"))["other"] is weight


def test_tokens_of_a_tokenizer(tmp_path):
    tokenizer = build_char_tokenizer()
    size, ids = len(tokenizer), tokenizer.encode("成语解释", add_special_tokens=False)
    extension = add_tokens(tokenizer, ["成语"], ["<turn>"])
    assert extension == Extension(("成语",), ("<turn>",), size, (tuple(ids[:2]), (tokenizer.unk_token_id,) * 6))
    assert tokenizer.encode("成语解释<turn>", add_special_tokens=False) == [size, *ids[2:], size + 1]
    assert "<turn>" in tokenizer.all_special_tokens or tokenizer.added_tokens_decoder[size + 1].special
    check_saved(tokenizer, extension)
    with pytest.raises(ValueError, match="'<turn>'"):
        check_saved(tokenizer, Extension(("<turn>",), (), size, ((0,),)))
    with pytest.raises(ValueError, match="'解释' as one token"):
        check_saved(tokenizer, Extension(("解释",), (), size, ((0,),)))


@pytest.mark.parametrize(
    ("folder", "file", "name", "class_name"),
    [
        ("llama", "tokenizer.model", "tokenizer.model", "LlamaTokenizer"),
        ("llama", "tokenizer.model", "tokenizer.model", "BaichuanTokenizer"),
        ("chatglm2-6b", "tokenizer.model", "tokenizer.model", "ChatGLM2Tokenizer"),
        ("baichuan-m1", "tokenizer.model", "ice_text.model", "ChatGLMTokenizer"),
        ("glm-chinese", "cog-pretrain.model", "cog-pretrain.model", "GLMChineseTokenizer"),
        ("pangu", "vocab.model", "vocab.model", "GPTPanguTokenizer"),
        ("qwen", "qwen.tiktoken", "qwen.tiktoken", "QWenTokenizer"),
    ],
)
def test_tokens_of_every_family(shared, tmp_path, folder, file, name, class_name):
    """Real vocabularies, saved and loaded again; what has no new token in it keeps its ids."""
    (tmp_path / name).write_bytes((shared / "data" / "tokenizers" / folder / file).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": class_name}))
    tokenizer = read_tokenizer(str(tmp_path))
    before = tokenizer.encode("人工智能 hello")
    extension = add_tokens(tokenizer, ["人工智能体", "foobarbaz"], ["<|turn|>"])
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = read_tokenizer(str(tmp_path / "saved"))
    check_saved(saved, extension)
    assert saved.encode("人工智能 hello") == before
    assert extension.num_old == len(read_tokenizer(str(tmp_path)))


@pytest.mark.parametrize("tokens", [["一"], ["new", "new"], [" "]])
def test_tokens_that_cannot_be_added(tokens):
    with pytest.raises(ValueError, match="^add_tokens: "):
        add_tokens(build_char_tokenizer(), tokens, [])


def test_file_of_tokens(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("成语\n\n 解释 \n", encoding="utf-8")
    assert read_tokens(path) == ["成语", "解释"]
    path.write_text("成语\n解释\n成语\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"words.txt:3: '成语' is in line 1"):
        read_tokens(path)


@pytest.mark.parametrize("family", BUILDERS)
def test_every_family_names_its_matrices(family):
    model = BUILDERS[family](vocab_size=89)
    names = vocabulary_weights(model)
    weights = dict(model.named_parameters(remove_duplicate=False))
    assert names == {name for name, weight in weights.items() if weight.shape[0] == 89}


def test_a_vocabulary_is_merged_as_chinese_llama_was(shared, tmp_path):
    vocabularies = shared / "data" / "tokenizers"
    (tmp_path / "tokenizer.model").write_bytes((vocabularies / "llama" / "tokenizer.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    llama = read_tokenizer(str(tmp_path))
    chinese = vocabularies / "chinese-llama" / "chinese_sp.model"
    merged, extension = add_pieces(llama, chinese, tmp_path / "merged")
    assert len(merged) == 49953, "the published size of Chinese-LLaMA's vocabulary"
    assert extension.num_old == 32000 and extension.num_tokens == 49953
    check_pieces(merged, extension)
    text = "人工智能是计算机科学的一个分支。"
    ids = merged.encode(text, add_special_tokens=False)
    assert len(ids) < len(llama.encode(text, add_special_tokens=False)) / 2 and merged.decode(ids) == text
    assert merged.encode("Hello world") == llama.encode("Hello world")
    place = extension.plain.index("人工智能")
    assert list(extension.pieces[place]) == llama.sp_model.encode("人工智能")
    merged.save_pretrained(tmp_path / "saved")
    check_pieces(read_tokenizer(str(tmp_path / "saved")), extension)
    with pytest.raises(ValueError, match="chinese_sp.model has no piece that is new"):
        add_pieces(merged, chinese, tmp_path / "again")
    with pytest.raises(ValueError, match="tokenizer_config.json is not a SentencePiece model"):
        add_pieces(llama, tmp_path / "tokenizer_config.json", tmp_path / "broken")
    with pytest.raises(ValueError, match="are not those of one SentencePiece file"):
        add_pieces(build_char_tokenizer(), chinese, tmp_path / "other")
