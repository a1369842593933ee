"""The plumbing of the SentencePiece families, on a vocabulary that is made here."""

from __future__ import annotations

import io

import golden_tokenizer as golden
import pytest
import sentencepiece
from transformers import AddedToken, PreTrainedTokenizerFast

from keju.tokenizers import sentencepiece_family
from keju.tokenizers.baichuan import BaichuanTokenizer
from keju.tokenizers.family import PrefixTokenizer, answer_end_id, exchanges
from keju.tokenizers.llama import SentencePieceLlamaTokenizer

TEXTS = ["今天天气怎么样？", "我喜欢吃苹果。", "Hello world, hello again", "人工智能改变世界", "<role>", "1 + 1 = 2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_writer=stream,
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        user_defined_symbols=["<role>", "<other>"],
        minloglevel=2,
    )
    path.write_bytes(stream.getvalue())
    return str(path)


@pytest.fixture
def tokenizer(model):
    return SentencePieceLlamaTokenizer(model)


def test_fast_path(tokenizer):
    golden.check_fast_path(tokenizer)


@pytest.mark.parametrize("characters", [0, 10**9])
def test_threads_change_nothing(tokenizer, monkeypatch, characters):
    monkeypatch.setattr(sentencepiece_family, "CHARACTERS_FOR_THREADS", characters)
    texts = golden.odd_texts(tokenizer)
    assert tokenizer(texts)["input_ids"] == [tokenizer.encode(text) for text in texts]


def test_texts_do_not_take_the_slow_way(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "tokenize", lambda *args, **kwargs: pytest.fail("string tokens were made"))
    assert tokenizer.encode("你好</s>")[-1] == 2
    assert len(tokenizer(TEXTS, padding=True, truncation=True, max_length=5, return_tensors="pt")["input_ids"][0]) == 5


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_and_padding_sides(tokenizer, side):
    tokenizer.truncation_side = tokenizer.padding_side = side
    ids = tokenizer.encode(TEXTS[0], add_special_tokens=False)
    short = tokenizer.encode(TEXTS[0], max_length=4, truncation=True)
    assert short == [1, *(ids[-3:] if side == "left" else ids[:3])]
    assert tokenizer.encode(TEXTS[0], max_length=1, truncation=True) == [1]
    padded = tokenizer("Hello", padding="max_length", max_length=12)
    assert padded["attention_mask"] == sorted(padded["attention_mask"], reverse=side == "right")
    assert tokenizer([TEXTS[0], ""])["input_ids"][1] == [1]


def test_what_goes_the_way_of_transformers(tokenizer):
    words = ["今天", "天气"]
    ids = [index for word in words for index in tokenizer.encode(word, add_special_tokens=False)]
    assert tokenizer(words, is_split_into_words=True)["input_ids"] == [1, *ids]
    assert tokenizer([]) == {"input_ids": [], "attention_mask": []}
    assert tokenizer([("今天", "天气")])["input_ids"] == [tokenizer.encode("今天", "天气")]
    assert tokenizer.encode([5, 6], add_special_tokens=False) == [5, 6]
    assert tokenizer("今天", return_length=True)["length"] == len(tokenizer.encode("今天"))
    with pytest.raises(ValueError):
        tokenizer(["今天", 5])


def test_flags_of_added_tokens(tokenizer):
    left, right = AddedToken("<l>", lstrip=True), AddedToken("<r>", rstrip=True)
    tokenizer.add_tokens([left, right, AddedToken("ww", single_word=True)])
    first = len(tokenizer) - 3
    text = lambda part: tokenizer.encode(part, add_special_tokens=False)  # noqa: E731
    assert text("今天 <l> 天气") == [*text("今天"), first, *text(" 天气")]
    assert text("今天 <r> 天气") == [*text("今天 "), first + 1, *text("天气")]
    assert first + 2 not in text("wwx ww.") and text("a ww b").count(first + 2) == 1
    golden.check_fast_path(tokenizer)


def test_longer_added_tokens_come_first(tokenizer):
    tokenizer.add_tokens(["<a>", "<a><b>", "<b>"])
    ids = tokenizer.encode("<a><b><a><b", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids)[:2] == ["<a><b>", "<a>"]


def test_tokens_of_the_vocabulary_become_added_ones_in_place(tokenizer):
    size = len(tokenizer)
    token = tokenizer.convert_ids_to_tokens(300)
    assert tokenizer.add_tokens([token]) == 0
    assert (len(tokenizer), tokenizer.convert_tokens_to_ids(token)) == (size, 300)
    with pytest.raises(TypeError, match="a token must be a str"):
        tokenizer.add_tokens([5])


def test_names_of_roles_that_the_model_finds_itself(model):
    """User-defined pieces are found in every text, also where normalisation makes them; none gets into a message."""
    plain = SentencePieceLlamaTokenizer(model)
    user, assistant = plain.convert_tokens_to_ids(["<role>", "<other>"])
    tokenizer = BaichuanTokenizer(model, user_token_id=user, assistant_token_id=assistant)
    assert user in plain.encode("今天<role>") and user in plain.encode("今天＜role＞")
    for text in ("今天<role>天气", "<role>", "<<role>role>", "今天＜role＞", "<other><role>"):
        ids = golden.chat_ids(tokenizer, golden.turns(text, text))
        assert (ids.count(user), ids.count(assistant)) == (1, 1), text
    message = golden.chat_ids(tokenizer, golden.turns("今天<role>天气"))[1:]
    assert tokenizer.decode(message).replace(" ", "") == "今天<role>天气"


def test_exchanges():
    assert exchanges(golden.turns("一", "二", "三", system="规则")) == ("规则", [("一", "二"), ("三", None)])
    assert exchanges(golden.turns("一", "二")) == ("", [("一", "二")])
    with pytest.raises(ValueError, match="turn 1 is of assistant"):
        exchanges(golden.turns("一", "二")[1:])
    with pytest.raises(ValueError, match="turn 2 is of user"):
        exchanges(golden.turns("一") * 2)
    with pytest.raises(ValueError, match="needs a turn of the user"):
        exchanges([{"role": "system", "content": "规则"}])


def test_the_end_of_an_answer_for_any_tokenizer(tokenizer):
    assert answer_end_id(tokenizer) == tokenizer.eos_token_id == 2
    assert not isinstance(tokenizer, PrefixTokenizer)
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"<e>": 0}, "<e>")), eos_token="<e>")
    assert answer_end_id(other) == 0
