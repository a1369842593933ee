"""The small vocabulary: the same ids as SentencePiece, nothing unknown, nothing changed on the way back."""

import json

import pytest
import sentencepiece
from transformers import AutoTokenizer

from keju.data_prepare.vocabulary import save_tokenizer, train_sentencepiece

TEXTS = [
    f"成语：{word}。解释：{explanation}出自《{book}·第{number}回》"
    for number, (word, explanation, book) in enumerate(
        [
            ("画龙点睛", "原形容张僧繇作画的神妙。后多比喻写文章或讲话时，在关键处用几句话点明实质。", "名画记"),
            ("守株待兔", "比喻不主动努力，而存万一的侥幸心理，希望得到意外的收获。", "韩非子"),
            ("刻舟求剑", "比喻不懂事物已发展变化而仍静止地看问题。", "吕氏春秋"),
            ("掩耳盗铃", "比喻自己欺骗自己，明明掩盖不住的事情偏要想法子掩盖。", "吕氏春秋"),
        ]
        * 5
    )
]


@pytest.fixture(scope="module")
def model():
    return train_sentencepiece(TEXTS, 2000)


@pytest.fixture(scope="module")
def tokenizer(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(model, folder)
    return AutoTokenizer.from_pretrained(folder)


def ids_without_bos(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


ODD = [
    "画龙点睛",
    " 前后 有  空格 ",
    "第一行\n\n第二行\r\n\t制表",
    "表情🐉👨‍👩‍👧，生僻字𠮷龘，e\u0301 é",
    "全角ＡＢＣ １２３，half-width ABC 123",
    "SentencePiece writes \u2581 for a space",
    "<0x0A> is written, not a byte",
    "a<s>b</s>c<pad>d<unk>e",
    "\u3000\u200b\ufeff",
    "",
]


@pytest.mark.parametrize("text", ODD)
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(ids_without_bos(tokenizer, text)) == text


@pytest.mark.parametrize("text", [text for text in ODD if "<s>" not in text] + TEXTS[:4])
def test_ids_are_those_of_sentencepiece_but_for_spaces(tokenizer, model, text):
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    text = text.replace(" ", "").replace("\u2581", "")
    assert ids_without_bos(tokenizer, text) == reference.encode(text)


def test_special_tokens_and_their_ids(tokenizer):
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "<pad>"]) == [0, 1, 2, 3]
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id) == (0, 1)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 3)
    assert tokenizer.is_fast and tokenizer.chat_template is None


def test_bos_goes_in_front_and_eos_does_not_follow(tokenizer):
    ids = tokenizer.encode("守株待兔")
    assert ids == [1, *ids_without_bos(tokenizer, "守株待兔")]
    assert tokenizer("守株待兔")["input_ids"] == ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "守株待兔"


def test_special_tokens_inside_text_stay_special(tokenizer):
    ids = ids_without_bos(tokenizer, "画<s>龙</s>")
    assert ids.count(1) == 1 and ids[-1] == 2


def test_nothing_is_unknown(tokenizer):
    assert 0 not in ids_without_bos(tokenizer, "".join(map(chr, range(0x4E00, 0x9FFF, 7))) + "🐉\x00\x7f")


def test_characters_of_frequent_idioms_stay_single_pieces(tokenizer):
    for text in ("画龙点睛", "掩耳盗铃"):
        assert tokenizer.convert_ids_to_tokens(ids_without_bos(tokenizer, text)) == list(text)


def test_padding_side_left(tokenizer):
    batch = tokenizer(["画龙", "画龙点睛"], padding=True, padding_side="left")
    assert batch["input_ids"][0][:2] == [3, 3] and batch["attention_mask"][0][:2] == [0, 0]


def test_same_texts_give_the_same_file(model, tmp_path):
    save_tokenizer(model, tmp_path / "a")
    save_tokenizer(train_sentencepiece(TEXTS, 2000), tmp_path / "b")
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()


def test_few_characters_give_fewer_pieces_than_asked(tokenizer):
    characters = {character for text in TEXTS for character in text}
    assert 260 + len(characters) < len(tokenizer) <= 260 + len(characters) / 0.9 + 1


def test_size_too_small_names_the_flag_and_the_smallest_size(tmp_path):
    with pytest.raises(ValueError, match=r"^vocab_size: must be at least (\d+)") as caught:
        train_sentencepiece(TEXTS, 300)
    smallest = int(str(caught.value).split("at least ")[1].split()[0])
    save_tokenizer(train_sentencepiece(TEXTS, smallest), tmp_path)
    assert len(json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]) <= smallest
    with pytest.raises(ValueError, match="^vocab_size: must be at least"):
        train_sentencepiece(TEXTS, 100)
