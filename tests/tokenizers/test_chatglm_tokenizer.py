"""The tokenizer of ChatGLM-6B on a small vocabulary, against what the published one gave (../shared/golden/chatglm)."""

from __future__ import annotations

import json
import shutil

import golden_tokenizer as golden
import pytest
from golden_tokenizer import chat_ids, turns

from keju.tokenizers.chatglm import ChatGLMTokenizer
from keju.tokenizers.chatglm2 import ChatGLM2Tokenizer
from keju.tokenizers.family import answer_end_id

MASK, GMASK, SOP, EOP, END = 21200, 21201, 21204, 21205, 20002


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "chatglm" / "tokenizer_tinyvocab"


@pytest.fixture
def tokenizer(folder):
    return ChatGLMTokenizer.from_pretrained(folder)


def test_texts_and_pairs_equal_the_original(tokenizer, folder):
    golden.check_texts(tokenizer, folder)
    assert golden.check_pairs(tokenizer, folder) == 57


def test_ids_equal_the_original(tokenizer, folder):
    info = json.loads((folder / "tokenizer_info.json").read_text())
    assert len(tokenizer) == tokenizer.vocab_size == info["vocab_size"]
    assert tokenizer.special_tokens_map == info["special_tokens_map"]
    assert {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")} == {
        name: info["ids"][name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    assert answer_end_id(tokenizer) == info["ids"]["eop_token_id"] == EOP
    assert {GMASK, EOP} <= set(tokenizer.all_special_ids)
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("right", "right")
    golden.check_vocabulary(tokenizer, first=20000)  # the first ones are of images


def test_ids_of_images_come_first(tokenizer):
    assert tokenizer.convert_ids_to_tokens([0, 19999]) == ["<image_0>", "<image_19999>"]
    assert tokenizer.convert_tokens_to_ids(["<image_0>", "<image_19999>"]) == [0, 19999]
    assert min(tokenizer.encode("<image_0>")) > 20000
    ids = tokenizer.encode("今天", add_special_tokens=False)
    assert tokenizer.decode([7, *ids], skip_special_tokens=True) == "今天"


def test_what_holds_for_all_families(tokenizer, tmp_path):
    golden.check_fast_path(tokenizer)
    golden.check_round_trip(tokenizer, tmp_path / "saved")
    golden.check_chats(tokenizer)
    golden.check_added_tokens(tokenizer, tmp_path / "added")


def test_broken_folders(tmp_path, folder):
    golden.check_broken_folders(ChatGLMTokenizer, tmp_path, "ice_text.model", folder / "ice_text.model")


def test_blanks_come_back(tokenizer):
    for count in (1, 2, 79, 80, 81, 82, 160, 163):
        text = f"a{' ' * count}b\n\tc"
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_white_space_beside_special_tokens_is_dropped(tokenizer, tmp_path):
    """As transformers 4 did with tokens that were given as plain text, also after a save."""
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, ChatGLMTokenizer.from_pretrained(tmp_path)):
        encode = lambda text: each.encode(text, add_special_tokens=False)  # noqa: B023, E731
        assert encode("今天 \n<sop>  天气") == [*encode("今天"), SOP, *encode("天气")]


def test_later_folders_have_no_image_tokens(folder, tmp_path):
    shutil.copy(folder / "ice_text.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"num_image_tokens": 0, "eos_token": "<eop>"}))
    tokenizer = ChatGLMTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("今天天气") == [187, GMASK - 20000, SOP - 20000]
    assert tokenizer.eos_token_id == answer_end_id(tokenizer) == EOP - 20000
    tokenizer.save_pretrained(tmp_path / "saved")
    assert ChatGLMTokenizer.from_pretrained(tmp_path / "saved").encode("今天天气")[-1] == SOP - 20000


def test_masks_and_openings(tokenizer):
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    context = encode("今天")
    assert tokenizer.opening_ids(context) == tokenizer.encode("今天") == [*context, GMASK, SOP]
    assert tokenizer.opening_ids([*context, MASK]) == [*context, MASK, SOP]
    assert tokenizer.opening_ids([MASK, *context]) == [MASK, *context, END, SOP]
    output = tokenizer("[MASK]今天", "好", return_special_tokens_mask=True)
    assert output["special_tokens_mask"] == [0] * (1 + len(context)) + [1, 1] + [0] * len(encode("好")) + [1]
    assert tokenizer("今天", return_special_tokens_mask=True)["special_tokens_mask"] == [0] * len(context) + [1, 1]


def test_conversations(tokenizer):
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731

    def prompt(*texts, **kwargs):
        return chat_ids(tokenizer, turns(*texts, **kwargs), add_generation_prompt=True)

    assert prompt("你好") == tokenizer.encode("你好")
    assert prompt("一", "二", "三") == tokenizer.encode("[Round 0]\n问：一\n答：二\n[Round 1]\n问：三\n答：")
    assert prompt("一", system="规则") == tokenizer.encode("规则\n一")
    assert chat_ids(tokenizer, turns("你好", "好")) == [*tokenizer.encode("你好"), *encode("好"), EOP]
    assert chat_ids(tokenizer, turns("你好", "好")) == tokenizer("你好", "好")["input_ids"]
    render = lambda messages, **kwargs: tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)  # noqa: E731
    assert render(turns("一"), add_generation_prompt=True) == "一[gMASK]<sop>"
    text = render(turns("一", "二", "三", "四", system="规则"))
    assert text == "规则\n[Round 0]\n问：一\n答：二\n[Round 1]\n问：三\n答：[gMASK]<sop>四<eop>"


@pytest.mark.parametrize("version", ["chatglm2", "chatglm3"])
def test_a_folder_with_tokenizer_model_is_handed_over(shared, version):
    folder = shared / "golden" / version / "tokenizer_tinyvocab"
    tokenizer = ChatGLMTokenizer.from_pretrained(folder, chat_format=version)
    assert type(tokenizer) is ChatGLM2Tokenizer
    assert tokenizer.chat_format == version


def test_a_save_outlives_the_folder(folder, tmp_path, tokenizer):
    """What is written then is the model as completed on loading; it is not completed twice."""
    (tmp_path / "first").mkdir()
    shutil.copy(folder / "ice_text.model", tmp_path / "first")
    first = ChatGLMTokenizer.from_pretrained(tmp_path / "first")
    shutil.rmtree(tmp_path / "first")
    first.save_pretrained(tmp_path / "second")
    second = ChatGLMTokenizer.from_pretrained(tmp_path / "second")
    texts = golden.odd_texts(tokenizer)
    assert len(second) == len(tokenizer)
    assert second(texts)["input_ids"] == tokenizer(texts)["input_ids"]
