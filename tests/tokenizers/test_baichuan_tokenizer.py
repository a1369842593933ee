"""The Baichuan tokenizer on small vocabularies, against what the published ones gave (../shared/golden/baichuan-*)."""

from __future__ import annotations

import json
import shutil

import golden_tokenizer as golden
import pytest
from golden_tokenizer import chat_ids, turns

from keju.tokenizers.baichuan import BaichuanTokenizer

NUM_PAIRS = {"baichuan-7B": 33, "baichuan-13B": 57}  # without those that the original could not pad


@pytest.fixture(scope="module")
def folder(shared):
    return lambda size: shared / "golden" / size / "tokenizer_tinyvocab"


@pytest.fixture
def chat(folder):
    """As a chat model has it, with two pieces of the small vocabulary for roles."""
    return BaichuanTokenizer.from_pretrained(
        folder("baichuan-13B"), add_bos_token=False, user_token_id=195, assistant_token_id=196
    )


@pytest.mark.parametrize("size", NUM_PAIRS)
def test_texts_pairs_and_ids_equal_the_original(folder, size):
    tokenizer = BaichuanTokenizer.from_pretrained(folder(size))
    golden.check_texts(tokenizer, folder(size))
    assert golden.check_pairs(tokenizer, folder(size)) == NUM_PAIRS[size]
    info = json.loads((folder(size) / "tokenizer_info.json").read_text())
    assert len(tokenizer) == tokenizer.vocab_size == info["vocab_size"]
    assert tokenizer.special_tokens_map == info["special_tokens_map"] | {"pad_token": "<unk>"}
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert not tokenizer.chat_template
    with pytest.raises(ValueError, match="chat_template is not set"):
        chat_ids(tokenizer, turns("你好"))
    golden.check_vocabulary(tokenizer)


@pytest.mark.parametrize("size", NUM_PAIRS)
def test_what_holds_for_all_families(folder, tmp_path, size):
    tokenizer = BaichuanTokenizer.from_pretrained(folder(size), user_token_id=195, assistant_token_id=196)
    golden.check_fast_path(tokenizer)
    golden.check_round_trip(tokenizer, tmp_path / "saved")
    golden.check_chats(tokenizer)
    golden.check_added_tokens(tokenizer, tmp_path / "added")


def test_broken_folders(tmp_path, folder):
    model = folder("baichuan-7B") / "tokenizer.model"
    golden.check_broken_folders(BaichuanTokenizer, tmp_path, "tokenizer.model", model)


def test_special_tokens_inside_words_survive_a_save(folder, tmp_path):
    """single_word, which the published folder asks for, would make text of them."""
    tokenizer = BaichuanTokenizer.from_pretrained(folder("baichuan-13B"))
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, BaichuanTokenizer.from_pretrained(tmp_path)):
        assert each.encode("你好</s>世界")[2] == 2


@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize("end", [True, False])
def test_what_stands_around_a_text_is_kept(folder, tmp_path, begin, end):
    tokenizer = BaichuanTokenizer.from_pretrained(folder("baichuan-13B"), add_bos_token=begin, add_eos_token=end)
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, BaichuanTokenizer.from_pretrained(tmp_path)):
        text, other = (each.encode(part, add_special_tokens=False) for part in ("你好", "世界"))
        assert each.encode("你好") == [1] * begin + text + [2] * end
        assert each.encode("你好", "世界") == [1] * begin + text + [2] * end + [1] * begin + other + [2] * end
        mask = each("你好", return_special_tokens_mask=True)["special_tokens_mask"]
        assert mask == [1] * begin + [0] * len(text) + [1] * end


def test_conversations(chat, tmp_path):
    encode = lambda text: chat.encode(text, add_special_tokens=False)  # noqa: E731
    expected = [*encode("规则"), 195, *encode("一"), 196, *encode("二"), 195, *encode("三"), 196]
    messages = turns("一", "二", "三", "四", system="规则")
    assert chat_ids(chat, messages[:-1], add_generation_prompt=True) == expected
    assert chat_ids(chat, messages) == [*expected, *encode("四"), 2]
    text = chat.apply_chat_template(messages, tokenize=False)
    user, assistant = chat.convert_ids_to_tokens([195, 196])
    assert text == f"规则{user}一{assistant}二{user}三{assistant}四</s>"
    chat.save_pretrained(tmp_path)
    again = BaichuanTokenizer.from_pretrained(tmp_path)
    assert (again.user_token_id, again.assistant_token_id) == (195, 196)
    assert chat_ids(again, messages) == chat_ids(chat, messages)
    with pytest.raises(ValueError, match="give both or neither"):
        BaichuanTokenizer(chat.vocab_file, user_token_id=195)


def test_the_folders_generation_config_names_the_roles(folder, tmp_path):
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(folder("baichuan-13B") / name, tmp_path)
    assert BaichuanTokenizer.from_pretrained(tmp_path).chat_template is None
    (tmp_path / "generation_config.json").write_text(json.dumps({"user_token_id": 195, "assistant_token_id": 196}))
    tokenizer = BaichuanTokenizer.from_pretrained(tmp_path)
    assert chat_ids(tokenizer, turns("一"), add_generation_prompt=True)[0] == 195
    tokenizer.save_pretrained(tmp_path / "saved")
    assert BaichuanTokenizer.from_pretrained(tmp_path / "saved").assistant_token_id == 196


def test_role_tokens_that_the_model_knows_stay_text(shared, tmp_path):
    """A real vocabulary, in which such tokens are user-defined pieces: SentencePiece finds them in any text."""
    model = shared / "data" / "tokenizers" / "baichuan-m1" / "tokenizer.model"
    shutil.copy(model, tmp_path)
    plain = BaichuanTokenizer(str(model))
    user, assistant = plain.encode("<SEP><CLS>", add_special_tokens=False)
    tokenizer = BaichuanTokenizer(str(model), user_token_id=user, assistant_token_id=assistant)
    text = "你好<CLS>世界<SEP>"
    ids = chat_ids(tokenizer, turns(text, text))
    assert (ids.count(user), ids.count(assistant)) == (1, 1)
    message = ids[1 : ids.index(assistant)]
    assert tokenizer.decode(message) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text * 2
