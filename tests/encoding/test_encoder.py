from __future__ import annotations

import pytest
from char_tokenizer import build_char_tokenizer
from rich.console import Console

from keju.encoding.dataset import encode_records
from keju.encoding.encoder import Encoder, TooLong
from keju.encoding.inspection import check_trees, example_table
from keju.records.record import Answer, ChatRecord, Message, RankedRecord, TextRecord
from keju.trees.segment import Segment

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def plain():
    return build_char_tokenizer(more="问答系统你好吗再见一二三四五\nabcdefghijklmnopqrstuvwxyz_")


@pytest.fixture
def chatml(plain):
    plain.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    plain.chat_template = CHATML
    return plain


def ranked(prompt="问", answers=(("答", 1), ("好", 0)), prefix="", system=None, where="f:1"):
    messages = (*([Message("system", system)] if system else []), Message("user", prompt))
    return RankedRecord(messages, tuple(Answer(text, score) for text, score in answers), prefix, where)


def text_of(tokenizer, ids) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(list(ids)))


def trained_text(tokenizer, tree) -> str:
    flags = tree.trained if not isinstance(tree.trained, bool) else [tree.trained] * len(tree.tokens)
    return text_of(tokenizer, [token for token, flag in zip(tree.tokens, flags, strict=True) if flag])


def test_plain_prompt_and_answers(plain):
    tree = Encoder(plain, 64).ranked_tree(ranked(system="系统"))
    assert text_of(plain, tree.tokens) == "<s>系统\n\n问\n" and tree.trained is False
    assert [text_of(plain, branch.tokens) for branch in tree.branches] == ["答</s>", "好</s>"]
    assert [branch.values["score"] for branch in tree.branches] == [1.0, 0.0]
    assert all(branch.trained is True for branch in tree.branches)


def test_no_blank_line_without_a_system_text(plain):
    assert text_of(plain, Encoder(plain, 64).ranked_tree(ranked()).tokens) == "<s>问\n"


def test_prefix_is_given_and_not_trained(plain):
    tree = Encoder(plain, 64).ranked_tree(ranked(prefix="你"))
    assert text_of(plain, tree.tokens) == "<s>问\n你"
    assert text_of(plain, tree.branches[0].tokens) == "答</s>"


def test_sft_takes_the_best_answer(plain):
    (tree,) = Encoder(plain, 64).sft_trees(ranked(answers=(("好", 0), ("答", 2), ("见", 1))))
    assert [text_of(plain, branch.tokens) for branch in tree.branches] == ["答</s>"]


def test_chat_template(chatml):
    tree = Encoder(chatml, 64).ranked_tree(ranked())
    assert text_of(chatml, tree.tokens) == "<|im_start|>user\n问<|im_end|>\n<|im_start|>assistant\n"
    # the newline that the template writes after the end of a turn is not part of the answer
    assert text_of(chatml, tree.branches[0].tokens) == "答<|im_end|>"


@pytest.mark.parametrize("name", ["plain", "chatml"])
def test_each_assistant_turn_is_trained_with_its_end(request, name):
    tokenizer = request.getfixturevalue(name)
    turns = [("user", "一"), ("assistant", "二三"), ("user", "四"), ("assistant", "五")]
    record = ChatRecord(tuple(Message(*turn) for turn in turns), "f:1")
    (tree,) = Encoder(tokenizer, 64).sft_trees(record)
    end = "</s>" if name == "plain" else "<|im_end|>"
    assert trained_text(tokenizer, tree) == f"二三{end}五{end}"
    # What is generated from is what was trained on: the prompt of the last turn is the beginning of the conversation.
    prompt = Encoder(tokenizer, 64).prompt_ids(record.messages[:3])
    assert list(tree.tokens[: len(prompt)]) == prompt


def test_turns_become_trees_where_a_template_rewrites_earlier_ones(chatml):
    chatml.chat_template = CHATML.replace("<|im_end|>", "{{ '<|im_end|>' if loop.last or m.role == 'user' }}")
    turns = [("user", "一"), ("assistant", "二三"), ("user", "四"), ("assistant", "五")]
    trees = Encoder(chatml, 80).sft_trees(ChatRecord(tuple(Message(*turn) for turn in turns), "f:1"))
    assert [text_of(chatml, tree.branches[0].tokens) for tree in trees] == ["二三<|im_end|>", "五<|im_end|>"]
    assert "assistant\n二三\n<|im_start|>user\n四<|im_end|>" in text_of(chatml, trees[1].tokens)


def test_documents_are_cut_without_losing_a_prediction(plain):
    record = TextRecord("一二三四五一二三四五", "f:1")
    whole = Encoder(plain, 64).text_trees(record)
    assert len(whole) == 1 and text_of(plain, whole[0].tokens) == "<s>一二三四五一二三四五</s>"
    pieces = Encoder(plain, 5).text_trees(record)
    assert all(len(piece.tokens) <= 5 for piece in pieces)
    predicted = [token for piece in pieces for token in list(piece.tokens)[1:]]
    assert predicted == list(whole[0].tokens)[1:]


def test_long_records(plain):
    record = ranked(prompt="一二三四五" * 3, answers=(("答" * 6, 1), ("好", 0)))
    with pytest.raises(TooLong, match="f:1: 24 tokens, more than --max_length 12"):
        Encoder(plain, 12, on_long="skip").ranked_tree(record)
    tree = Encoder(plain, 12, on_long="truncate").ranked_tree(record)
    # the end of the prompt behind its first token; the beginning of the answer, whose end is cut off
    assert text_of(plain, tree.tokens) == "<s>二三四五\n"
    assert [text_of(plain, branch.tokens) for branch in tree.branches] == ["答" * 6, "好</s>"]

    encoded = encode_records([record, ranked(where="f:2")], Encoder(plain, 12), "ranked")
    assert encoded.where == ["f:2"] and len(encoded.skipped) == 1 and encoded.skipped[0].startswith("f:1: ")
    with pytest.raises(TooLong):
        encode_records([record], Encoder(plain, 12, on_long="error"), "ranked")
    with pytest.raises(ValueError, match="no usable record of 1 read; first: f:1"):
        encode_records([record], Encoder(plain, 12), "ranked")


def check(tokenizer, tree, form="ranked", **options):
    check_trees([tree], ["f:1"], tokenizer, form=form, **options)


def test_what_is_surely_wrong_is_refused(plain):
    good = Encoder(plain, 64).ranked_tree(ranked())
    check(plain, good, vocab_size=len(plain))
    with pytest.raises(ValueError, match="outside the model's vocabulary of 50; --tokenizer_name"):
        check(plain, good, vocab_size=50)
    with pytest.raises(ValueError, match=r"no end token \(</s>\) is trained"):
        check(plain, Segment([1, 5], branches=[Segment([6, 7], True)]))
    with pytest.raises(ValueError, match=r"f:1: the pad token \(<pad>\) is trained"):
        check(plain, Segment([1, 5], branches=[Segment([6, 3, 2], True)]))
    with pytest.raises(ValueError, match="f:1: an empty answer"):
        check(plain, Segment([1, 5], branches=[Segment([2], True)]))
    with pytest.raises(ValueError, match="f:1: two <s> at the start"):
        check(plain, Segment([1, 1, 5], branches=[Segment([6, 2], True)]))
    with pytest.raises(ValueError, match="f:1: tokens of the prompt are trained"):
        check(plain, Segment([1, 5], trained=True, branches=[Segment([6, 2], True)]))


def test_example_table_shows_each_token(plain):
    console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(example_table(Encoder(plain, 64).ranked_tree(ranked()), plain))
    lines = [line for line in console.export_text().splitlines() if "│" in line]
    assert len(lines) == 7
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert [row[1] for row in cells] == ["<s>", "问", "\\n", "答", "</s>", "好", "</s>"]
    assert [row[3] for row in cells] == ["", "", "", "yes", "yes", "yes", "yes"]
    assert [row[4] for row in cells] == ["0", "1", "2", "3", "4", "3", "4"]
    assert cells[0][6] == "bos" and cells[4][6] == "eos" and cells[5][5] == "2 (score 0)"


def test_a_template_that_does_not_end_answers_gets_an_end_token(plain):
    plain.chat_template = "{% for m in messages %}{{ m.content }}_{% endfor %}"
    tree = Encoder(plain, 64).ranked_tree(ranked())
    assert text_of(plain, tree.tokens) == "问_"
    assert [text_of(plain, branch.tokens) for branch in tree.branches] == ["答_</s>", "好_</s>"]


def test_a_long_conversation_is_rendered_in_reasonable_time(plain):
    """Each turn once for each turn after it, not twice as often with every turn more."""
    calls = []
    encode = plain.encode
    plain.encode = lambda *args, **kwargs: calls.append(args) or encode(*args, **kwargs)
    turns = [Message("user" if number % 2 == 0 else "assistant", "一二") for number in range(40)]
    Encoder(plain, 1000).chat_trees(ChatRecord(tuple(turns), "f:1"))
    assert len(calls) < 40 * 40
